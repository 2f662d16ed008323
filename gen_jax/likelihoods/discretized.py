"""Bytes, or other evenly spaced values: continuous distributions integrated over bins."""

import abc
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int, Key

from gen_jax import checks
from gen_jax.likelihoods.base import (
    Bins,
    Data,
    Interval,
    Out,
    flat_parts,
    in_zero_one,
    parts,
    per_example,
    softplus,
    to_bin,
    to_unit_interval,
)
from gen_jax.types import Count

Levels: TypeAlias = Annotated[Float[Array, "*x"], Interval(-1, 1)]
"""Data in [-1, 1]."""
Deviation: TypeAlias = Annotated[Float[Array, "*#x"], checks.Range(0, above=True)]


@dataclass(frozen=True)
class _Discretized(abc.ABC):
    """A mean and a log scale for each channel, on [-1, 1], and the bins of `bins` evenly spaced values."""

    bins: Bins = 256
    bounded: ClassVar[bool] = True

    @checks.checked
    def outputs(self, channels: Count) -> int:
        """One mean and one log scale per channel."""
        return 2 * channels

    @checks.checked
    def log_prob(self, out: Out, x: Data) -> Float[Array, "B"]:
        """The log-probability of the bins of `x`."""
        x, mean, log_scale = flat_parts(out, in_zero_one(self, x), 2)
        return self._bin_log_prob(2 * x - 1, mean, log_scale).sum(1)

    @checks.checked
    def mean(self, out: Out) -> Float[Array, "B *s C"]:
        """The mean of the distribution, clipped to [0, 1]: the mean except for tails outside."""
        return to_unit_interval(parts(out, 2)[0])

    @checks.checked
    def sample(
        self, key: Key[Array, ""], out: Out, index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Multiples of `1 / (bins - 1)`."""
        mean, log_scale = parts(out, 2)
        noise = per_example(lambda k, m: self._noise(k, m.shape, m.dtype), key, mean, index)
        return to_bin(mean + jnp.exp(log_scale) * noise, self.bins)

    @abc.abstractmethod
    def _bin_log_prob(self, y: Array, mean: Array, log_scale: Array) -> Array:
        """Of the bin around each `y` on [-1, 1]."""

    @abc.abstractmethod
    def _noise(self, key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """Draws with mean 0 and scale 1."""


@checks.checked
@dataclass(frozen=True)
class DiscretizedGaussian(_Discretized):
    """Normal distributions integrated over bins (`discretized_log_prob`); the outputs are means and log scales."""

    def _bin_log_prob(self, y: Array, mean: Array, log_scale: Array) -> Array:
        return discretized_log_prob(y, mean, jnp.exp(log_scale), self.bins)

    def _noise(self, key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return jax.random.normal(key, shape, dtype)


@checks.checked
@dataclass(frozen=True)
class DiscretizedLogistic(_Discretized):
    """Logistic distributions integrated over the bins of `bins` evenly spaced values (Salimans et al. 2017, Eq. 2).

        log p = log(sigmoid((x - mean + h) / s) - sigmoid((x - mean - h) / s)),     h = 1 / (bins - 1)

    on [-1, 1]; the first bin begins at minus infinity, the last ends at infinity.
    """

    def _bin_log_prob(self, y: Array, mean: Array, log_scale: Array) -> Array:
        return discretized_logistic_log_prob(y, mean, log_scale, self.bins)

    def _noise(self, key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        return jax.random.logistic(key, shape, dtype)


@checks.checked
def discretized_log_prob(
    x: Levels, mean: Float[Array, "*x"], std: Deviation, bins: Bins = 256
) -> Float[Array, "*x"]:
    """Log-probability in nats of a bin around `x` under `N(mean, std^2)` (Ho et al. 2020, Eq. 13).

        log int_{x - h}^{x + h} N(y; mean, std^2) dy,     h = 1 / (bins - 1)

    `x` is one of `bins` evenly spaced values in [-1, 1]. The first bin begins at minus infinity and the last ends at
    infinity, so the probabilities sum to 1. Logarithms of the smaller tail are subtracted, so nothing underflows. In
    float32 the error is about `1e-7 std / h` nats.

    Raises:
        ValueError: `bins < 2`, or an `x` outside of [-1, 1].
    """
    h = 1 / (bins - 1)
    centre, half = (x - mean) / std, h / std
    # log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - Phi(a) / Phi(b)), mirrored into the lower tail. The integral is even in
    # centre, so its derivative at 0 is 0; jnp.abs, whose derivative at 0 is 1, would leave a rounding error there.
    distance = centre * jnp.sign(centre)
    a, b = -distance - half, -distance + half
    log_b = log_ndtr(b)
    ratio = jnp.minimum(log_ndtr(a) - log_b, -np.finfo(log_b.dtype).tiny)
    inside = log_b + jnp.log(-jnp.expm1(ratio))
    first, last = x < -1 + h, x > 1 - h
    tail = log_ndtr(jnp.where(first, centre, -centre) + half)
    return jnp.where(first | last, tail, inside)


@checks.checked
def discretized_logistic_log_prob(
    x: Levels, mean: Float[Array, "*x"], log_scale: Float[Array, "*x"], bins: Bins = 256
) -> Float[Array, "*x"]:
    """Log-probability in nats of a bin around `x`, one of `bins` evenly spaced values in [-1, 1], under a logistic.

        log(sigmoid(b) - sigmoid(a)) = log(1 - e^{a - b}) - softplus(a) - softplus(-b),     a, b = (x - mean -+ h) / s

    with `h = 1 / (bins - 1)`, `a = -inf` at -1 and `b = inf` at 1 (Salimans et al. 2017, Eq. 2). The right side is
    accurate however far `x` is from the mean.

    Raises:
        ValueError: `bins < 2`, or an `x` outside of [-1, 1].
    """
    h = 1 / (bins - 1)
    rate = jnp.exp(-log_scale)
    a, b = (x - mean - h) * rate, (x - mean + h) * rate
    first, last = x < -1 + h, x > 1 - h
    below, above = -softplus(-b), -softplus(a)  # log-probabilities up to b, and from a
    inside = jnp.log(-jnp.expm1(-2 * h * rate)) + below + above
    return jnp.where(first, below, jnp.where(last, above, inside))
