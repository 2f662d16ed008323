"""Lines of figures, as `metrics.jsonl` has them: an object of JSON each, with a "step" and numbers."""

import io
import json
import math
from collections.abc import Iterator
from typing import TypeAlias

from gen_jax import paths
from gen_jax.types import AnyPath

MOST = 2**20
"""Bytes of what is no line of figures that are kept."""
Line: TypeAlias = dict[str, float | int | None]
"""The figures of a log point by name; null where one is not finite."""


def read(path: AnyPath) -> tuple[list[Line], list[bytes]]:
    """The lines of a file, and those that are none: a run that was killed may leave half of one, a disk anything.

    A line is an object with a whole number as "step"; all else in it is a finite number, or null. What is none is kept up
    to `MOST` bytes, of a line and in all: a disk may leave a file of any size.
    """
    good, bad, left = [], [], MOST
    for line in _lines(path) if path.exists() else ():
        found = _figures(line)
        if found is not None:
            good.append(found)
        elif line.strip() and left > 0:
            bad.append(line)
            left -= len(line)
    return good, bad


def _lines(path: AnyPath) -> Iterator[bytes]:
    """The lines without their ends, each cut after `MOST` bytes."""
    with io.BytesIO(path.read_bytes()) if paths.is_remote(path) else path.open("rb") as file:
        while line := file.readline(MOST):
            rest = line
            while len(rest) == MOST and not rest.endswith(b"\n"):
                rest = file.readline(MOST)
            yield line.removesuffix(b"\n")


def _figures(line: bytes) -> Line | None:
    try:
        found = json.loads(line.decode())
        if not isinstance(found, dict) or type(found.get("step")) is not int:
            return None
        numbers = (value for value in found.values() if value is not None)
        return found if all(type(x) in (int, float) and math.isfinite(x) for x in numbers) else None
    except (ValueError, OverflowError, RecursionError):
        return None
