"""MNIST as it comes with the package: the right numbers, and every way in which the files can be wrong."""

import gzip
import shutil
import subprocess
import sys
import time
from importlib.resources import files

import numpy as np
import pytest

from gen_jax import data
from gen_jax.data.sources import embedded

NAMES = ("train-images", "train-labels", "t10k-images", "t10k-labels")


@pytest.fixture(scope="module")
def train():
    return data.load("mnist")


@pytest.fixture
def copy(tmp_path):
    for file in files("gen_jax.data").joinpath("mnist").iterdir():
        shutil.copy(str(file), tmp_path)
    return tmp_path


def test_load_gives_mnist(train):
    assert {k: (v.shape, v.dtype.name) for k, v in train.items()} == {
        "image": ((60_000, 28, 28, 1), "uint8"),
        "label": ((60_000,), "int32"),
    }
    # Figures of the data set's own literature: the class counts, and the mean and deviation of a pixel.
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(train["label"]), counts)
    assert train["image"].mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert train["image"].std() / 255 == pytest.approx(0.3081, abs=1e-4)


def test_load_gives_the_test_split():
    test = data.load("mnist", split="test")
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(test["label"]), counts)
    assert test["image"].shape == (10_000, 28, 28, 1)


def test_load_takes_less_than_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        data.load("mnist")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


@pytest.mark.parametrize(
    ("split", "rows"),
    [
        ("train[:10%]", slice(0, 6000)),
        ("train[-5:]", slice(59_995, 60_000)),
        ("train[100:200]", slice(100, 200)),
    ],
)
def test_load_slices_as_tfds_does(train, split, rows):
    part = data.load("mnist", split=split)
    for key in part:
        np.testing.assert_array_equal(part[key], train[key][rows])


def test_load_adds_splits():
    both = data.load("mnist", split="test[:7]+train[:3]")
    np.testing.assert_array_equal(both["label"], [7, 2, 1, 0, 4, 1, 4, 5, 0, 4])


@pytest.mark.parametrize("split", ["validation", "train[:5%", "train[70000:]", "", "Train"])
def test_load_names_the_splits_when_there_is_none_such(split):
    with pytest.raises(ValueError, match=r'"train" \(60,000 examples\), "test" \(10,000 examples\)'):
        data.load("mnist", split=split)


@pytest.mark.parametrize("split", ["train[:0]", "train[5:2]"])
def test_load_refuses_an_empty_split(split):
    with pytest.raises(ValueError, match="is empty"):
        data.load("mnist", split=split)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "removed", "replaced"])
def test_mnist_names_a_damaged_file(copy, name, damage):
    (path,) = copy.glob(f"{name}*")
    raw = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        path.write_bytes(raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "removed":
        path.unlink()
    else:  # a sound file of other contents
        path.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 5])))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*pip install --force-reinstall"):
        embedded.mnist("train" if name.startswith("train") else "test", copy)


@pytest.mark.parametrize(
    "raw", [b"", b"\x00\x00\x08", b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"PK\x03\x04"]
)
def test_parse_idx_refuses_other_files(raw):
    with pytest.raises(ValueError, match="expected an IDX file"):
        embedded.parse_idx(raw)


def test_parse_idx_reads_sizes_as_big_endian():
    raw = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    np.testing.assert_array_equal(embedded.parse_idx(raw), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="expected 6 bytes of data"):
        embedded.parse_idx(raw + b"\x00")


def test_info_of_mnist():
    assert data.info("mnist", split="test") == data.Info("mnist", 10_000, (28, 28, 1), 10)


def test_import_is_light():
    code = "import sys, gen_jax.data; print({'tensorflow_datasets', 'grain', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
