"""Sources of every kind behind `load`, `info`, `batches` and `Stream`: files of arrays, sizes, crops, one's own."""

import contextlib
import itertools
import json
import os
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny_sets import tiny_sets

from gen_jax import data
from gen_jax.data import images
from gen_jax.data.sources.tfds import decode

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GEN_JAX_CACHE", str(place))
    return place


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


class Squares:
    """A source of a user's own: nothing of it is known to the package."""

    def __init__(self, n=30):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, row):
        return {"image": np.full((4, 4, 1), row, np.uint8), "label": row % 3}

    def info(self):
        return data.Info("squares", self.n, (4, 4, 1), 3)


@pytest.fixture
def folder(tmp_path):
    """50 images; the red of number i is i, and their sizes differ."""
    root = tmp_path / "images"
    for i in range(50):
        path = root / f"{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + i % 3, 8 + i % 5), (i, 7, 9)).save(path)
    return root


def rows(stream, steps):
    return [np.asarray(batch["image"])[:, 0, 0, 0].tolist() for batch in itertools.islice(stream, steps)]


# Files of arrays


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    image, label = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8), RNG.integers(0, 4, 20)
    text = np.array([f"number {i}" for i in range(20)])
    label[3] = 3
    save(tmp_path / "a.npz", image=image, label=label, text=text, other=np.zeros(3))
    arrays = data.load(tmp_path / "a.npz")
    assert list(arrays) == ["image", "label", "text"]
    assert arrays["label"].dtype == np.int32
    for key, expected in {"image": image, "label": label, "text": text}.items():
        np.testing.assert_array_equal(arrays[key], expected)
    mapped = isinstance(arrays["image"], np.memmap)
    assert mapped == (save is np.savez)
    name = str(tmp_path / "a.npz")
    assert data.info(name) == data.Info(name, 20, (6, 5, 3), 4, None, True)
    np.testing.assert_array_equal(data.load(name, split="train[5:8]+train[:1]")["label"], label[[5, 6, 7, 0]])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_single_array_is_the_image(tmp_path, suffix, order):
    image = np.asarray(RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8), order=order)
    path = tmp_path / f"a.{suffix}"
    np.save(path, image) if suffix == "npy" else np.savez(path, image)
    np.testing.assert_array_equal(data.load(path)["image"], image[..., None])
    assert data.info(path).image_shape == (6, 5, 1)
    assert data.info(path).num_classes is None


def trace_memory(path):
    """Start to, after one small stream of a folder: what is imported and compiled for it does not count."""
    for i in range(4):
        Image.new("RGB", (4, 4)).save(path / f"{i}.jpg")
    with contextlib.closing(data.Stream(data.source(path), 2, key=KEY)) as stream:
        next(stream)
    tracemalloc.start()


def test_an_npy_is_mapped_and_not_read_for_info(tmp_path, tmp_path_factory):
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (2**12, 64, 64, 3))  # 50 MB
    trace_memory(tmp_path_factory.mktemp("before"))
    assert data.info(tmp_path / "a.npy").num_examples == 2**12
    batches = data.batches(data.source(tmp_path / "a.npy"), 8, key=KEY, memory_budget=2**20)
    assert isinstance(batches, data.Stream)
    assert next(batches)["image"].shape == (8, 64, 64, 3)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()
    batches.close()


