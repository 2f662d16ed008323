"""Paths of files and of objects in a bucket: each function on both."""

from pathlib import Path

import numpy as np
import pytest

from gen_jax import launch, paths, plots
from tests import gcs


@pytest.fixture(scope="module")
def bucket():
    with gcs.reached() as server:
        yield server


@pytest.fixture(params=["here", "in a bucket"])
def place(request, tmp_path):
    """An empty directory."""
    if request.param == "here":
        yield tmp_path
        return
    bucket = request.getfixturevalue("bucket")
    bucket.objects.clear()
    yield paths.path_of(bucket.url) / "runs" / "a"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("gs://bucket/a/b", "gs://bucket/a/b"),
        ("gs://bucket/a/", "gs://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        (Path("gs://bucket/a"), "gs://bucket/a"),  # which is gs:/bucket/a
        ("runs/a", Path("runs/a")),
        ("", Path()),
        ("~/a", Path.home() / "a"),
        ("file:///a/b%20c", Path("/a/b c")),
        ("a:b/c", Path("a:b/c")),
        ("C:/a", Path("C:/a")),
    ],
)
def test_path_of_is_a_path_here_or_in_a_bucket(said, expected):
    found = paths.path_of(said)
    assert paths.is_remote(found) is isinstance(expected, str)
    assert str(found) == str(expected)
    assert paths.path_of(found) == found
    assert str(found / "c") == f"{expected}/c".removeprefix("./")
    assert (str(paths.absolute(found)) == str(expected)) is (
        isinstance(expected, str) or expected.is_absolute()
    )


@pytest.mark.parametrize("said", ["s3://bucket/a", "gs://", "hf://datasets/a", Path("az://a/b")])
def test_path_of_refuses_buckets_of_others(said):
    with pytest.raises(ValueError, match=r"a mounted file system or gs://BUCKET/PATH, got \w+:/"):
        paths.path_of(said)


def test_what_is_written_is_read(place):
    paths.make(place)
    file = place / "a.json"
    for text in ("old", "new text"):
        paths.replace(file, text)
        assert file.read_text() == text
        assert paths.size(file) == len(text)
    assert [path.name for path in place.iterdir()] == ["a.json"]
    assert paths.modified(file) > 1.5e9


def test_an_array_and_a_folder_are_written_as_what_they_are(place, tmp_path):
    paths.make(place)
    array = np.arange(6).reshape(2, 3)
    paths.save_array(place / "a.npy", array)
    with paths.writing(place / "model") as folder:
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "w.bin").write_bytes(bytes(range(256)) * 40_000)  # in several requests
    (tmp_path / "copy.npy").write_bytes((place / "a.npy").read_bytes())
    np.testing.assert_array_equal(np.load(tmp_path / "copy.npy"), array)
    assert (place / "model" / "part" / "w.bin").read_bytes() == bytes(range(256)) * 40_000


def test_nothing_is_uploaded_of_what_could_not_be_written(bucket):
    path = paths.path_of(bucket.url) / "half.npy"

    def fail():
        with paths.writing(path) as file:
            file.write_bytes(b"0")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not path.exists()


def test_a_directory_takes_the_place_of_another(place):
    for name, text in (("a", "1"), ("b", "2")):
        paths.make(place / name / "c")
        paths.replace(place / name / "c" / "x", text)
    paths.replace(place / "b" / "y", "3")
    paths.move(place / "a", place / "b")
    assert not (place / "a").exists()
    assert (place / "b" / "c" / "x").read_text() == "1"
    assert not (place / "b" / "y").exists()


def test_objects_are_those_below_a_name_and_names_that_lead_elsewhere_are_refused(bucket):
    bucket.objects.clear()
    path = paths.path_of(bucket.url) / "d"
    for name in ("d/a", "d/b/c", "dd/e", "d/f/"):
        bucket.put(name, b"12")
    found = paths.objects(path)
    assert sorted(found) == ["a", "b/c"]
    assert found["a"].bytes == 2
    assert list(paths.objects(path / "a")) == [""]
    bucket.put("d/../e", b"")
    with pytest.raises(ValueError, match=r"expected names of files, got the object '../e'"):
        paths.objects(path)


def test_pictures_and_curves_are_saved(place):
    paths.make(place)
    plots.save_grid(place / "grid.png", np.zeros((4, 8, 8, 1), np.uint8))
    with plots.figure(place / "figure.png") as axes:
        axes.plot([1, 2])
    paths.replace(place / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n')
    plots.save_loss(place / "loss.png", place / "metrics.jsonl")
    for name in ("grid", "figure", "loss"):
        assert (place / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="is not that of a metrics"):
        plots.read_metrics(place / "none.jsonl")


def test_flags_name_buckets(tmp_path):
    from step01_normal import Config

    for said in ("gs://bucket/run", "file:///bucket/run", "runs/a"):
        config = launch.parse(Config, ["--workdir", said])
        assert str(config.workdir) == said.removeprefix("file://")
        assert launch.record("step", config)["options"]["workdir"] == config.workdir
    assert paths.is_remote(launch.parse(Config, ["--workdir=gs://bucket/run"]).workdir)
    with pytest.raises(SystemExit):
        launch.parse(Config, ["--workdir", "s3://bucket/run"])
