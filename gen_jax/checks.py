"""Checks of what a user hands over, on the host and before anything is compiled.

Each raises a ValueError that says what was expected, what came, and what to do.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import SupportsFloat, SupportsIndex

import jax
import numpy as np


def whole(name: str, value: object, of: str, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most` as an int: `whole("num", 3, "sample")`. Neither 2.5 nor True is one."""
    number = None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        try:
            number = value.__index__()
        except TypeError:  # of an array with axes, or of floats
            number = None
    if number is None:
        raise ValueError(f"{name} must be a whole number of {of}s, got {came(value)}.")
    if number < least:
        raise ValueError(f"{name} must be at least {least} {of}, got {number}.")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {most:,} {of}s, got {number:,}.")
    return number


def finite(name: str, value: object, hint: str = "") -> float:
    """A finite number as a float; `hint` is said in the end of the message."""
    number = math.nan
    if isinstance(value, SupportsFloat) and not isinstance(value, bool):
        try:
            number = float(value)
        except TypeError:  # of an array with axes
            number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {came(value)}{hint}.")
    return number


def one_key(value: object) -> None:
    """That `value` is one key of `jax.random.key`, not a seed, and not a key of the old style."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
        raise ValueError(
            f"key must be one key, got {shape} of them: take one, or split it where several are needed."
        )
    what = "key must be a key of jax.random.key(seed)"
    if isinstance(value, SupportsIndex) and shape is None:
        raise ValueError(f"{what}, got {came(value)}: make it with jax.random.key({value}).")
    if dtype == np.uint32:
        raise ValueError(
            f"{what}, got {came(value)}, which is a key of jax.random.PRNGKey: take jax.random.key(seed), or "
            "jax.random.wrap_key_data(key) for the same draws."
        )
    raise ValueError(f"{what}, got {came(value)}.")


def of_shape(name: str, value: object, shape: tuple[int, ...]) -> None:
    """That `value` is an array of this shape."""
    if getattr(value, "shape", None) != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {came(value)}.")


def one_or_each(name: str, value: object, num: int) -> np.ndarray:
    """`value` as an array: one for all samples, `[]`, or one for each, `[num]`."""
    array = np.asarray(value)
    if array.shape not in ((), (num,)):
        raise ValueError(f"{name} must be one of all samples, or one of each, {(num,)}; got {came(array)}.")
    return array


def came(value: object) -> str:
    """A value in a few words, for messages."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if shape and dtype is not None:
        return f"an array {dtype} {tuple(shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def nearest(asked: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """` Did you mean a, b or c?` for a misspelt name, to end a message with; nothing where no name is near."""
    *others, last = ["", *difflib.get_close_matches(str(asked), list(names), n=3, cutoff=cutoff)]
    some = ", ".join(others[1:])
    return f" Did you mean {some} or {last}?" if some else f" Did you mean {last}?" if last else ""
