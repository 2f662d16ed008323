"""What every likelihood is, and what they share."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import keys


@runtime_checkable
class Likelihood(Protocol):
    """A family of distributions over data, with parameters from a decoder."""

    def outputs(self, channels: int) -> int:
        """Number of outputs of the decoder per position, for data with so many channels."""
        ...

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """`log p(x | z)` in nats, in float32 or better."""
        ...

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
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


def flat_parts(out: Array, x: Array, count: int) -> list[Array]:
    """`x` and the `count` parts of `out`, each flattened to `[B, D]`.

    Flattened, because XLA's CPU backend takes 60 times as long to sum over several axes if the last has size 1.
    """
    if out.shape != (*x.shape[:-1], count * x.shape[-1]):
        raise ValueError(shape_message(out.shape, x.shape, count * x.shape[-1]))
    return [a.reshape(len(a), -1) for a in (x, *jnp.split(as_float(out), count, axis=-1))]


def shape_message(out: tuple[int, ...], x: tuple[int, ...], outputs: int) -> str:
    """The message about outputs that do not fit data of shape `x`."""
    return f"expected outputs of shape {(*x[:-1], outputs)} for data of shape {x}, got {out}: see outputs()."


def check_bins(bins: int) -> None:
    """Raises a ValueError unless there are at least 2."""
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}; bytes have 256.")


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
