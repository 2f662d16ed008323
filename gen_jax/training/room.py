"""Room on the disk: whether a run has it before it begins, and what is said when it runs out."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator

import jax
from jaxtyping import PyTree

from gen_jax import paths
from gen_jax.types import AnyPath

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS = re.compile("No space left on device|[Dd]isk quota exceeded|File too large")


class NoRoom(OSError):
    """A disk is full, or will be."""


def check(checkpoints: AnyPath, state: PyTree, *, keep: int) -> None:
    """Raise NoRoom unless the directory has room for `keep + 1` checkpoints of `state`, of which one is being written.

    Room is what is free, and the checkpoints of an earlier run, which go as new ones come. No other file goes. A bucket
    has room.
    """
    if paths.is_remote(checkpoints):
        return
    size = num_bytes(state)
    need, free = (keep + 1) * size, shutil.disk_usage(checkpoints).free
    if free + num_bytes_on_disk(checkpoints) < need:
        raise NoRoom(
            f"{checkpoints.parent} has {mebibytes(free)} free, but {keep + 1} checkpoints of {mebibytes(size)} need "
            f"{mebibytes(need)}; free some room, keep fewer checkpoints, or give another workdir"
        )


@contextlib.contextmanager
def explained(checkpoints: AnyPath, state: PyTree) -> Iterator[None]:
    """Raise NoRoom, which says what is missing and what is left, for any error of a disk that is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, NoRoom) or paths.is_remote(checkpoints) or (why := _full(error)) is None:
            raise
        steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        left = f"the checkpoint of step {max(steps)} stands" if steps else "there is no checkpoint yet"
        raise NoRoom(
            f"no room in {checkpoints.parent} ({why}): {mebibytes(shutil.disk_usage(checkpoints).free)} are free, and a "
            f"checkpoint takes {mebibytes(num_bytes(state))}; {left}: make room, and the same command goes on from there"
        ) from error


def num_bytes(tree: PyTree) -> int:
    """Size of all the arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def num_bytes_on_disk(directory: AnyPath) -> int:
    """Size of the files in a directory."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # what a killed run left is being removed
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def mebibytes(size: float | int) -> str:
    """A number of bytes in words."""
    whole = size / 2**20
    return f"{whole:.0f} MiB" if whole >= 10 else f"{whole:.1f} MiB"


def _full(error: BaseException | None) -> str | None:
    """What says that the disk is full, in an error or in what it came of."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.strerror or "full"
        if found := _WORDS.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None
