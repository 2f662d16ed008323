"""Which files are read, and that reading copies nothing."""

import io
import json
import os
import pickle
import sys
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.pretrained import safetensors
from tests import tiny_sd
from tests.safetensors_files import TYPES, arrays, entry, framed

A = framed({"__metadata__": {"format": "pt", "of": "a"}, "a": entry("U8", (2,), (0, 2))}, b"\1\2")
B = framed(
    {"__metadata__": {"of": "b"}, "b": entry("U8", (), (0, 1)), "c": entry("U8", (1,), (1, 2))}, b"\3\4"
)
INDEX = {
    "metadata": {"total_size": 4, "more": [1.5, -1]},
    "weight_map": {
        "b": "x-00002-of-00002.safetensors",
        "a": "x-00001-of-00002.safetensors",
        "c": "x-00002-of-00002.safetensors",
    },
}
SHARDS = {
    "x.safetensors.index.json": INDEX,
    "x-00001-of-00002.safetensors": A,
    "x-00002-of-00002.safetensors": B,
}
PICKLE = pickle.dumps({"a": np.zeros(2)}, protocol=2)


def zipped():
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", PICKLE)
    return file.getvalue()


def folder(path, files):
    """A folder of files: bytes, or what is to be JSON."""
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def assert_frozen(tensors):
    for table in (tensors.shapes, tensors.dtypes, tensors.metadata, tensors.entries, tensors.files):
        with pytest.raises(TypeError):
            table["a"] = None