@pytest.mark.parametrize(("kind", "to"), [(bool, np.uint8), (np.int64, np.uint8), (np.float64, np.float32)])
def test_numbers_of_other_types_are_converted(tmp_path, kind, to):
    image = RNG.integers(0, 2, (5, 4, 4, 1)).astype(kind)
    np.save(tmp_path / "a.npy", image)
    got = data.load(tmp_path / "a.npy")["image"]
    assert got.dtype == to
    np.testing.assert_array_equal(got, image.astype(to) * (255 if kind is bool else 1))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((3, 2, 2)), "y": np.zeros(3)}, 'array of numbers "image".* got "x" float64'),
        ({}, "got nothing"),
        ({"image": np.zeros((3, 2))}, r'got "image" float64 \(3, 2\)'),
        (
            {"image": np.zeros((5, 3, 32, 32))},
            r"\[height, width, channels\].*a\.npz, got \(3, 32, 32\).*3 channels first",
        ),
        ({"image": np.zeros((5, 1, 6, 5))}, r"1 channels first: np\.moveaxis\(images, -3, -1\)"),
        ({"image": np.zeros((3, 2, 2)), "label": np.zeros(2, int)}, '"label" as integers'),
        ({"image": np.zeros((3, 2, 2)), "label": np.zeros(3)}, '"label" as integers'),
        ({"image": np.zeros((3, 2, 2)), "text": np.zeros(3)}, '"text" as strings'),
        (
            {"image": np.full((3, 2, 2), 300)},
            "expected 8-bit images .*got int64 with values from 300 to 300: .* uint8 before they are saved",
        ),
    ],
)
def test_npz_of_other_arrays_is_refused(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=said):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("contents", [None, b"", b"nonsense"])
def test_a_file_that_can_not_be_read_is_named(tmp_path, suffix, contents):
    path = tmp_path / f"a.{suffix}"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ValueError, match=rf"the file {path} can not be read"):
        data.load(path)


def test_a_damaged_member_is_named(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", image=RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[900] ^= 255
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"the file {tmp_path}/a.npz can not be read"):
        data.load(tmp_path / "a.npz")


HEADERS = {
    "a type of objects": ("'<u1'", "'|O'"),
    "a longer array": ("(3, 2, 2)", "(3, 2, 9)"),
    "a huge array": ("(3, 2, 2)", f"({2**40}, 2, 2)"),
    "a negative size": ("(3, 2, 2)", "(-3, -2, 2)"),
    "a call": ("'<u1'", "__import__('os').system('true')"),
    "nested": ("'<u1'", "(" * 3000),
}


@pytest.mark.parametrize("said", HEADERS)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_header_that_says_what_is_not_there_is_refused(tmp_path, suffix, said):
    """Before anything is made for it, and for whatever reason numpy gives."""
    old, new = HEADERS[said]
    text = "{'descr': '<u1', 'fortran_order': False, 'shape': (3, 2, 2), }".replace(old, new)
    raw = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(12)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(raw)
    if suffix == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("image.npy", raw)
    with pytest.raises(
        ValueError, match=rf"file {path} can not be read|expected in {path} an array of numbers"
    ):
        data.load(path)


def test_a_flipped_bit_of_a_mapped_member_is_named(tmp_path):
    """It is not read by way of the archive, which would verify it."""
    np.savez(tmp_path / "a.npz", image=RNG.integers(0, 256, (200, 6, 5, 3), dtype=np.uint8))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[15_000] ^= 1  # what is read of it for its header ends before
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(
        ValueError, match=rf"the file {tmp_path}/a.npz .*image.npy in it does not match its checksum"
    ):
        data.load(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match="can not be read: there is no such file"):
        data.load(tmp_path / f"a.{suffix}")


def test_files_have_one_split(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((7, 2, 2)))
    with pytest.raises(ValueError, match=r'no split "test".*it has "train" \(7 examples\)'):
        data.load(tmp_path / "a.npy", split="test")


# Sizes, channels and crops, of any source


def test_image_size_of_mnist():
    arrays = data.load("mnist", split="test[:5]", image_size=(32, 28), channels=3)
    raw = data.load("mnist", split="test[:5]")
    assert data.info("mnist", split="test[:5]", image_size=(32, 28), channels=3).image_shape == (32, 28, 3)
    for i in range(5):
        grey = images.resize(raw["image"][i], (32, 28))
        np.testing.assert_array_equal(arrays["image"][i], np.repeat(grey, 3, -1))
    np.testing.assert_array_equal(arrays["label"], raw["label"])


