import dataclasses
import os
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import toy

from gen_jax.training.workdir import check_config, num_bytes, plain, prepare, write_json

Usage = namedtuple("Usage", "total used free")


def test_prepare_makes_the_directory_and_leaves_nothing_in_it(tmp_path):
    path = prepare(tmp_path / "a" / "b", {"x": jnp.ones(3)}, keep=3)
    assert path == tmp_path / "a" / "b"
    assert list(path.iterdir()) == []


def test_prepare_says_how_much_room_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10 * 2**20))
    state = {"x": jax.ShapeDtypeStruct((2**20,), jnp.float32)}  # 4 MiB
    prepare(tmp_path, state, keep=1)
    with pytest.raises(OSError, match="10 MiB free, but 4 checkpoints of 4 MiB need 16 MiB"):
        prepare(tmp_path, state, keep=3)
    (tmp_path / "old").write_bytes(b"0" * 6 * 2**20)  # an earlier run's checkpoints will make room
    prepare(tmp_path, state, keep=3)


def test_prepare_says_that_the_directory_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to workdir .*file.* another workdir"):
        prepare(tmp_path / "file" / "run", {}, keep=3)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        prepare(tmp_path, {}, keep=3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_prepare_says_that_the_directory_is_read_only(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot write to workdir"):
        prepare(tmp_path, {}, keep=3)


def test_prepare_refuses_a_url():
    with pytest.raises(ValueError, match="gcsfuse"):
        prepare("gs://bucket/run", {}, keep=3)


def test_num_bytes_counts_the_state():
    state = toy.setup()[1]
    kernels, bias = 2 * toy.DIM * toy.WIDTH, toy.WIDTH
    assert num_bytes(state) == 4 * (4 * (kernels + bias) + 3) + 8  # four copies, three counters, the key


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


def test_write_json_replaces_the_file_at_once(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "a": 1\n}\n'
