"""Shapes: whether an axis has the size that its letter has in a call, and what is said of it."""

import numpy as np

from gen_jax.checks.values import Value


def bound(dim: str, size: int, sizes: dict[str, Value]) -> bool:
    """Whether an axis has the size that its letter has in this call, or gives it one."""
    if dim.isdigit():
        return size == int(dim)
    if dim.startswith("#"):
        return size == 1 or bound(dim[1:], size, sizes)
    return not dim.isidentifier() or dim == "_" or sizes.setdefault(dim, size) == size


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
