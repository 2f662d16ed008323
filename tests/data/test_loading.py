"""Any TFDS set by name: what comes back, that it is decoded once and never served stale, and every error."""

import importlib.util
import json
import os
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from tiny_sets import tiny_sets

from gen_jax import data
from gen_jax.data import cache, loading
from gen_jax.data.sources.tfds import prepared

SHARED = Path(__file__).resolve().parents[3] / "shared" / "tfds"


@pytest.fixture(scope="session")
def tfds_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def load(tfds_dir, tmp_path):
    """`data.load` with a TFDS directory for all tests and a cache of this test's own."""

    def load(name, split="train", data_dir=tfds_dir, cache_dir=tmp_path / "cache"):
        return data.load(name, split=split, data_dir=data_dir, cache_dir=cache_dir)

    return load


def files(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.is_file())


def examples(arrays):
    """A data set as a sorted list of bytes: equal when the two hold the same examples in whatever order."""
    columns = [np.asarray(arrays["image"]).reshape(len(arrays["image"]), -1)]
    if "label" in arrays:
        columns.append(arrays["label"][:, None].astype(np.uint8))
    return sorted(row.tobytes() for row in np.concatenate(columns, 1))


# What comes back


@pytest.mark.parametrize("split", ["train", "test"])
def test_load_prepares_and_reads_a_builder_of_ones_own(load, split):
    arrays = load("tiny_colour", split)
    n = tiny_sets.SIZES[split]
    assert {k: (v.shape, v.dtype.name) for k, v in arrays.items()} == {
        "image": ((n, 27, 31, 3), "uint8"),
        "label": ((n,), "int32"),
    }
    expected = {"image": np.stack([tiny_sets.pixels(i) for i in range(n)]), "label": np.arange(n) % 4}
    assert examples(arrays) == examples(expected)


def test_load_without_label_gives_only_the_image(load):
    arrays = load("tiny_unlabelled")
    assert list(arrays) == ["image"]
    expected = np.stack([tiny_sets.pixels(i, (9, 8)) for i in range(40)])[..., None]
    assert arrays["image"].shape == (40, 9, 8, 1)
    assert examples(arrays) == examples({"image": expected})


def test_load_keeps_floating_point_images_in_float32(load):
    image = load("tiny_float")["image"]
    assert image.dtype == np.float32
    expected = np.stack([tiny_sets.pixels(i, (6, 5, 1)) for i in range(40)]) / np.float32(10)
    np.testing.assert_allclose(np.sort(image.ravel()), np.sort(expected.ravel()), rtol=1e-6)


def test_load_makes_booleans_black_and_white(load):
    image = load("tiny_binary")["image"]
    expected = np.stack([tiny_sets.pixels(i, (6, 5, 1)) for i in range(40)]) > 127
    assert image.dtype == np.uint8
    assert examples({"image": image}) == examples({"image": expected.astype(np.uint8) * 255})


def test_load_converts_encoded_images_to_the_declared_channels(load):
    """A palette, a grey and a transparent PNG in a colour set, as TensorFlow's decoder would give them."""
    pictures = [tiny_sets.TinyEncoded.picture(i).convert("RGB") for i in range(40)]
    assert examples(load("tiny_encoded")) == examples({"image": np.stack([np.asarray(p) for p in pictures])})


def test_load_takes_tfds_splits(load):
    whole, part = load("tiny_colour"), load("tiny_colour", "train[25%:50%]")
    np.testing.assert_array_equal(part["image"], whole["image"][10:20])
    both = load("tiny_colour", "test+train[:5]")
    np.testing.assert_array_equal(both["label"][10:], whole["label"][:5])


def disguise(tfds_dir, data_dir, name, version="1.0.0"):
    """Copy the prepared `tiny_colour` as a set of another name and version, of which there is no code."""
    directory = data_dir / name / version
    directory.mkdir(parents=True)
    for path in files(tfds_dir / "tiny_colour"):
        contents = path.read_bytes().replace(b'"tiny_colour"', f'"{name}"'.encode())
        contents = contents.replace(b'"1.0.0"', f'"{version}"'.encode())
        (directory / path.name.replace("tiny_colour", name)).write_bytes(contents)
    return data_dir


