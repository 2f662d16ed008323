"""Which parameters of a test are tried each time, and which by `pytest -m slow`."""

from collections.abc import Collection, Iterable

import pytest


def slow(values: Iterable, which: Collection | None = None, *, but: Collection = ()) -> list:
    """The values of a parameter, of which those in `which` are slow, or all but those in `but`; tuples are several."""
    rare = lambda value: value in which if which is not None else value not in but
    several = lambda value: value if type(value) is tuple else (value,)
    return [pytest.param(*several(v), marks=pytest.mark.slow) if rare(v) else v for v in values]
