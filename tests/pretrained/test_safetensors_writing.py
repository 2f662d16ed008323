"""What is written is what was given, byte for byte what the package `safetensors` writes, and all of it or nothing."""

import json
import os
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gen_jax.pretrained import safetensors
from tests.safetensors_files import TYPES, arrays, parts, same


def drawn(dtype, shape, seed=0):
    """Any bytes; a truth value is 0 or 1."""
    dtype = np.dtype(dtype)
    high = 2 if dtype == np.bool_ else 256
    raw = np.random.default_rng(seed).integers(0, high, (*shape, dtype.itemsize), np.uint8)
    return raw.view(dtype).reshape(shape)


dtypes, shapes = st.sampled_from(sorted(TYPES)), st.lists(st.integers(0, 4), max_size=4).map(tuple)
named = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
sets_of_arrays = st.dictionaries(named, st.tuples(dtypes, shapes), max_size=8)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(described=sets_of_arrays, metadata=st.none() | st.dictionaries(texts, texts, max_size=3))
@settings(max_examples=100, deadline=None)
def test_write_is_read_back(described, metadata, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round.safetensors"
    given = {name: drawn(TYPES[d], shape, i) for i, (name, (d, shape)) in enumerate(described.items())}
    safetensors.write(path, given, metadata)
    found = safetensors.read(path)
    assert found.metadata == ({"format": "pt"} if metadata is None else metadata)
    assert set(found) == set(given)
    independent = arrays(path.read_bytes())
    for name, x in given.items():
        assert same(found[name], x)
        assert same(independent[name], x)
        assert (found.dtypes[name], found.shapes[name]) == (x.dtype, x.shape)


@given(described=sets_of_arrays, metadata=st.none() | st.dictionaries(texts, texts, max_size=1))
@settings(max_examples=100, deadline=None)
def test_write_is_the_package_byte_for_byte(described, metadata, tmp_path_factory):
    """With one text of metadata: the package writes more of them in any order, and `{},"__metadata__":{}}` of nothing."""
    package = pytest.importorskip("safetensors.numpy")
    assume(described or metadata != {})
    path = tmp_path_factory.getbasetemp() / "same.safetensors"
    given = {name: drawn(TYPES[d], shape, i) for i, (name, (d, shape)) in enumerate(described.items())}
    safetensors.write(path, given, metadata)
    assert path.read_bytes() == package.save(given, {"format": "pt"} if metadata is None else metadata)


def test_write_takes_what_arrays_there_are(tmp_path):
    path = tmp_path / "x.safetensors"
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors.write(
        path,
        {
            "transposed": x.T,
            "every other": x[:, ::2],
            "big-endian": x.astype(">f4"),
            "jax": jnp.asarray(x, jnp.bfloat16),
            "a number": np.float16(2.5),
            "of Python": 2.5,
        },
    )
    found = safetensors.read(path)
    for name, expected in {
        "transposed": x.T,
        "every other": x[:, ::2],
        "big-endian": x,
        "jax": x.astype(ml_dtypes.bfloat16),
        "a number": np.array(2.5, np.float16),
        "of Python": np.array(2.5),
    }.items():
        assert same(found[name], expected), name
    safetensors.write(tmp_path / "again.safetensors", found)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_write_gathers_arrays_of_several_devices_and_keeps_no_copy(tmp_path):
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = np.arange(2**19, dtype=np.float32).reshape(512, 1024)
    given = {
        str(spec): jax.device_put(x, NamedSharding(mesh, spec))
        for spec in (P(), P("a"), P("b"), P("a", "b"), P(("a", "b")), P(None, "b"))
    }
    jax.block_until_ready(given)
    path = tmp_path / "x.safetensors"
    tracemalloc.start()
    safetensors.write(path, given)
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 2**19
    assert peak < 1.5 * x.nbytes
    for name, found in safetensors.read(path).items():
        assert same(found, x), name


def test_write_of_a_mapping_needs_memory_for_one_tensor(tmp_path):
    size = 2**22

    class Made(dict):
        def __getitem__(self, name):
            return np.full(size // 4, super().__getitem__(name), np.float32)

    tracemalloc.start()
    safetensors.write(tmp_path / "x.safetensors", Made({str(i): np.float32(i) for i in range(16)}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * size
    assert all((x == int(name)).all() for name, x in safetensors.read(tmp_path / "x.safetensors").items())


def test_write_refuses_a_header_that_would_not_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"too much for a header: 1 tensors, .*Take shards"):
        safetensors.write(tmp_path / "x.safetensors", {"x": np.zeros(2)}, {"list": "," * 2_000_000})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"__metadata__": np.zeros(2)}, "can not have the name '__metadata__'"),
        ({"x": np.zeros(2, np.complex128)}, "'x': safetensors files have no complex128, but uint64, .*bool"),
        ({"x": np.array(["a"])}, "have no <U1"),
        ({"x": np.array([None])}, "have no object"),
        ({"x": np.zeros(2, ml_dtypes.int4)}, "have no int4"),
        ({"x": jax.random.key(0)}, "have no key<fry>"),
    ],
)
def test_write_refuses_tensors(tensors, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        safetensors.write(tmp_path / "x.safetensors", {"before": np.zeros(2)} | tensors)
    assert list(tmp_path.iterdir()) == []


def test_write_refuses_names_of_files_that_are_not_read(tmp_path):
    with pytest.raises(ValueError, match=r"ends with \.safetensors as path, got .*x\.bin"):
        safetensors.write(tmp_path / "x.bin", {})


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path):
    class Failing(dict):
        def __getitem__(self, name):
            if name == "3" and list(tmp_path.glob(".incomplete-*/x.safetensors")):
                raise RuntimeError("no memory")
            return super().__getitem__(name)

    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"x": np.ones(3)})
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no memory"):
        safetensors.write(path, Failing({str(i): np.zeros(1000) for i in range(4)}))
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == before

    class Changing(dict):
        asked = 0

        def __getitem__(self, name):
            self.asked += 1
            return np.zeros(self.asked)

    with pytest.raises(ValueError, match="'x' is of another type or shape each time"):
        safetensors.write(path, Changing({"x": 0.0}))