def test_image_size_of_a_set_of_several_shapes(tfds_dir):
    with pytest.raises(ValueError, match=r"have 2 shapes.*give image_size"):
        data.load("tiny_mixed", data_dir=tfds_dir)
    arrays = data.load("tiny_mixed", data_dir=tfds_dir, image_size=16)
    assert data.info("tiny_mixed", data_dir=tfds_dir, image_size=16) == data.Info(
        "tiny_mixed", 40, (16, 16, 3), None
    )
    pictures = [tiny_sets.pixels(i, (27 + (i % 4 == 0), 31, 3)) for i in range(40)]
    expected = sorted(images.resize(picture, (16, 16)).tobytes() for picture in pictures)
    assert sorted(image.tobytes() for image in arrays["image"]) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"image_size": (4, -1)}, r"image_size\[1\] must be at least 1, got -1"),
        ({"crop": "random"}, 'crop="random" needs an image_size'),
        ({"crop": "middle", "image_size": 4}, "crop must be one of center, random, got 'middle'"),
        ({"channels": 2}, r"channels must be one of"),
        ({"unreadable": "ignore"}, r"unreadable must be one of"),
    ],
)
def test_source_refuses_options_that_do_not_exist(options, said):
    with pytest.raises(ValueError, match=said):
        data.source("mnist", **options)


def test_a_source_takes_no_options():
    for call in (data.load, data.info):
        with pytest.raises(ValueError, match="expected no options beside it, got split, image_size"):
            call(Squares(), split="train", image_size=3)


def test_a_misspelt_option_is_an_error():
    for call in (data.source, data.load, data.info):
        with pytest.raises(TypeError, match="imagesize"):
            call("mnist", imagesize=3)


@pytest.fixture
def wide(tmp_path):
    """Sixty images: the red of a pixel says in which column it is, the green in which image."""
    for i in range(60):
        pixels = np.zeros((8, 32, 3), np.uint8)
        pixels[..., 0] = np.arange(32)
        pixels[..., 1] = i
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    return tmp_path


def places(batch):
    """Which images, and at which column each was cropped."""
    return batch["image"][:, 0, 0, 1].astype(int), batch["image"][:, 0, 0, 0].astype(int)


def test_crop_is_at_the_centre(wide):
    assert places(data.load(wide, image_size=8))[1].tolist() == [12] * 60
    assert data.source(wide, image_size=8, crop="random")[0]["image"][0, 0, 0] == 12


