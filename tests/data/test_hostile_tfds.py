"""A directory of TFDS that a stranger has made: no module of his is imported, no path leads out of it."""

import json
import os
import sys
import typing

import pytest
import tensorflow_datasets as tfds

from gen_jax import data
from gen_jax.data import cache
from gen_jax.data.sources.tfds import gate
from tests import strangers
from tests.strangers import NAME


@pytest.fixture
def place(tmp_path):
    """The directory of the version, sound."""
    return strangers.prepare(tmp_path / "sets")


def load(place):
    return data.load(NAME, data_dir=place.parents[1], cache_dir=place.parents[2] / "cache")


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_sound_one_is_read(place):
    assert sorted(load(place)["image"][:, 0, 0, 0].tolist()) == list(range(6))


MODULE = "a_module_of_a_stranger"
CLASSES = {
    "protobuf": {"pythonClassName": f"{MODULE}.Image", "tensor": {}},
    "protobuf, in its own spelling": {"python_class_name": f"{MODULE}.Image", "tensor": {}},
    "old": {"type": f"{MODULE}.Image", "content": {}},
    "old, inside another": {
        "type": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "content": {"image": {"type": f"{MODULE}.Image", "content": {}}},
    },
    "of Python itself": {"pythonClassName": "antigravity.Image", "tensor": {}},
}


@pytest.mark.parametrize("said", CLASSES)
def test_a_class_that_is_not_loaded_is_refused_and_not_imported(place, said, monkeypatch):
    (place.parent / f"{MODULE}.py").write_text("raise SystemExit('the code of a stranger ran')")
    monkeypatch.syspath_prepend(place.parent)
    (place / "features.json").write_text(json.dumps(CLASSES[said]))
    with pytest.raises(ValueError, match=r"features.json names the class '.*', which is not loaded"):
        load(place)
    assert not {MODULE, "antigravity"} & set(sys.modules)


@pytest.mark.parametrize("field", ["name", "version", "configName", "fileFormat"])
@pytest.mark.parametrize("name", ["../../../outside", "..", "/tmp/outside", "a/b"])
def test_a_name_that_is_a_path_is_refused(place, field, name):
    change(place / "dataset_info.json", **{field: name})
    with pytest.raises(ValueError, match=rf"dataset_info.json: expected a name without a path as {field}"):
        load(place)
    assert sorted(os.listdir(place.parents[2])) == ["sets"]


@pytest.mark.parametrize("field", ["name", "filepathTemplate"])
def test_a_split_that_is_a_path_is_refused(place, field):
    file = place / "dataset_info.json"
    (split,) = json.loads(file.read_text())["splits"]
    change(file, splits=[split | {field: "../../{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}])
    with pytest.raises(ValueError, match=rf"expected a name without a path as {field}"):
        load(place)


def test_a_config_that_is_a_path_is_refused(place):
    (place.parent / ".config").mkdir()
    (place.parent / ".config" / "metadata.json").write_text('{"default_config_name": "../../elsewhere"}')
    with pytest.raises(ValueError, match="expected a name without a path as default_config_name"):
        load(place)


@pytest.mark.parametrize("kind", ["outside", "device", "nowhere", "pipe"])
def test_a_file_that_is_a_link_or_a_pipe_is_refused(place, kind):
    shard = next(file for file in place.iterdir() if "array_record" in file.name)
    moved = shard.rename(place.parents[2] / "elsewhere")
    if kind == "pipe":
        os.mkfifo(shard)
    else:
        shard.symlink_to({"outside": moved, "device": "/dev/zero", "nowhere": place / "nothing"}[kind])
    with pytest.raises(ValueError, match="is no file of this directory, but a link out of it"):
        load(place)


def test_a_link_in_the_place_of_the_version_is_looked_through(place):
    moved = place.rename(place.parents[2] / "elsewhere")
    place.symlink_to(moved)
    assert len(load(place)["image"]) == 6
    (moved / "features.json").write_text(json.dumps(CLASSES["old"]))
    with pytest.raises(ValueError, match="not loaded"):
        load(place)


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"name": ' * 2000, "\xff"])
def test_a_damaged_description_is_an_error_and_no_other_set(place, file, text):
    (place / file).write_text(text, encoding="latin1")
    with pytest.raises(ValueError, match=NAME) as error:
        load(place)
    assert "no data set is called" not in str(error.value)


def test_classes_of_ones_own_are_known_once_they_are_imported():
    class Own(tfds.features.Tensor):
        ALIASES: typing.ClassVar = ["before.Own"]

    assert {f"{__name__}.Own", "before.Own"} <= gate.known()
    assert "tensorflow_datasets.core.features.image_feature.Image" in gate.known()


def test_an_entry_of_the_cache_is_inside_of_it():
    with pytest.raises(ValueError, match="leads elsewhere"):
        cache.entry("mnist/../../outside/1.0.0", "train", [])
