"""Checks of single values, for what a signature cannot say: each raises a ValueError."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gen_jax.checks.words import came, counted, nearest, not_finite, shown, spread

Value: TypeAlias = Any
"""Whatever a user hands over."""


@dataclass(frozen=True)
class Range:
    """What values may be, in `Annotated[float, Range(0)]`: from `least` to `most`, finite; `above`: `least` is none.

    With `on_host`, what lies on another device is not fetched: for functions that are called in loops.
    """

    least: float | int = -math.inf
    most: float | int = math.inf
    above: bool = False
    below: bool = False
    finite: bool = True
    on_host: bool = False

    @functools.cached_property
    def is_all(self) -> bool:
        """Whether all finite numbers are inside."""
        return (self.least, self.most, self.finite) == (-math.inf, math.inf, True)

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """What tells it from other ranges, quick to compare."""
        return (type(self), *dataclasses.astuple(self))

    @property
    def words(self) -> str:
        """The range, to follow "must be"."""
        low = f"{'above' if self.above else 'at least'} {shown(self.least)}" if self.least > -math.inf else ""
        high = f"{'below' if self.below else 'at most'} {shown(self.most)}" if self.most < math.inf else ""
        ends = " and ".join(filter(None, (low, high)))
        return ends or ("finite" if self.finite else "no NaN")

    @property
    def says(self) -> str:
        """The range, to follow a noun."""
        return f", {self.words}" if self.least > -math.inf or self.most < math.inf else ""

    def of(self, owner: object) -> "Range":
        """The range in a call whose first argument is `owner`: of a method, the object that it belongs to."""
        return self

    def holds(self, low: Value, high: Value) -> Value:
        """Whether values with this minimum and maximum are inside; both are NaN where one value is."""
        inside = low > self.least if self.above else low >= self.least
        inside = inside & (high < self.most if self.below else high <= self.most)
        return inside & (low > -math.inf) & (high < math.inf) if self.finite else inside

    def check(self, name: str, value: Value) -> None:
        """That the values of an array are inside."""
        if type(value) in (int, float):
            low = high = value
        else:
            array = np.asarray(value)
            if not array.size:
                return
            array = array if array.dtype.kind != "V" else array.astype(np.float32)
            if array.dtype.kind == "f" and self.is_all and math.isfinite(np.vdot(array, array)):
                return  # which takes a tenth of the time; a sum that overflows proves nothing
            low, high = array.min(), array.max()
        if self.holds(low, high):
            return
        raise ValueError(f"{name} must be {self.words}, got {_outside(self, value)}.")


@dataclass(frozen=True)
class Probabilities(Range):
    """Values that are not negative and sum to 1 on the last axis."""

    least: float | int = 0

    def check(self, name: str, value: Value) -> None:
        """That they are."""
        super().check(name, value)
        total = np.asarray(value, np.float64).sum(-1)
        if not (np.abs(total - 1) < 1e-3).all():
            raise ValueError(f"{name} must sum to 1, but the sum is {total.ravel()[0]:g}: divide by it.")


@dataclass(frozen=True)
class Covariance(Range):
    """Matrices `[..., D, D]` that are symmetric and positive definite; with `semi` they may be singular."""

    semi: bool = False

    def check(self, name: str, value: Value) -> None:
        """That they are."""
        super().check(name, value)
        cov = np.asarray(value, np.float64)
        apart = cov - cov.swapaxes(-1, -2)
        if apart.any() and np.abs(apart).max() > 1e-4 * np.abs(cov).max():
            raise ValueError(f"{name} must be symmetric: take the mean of it and its transpose.")
        if self.semi:
            least = np.linalg.eigvalsh(cov).min()
            if least < -1e-4 * np.abs(cov).max():
                raise ValueError(f"{name} must have no negative eigenvalue, but one is {least:.2g}.")
            return
        try:
            np.linalg.cholesky(cov)
        except np.linalg.LinAlgError:
            least = np.linalg.eigvalsh(cov).min()
            raise ValueError(
                f"{name} must be positive definite, but its least eigenvalue is {least:.2g}: add to its diagonal."
            ) from None


@dataclass(frozen=True)
class FieldsAs:
    """In `Annotated[GMM, FieldsAs(Points)]`: the fields are held to the annotations of another tuple."""

    other: type


@dataclass(frozen=True)
class Factor(Range):
    """Triangular matrices `[..., D, D]` with a positive diagonal, as `normal.cholesky` makes them."""

    def check(self, name: str, value: Value) -> None:
        """That they are."""
        super().check(name, value)
        Range(0, above=True).check(f"the diagonal of {name}", np.diagonal(value, axis1=-2, axis2=-1))


def _outside(allowed: Range, value: Value) -> str:
    """What is wrong with values, and where."""
    if np.ndim(value) == 0:
        return shown(value if isinstance(value, int) else float(value))
    array = np.asarray(value, np.float64)
    bad = ~allowed.holds(array, array)
    rows = np.flatnonzero(bad.reshape(len(array), -1).any(1))
    first = shown(float(array[bad][0]))
    if len(array) == 1:
        return first
    some = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return f"{first} in {len(rows)} of {len(array)} rows: {some}"


def within(
    name: str,
    value: Value,
    least: float | int = -math.inf,
    most: float | int = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """That known values are finite and in a range, see `Range`; traced ones pass."""
    if not isinstance(value, jax.core.Tracer) and np.size(value):
        Range(least, most, above, below).check(name, value)


def ordered(name: str, low: Any, other: str, high: Any) -> None:
    """That known values `low` are at most `high`, where they have one shape."""
    if (
        isinstance(low, jax.core.Tracer)
        or isinstance(high, jax.core.Tracer)
        or np.shape(low) != np.shape(high)
    ):
        return
    a, b = np.asarray(low), np.asarray(high)
    if (wrong := a > b).any():
        raise ValueError(
            f"{name} must be at most {other}, got {a[wrong].flat[0]:g} and {b[wrong].flat[0]:g}."
        )


def whole(name: str, value: object, of: str, least: int = 1, most: int | None = None) -> int:
    """A whole number from `least` to `most` as an int: `whole("num", 3, "sample")`. Neither 2.5 nor True is one."""
    number = None
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        try:
            number = value.__index__()
        except TypeError:  # of an array with axes, or of floats
            number = None
    if number is None:
        several = counted(0, of).removeprefix("0 ")
        raise ValueError(f"{name} must be a whole number of {several}, got {came(value)}.")
    if number < least:
        raise ValueError(f"{name} must be at least {counted(least, of)}, got {number:,}.")
    if most is not None and number > most:
        raise ValueError(f"{name} must be at most {counted(most, of)}, got {number:,}.")
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


def one_key(value: object, name: str = "key") -> None:
    """That `value` is one key of `jax.random.key`, not a seed, and not a key of the old style."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if shape == ():
            return
        raise ValueError(
            f"{name} must be one key, got {shape} of them: take one, or split it where several are needed."
        )
    what = f"{name} must be a key of jax.random.key(seed)"
    if isinstance(value, SupportsIndex) and shape is None:
        raise ValueError(f"{what}, got {came(value)}: make it with jax.random.key({value}).")
    if dtype == np.uint32:
        raise ValueError(
            f"{what}, got {came(value)}, which is a key of jax.random.PRNGKey: take jax.random.key(seed), or "
            "jax.random.wrap_key_data(key) for the same draws."
        )
    raise ValueError(f"{what}, got {came(value)}.")


