"""What every likelihood is, and what they share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import checks, keys
from gen_jax.rows import flat


@dataclass(frozen=True)
class Interval(checks.Range):
    """From `least` to `most`, and at both ends half a grey level for rounding."""

    least: float | int = 0
    most: float | int = 1

    def holds(self, low: Any, high: Any) -> Any:
        """Whether values with this minimum and maximum are inside."""
        margin = (self.most - self.least) / 512
        return (low >= self.least - margin) & (high <= self.most + margin)

    def check(self, name: str, value: Any) -> None:
        """That the values of an array are inside."""
        array = np.asarray(value)
        if array.size and not self.holds(array.min(), array.max()):
            raise ValueError(
                f"{name} must be in [{self.least}, {self.most}], got {checks.spread(value)}. Of bytes data.to_zero_one "
                "and data.binarize make numbers in [0, 1], data.to_unit in [-1, 1]; from one to the other it is "
                "(x + 1) / 2."
            )


ZERO_ONE = Interval()
Out: TypeAlias = Float[Array, "B *s O"]
Data: TypeAlias = Shaped[Array, "B *s C"]
"""Numbers, or truth values for bits."""
Bins: TypeAlias = Annotated[int, checks.Range(2)]
"""A number of evenly spaced values; bytes have 256."""


@runtime_checkable
class Likelihood(Protocol):
    """A family of distributions over data, with parameters from a decoder."""

    def outputs(self, channels: int) -> int:
        """Number of outputs of the decoder per position, for data with so many channels."""
        ...

    def log_prob(self, out: Out, x: Data) -> Float[Array, "B"]:
        """`log p(x | z)` in nats, in float32 or better."""
        ...

    def mean(self, out: Out) -> Float[Array, "B *s C"]:
        """The mean of `p(x | z)`: the picture to show."""
        ...

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """A draw from `p(x | z)`, for example `i` from `fold_in(key, i)` (`gen_jax.keys`)."""
        ...


def softplus(x: Array) -> Array:
    """`log(1 + e^x)`, in a third of the time of `jax.nn.softplus` on a CPU, where it dominates a decoder of bits."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def check_data(likelihood: object, x: Shaped[Array | np.ndarray, "..."]) -> None:
    """ValueError for data with NaN, and of a family in [0, 1] for numbers outside, or integers in compiled code."""
    bounded = getattr(likelihood, "bounded", False)
    if not isinstance(x, jax.core.Tracer):
        (ZERO_ONE if bounded else checks.Range()).check("x", x)
    elif bounded and jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"x must be floating, got {x.dtype}. For bytes: data.to_zero_one or data.binarize.")


def in_zero_one(likelihood: object, x: Data) -> Array:
    """Data in float32 or better, NaN outside of [0, 1]; ValueError for what is known to be wrong."""
    check_data(likelihood, x)
    x = as_float(x)
    return jnp.where(ZERO_ONE.holds(x, x), x, jnp.nan)


def flat_parts(out: Array, x: Array, count: int) -> list[Array]:
    """`x` and the `count` parts of `out`, each flattened to `[B, D]`.

    Flattened, because XLA's CPU backend takes 60 times as long to sum over several axes if the last has size 1.
    """
    if out.shape != (*x.shape[:-1], count * x.shape[-1]):
        raise ValueError(shape_message(out.shape, x.shape, count * x.shape[-1]))
    return [flat(a) for a in (as_float(x), *parts(out, count))]


def parts(out: Array, count: int) -> list[Array]:
    """The outputs in float32 or better, in `count` parts of as many channels."""
    if out.shape[-1] % count:
        raise ValueError(
            f"out must have {count} outputs for each channel, got the shape {out.shape}: see outputs()."
        )
    return jnp.split(as_float(out), count, axis=-1)


def shape_message(out: tuple[int, ...], x: tuple[int, ...], outputs: int) -> str:
    """The message about outputs that do not fit data of shape `x`."""
    return f"expected outputs of shape {(*x[:-1], outputs)} for data x of shape {x}, got out {out}: see outputs()."


def as_float(out: Array) -> Array:
    """`out` in float32 or better."""
    return out.astype(jnp.promote_types(out.dtype, jnp.float32))


def per_example(
    draw: Callable[[Array, Array], Array], key: Array, parameters: Array, index: Array | None
) -> Array:
    """`draw(key_i, parameters_i)` for each example."""
    return jax.vmap(draw)(keys.per_example(key, len(parameters), index), parameters)


def to_unit_interval(y: Array) -> Array:
    """From [-1, 1] to [0, 1], clipped."""
    return jnp.clip((y + 1) / 2, 0, 1)


def to_bin(y: Array, bins: int) -> Array:
    """The nearest of `bins` values in [0, 1] to `(y + 1) / 2`."""
    return jnp.round(to_unit_interval(y) * (bins - 1)) / (bins - 1)
