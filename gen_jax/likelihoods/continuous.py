"""Bits and real numbers."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import checks
from gen_jax.likelihoods.base import (
    Data,
    Out,
    as_float,
    check_data,
    flat_parts,
    in_zero_one,
    parts,
    per_example,
    softplus,
)
from gen_jax.types import Count, Positive

_LOG_2PI = math.log(2 * math.pi)


@checks.checked
@dataclass(frozen=True)
class Bernoulli:
    """Independent bits, `out` their logits: `log p = x out - softplus(out)`.

    For grey values `x` this is minus the cross-entropy: the mean of `log p` over bits drawn with probabilities `x`.
    It is not a log-probability of the grey values, which have none under this family. Data outside of [0, 1] are a
    ValueError, and in compiled code NaN.
    """

    bounded: ClassVar[bool] = True

    @checks.checked
    def outputs(self, channels: Count) -> int:
        """One logit per channel."""
        return channels

    @checks.checked
    def log_prob(self, out: Out, x: Data) -> Float[Array, "B"]:
        """`sum x out - softplus(out)`."""
        x, logits = flat_parts(out, in_zero_one(self, x), 1)
        return (x * logits - softplus(logits)).sum(1)

    @checks.checked
    def mean(self, out: Out) -> Float[Array, "B *s C"]:
        """The probabilities of ones."""
        return jax.nn.sigmoid(as_float(out))

    @checks.checked
    def sample(
        self, key: Key[Array, ""], out: Out, index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Zeros and ones; NaN of outputs that are NaN."""
        draw = lambda k, p: jnp.where(jnp.isnan(p), p, jax.random.bernoulli(k, p))
        return per_example(draw, key, self.mean(out), index)


@checks.checked
@dataclass(frozen=True)
class Gaussian:
    """Independent normals: `log p = -((x - mean) / sigma)^2 / 2 - log sigma - log(2 pi) / 2`, a density.

    With `sigma=None` it is learned: `out` is then the means and the log sigmas, concatenated.
    """

    sigma: Positive | None = 1.0
    squash: bool = False
    """Whether the mean is the sigmoid of the output, for data in [0, 1]."""
    floor: Positive = 1 / 512
    """Added to a learned sigma: half a grey level. Without it the density of constant pixels is unbounded."""

    @checks.checked
    def outputs(self, channels: Count) -> int:
        """One mean per channel, and one log sigma if it is learned."""
        return channels if self.sigma is not None else 2 * channels

    @checks.checked
    def log_prob(self, out: Out, x: Data) -> Float[Array, "B"]:
        """The sum of the normal log-densities."""
        check_data(self, x)
        x, *each = flat_parts(out, x, self.outputs(1))
        mean, log_sigma = self._mean_and_log_sigma(*each)
        return (-(jnp.square((x - mean) * jnp.exp(-log_sigma)) + _LOG_2PI) / 2 - log_sigma).sum(1)

    @checks.checked
    def mean(self, out: Out) -> Float[Array, "B *s C"]:
        """The mean."""
        return self._mean_and_log_sigma(*self._split(out))[0]

    @checks.checked
    def sample(
        self, key: Key[Array, ""], out: Out, index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """`mean + sigma eps`, which may leave [0, 1]."""
        mean, log_sigma = self._mean_and_log_sigma(*self._split(out))
        eps = per_example(lambda k, m: jax.random.normal(k, m.shape, m.dtype), key, mean, index)
        return mean + jnp.exp(log_sigma) * eps

    def _split(self, out: Array) -> list[Array]:
        return parts(out, self.outputs(1))

    def _mean_and_log_sigma(self, mean: Array, log_sigma: Array | None = None) -> tuple[Array, Array]:
        mean = jax.nn.sigmoid(mean) if self.squash else mean
        if self.sigma is not None or log_sigma is None:
            return mean, jnp.full((1,) * mean.ndim, math.log(self.sigma or 1.0), mean.dtype)
        return mean, jnp.logaddexp(log_sigma, math.log(self.floor))
