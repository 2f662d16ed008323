"""What is said of a checkpoint that can not be read: the reason, and the file that it is of."""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from gen_jax import paths, small_files
from gen_jax.types import AnyPath

_JSON = ("_METADATA", "metadata", "process_*")
"""Names of the files of JSON in a checkpoint that are read."""
_MOST = 500
"""Characters of an error that names its file, behind others."""
_DESCRIBES, _SHAPES = re.compile(r"_|metadata$|manifest\.ocdbt$"), "array_metadatas"
"""Of files that say what there is: how their names begin, and the directory of the rest."""
_COMMITTED = "commit_success.txt"
"""The object by which Orbax says, in a bucket, that a checkpoint is complete."""


class CheckpointError(ValueError):
    """No checkpoint, or none that can be read."""


def is_whole(step: AnyPath) -> bool:
    """Whether a checkpoint is complete: in a bucket it has its name from the beginning."""
    return not paths.is_remote(step) or (step / _COMMITTED).exists()


def refuse_large(directory: AnyPath) -> None:
    """CheckpointError where a file that says what there is is larger than any is: Orbax would read all of it."""
    for file, size in _describing(directory):
        if size > small_files.MOST_BYTES:
            raise CheckpointError(
                f"{file} has {size:,} bytes, where at most {small_files.MOST_BYTES:,} were expected: move the "
                "checkpoint that it is of away."
            )


def _describing(directory: AnyPath) -> Iterator[tuple[AnyPath, int]]:
    """The files that say what there is, and their sizes."""
    if paths.is_remote(directory):
        for place, stamp in paths.objects(directory).items():
            if _DESCRIBES.match(place.rpartition("/")[2]) or _SHAPES in place:
                yield directory / place, stamp.bytes
        return
    for parent, _, names in os.walk(directory):  # not `glob`, which fails where one is removed meanwhile
        for file in (Path(parent, name) for name in names if _DESCRIBES.match(name) or _SHAPES in parent):
            with contextlib.suppress(OSError):  # gone meanwhile
                if file.is_file():
                    yield file, file.stat().st_size


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def reason(step: AnyPath, error: BaseException) -> str:
    """What an error of reading the checkpoint in `step` says, with the path of the file that it is of.

    The storage layers name the file in some errors, in others only in the error before it, and in others not at all: then
    it is the file of JSON that is none, or the checkpoint itself where that is not to be found.
    """
    said, earlier = first_line(error, _MOST), error.__cause__ or error.__context__
    while f"{step}" not in said and earlier is not None:
        if f"{step}" in (before := first_line(earlier, _MOST)):
            return before
        earlier = earlier.__cause__ or earlier.__context__
    return said if f"{step}" in said else f"{_damaged(step)}: {said}"


def _damaged(step: AnyPath) -> AnyPath:
    meta = step / "meta" / "metadata"
    if paths.is_remote(step):
        return step
    files = [meta, *(file for name in _JSON for file in sorted(step.glob(f"**/{name}")))]
    return next((file for file in files if not _is_json(file)), step)


def _is_json(file: AnyPath) -> bool:
    try:
        json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True
