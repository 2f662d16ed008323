import dataclasses
import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path

import pytest

from gen_jax import paths
from gen_jax.training.workdir import check_config, plain, prepare, write_json
from tests import gcs


def test_prepare_makes_the_directory_and_leaves_nothing_in_it(tmp_path):
    path = prepare(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b"
    assert list(path.iterdir()) == []


def test_prepare_says_that_the_directory_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to workdir .*file.* another workdir"):
        prepare(tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"workdir .*file \(it is a file\); give another workdir$"):
        prepare(tmp_path / "file")
    with pytest.raises(OSError, match=r"workdir /proc/zz \(No such .*\); give another workdir$"):
        prepare("/proc/zz")

    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_prepare_says_that_the_directory_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write to workdir"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("workdir", "said"),
    [
        ("s3://bucket/run", "gs://BUCKET/PATH, got s3://bucket/run"),
        (Path("s3://b/run"), "got s3:/b"),
        ("", "an empty"),
    ],
)
def test_prepare_refuses_what_is_no_directory(workdir, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        prepare(workdir)
    assert list(tmp_path.iterdir()) == []


def test_prepare_of_a_bucket_says_what_is_missing(tmp_path, monkeypatch):
    """The package, or the right to write; and where there is both it leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    with gcs.reached() as server:
        for workdir in (f"{server.url}/run", Path(f"{server.url}/run")):  # a Path has one slash less
            assert str(prepare(workdir)) == f"{server.url}/run"
        assert server.names() == []
        server.refused = True
        said = rf"cannot write to workdir {server.url}/run \(.*Anonymous caller.*\): .* credentials .*gcloud auth"
        with pytest.raises(OSError, match=said):
            prepare(f"{server.url}/run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    paths._prepare.cache_clear()
    with pytest.raises(ValueError, match=r"needs the package gcsfs.*pip install"):
        prepare("gs://bucket/run")
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Net:
    channels: tuple[int, ...] = (32, 64)


@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 1e-3
    workdir: Path = Path("runs/a")
    net: Net = Net()
    seed: int | None = None


def test_plain_is_what_json_gives_back():
    expected = {"rate": 1e-3, "workdir": "runs/a", "net": {"channels": [32, 64]}, "seed": None}
    assert plain(Config()) == expected == plain(dataclasses.asdict(Config()))
    assert plain(None) == {}
    with pytest.raises(ValueError, match="a dataclass or a mapping, got int"):
        plain(3)


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        ({"a": 1}, {"a": 2}, "a: 1 saved, 2 now"),
        ({"a": 1}, {}, "a: 1 saved, absent now"),
        ({}, {"a": None}, "a: absent saved, None now"),
        (
            {"net": {"channels": [1, 2]}},
            {"net": {"channels": [1]}},
            r"net\.channels: \[1, 2\] saved, \[1\] now",
        ),
        ({"net": {"depth": 1}}, {"net": None}, r"net\.depth: 1 saved, absent now"),
    ],
)
def test_check_config_names_what_differs(saved, now, message):
    with pytest.raises(ValueError, match=message):
        check_config(saved, now, ())
    check_config(saved, now, ("a", "net"))
    with pytest.raises(ValueError, match=message):
        check_config(saved, now, ("ne", "net.chan"))  # no prefixes of names


def test_check_config_accepts_what_is_equal():
    check_config(plain(Config()), plain(Config()), ())


def test_a_config_with_numbers_that_are_not_finite_is_json_and_equal_to_itself(tmp_path):
    config = {"clip": math.inf, "rates": [math.nan, -math.inf, 1.0]}
    assert plain(config) == {"clip": "Infinity", "rates": ["NaN", "-Infinity", 1.0]}
    write_json(tmp_path / "config.json", plain(config))
    refuse = lambda name: pytest.fail(f"{name} is no JSON")
    saved = json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    check_config(saved, plain(config), ())
    check_config(config, plain(config), ())  # as checkpoints of before have it
    with pytest.raises(ValueError, match="clip: 'Infinity' saved, 1 now"):
        check_config(saved, plain({**config, "clip": 1}), ())


def test_check_config_takes_no_string_for_names():
    """Its letters would be names of fields."""
    with pytest.raises(ValueError, match=r"may_change must be a list of names, got 'seed': \('seed',\)"):
        check_config({"s": 1}, {"s": 2}, "seed")


def test_write_json_replaces_the_file_at_once(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