def floating(name: str, tree: PyTree) -> None:
    """That the arrays of a tree are floating-point numbers, as `name` of a network has to be."""
    for leaf in jax.tree.leaves(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name} must be floating-point numbers, in [-1, 1] for images; got {dtype}. For bytes: x / 127.5 - 1."
            )


def choice(name: str, value: object, choices: Sequence[str]) -> None:
    """That `value` is one of the names; a near one is offered."""
    if value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(
            f"{name} must be {', '.join(most)} or {last}; got {came(value)}.{nearest(value, choices)}"
        )


def of_shape(name: str, value: object, shape: tuple[int, ...]) -> None:
    """That `value` is an array of this shape."""
    if getattr(value, "shape", None) != shape:
        raise ValueError(f"{name} must have the shape {shape}, got {came(value)}.")


def float_type(name: str, value: Any) -> np.dtype:
    """A floating-point type by its name or as an object, such as "bfloat16"."""
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or value is None or not jnp.issubdtype(dtype, jnp.floating):
        kinds = ("float32", "bfloat16", "float16", "float64")
        raise ValueError(
            f"{name} must be a floating-point type, such as {kinds[0]!r} or {kinds[1]!r}; got {came(value)}."
            f"{nearest(value, kinds)}"
        )
    return dtype


def some(name: str, value: Any, of: str = "example") -> None:
    """That an array is not empty."""
    if 0 in np.shape(value):
        raise ValueError(f"{name} must have at least 1 {of}, got {came(value)}.")


MEND = "Mend these rows first, or leave them out. "
"""What to do with numbers that are not finite, before what is said of numbers."""


def as_bytes(name: str, value: Any, says: str = "uint8") -> Any:
    """8-bit numbers as they are, and known integers from 0 to 255 as such; ValueError, which says what was found."""
    if getattr(value, "dtype", None) == np.uint8:
        return value
    known = not isinstance(value, jax.core.Tracer)
    array = np.asarray(value) if known else value
    if known and array.dtype.kind in "iu" and (not array.size or (array.min() >= 0 and array.max() <= 255)):
        return array.astype(np.uint8)
    first = MEND if known and not_finite(array) else ""
    raise ValueError(
        f"{name} must be {says}, got {spread(array)}. {first}Of numbers in [0, 1] data.from_zero_one makes bytes, of "
        "[-1, 1] data.to_uint8; truth values are to be multiplied by 255."
    )


def one_or_each(name: str, value: object, num: int) -> np.ndarray:
    """`value` as an array: one for all samples, `[]`, or one for each, `[num]`."""
    array = np.asarray(value)
    if array.shape not in ((), (num,)):
        raise ValueError(f"{name} must be one of all samples, or one of each, {(num,)}; got {came(array)}.")
    return array