def test_write_replaces_a_file_whose_arrays_are_in_use(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"x": np.ones(3), "y": np.zeros(2)})
    read = safetensors.read(path)
    safetensors.write(path, {"x": read["y"], "y": read["x"]})
    assert read["x"].tolist() == [1, 1, 1]
    assert safetensors.read(path)["x"].tolist() == [0, 0]


def test_written_files_have_the_usual_permissions(tmp_path):
    safetensors.write(tmp_path / "x.safetensors", {})
    (tmp_path / "y").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "y").stat().st_mode


ARRAYS = {
    name: drawn(np.float16, (n,), n) for name, n in (("c", 40), ("a", 30), ("big", 101), ("d", 60), ("b", 5))
}


def test_write_of_shards_fills_them_in_order(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(path, ARRAYS, max_shard_bytes=200)
    names = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {file.name for file in tmp_path.iterdir()} == {*names, "model.safetensors.index.json"}
    assert index["metadata"] == {"total_size": sum(x.nbytes for x in ARRAYS.values())}
    of = lambda i: {name for name, file in index["weight_map"].items() if f"-0000{i}-" in file}
    assert [of(i) for i in (1, 2, 3)] == [{"big"}, {"c", "a"}, {"d", "b"}]
    for name in names:
        assert parts((tmp_path / name).read_bytes())[0]["__metadata__"] == {"format": "pt"}
    found = safetensors.read(tmp_path)
    assert set(found) == set(ARRAYS)
    assert all(same(found[name], x) for name, x in ARRAYS.items())


def test_write_of_shards_is_that_of_the_hub(tmp_path):
    """diffusers writes the shards of `huggingface_hub`, and this index."""
    hub = pytest.importorskip("huggingface_hub.serialization._base")
    split = hub.split_state_dict_into_shards_factory(
        ARRAYS,
        get_storage_size=lambda x: x.nbytes,
        get_storage_id=lambda x: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=200,
    )
    safetensors.write(tmp_path / "model.safetensors", ARRAYS, max_shard_bytes=200)
    content = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    written = (tmp_path / "model.safetensors.index.json").read_text()
    assert written == json.dumps(content, indent=2, sort_keys=True) + "\n"


def test_write_of_one_shard_is_a_file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(path, ARRAYS, max_shard_bytes=10_000)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    safetensors.write(path, ARRAYS, max_shard_bytes=200)
    assert safetensors.read(tmp_path).path.name == "model.safetensors.index.json"
    os.remove(path)
    with pytest.raises(ValueError, match=r"index\.json would hide the new file"):
        safetensors.write(path, ARRAYS)
