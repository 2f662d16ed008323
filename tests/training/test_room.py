"""Room on the disk: what counts as such, and what is said when it runs out."""

import errno
import shutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import pytest
import toy

from gen_jax.training import room

Usage = namedtuple("Usage", "total used free")
STATE = {"x": jax.ShapeDtypeStruct((2**20,), jnp.float32)}  # 4 MiB


def test_check_says_how_much_room_is_missing(tmp_path, monkeypatch):
    """Checkpoints of an earlier run go, and nothing else."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10 * 2**20))
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    room.check(checkpoints, STATE, keep=1)
    six = b"0" * 6 * 2**20
    (tmp_path / "samples.npy").write_bytes(six)
    (tmp_path / "checkpoints.damaged").write_bytes(six)
    with pytest.raises(OSError, match=r"10 MiB free, but 4 checkpoints of 4\.0 MiB need 16 MiB"):
        room.check(checkpoints, STATE, keep=3)
    (checkpoints / "3").mkdir()
    (checkpoints / "3" / "params").write_bytes(six)
    room.check(checkpoints, STATE, keep=3)


def test_num_bytes_counts_the_state():
    state = toy.setup()[1]
    kernels, bias = 2 * toy.DIM * toy.WIDTH, toy.WIDTH
    assert room.num_bytes(state) == 4 * (4 * (kernels + bias) + 3) + 8  # four copies, three counters, the key


FULL = OSError(errno.ENOSPC, "No space left on device")


def raised(error, cause=None):
    raise error from cause


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ((FULL,), "No space left on device"),
        ((ValueError("handle is closed"), FULL), "No space left on device"),
        ((RuntimeError("ABORTED: [OS error 122: Disk quota exceeded] writing d/0"),), "Disk quota exceeded"),
    ],
)
def test_a_full_disk_is_said_in_a_sentence_whatever_error_it_was(tmp_path, error, why):
    for steps, left in (((), "there is no checkpoint yet"), ((9, 10), "the checkpoint of step 10 stands")):
        for step in steps:
            (tmp_path / str(step)).mkdir()
        said = rf"\({why}\): .* free, and a checkpoint takes 4\.0 MiB; {left}"
        with pytest.raises(room.NoRoom, match=said), room.explained(tmp_path, STATE):
            raised(*error)


def test_other_errors_stay_as_they_are(tmp_path):
    with pytest.raises(KeyError), room.explained(tmp_path, STATE):
        raised(KeyError("x"))