def test_read_gives_arrays_of_the_file_itself(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(A)
    tensors = safetensors.read(os.fspath(path))
    a = tensors["a"]
    assert isinstance(a, np.memmap)
    assert not a.flags.writeable
    assert tensors.path == path
    assert repr(tensors) == f"Tensors(1 of 2 bytes in {os.fspath(path)!r})"
    with path.open("r+b") as file:  # not what a user may do, but it shows whose memory it is
        file.seek(-2, os.SEEK_END)
        file.write(b"\7\7")
    assert a.tolist() == [7, 7]
    for attribute in ("path", "metadata"):
        with pytest.raises(AttributeError):
            setattr(tensors, attribute, None)
    assert_frozen(tensors)
    with pytest.raises(KeyError, match="'d'"):
        tensors["d"]


def test_read_of_a_large_file_copies_nothing(tmp_path):
    """500 MB, a hole in the file system."""
    path, count = tmp_path / "x.safetensors", 1700
    size = 2**16 * 4
    names = {
        f"block.{i}.weight": entry("F32", (2**8, 2**8), (i * size, (i + 1) * size)) for i in range(count)
    }
    path.write_bytes(framed(names))
    os.truncate(path, path.stat().st_size + count * size)
    tracemalloc.start()
    tensors = safetensors.read(path)
    all_of_them = dict(tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(x.nbytes for x in all_of_them.values()) > 4e8
    assert peak < 2e7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_an_array_is_given_back_with_it(tmp_path):
    """Also where a view outlives it, which reads the file again."""
    path, size = tmp_path / "x.safetensors", 2**24
    names = {str(i): entry("U8", (size,), (i * size, (i + 1) * size)) for i in range(8)}
    path.write_bytes(framed(names, b"\7" * 8 * size))
    tensors, views = safetensors.read(path), []
    before = mapped()
    for name in tensors:
        array = tensors[name]
        assert array.sum() == 7 * size
        views.append(array[:: 2**12])
        assert mapped() - before >= size / 2
        del array
        assert mapped() - before < size / 2
    assert all((view == 7).all() for view in views)


def mapped():
    """Bytes of files in the memory of this process."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("RssFile"))


def test_unaligned_arrays_go_to_devices(tmp_path):
    """Types that begin at odd bytes: nothing says that they may not."""
    rng = np.random.default_rng(0)
    header, data = {"odd": entry("U8", (1,), (0, 1))}, b"\1"
    for name, dtype in TYPES.items():
        more = rng.integers(0, 2, 3 * np.dtype(dtype).itemsize, np.uint8).tobytes()
        header[name] = entry(name, (3,), (len(data), len(data) + len(more)))
        data += more
    path = tmp_path / "x.safetensors"
    path.write_bytes(framed(header, data))
    tensors = safetensors.read(path)
    for name, expected in arrays(path.read_bytes()).items():
        if name not in ("F64", "I64", "U64"):  # JAX narrows them
            assert np.asarray(jnp.asarray(tensors[name])).tobytes() == expected.tobytes(), name
        assert (tensors[name] * 1).tobytes() == (expected * 1).tobytes(), name


@tiny_sd.needs_fixtures
def test_read_of_stable_diffusion_is_that_of_eight_lines():
    files = sorted(tiny_sd.ROOT.rglob("*.safetensors"))
    assert len(files) > 10
    for file in files:
        tensors, expected = safetensors.read(file), tiny_sd.tensors(file)
        assert tensors.shapes == {name: x.shape for name, x in expected.items()}
        assert all(tensors[name].tobytes() == x.tobytes() for name, x in expected.items())
    assert set(safetensors.read(tiny_sd.ROOT / "tiny-sd15" / "unet").path.parts) > {"unet", "tiny-sd15"}


def test_read_of_shards(tmp_path):
    folder(tmp_path, SHARDS)
    for path in (tmp_path, tmp_path / "x.safetensors.index.json"):
        tensors = safetensors.read(path)
        assert {name: x.tolist() for name, x in tensors.items()} == {"a": [1, 2], "b": 3, "c": [4]}
        assert tensors.metadata == {"format": "pt", "of": "a"}
        assert tensors.path == tmp_path / "x.safetensors.index.json"
        assert_frozen(tensors)


def test_read_follows_links(tmp_path):
    """As the caches of model hubs have them."""
    blobs = folder(tmp_path / "blobs", SHARDS)
    (tmp_path / "model").mkdir()
    for i, blob in enumerate(sorted(blobs.iterdir())):
        blob.rename(blobs / str(i))
        (tmp_path / "model" / blob.name).symlink_to(blobs / str(i))
    assert set(safetensors.read(tmp_path / "model")) == {"a", "b", "c"}


HALF = {"x.fp16.safetensors": A, "x.safetensors": B}
CHOICES = [
    # files, variant, names of the tensors
    ({"x.safetensors": A, "config.json": {}, "notes.md": b""}, None, "a"),
    ({"sd_xl_base_1.0.safetensors": A}, None, "a"),
    ({"x.fp16.safetensors": A}, None, "a"),
    ({"x.fp16.safetensors": A}, "fp16", "a"),
    (HALF, None, "bc"),
    (HALF, "fp16", "a"),
    (HALF | {"x.non_ema.safetensors": A}, None, "bc"),
    (HALF | {"x.bin": PICKLE, "._x.safetensors": b"\0\5\x16\7"}, None, "bc"),
    (SHARDS | {"x.safetensors": A}, None, "abc"),
    (SHARDS | {"x.fp16.safetensors": A}, None, "abc"),
    (SHARDS | {"x.fp16.safetensors": A}, "fp16", "a"),
    (SHARDS | {"x.safetensors.index.json": b"", "x.safetensors.index.fp16.json": INDEX}, "fp16", "abc"),
    (SHARDS | {"x.safetensors.index.fp16.json": INDEX, "x.fp16.safetensors": A}, "fp16", "abc"),
]


@pytest.mark.parametrize("case", range(len(CHOICES)))
def test_read_chooses_in_a_folder(case, tmp_path):
    files, variant, names = CHOICES[case]
    assert "".join(sorted(safetensors.read(folder(tmp_path, files), variant=variant))) == names


REFUSED = [
    # files, variant, message
    ({}, None, "expected one model in .*; got ''"),
    ({"config.json": {}}, None, "expected one model in .*; got 'config.json'"),
    ({"x.safetensors": A, "y.safetensors": B}, None, "expected one model .*; got 'x.safetensors' and 1 more"),
    ({"x.fp16.safetensors": A, "x.bf16.safetensors": B}, None, "'x.bf16.safetensors' and 1 more"),
    ({"x.safetensors": A}, "fp16", "of the variant 'fp16' in .*; got 'x.safetensors'"),
    ({"x.fp16.safetensors": A, "y.fp16.safetensors": A}, "fp16", "got 'x.fp16.safetensors' and 1 more"),
    ({"x-00001-of-00002.safetensors": A}, None, "expected one model .*got 'x-00001-of-00002.safetensors'"),
    ({"x.bin": PICKLE}, None, "x.bin is pickled"),
    ({"x.safetensors": PICKLE}, None, "x.safetensors is pickled"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_read_refuses_folders(case, tmp_path):
    files, variant, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        safetensors.read(folder(tmp_path, files), variant=variant)


def test_read_refuses_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("absent.safetensors", "absent", "absent.safetensors.index.json", "pipe.safetensors"):
        with pytest.raises(ValueError, match=f"{name}"):
            safetensors.read(tmp_path / name)
    with pytest.raises(ValueError, match="expected one model in"):
        safetensors.read(tmp_path / "folder.safetensors")
    with pytest.raises(ValueError, match=r"a variant is of a folder, and .*x\.safetensors is none"):
        safetensors.read(tmp_path / "x.safetensors", variant="fp16")


@pytest.mark.parametrize("name", ["sd.ckpt", "pytorch_model.bin", "x.pt", "x.pth", "x.safetensors", "blob"])
@pytest.mark.parametrize("content", [PICKLE, pickle.dumps({}, protocol=4), zipped()])
def test_read_refuses_pickles_and_says_how_to_convert(name, content, tmp_path):
    (tmp_path / name).write_bytes(content + bytes(100))
    with pytest.raises(ValueError, match=f"{name} is pickled.*from_single_file.*save_pretrained"):
        safetensors.read(tmp_path / name)


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(tmp_path):
    """The first two bytes of the file are those of a pickle."""
    raw = json.dumps({"x": entry()}).encode().ljust(640)
    (tmp_path / "x.safetensors").write_bytes(framed(raw, bytes(8)))
    assert framed(raw)[:2] == PICKLE[:2]
    assert set(safetensors.read(tmp_path / "x.safetensors")) == {"x"}


FILE = "x-00001-of-00002.safetensors"
INDICES = {
    "empty": (b"", "is not JSON"),
    "a list": (b"[]", "expected a JSON object"),
    "nested": (b'{"weight_map":' + b"[" * 10**5, "nested too deeply"),
    "repeats": (b'{"weight_map":{"a":"x","a":"y"}}', "repeats the key 'a'"),
    "not UTF-8": (b'{"\xff":1}', "not UTF-8"),
    "without": ({"metadata": {}}, 'expected "weight_map"'),
    "of a list": ({"weight_map": [FILE]}, 'expected "weight_map"'),
    "of numbers": ({"weight_map": {"a": 1}}, 'expected "weight_map"'),
    "of nothing": ({"weight_map": {}}, 'expected "weight_map"'),
    "above": ({"weight_map": {"a": f"../{FILE}"}}, "files of its own folder"),
    "absolute": ({"weight_map": {"a": f"/{FILE}"}}, "files of its own folder"),
    "below": ({"weight_map": {"a": f"sub/{FILE}"}}, "files of its own folder"),
    "of Windows": ({"weight_map": {"a": f"..\\{FILE}"}}, "files of its own folder"),
    "of a drive": ({"weight_map": {"a": f"c:{FILE}"}}, "files of its own folder"),
    "zero": ({"weight_map": {"a": "x\0.safetensors"}}, "files of its own folder"),
    "itself": ({"weight_map": {"a": "x.safetensors.index.json"}}, "files of its own folder"),
    "no name": ({"weight_map": {"a": ""}}, "files of its own folder"),
    "half a character": ({"weight_map": {"a": "\ud800.safetensors"}}, "half a character"),
    "pickled": ({"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}, "is pickled"),
    "absent": ({"weight_map": {"a": "y.safetensors"}}, "'y.safetensors', which is not there"),
    "one more": ({"weight_map": {"a": FILE, "d": FILE}}, f"{FILE} has no 'd', which x.safetensors.index.json says"),
    "one less": ({"weight_map": {"b": "x-00002-of-00002.safetensors"}}, "has 'c', which .* does not say is in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDICES)
def test_read_refuses_indices(name, tmp_path):
    content, message = INDICES[name]
    folder(tmp_path, SHARDS | {"x.safetensors.index.json": content})
    with pytest.raises(ValueError, match=f"(?s){message}"):
        safetensors.read(tmp_path)


def test_read_names_the_shard_that_is_damaged(tmp_path):
    folder(tmp_path, SHARDS | {"x-00002-of-00002.safetensors": B[:-1]})
    with pytest.raises(ValueError, match=r"x-00002-of-00002\.safetensors is no sound .* cut off"):
        safetensors.read(tmp_path)