@pytest.mark.parametrize("name", ["somebody_elses", "somebody_elses:1.0.0"])
def test_load_reads_a_prepared_set_whose_code_is_unknown(load, tfds_dir, tmp_path, name):
    expected = load("tiny_colour")
    theirs = disguise(tfds_dir, tmp_path / "theirs", "somebody_elses")
    np.testing.assert_array_equal(load(name, data_dir=theirs)["image"], expected["image"])


def test_load_honours_the_environment(load, tfds_dir, tmp_path, monkeypatch):
    expected = load("tiny_colour")
    theirs = disguise(tfds_dir, tmp_path / "theirs", "somebody_elses")
    monkeypatch.setenv("TFDS_DATA_DIR", str(theirs))
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "other"))
    np.testing.assert_array_equal(data.load("somebody_elses")["image"], expected["image"])
    assert files(tmp_path / "other")


def test_load_reads_another_version_of_a_set_that_tfds_knows(load, tfds_dir, tmp_path):
    expected = load("tiny_colour")
    theirs = disguise(tfds_dir, tmp_path / "theirs", "kmnist", "0.5.0")
    np.testing.assert_array_equal(load("kmnist", data_dir=theirs)["image"], expected["image"])


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no ../shared/tfds")
def test_load_of_mnist_from_tfds_equals_the_embedded_one(load):
    ours = data.load("mnist", split="test")
    theirs = load("mnist", "test", data_dir=SHARED)
    assert examples(theirs) == examples(ours)
    assert (np.asarray(theirs["image"]) != ours["image"]).any()  # TFDS has an order of its own


def test_info_of_a_set(load, tfds_dir, tmp_path):
    where = {"data_dir": tfds_dir, "cache_dir": tmp_path}
    declared = data.info("tiny_colour", **where)
    assert declared == data.Info("tiny_colour", 40, (27, 31, 3), 7)  # 7 declared, of which 4 occur
    assert data.info("tiny_float", **where).num_classes == 3  # not declared: the largest label plus one
    assert data.info("tiny_unlabelled", split="test", **where) == data.Info(
        "tiny_unlabelled", 10, (9, 8, 1), None
    )


# The cache


def test_load_decodes_once(load, monkeypatch):
    first = load("tiny_colour")
    monkeypatch.setattr(loading, "_chunks", None)
    second = load("tiny_colour")
    assert isinstance(second["image"], np.memmap)
    assert not second["image"].flags.writeable
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def test_load_decodes_again_what_was_prepared_again(load, tmp_path, monkeypatch):
    """Same name, version, split, number and size: other pixels."""
    before = examples(load("tiny_colour", data_dir=tmp_path / "first"))
    monkeypatch.setattr(tiny_sets, "pixels", lambda i: np.full((27, 31, 3), i, np.uint8))
    after = load("tiny_colour", data_dir=tmp_path / "second")
    assert sorted(after["image"][:, 0, 0, 0].tolist()) == list(range(40))
    assert examples(load("tiny_colour", data_dir=tmp_path / "first")) == before


def test_entry_depends_on_either_end_when_size_and_time_do_not_change(tmp_path):
    file = tmp_path / "a.array_record"
    seen = set()
    for contents in (b"a" * 200_000, b"b" + b"a" * 199_999, b"a" * 199_999 + b"b"):
        file.write_bytes(contents)
        os.utime(file, (1, 1))
        seen.add(cache.entry("a/1.0.0", "train", cache.of_files(tmp_path)))
    os.utime(file, (2, 2))
    assert len(seen | {cache.entry("a/1.0.0", "train", cache.of_files(tmp_path))}) == 4


def test_entry_tells_splits_apart_that_look_alike(tmp_path):
    splits = ("train[1:2]", "train[1+2]", "train_1_2_")
    assert len({cache.entry("a/1.0.0", split, ()) for split in splits}) == 3


