"""An error of a source stands alone: its message says what was found, so no traceback of what lies below is chained."""

import json
import traceback

import numpy as np
import pytest
from PIL import Image

from gen_jax import data


def picture(path):
    path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path / "0.png")
    return path


def misspelt(path):
    return data.source("mnits")


def no_such_config(path):
    return data.source("kmnist/nonsense")


def no_such_split(path):
    return data.source(picture(path), split="train[:5%")


def no_such_split_of_mnist(path):
    return data.source("mnist", split="validation")


def damaged_file(path):
    (path / "images.npz").write_bytes(b"no archive")
    return data.source(path / "images.npz")


def no_json(path):
    (picture(path) / "metadata.jsonl").write_text("{")
    return data.source(path)


def no_unicode(path):
    (picture(path) / "metadata.jsonl").write_bytes(b"\xff\xfe")
    return data.source(path)


def damaged_cache(path):
    source = data.source(picture(path / "images"), cache_dir=path / "cache")
    data.load(source)
    (meta,) = (path / "cache").rglob("meta.json")
    meta.write_text(json.dumps({"arrays": {"image": {}}}))
    return data.load(source)


FAULTS = (
    misspelt,
    no_such_config,
    no_such_split,
    no_such_split_of_mnist,
    damaged_file,
    no_json,
    no_unicode,
    damaged_cache,
)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_is_told_in_one_traceback(fault, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "kept"))
    with pytest.raises(ValueError, match=r"\w") as error:
        fault(tmp_path)
    told = "".join(traceback.format_exception(error.value))
    assert told.count("Traceback (most recent call last)") == 1, told
