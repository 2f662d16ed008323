"""Shapes: whether an axis has the size that its letter has in a call, and what is said of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gen_jax.checks.values import Value


class Axis(NamedTuple):
    """What is said of the size of an axis: a number, or a letter, or nothing; `or_one`: 1 is right as well."""

    size: int | None
    letter: str | None
    or_one: bool


def axis(dim: str) -> Axis:
    """`3`, `N`, `#N`, or `_` and others, of which nothing is known."""
    name = dim.removeprefix("#")
    if name.isdigit():
        return Axis(int(name), None, dim != name)
    return Axis(None, name if name.isidentifier() and name != "_" else None, dim != name)


def fit(axes: Sequence[Axis], shape: Sequence[int], sizes: dict[str, Value]) -> bool:
    """Whether axes have the sizes that their letters have in this call, or give them one."""
    for (size, letter, or_one), found in zip(axes, shape, strict=True):
        if or_one and found == 1:
            continue
        if size is not None and size != found:
            return False
        if letter is not None and sizes.setdefault(letter, found) != found:
            return False
    return True


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of a shape fits another without making it larger."""
    last = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, m) for n, m in last)


def shown(dim: str) -> str:
    """An axis, for messages."""
    return "..." if dim.startswith("*") else dim.strip("{}#")


def shape_of(value: Value) -> tuple[int, ...]:
    """Of an array, or of what can be made one; of lists of different lengths none."""
    try:
        return np.shape(value)
    except ValueError:
        return ()