def test_random_crops_are_uniform_and_drawn_anew(wide):
    stream = data.batches(data.source(wide, image_size=8, crop="random"), 60, key=KEY)
    assert isinstance(stream, data.Stream)
    names, columns = map(np.stack, zip(*(places(next(stream)) for _ in range(40)), strict=True))
    stream.close()
    np.testing.assert_array_equal(np.sort(names), np.tile(np.arange(60), (40, 1)))
    counts = np.bincount(columns.ravel(), minlength=25)
    assert counts.shape == (25,)  # the places 0 to 24
    expected = columns.size / 25
    assert ((counts - expected) ** 2 / expected).sum() < 52.6  # chi-squared, 24 degrees of freedom, at 0.07 %
    by_image = np.take_along_axis(columns, np.argsort(names), 1)  # [epoch, image]
    for one, next_ in [(by_image[1:], by_image[:-1]), (by_image[:, 1:], by_image[:, :-1])]:
        assert (one == next_).mean() < 0.08  # 0.04 by chance
        assert abs(np.corrcoef(one.ravel(), next_.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("hosts", [1, 2])
def test_random_crops_do_not_depend_on_hosts_or_where_one_resumes(wide, hosts):
    source = data.source(wide, image_size=8, crop="random")
    make = lambda key=KEY, **kwargs: data.Stream(source, 26, key=key, **kwargs)
    whole = [np.stack(places(batch)).tolist() for batch in itertools.islice(make(), 9)]
    other = [np.stack(places(batch)).tolist() for batch in itertools.islice(make(jax.random.key(4)), 9)]
    assert whole != other
    parts = []
    for p in range(hosts):
        stream = make(process_index=p, process_count=hosts, prefetch=p)
        stream.set_state(json.loads(json.dumps(make().get_state() | {"step": 5})))
        parts.append([np.stack(places(batch)) for batch in itertools.islice(stream, 4)])
    assert [np.concatenate(step, 1).tolist() for step in zip(*parts, strict=True)] == whole[5:]


def test_random_crops_have_no_array(wide):
    with pytest.raises(ValueError, match=r"drawn anew each epoch.*data.batches"):
        data.load(wide, image_size=8, crop="random")


# Batches of any source


SOURCES = {
    "own": lambda folder, tfds_dir: Squares(50),
    "folder": lambda folder, tfds_dir: data.source(folder, image_size=8),
    "tfds": lambda folder, tfds_dir: data.source(
        "tiny_colour", split="train+test", data_dir=tfds_dir, image_size=8
    ),
    "mnist": lambda folder, tfds_dir: data.source("mnist", split="test[:50]"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_batches_of_a_source_are_those_of_its_arrays(kind, folder, tfds_dir):
    source = SOURCES[kind](folder, tfds_dir)
    assert isinstance(source, data.Source)
    assert len(source) == source.info().num_examples == 50
    arrays = data.load(source)
    assert arrays["image"].shape == (50, *source.info().image_shape)
    for row in (0, 7, 49):
        for key, value in source[row].items():
            np.testing.assert_array_equal(arrays[key][row], value)
    kept, direct = data.batches(source, 12, key=KEY), data.batches(arrays, 12, key=KEY)
    assert isinstance(kept, data.InMemory)
    np.testing.assert_array_equal(kept.select(3, 5), direct.select(3, 5))
    np.testing.assert_array_equal(kept.arrays["image"], arrays["image"])
    streamed = data.batches(source, 12, key=KEY, memory_budget=50 * 8 * 8 // 8 - 1)
    assert isinstance(streamed, data.Stream)
    for batch, expected in itertools.islice(zip(streamed, data.Stream(arrays, 12, key=KEY), strict=True), 10):
        assert batch.keys() == expected.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], expected[key])
    streamed.close()


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_stream_of_a_folder_is_the_same_on_any_number_of_hosts_and_resumes(folder, hosts, prefetch):
    source = data.source(folder, image_size=8)
    whole = rows(data.Stream(source, 12, key=KEY), 12)
    assert sorted(itertools.chain(*whole))[:4] == [0, 0, 1, 1] or len(set(itertools.chain(*whole[:5]))) == 50
    state = data.Stream(source, 12, key=KEY).get_state() | {"step": 7}
    parts = []
    for p in range(hosts):
        stream = data.Stream(source, 12, key=KEY, process_index=p, process_count=hosts, prefetch=prefetch)
        stream.set_state(state)
        parts.append(rows(stream, 5))
        stream.close()
    assert [list(itertools.chain(*part)) for part in zip(*parts, strict=True)] == whole[7:]


def test_transform_is_applied_in_memory_and_streamed(folder):
    (folder / "metadata.jsonl").write_text(
        "\n".join(json.dumps({"file_name": f"{i % 2}/{i:02}.png", "text": "x" * i}) for i in range(50))
    )
    source = data.source(folder, image_size=8)
    with pytest.raises(
        ValueError, match=r"a batch holds numbers, got strings under \['text'\]: give a transform"
    ):
        data.batches(source, 12, key=KEY)

    def transform(batch):
        return {"image": batch["image"], "length": np.array([len(text) for text in batch["text"]])}

    kept = data.batches(source, 12, key=KEY, transform=transform)
    streamed = data.batches(source, 12, key=KEY, transform=transform, memory_budget=100)
    for batch in (kept.arrays, next(streamed)):
        assert set(batch) == {"image", "length"}
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["length"])
    streamed.close()


def test_a_large_folder_streams_in_little_memory(tmp_path, tmp_path_factory):
    """2,000 images, 98 MB decoded: a twelfth of that is enough."""
    small = Image.fromarray(RNG.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((128, 128))
    for i in range(2000):
        small.save(tmp_path / f"{i:04}.jpg") if i == 0 else (tmp_path / f"{i:04}.jpg").hardlink_to(
            tmp_path / "0000.jpg"
        )
    trace_memory(tmp_path_factory.mktemp("before"))
    source = data.source(tmp_path)
    stream = data.batches(source, 16, key=KEY, memory_budget=2**24)
    assert isinstance(stream, data.Stream)
    for batch in itertools.islice(stream, 2000 // 16):
        assert batch["image"].shape == (16, 128, 128, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stream.close()
    assert peak < 2000 * 128 * 128 * 3 / 8  # prefetched batches and the index


class Ragged(Squares):
    def __getitem__(self, row):
        return {"image": np.zeros((4 + row % 2, 4, 1), np.uint8)}


class Careless(Squares):
    def __getitem__(self, row):
        return {"image": np.zeros((4, 4, 1), np.uint8)} | ({"label": 1} if row else {})


def test_examples_that_do_not_fit_together_are_an_error():
    with pytest.raises(ValueError, match=r"2 shapes: \(4, 4, 1\) in 15, \(5, 4, 1\) in 15.*give image_size"):
        data.load(Ragged())
    with pytest.raises(
        ValueError, match=r'"image" of one shape in all examples, got \[\(4, 4, 1\), \(5, 4, 1\)\]'
    ):
        next(data.Stream(Ragged(), 20, key=KEY))
    with pytest.raises(
        ValueError, match=r"examples with the same keys, got \[\('image',\), \('image', 'label'\)\]"
    ):
        data.load(Careless())


def test_info_reads_no_image(tmp_path, tfds_dir, monkeypatch, folder):
    np.save(tmp_path / "a.npy", np.zeros((7, 2, 2), np.uint8))
    data.load("tiny_colour", data_dir=tfds_dir), data.load("tiny_float", data_dir=tfds_dir)
    for name, path in [(images, "load"), (decode, "examples")]:
        monkeypatch.setattr(name, path, None)
    monkeypatch.setattr("gen_jax.data.sources.embedded.mnist", None)
    monkeypatch.setattr("gen_jax.data.sources.files._read", None)
    assert data.info("mnist").num_classes == 10
    assert data.info(folder, image_size=4).num_examples == 50
    assert data.info(tmp_path / "a.npy").num_examples == 7
    assert data.info("tiny_colour", data_dir=tfds_dir).num_classes == 7
    assert data.info("tiny_float", data_dir=tfds_dir).num_classes == 3  # from the labels alone, once
    monkeypatch.setattr(decode, "labels", None)
    assert data.info("tiny_float", data_dir=tfds_dir).num_classes == 3


def test_info_of_arrays_has_the_names_of_classes(tmp_path):
    class TinyNamed(tiny_sets.TinyColour):
        FEATURES = tiny_sets.TinyColour.FEATURES | {"label": tfds.features.ClassLabel(names=list("wxyz"))}

    assert data.info("tiny_named", data_dir=tmp_path).class_names == ("w", "x", "y", "z")


def test_arrays_are_a_source():
    arrays = {"image": RNG.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8), "label": np.arange(9)}
    source = data.Arrays(arrays)
    assert source.info() == data.Info("arrays", 9, (4, 4, 3), 9)
    np.testing.assert_array_equal(source[3]["image"], arrays["image"][3])
    assert data.load(source) == arrays
    with pytest.raises(ValueError, match=r'expected an array "image" \[N, H, W, C\], got the shapes'):
        data.Arrays({"x": np.zeros(3)}).info()