@pytest.mark.parametrize("file", ["image.npy", "label.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_load_names_a_damaged_cache_file(load, tmp_path, file, damage):
    load("tiny_colour")
    (path,) = (tmp_path / "cache").rglob(file)
    raw = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) * 2 // 3])
    elif damage == "flipped":
        path.write_bytes(raw[:-30] + bytes([raw[-30] ^ 16]) + raw[-29:])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    if file == "meta.json" and damage == "flipped":
        path.write_bytes(raw.replace(b"uint8", b"int16"))
    with pytest.raises(ValueError, match=r"cached file .* is damaged.*Delete the directory"):
        load("tiny_colour")


def test_load_without_a_writable_cache_says_so_and_goes_on(load, tmp_path):
    expected = load("tiny_colour")
    (tmp_path / "file").write_text("not a directory")
    with pytest.warns(UserWarning, match=r"can not be written .*GEN_JAX_CACHE or cache_dir="):
        arrays = load("tiny_colour", cache_dir=tmp_path / "file" / "cache")
    for key in expected:
        np.testing.assert_array_equal(arrays[key], expected[key])


def test_write_leaves_nothing_of_an_attempt_that_failed(tmp_path):
    def chunks():
        yield {"image": np.zeros((2, 3), np.uint8)}
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        cache.write(tmp_path / "a" / "entry", chunks(), 4)
    assert list((tmp_path / "a").iterdir()) == []


def test_write_keeps_what_another_process_finished_first(tmp_path):
    path = tmp_path / "entry"

    def write(value, then=lambda: None):
        def chunks():
            yield {"image": np.full((2, 3), value, np.uint8)}
            then()

        cache.write(path, chunks(), 2)

    write(1, then=lambda: write(2))
    assert (cache.read(path)["image"] == 2).all()
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_root_is_the_first_that_is_named(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("GEN_JAX_CACHE", raising=False)
    assert cache.root() == Path("/home/x/.cache/gen_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.root() == Path("/xdg/gen_jax")
    monkeypatch.setenv("GEN_JAX_CACHE", "~/mine")
    assert cache.root() == Path("/home/x/mine")
    assert cache.root("/given") == Path("/given")


# What is said when it can not be done


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cifar", "cifar10"),
        ("mnits", "mnist"),
        ("fashionmnist", "fashion_mnist"),
        ("tiny_color", "tiny_colour"),
        ("EMNIST_/letters", "emnist"),
    ],
)
def test_load_offers_the_nearest_names(load, name, near):
    with pytest.raises(ValueError, match=rf"no data set is called .*Nearest:.*\b{near}\b"):
        load(name)


def test_load_offers_names_that_are_only_prepared(load, tmp_path):
    (tmp_path / "galaxies" / "1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match="Nearest: galaxies"):
        load("galaxy_s", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["a b", "", "kmnist/nonsense", "mnist:9.9.9", "tiny_colour:2.0.0"])
def test_load_refuses_a_form_that_does_not_exist(load, name):
    with pytest.raises(ValueError, match=re.escape(f'the data set "{name}" can not be used')):
        load(name)


@pytest.mark.parametrize("split", ["validation", "train[:5%", "train[70:]"])
def test_load_names_the_splits(load, split):
    with pytest.raises(ValueError, match=r'it has "t\w+" \(\d+ examples\), "t\w+" \(\d+ examples\)') as error:
        load("tiny_colour", split)
    assert '"train" (40 examples)' in str(error.value)
    assert '"test" (10 examples)' in str(error.value)


def test_load_refuses_an_empty_split(load):
    with pytest.raises(ValueError, match="is empty"):
        load("tiny_colour", "train[:0]")


def test_load_counts_mixed_shapes(load):
    with pytest.raises(
        ValueError, match=r"2 shapes: \(27, 31, 3\) in 30, \(28, 31, 3\) in 10.*resize or crop"
    ):
        load("tiny_mixed")


def test_load_refuses_integers_beyond_8_bits(load):
    with pytest.raises(
        ValueError, match=r"expected 8-bit images .*got uint16 with values from \d+ to \d{3,}"
    ):
        load("tiny_deep")


@pytest.mark.parametrize(("name", "count"), [("tiny_numbers", "no"), ("tiny_pair", "2")])
def test_load_lists_the_features_when_none_is_the_image(load, name, count):
    with pytest.raises(ValueError, match=rf'has {count} image features: .*"(x|left)" \(Tensor, \('):
        load(name)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed"])
def test_load_names_a_damaged_set(load, tmp_path, damage):
    load("tiny_colour", data_dir=tmp_path / "tfds")
    path = next(p for p in files(tmp_path / "tfds") if "train.array_record" in p.name)
    raw = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        path.write_bytes(raw[:70_000] + bytes([raw[70_000] ^ 1]) + raw[70_001:])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    said = r'of "tiny_colour" can not be read: .*tfds/tiny_colour/1.0.0 are damaged.*prepare the data'
    with pytest.raises(ValueError, match=said):
        load("tiny_colour", data_dir=tmp_path / "tfds")


def test_load_refuses_a_set_in_another_format(load, tmp_path):
    load("tiny_colour", data_dir=tmp_path)
    info = tmp_path / "tiny_colour" / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match=r'(?s)not in array_record form.*data_dir="NEW_DIRECTORY"'):
        load("tiny_colour", data_dir=tmp_path)


def pretend_tensorflow(monkeypatch, present):
    real = importlib.util.find_spec
    answer = importlib.util.spec_from_loader("tensorflow", None) if present else None
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: answer if name == "tensorflow" else real(name, *a)
    )


