"""A folder of image files: order, splits, classes, captions, the index, broken files and what is said of them."""

import csv
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen_jax import data
from gen_jax.data import images
from gen_jax.data.sources.folder import index


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GEN_JAX_CACHE", str(place))
    return place


def save(path, value, size=(6, 5), mode="RGB", **options):
    """An image of one colour (height, width), which says which it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value if mode == "L" else (value, 0, 255 - value)).save(path, **options)


def numbers(name, **options):
    return data.load(str(name), **options)["image"][:, 0, 0, 0].tolist()


# What comes back


@pytest.mark.filterwarnings("ignore:.*has no classes")
def test_load_gives_images_in_the_order_of_their_paths(tmp_path):
    names = ["b/1.png", "B/1.png", "a.png", "a/z.png", "a-1/c.png", "é.png", "10.png", "9.png", "b/10.png"]
    for value, name in enumerate(names):
        save(tmp_path / name, value)
    arrays = data.load(tmp_path)
    assert {k: (v.shape, v.dtype.name) for k, v in arrays.items()} == {"image": ((9, 6, 5, 3), "uint8")}
    order = sorted(names, key=lambda name: name.encode())
    assert arrays["image"][:, 0, 0, 0].tolist() == [names.index(name) for name in order]


def test_load_leaves_out_hidden_and_other_files_and_follows_links(tmp_path, caplog):
    root = tmp_path / "root"
    save(root / "a.PNG", 1)
    save(root / ".b.png", 2)
    save(root / ".c" / "d.png", 3)
    save(tmp_path / "elsewhere" / "e.png", 4)
    (root / "README.md").write_text("")
    (root / "model.h5").write_bytes(b"")
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink(tmp_path / "elsewhere" / "e.png", root / "z.png")
    os.symlink(root, root / "linked" / "round")  # a circle
    with caplog.at_level(logging.INFO, "gen_jax.data"), pytest.warns(UserWarning, match="no classes"):
        assert numbers(root) == [1, 4, 4]
    assert "3 images; 2 other files are ignored" in caplog.text


@pytest.mark.parametrize(
    ("modes", "channels"), [(["L", "L"], 1), (["L", "RGB"], 3), (["RGBA", "L"], 3), (["1", "I;16"], 1)]
)
def test_channels_are_those_of_the_headers(tmp_path, modes, channels):
    for i, mode in enumerate(modes):
        Image.new(mode, (5, 6)).save(tmp_path / f"{i}.png")
    assert data.info(tmp_path).image_shape == (6, 5, channels)
    assert data.load(tmp_path)["image"].shape == (2, 6, 5, channels)
    for asked in (1, 3, 4):
        assert data.info(tmp_path, channels=asked).image_shape == (6, 5, asked)
        assert data.load(tmp_path, channels=asked)["image"].shape == (2, 6, 5, asked)


def test_images_of_several_sizes_need_an_image_size(tmp_path):
    sizes = [(6, 5), (6, 5), (9, 30), (40, 3)]
    for i, size in enumerate(sizes):
        save(tmp_path / f"{i}.png", i, size)
    with pytest.raises(
        ValueError, match=r"3 sizes \(height x width\): 6x5 \(2 images\), 9x30.*Give image_size"
    ):
        data.load(tmp_path)
    for image_size, shape in [(8, (8, 8, 3)), ((4, 7), (4, 7, 3))]:
        assert data.info(tmp_path, image_size=image_size).image_shape == shape
        arrays = data.load(tmp_path, image_size=image_size)
        assert arrays["image"].shape == (4, *shape)
        assert (arrays["image"][..., 0] == np.arange(4)[:, None, None]).all()
    raw = data.source(tmp_path, image_size=8)
    np.testing.assert_array_equal(raw[2]["image"], data.load(tmp_path, image_size=8)["image"][2])


# Classes and splits


def test_classes_are_the_subfolders(tmp_path):
    for i, name in enumerate(["dog/1.png", "cat/deep/2.png", "cat/3.png", "zebra/4.png"]):
        save(tmp_path / name, i)
    info = data.info(tmp_path)
    assert info == data.Info(os.fspath(tmp_path), 4, (6, 5, 3), 3, ("cat", "dog", "zebra"), False)
    arrays = data.load(tmp_path)
    assert arrays["image"][:, 0, 0, 0].tolist() == [2, 1, 0, 3]
    assert arrays["label"].tolist() == [0, 0, 1, 2]
    assert arrays["label"].dtype == np.int32


def test_images_beside_the_subfolders_make_no_classes(tmp_path):
    save(tmp_path / "a" / "1.png", 1)
    save(tmp_path / "2.png", 2)
    with pytest.warns(UserWarning, match="has no classes: 1 of its images lie beside the subfolders"):
        assert data.info(tmp_path).num_classes is None


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("val", "train"), ("validation", "test")])
def test_subfolders_with_the_names_of_splits_are_splits(tmp_path, first, second):
    save(tmp_path / first / "x" / "1.png", 1)
    save(tmp_path / first / "y" / "2.png", 2)
    save(tmp_path / second / "y" / "3.png", 3)
    save(tmp_path / "extra" / "z" / "4.png", 4)
    assert numbers(tmp_path, split=first) == [1, 2]
    assert numbers(tmp_path, split=second) == [3]
    assert numbers(tmp_path, split="extra") == [4]
    assert numbers(tmp_path, split=f"{second}+{first}[1:]") == [3, 2]
    # One numbering of the classes for all splits.
    assert data.load(tmp_path, split=second)["label"].tolist() == [1]
    assert data.info(tmp_path, split=second).class_names == ("x", "y", "z")


def test_a_single_subfolder_with_the_name_of_a_split_is_one(tmp_path):
    save(tmp_path / "test" / "1.png", 1)
    assert data.info(tmp_path, split="test").num_classes is None
    with pytest.raises(ValueError, match=r'no split "train".*it has "test" \(1 examples\)'):
        data.load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("car", "plane", "train"):
        save(tmp_path / name / "1.png", 1)
    assert data.info(tmp_path).class_names == ("car", "plane", "train")


def test_without_split_folders_there_is_one_split(tmp_path, caplog):
    for i in range(10):
        save(tmp_path / "ab"[i // 5] / f"{i}.png", i)
    assert numbers(tmp_path, split="train[:60%]") == [0, 1, 2, 3, 4, 5]
    assert "classes" not in caplog.text
    assert numbers(tmp_path, split="train[:30%]") == [0, 1, 2]
    assert "images of 1 of its 2 classes: they are sorted by name" in caplog.text
    for split in ("test", "train[90:]"):
        with pytest.raises(ValueError, match=r'no split .*it has "train" \(10 examples\)'):
            data.load(tmp_path, split=split)
    with pytest.raises(ValueError, match="is empty"):
        data.load(tmp_path, split="train[:0]")


# Captions

TEXTS = {"a.png": 'a "red", round thing', "sub/b.png": "zwei Zeilen,\nund Äpfel", "c.png": ""}


def write_captions(root, how, texts):
    if how == "txt":
        for name, text in texts.items():
            (root / name).with_suffix(".txt").write_text(f"{text}\n", encoding="utf-8")
    elif how == "jsonl":
        rows = [json.dumps({"file_name": name, "text": text, "more": 1}) for name, text in texts.items()]
        (root / "metadata.jsonl").write_text("\n\n".join(rows) + "\n", encoding="utf-8")
    else:
        with (root / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [("file_name", "more", "text"), *((n, 1, t) for n, t in texts.items())]
            )


@pytest.mark.filterwarnings("ignore:.*has no classes")
@pytest.mark.parametrize("how", ["txt", "jsonl", "csv"])
def test_captions(tmp_path, how):
    for i, name in enumerate(TEXTS):
        save(tmp_path / name, i)
    write_captions(tmp_path, how, TEXTS)
    info = data.info(tmp_path)
    assert (info.has_text, info.num_classes) == (True, None)
    source = data.source(tmp_path)
    expected = [TEXTS["a.png"], TEXTS["c.png"], TEXTS["sub/b.png"]]
    assert [source[i]["text"] for i in range(3)] == expected
    for _ in range(2):  # decoded, and from the cache
        assert data.load(tmp_path)["text"].tolist() == expected
    batch = next(data.Stream(source, 3, key=_key()))
    assert [TEXTS[list(TEXTS)[i]] for i in batch["image"][:, 0, 0, 0]] == batch["text"].tolist()


def _key():
    import jax

    return jax.random.key(0)


def test_metadata_may_lie_in_each_split(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split / "images" / "a.png", 1)
        write_captions(tmp_path / split, "jsonl", {"images/a.png": f"of {split}"})
    for split in ("train", "test"):
        assert data.load(tmp_path, split=split)["text"].tolist() == [f"of {split}"]
        assert data.info(tmp_path, split=split).num_classes is None


@pytest.mark.parametrize("how", ["txt", "jsonl", "csv"])
def test_captions_that_are_missing_are_named(tmp_path, how):
    for i in range(9):
        save(tmp_path / f"{i}.png", i)
    write_captions(tmp_path, how, {f"{i}.png": "x" for i in (0, 2)})
    with pytest.raises(
        ValueError, match=r"7 of 9 images.* 1\.png, 3\.png, 4\.png, 5\.png, 6\.png and 2 more\. Exp"
    ):
        data.info(tmp_path)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ('{"file_name": "a.png"', "line 1 of .*metadata.jsonl: it is not JSON"),
        ("[1]", "line 1 of .*expected a JSON object"),
        ('{"text": "x"}', 'row 1 of .*expected strings "file_name" and "text"'),
        ('{"file_name": "a.png", "text": 3}', 'row 1 of .*expected strings "file_name" and "text"'),
        (b"\xff\xfe", "is not UTF-8"),
        ('{"a":' * 10**5, "line 1 of .*: it is nested too deeply"),
    ],
)
def test_metadata_that_is_wrong_is_named(tmp_path, contents, said):
    save(tmp_path / "a.png", 1)
    raw = contents if isinstance(contents, bytes) else contents.encode()
    (tmp_path / "metadata.jsonl").write_bytes(raw)
    with pytest.raises(ValueError, match=said):
        data.info(tmp_path)


def test_a_table_of_captions_that_is_none_is_named(tmp_path):
    save(tmp_path / "a.png", 1)
    (tmp_path / "metadata.csv").write_text('file_name,text\na.png,"' + "x" * 140_000)
    with pytest.raises(ValueError, match=r"metadata\.csv is no table: field larger"):
        data.info(tmp_path)


def test_a_pipe_of_captions_is_not_waited_for(tmp_path):
    save(tmp_path / "a.png", 1)
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a\.txt: expected a file"):
        data.load(tmp_path)


def test_metadata_without_captions_or_with_absent_images_is_said(tmp_path, caplog):
    save(tmp_path / "a.png", 1)
    for name, contents in (
        ("jsonl", '{"file_name": "a.png", "label": 3}'),
        ("csv", "file_name,label\na.png,3\n"),
    ):
        file = tmp_path / f"metadata.{name}"
        file.write_text(contents)
        assert not data.info(tmp_path).has_text
        said = f'{file} has no column "text", so no captions: it has file_name, label. Remove it to have subfolders as'
        assert said in caplog.text
        file.unlink()
    write_captions(tmp_path, "jsonl", {"a.png": "x", "gone.png": "y"})
    assert data.load(tmp_path)["text"].tolist() == ["x"]
    assert "1 images that are not there, or unreadable: gone.png" in caplog.text


# The index and the cache


def test_headers_are_read_once_and_again_where_a_file_changed(tmp_path, monkeypatch):
    for i in range(5):
        save(tmp_path / f"{i}.png", i)
    looked = []
    header = images.header
    monkeypatch.setattr(images, "header", lambda path: looked.append(path.name) or header(path))
    assert numbers(tmp_path) == [0, 1, 2, 3, 4]
    assert sorted(looked) == [f"{i}.png" for i in range(5)]
    looked.clear()
    assert numbers(tmp_path) == [0, 1, 2, 3, 4]
    assert looked == []
    save(tmp_path / "1.png", 77)
    os.utime(tmp_path / "1.png", (1, 1))
    save(tmp_path / "9.png", 9)
    (tmp_path / "4.png").unlink()
    assert numbers(tmp_path) == [0, 77, 2, 3, 9]
    assert sorted(looked) == ["1.png", "9.png"]
    looked.clear()
    assert numbers(tmp_path) == [0, 77, 2, 3, 9]
    assert looked == []


def test_captions_that_change_are_read_again(tmp_path):
    save(tmp_path / "a.png", 1)
    for text in ("first", "other one"):
        write_captions(tmp_path, "txt", {"a.png": text})
        assert data.load(tmp_path)["text"].tolist() == [text]


def test_images_are_decoded_once(tmp_path, monkeypatch):
    save(tmp_path / "a.png", 1)
    assert numbers(tmp_path, image_size=4) == [1]
    load = images.load
    monkeypatch.setattr(images, "load", None)
    again = data.load(tmp_path, image_size=4)["image"]
    assert isinstance(again, np.memmap)
    assert again[0, 0, 0, 0] == 1
    monkeypatch.setattr(images, "load", load)
    assert data.load(tmp_path, image_size=3)["image"].shape == (1, 3, 3, 3)
    assert data.load(tmp_path, image_size=(3, 4), channels=1)["image"].shape == (1, 3, 4, 1)


def test_two_folders_of_one_name_are_two(tmp_path):
    for i in (1, 2):
        save(tmp_path / str(i) / "images" / "a.png", i)
        os.utime(tmp_path / str(i) / "images" / "a.png", (1, 1))
    assert [numbers(tmp_path / str(i) / "images") for i in (1, 2)] == [[1], [2]]


@pytest.mark.parametrize(
    "contents", ["", "{", '{"format": 1, "folder": "/x", "files": []}', '{"format": 1}', "[]"]
)
def test_an_index_that_is_damaged_is_made_anew(tmp_path, cache_dir, contents):
    save(tmp_path / "a.png", 1)
    data.info(tmp_path)
    (path,) = cache_dir.rglob("index.json")
    before = path.read_text()
    path.write_text(contents)
    assert numbers(tmp_path) == [1]
    assert path.read_text() == before


def test_an_index_with_a_flipped_bit_is_made_anew(tmp_path, cache_dir):
    """Whatever it still says: an image of 4 x 4 would be one of 5 x 4, and a grey one one of colours."""
    save(tmp_path / "a.png", 1)
    info = data.info(tmp_path)
    (path,) = cache_dir.rglob("index.json")
    raw = path.read_bytes()
    for at in range(raw.index(b"\n"), len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert data.info(tmp_path) == info
        assert path.read_bytes() == raw


def test_without_a_writable_cache_it_goes_on(tmp_path):
    save(tmp_path / "images" / "a.png", 1)
    (tmp_path / "file").write_text("")
    with (
        pytest.warns(UserWarning, match="the index .*can not be written .*GEN_JAX_CACHE or cache_dir="),
        pytest.warns(UserWarning, match="the cache .*can not be written"),
    ):
        assert numbers(tmp_path / "images", cache_dir=tmp_path / "file" / "x") == [1]


def test_an_index_of_many_files_is_quick(tmp_path, cache_dir, monkeypatch):
    """Reading an index is a matter of microseconds a file: what makes a million start within a minute."""
    stamps = {f"{i // 1000:04}/{i:08}.png": index.Stamp(1000 + i, 10**18 + i) for i in range(20_000)}
    monkeypatch.setattr(images, "header", lambda path: (64, 64, "RGB"))
    built = index.build(tmp_path, stamps, cache_dir, decode=False)
    monkeypatch.setattr(images, "header", None)
    assert index.build(tmp_path, stamps, cache_dir, decode=False) == built
    assert list(built) == list(stamps)
    assert (cache_dir / "index.json").stat().st_size < 100 * len(stamps)


# Files that can not be read


@pytest.fixture
def broken(tmp_path):
    """Twelve images of noise, of which 3, 5 and 8 are damaged."""
    rng = np.random.default_rng(0)
    root = tmp_path / "broken"
    root.mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        pixels[0, 0] = i
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    (root / "03.png").write_bytes(b"not an image at all")
    (root / "05.png").write_bytes(b"")
    os.truncate(root / "08.png", 2000)  # its header is sound
    return root


def test_unreadable_headers_are_refused_at_once(broken):
    with pytest.raises(
        ValueError, match=r"2 image\(s\) of .* can not be read: 03.png \(Unid.*05.png .*unreadable=\"skip\""
    ):
        data.source(broken)


def test_truncated_images_are_refused_when_they_are_read(broken):
    for name in ("03.png", "05.png"):
        (broken / name).unlink()
    source = data.source(broken)
    assert source[0]["image"].shape == (40, 40, 3)
    for read in (
        lambda: source[6],
        lambda: data.load(source),
        lambda: list(zip(range(5), _stream(source), strict=False)),
    ):
        with pytest.raises(
            ValueError, match=r"1 image\(s\) of .* can not be read: 08.png \(OSError: .*[Tt]runcated"
        ):
            read()


def _stream(source):
    return data.Stream(source, 5, key=_key())


def test_load_names_all_truncated_images(tmp_path):
    for i in range(700):
        save(tmp_path / f"{i:03}.png", i % 256)
    for i in range(0, 700, 100):
        os.truncate(tmp_path / f"{i:03}.png", 45)
    with pytest.raises(
        ValueError, match=r"7 image\(s\).*: 000\.png \(.*100\.png \(.*400\.png \(.* and 2 more"
    ):
        data.load(tmp_path)


def test_unreadable_images_are_left_out_with_their_names(broken, monkeypatch):
    left = [0, 1, 2, 4, 6, 7, 9, 10, 11]
    said = r"3 of the 12 images of .* are left out: 03\.png, 05\.png, 08\.png\."
    with pytest.warns(UserWarning, match=said):
        source = data.source(broken, unreadable="skip")
    assert len(source) == source.info().num_examples == 9
    assert [source[i]["image"][0, 0, 0] for i in range(9)] == left
    with pytest.warns(UserWarning, match=said):
        assert numbers(broken, unreadable="skip") == left
    monkeypatch.setattr(images, "header", None)  # from the index
    monkeypatch.setattr(images, "load", None)
    with pytest.warns(UserWarning, match=said):
        assert data.info(broken, unreadable="skip").num_examples == 9
    with pytest.raises(ValueError, match=r"3 image\(s\)"):  # it knows now of the third
        data.source(broken)


def test_images_that_are_mended_are_taken_again(broken):
    with pytest.warns(UserWarning, match="left out"):
        data.source(broken, unreadable="skip")
    for name in ("03", "05", "08"):
        shutil.copy(broken / "00.png", broken / f"{name}.png")
    assert data.info(broken).num_examples == 12


def test_nothing_but_unreadable_images_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    os.symlink("nowhere", tmp_path / "b.jpg")
    with pytest.raises(ValueError, match=r"2 image\(s\).*a.png .*b.jpg \(FileNotFoundError"):
        data.source(tmp_path, unreadable="skip")


def test_a_folder_without_images_says_so(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"x")
    (tmp_path / "b.txt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no images in .* among 2 files: expected files that Pillow reads"):
        data.load(tmp_path)


# What is a path


def test_paths_are_told_from_names(tmp_path, monkeypatch):
    save(tmp_path / "faces" / "a.png", 1)
    save(tmp_path / "mnist" / "a.png", 1)
    (tmp_path / "kmnist").mkdir()
    (tmp_path / "kmnist" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "faces",
        "./faces",
        "~/faces",
        str(tmp_path / "faces"),
        tmp_path / "faces",
        "faces/../faces",
        Path("faces"),
        Path("~/faces"),
    ):
        assert data.info(name).num_examples == 1
    assert data.info("mnist").num_examples == 60_000
    assert data.info("./mnist").num_examples == 1
    with pytest.raises(ValueError, match=r'the data set "kmnist" is known but not prepared'):
        data.info("kmnist", data_dir=tmp_path / "sets")


@pytest.mark.parametrize("name", ["/no/such", "./faces", "~/faces", "a/b/c"])
def test_a_wrong_path_says_what_was_looked_for(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/x")
    looked = {"~/faces": "/home/x/faces", "/no/such": "/no/such"}.get(
        name, os.path.join(tmp_path, name.removeprefix("./"))
    )
    with pytest.raises(ValueError, match=f"'{looked}' is not a folder of images: it does not exist"):
        data.load(name)


def test_a_name_that_may_be_a_path_says_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"no data set is called .*nor is there a folder or file {tmp_path}/data/faces"
    ):
        data.load("data/faces")


def test_a_file_that_is_no_folder_says_so(tmp_path):
    (tmp_path / "faces.zip").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"faces.zip' is not a folder of images\. Expected a folder, or a .npz"
    ):
        data.load(tmp_path / "faces.zip")
