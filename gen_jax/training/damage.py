"""What is said of a checkpoint that can not be read: the reason, and the file that it is of."""

import json
from pathlib import Path

_JSON = ("_METADATA", "metadata", "process_*")
"""Names of the files of JSON in a checkpoint that are read."""
_MOST = 500
"""Characters of an error that names its file, behind others."""


def first_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]


def reason(step: Path, error: BaseException) -> str:
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


def _damaged(step: Path) -> Path:
    meta = step / "meta" / "metadata"
    files = [meta, *(file for name in _JSON for file in sorted(step.glob(f"**/{name}")))]
    return next((file for file in files if not _is_json(file)), step)


def _is_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True