def test_load_without_tensorflow_says_how_to_prepare(load, tfds_dir, monkeypatch):
    pretend_tensorflow(monkeypatch, False)
    monkeypatch.setattr(requests, "head", None)  # and it does not even try the network
    with pytest.raises(ValueError, match=r"pip install 'gen-jax\[prepare\]'") as error:
        load("cifar10")
    assert f'tfds.builder("cifar10", data_dir="{tfds_dir}")' in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_load_of_a_builder_that_turns_out_to_need_tensorflow_says_so(load):
    with pytest.raises(ValueError, match=r"pip install 'gen-jax\[prepare\]'"):
        load("tiny_arrays")


def test_load_without_network_says_so_at_once(load, monkeypatch):
    def head(*args, **kwargs):
        raise requests.ConnectionError("Name or service not known")

    pretend_tensorflow(monkeypatch, True)
    monkeypatch.setattr(requests, "head", head)
    with pytest.raises(ValueError, match=r'(?s)no network.*tfds.builder\("cifar10"') as error:
        load("cifar10")
    assert "gen-jax[prepare]" not in str(error.value)


def test_load_without_network_says_so_when_it_breaks_off(load):
    with pytest.raises(ValueError, match=r'(?s)can not be downloaded: no network.*tfds.builder\("tiny_off'):
        load("tiny_offline")


def test_nothing_is_left_in_the_temporary_directory(load, tmp_path, monkeypatch):
    """Of a builder that is not prepared TFDS makes a directory there, and leaves it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    load("tiny_colour", data_dir=tmp_path / "sets")
    with pytest.raises(ValueError, match="cifar10"):
        load("cifar10", data_dir=tmp_path / "sets")
    assert list((tmp_path / "temporary").iterdir()) == []
    tfds.builder("tiny_colour", data_dir=tmp_path / "others")  # as it does elsewhere
    assert list((tmp_path / "temporary").iterdir()) != []


def test_load_does_not_hide_a_mistake_in_the_builder(load):
    with pytest.raises(KeyError, match="a mistake in the builder"):
        load("tiny_broken")


def test_prepare_command_prepares(load, tmp_path):
    command = prepared.prepare_command(tfds.builder("tiny_colour", data_dir=tmp_path / "it's here"))
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(code, {})  # not in a process of its own, which would not know the builder
    assert files(tmp_path / "it's here" / "tiny_colour" / "1.0.0")
