"""Data sets in a bucket: the same as here, fetched once, and anew where they have changed."""

import os
import time

import numpy as np
import pytest
from PIL import Image
from tiny_sets import tiny_sets

from gen_jax import data, paths
from gen_jax.data import cache
from gen_jax.data.fetching import fetched
from tests import gcs


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
    with gcs.reached() as server:
        yield server


def downloads(bucket):
    return sum("alt=media" in request for request in bucket.requests)


def assert_same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]))


def test_what_is_in_a_bucket_is_fetched_once_and_anew_where_it_has_changed(bucket, tmp_path):
    (tmp_path / "file").write_text("here")
    assert fetched(tmp_path / "file") == tmp_path / "file"
    for name, text in (("a", b"1"), ("b/c", b"22"), ("d", b"")):
        bucket.put(f"set/{name}", text)
    path = paths.path_of(f"{bucket.url}/set")
    found = fetched(path)
    assert {
        file.relative_to(found).as_posix(): file.read_bytes() for file in found.rglob("*") if file.is_file()
    } == {
        "a": b"1",
        "b/c": b"22",
        "d": b"",
    }
    before = downloads(bucket)
    assert fetched(path) == found
    assert downloads(bucket) == before
    time.sleep(0.01)
    bucket.put("set/b/c", b"33")
    del bucket.objects[f"{bucket.bucket}/set/a"]
    assert (fetched(path) / "b" / "c").read_bytes() == b"33"
    assert downloads(bucket) == before + 1
    assert sorted(os.listdir(found)) == ["b", "d"]
    assert fetched(path / "b" / "c").read_bytes() == b"33"
    with pytest.raises(ValueError, match=r"set/none: expected an object of this name"):
        fetched(path / "none")


def test_a_folder_a_file_and_a_prepared_set_are_the_same_in_a_bucket(bucket, tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "images"
    for name in ("cat/0.png", "cat/1.png", "dog/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(folder / name)
    np.savez(tmp_path / "set.npz", image=rng.integers(0, 256, (4, 6, 5), dtype=np.uint8), label=np.arange(4))
    assert tiny_sets.TinyColour  # registered
    prepared = data.load("tiny_colour", data_dir=tmp_path / "tfds")
    bucket.put_all("images", folder)
    bucket.put("set.npz", (tmp_path / "set.npz").read_bytes())
    bucket.put_all("tfds", tmp_path / "tfds")
    assert_same(data.load(f"{bucket.url}/images"), data.load(folder))
    assert data.info(f"{bucket.url}/images").class_names == ("cat", "dog")
    assert_same(data.load(f"{bucket.url}/set.npz"), data.load(tmp_path / "set.npz"))
    for place in (f"{bucket.url}/tfds", paths.path_of(f"{bucket.url}/tfds")):
        assert_same(data.load("tiny_colour", data_dir=place), prepared)


def test_arrays_that_are_kept_in_a_bucket_are_made_once_for_all_machines(bucket, tmp_path, monkeypatch):
    entry, made = paths.path_of(f"{bucket.url}/run/latents/0"), []

    def chunks():
        made.append(1)
        yield {"latent": np.arange(6, dtype=np.float32).reshape(2, 3), "text": np.array(["a", "b"], object)}

    first = cache.kept(entry, chunks, 2)()
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "of another machine"))
    assert_same(cache.kept(entry, chunks, 2)(), first)
    assert made == [1]
    assert isinstance(first["latent"], np.memmap)
    del bucket.objects[
        f"{bucket.bucket}/run/latents/0/meta.json"
    ]  # as if it had not been uploaded to the end
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "of a third one"))
    assert_same(cache.kept(entry, chunks, 2)(), first)
    assert made == [1, 1]
