"""Values in words, for messages."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np


def came(value: object) -> str:
    """A value in a few words, for messages."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if shape and dtype is not None:
        return f"an array {dtype} {tuple(shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, list(value)[:5])) or 'nothing'}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def no_numbers(value: object) -> str:
    """What came where numbers were expected: an empty list, words, or what a list can be made of."""
    if isinstance(value, (list, tuple)) and not value:
        return f"{value}, an empty {type(value).__name__}"
    if isinstance(value, str) or (
        isinstance(value, (list, tuple)) and any(isinstance(x, str) for x in value)
    ):
        return f"{came(value)}: make numbers of words, as float(word) does"
    if isinstance(value, (range, Iterator)):
        return f"{came(value)}: make a list of it"
    return came(value)


def shown(number: float | int) -> str:
    """A number for messages; a large whole one in full, as `:g` leaves out digits of it."""
    whole = isinstance(number, int) or (number.is_integer() and abs(number) < 1e15)
    return f"{int(number):,}" if whole and 1e5 <= abs(number) < 1e30 else f"{number:g}"


def counted(number: int, of: str) -> str:
    """`1 example of the set`, `2 examples of the set`."""
    noun, preposition, rest = of.partition(" of ")
    return f"{number:,} {noun}{'s' * (number != 1)}{preposition}{rest}"


def spread(value: Any) -> str:
    """An array in a few words, with its least and its largest value where they are known."""
    if isinstance(value, jax.core.Tracer) or not np.size(value):
        return came(value)
    return f"{came(value)} with {extent(value)}"


def extent(value: Any) -> str:
    """The values of an array in a few words: from which to which, or that there is a NaN, and in which rows."""
    array = np.asarray(value)
    return not_finite(array) or f"values from {float(array.min()):g} to {float(array.max()):g}"


def not_finite(array: np.ndarray) -> str:
    """Of what is not finite in an array, in how many rows, and the first of them; "" where all is."""
    array = array.astype(np.float32) if array.dtype.kind == "V" else array
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return ""
    what = "NaN" if np.isnan(array).any() else "infinite values"
    if not array.ndim:
        return what
    rows = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    return f"{what} in {len(rows):,} of {len(array):,} rows, the first of them row {rows[0]}"


def unfit(given: Mapping[str, Any], error: Exception) -> str:
    """What Flax says of arguments, in our words: of a parameter of another shape than the data ask for, both shapes."""
    names = " or ".join(name for name in given if name not in ("self", "key"))
    said = str(error).partition(" (https://")[0]
    found = re.search(r'parameter "(.+?)" in "(.*?)".*? shape (\(.*?\)).*? shape (\(.*?\))', said, re.DOTALL)
    if found is None:
        return f"{names} does not fit the network: {said}"
    name, place, asked, has = found.groups()
    shapes = [f"{n} of shape {x.shape}" for n, x in given.items() if getattr(x, "shape", ())]
    return (
        f"{names} does not fit the network: its parameter {place.rstrip('/')}/{name} has the shape {has}, and "
        f"{' and '.join(shapes) or 'the data'} ask{'s' * (len(shapes) == 1)} for {asked}. Give data, such as images, "
        "of the size that the parameters were made for, or parameters that were made for them."
    )


def nearest(asked: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """` Did you mean a, b or c?` for a misspelt name, to end a message with; nothing where no name is near."""
    *others, last = ["", *difflib.get_close_matches(str(asked), list(names), n=3, cutoff=cutoff)]
    some = ", ".join(others[1:])
    return f" Did you mean {some} or {last}?" if some else f" Did you mean {last}?" if last else ""
