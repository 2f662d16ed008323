"""Gaussians with a diagonal covariance, the distribution at every level, and the rules that merge two of them.

Sums are over all axes but the first; results are in nats, in float32 or better, whatever the networks run in. A
parameter may be a scalar, the same for all dimensions.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key

from gen_jax import keys
from gen_jax.likelihoods.base import as_float
from gen_jax.rows import flat


class Gaussian(NamedTuple):
    """`N(mean, exp(log_std)^2)`, independent in each dimension."""

    mean: Float[Array, "..."]
    log_std: Float[Array, "..."]


def standard(like: Float[Array, "B *z"]) -> Gaussian:
    """`N(0, I)` of the shape of `like`."""
    return Gaussian(jnp.zeros_like(like), jnp.zeros_like(like))


def sample(
    key: Key[Array, ""],
    params: Gaussian,
    *,
    temperature: ArrayLike = 1.0,
    index: Int[Array, "B"] | None = None,
) -> Float[Array, "B *z"]:
    """`mean + temperature exp(log_std) eps`; row `i` depends on `key` and its index only (`gen_jax.keys`)."""
    mean, log_std = map(as_float, params)
    eps = keys.normal(key, mean.shape, index).astype(mean.dtype)
    return mean + temperature * jnp.exp(log_std) * eps


def log_prob(params: Gaussian, z: Float[Array, "B *z"]) -> Float[Array, "B"]:
    """`log N(z; mean, std^2)`."""
    mean, log_std = map(as_float, params)
    standardized = (as_float(z) - mean) * jnp.exp(-log_std)
    return -_sum(jnp.square(standardized) / 2 + log_std + math.log(2 * math.pi) / 2)


def kl(q: Gaussian, p: Gaussian) -> Float[Array, "B"]:
    """`KL(q || p) = sum log(std_p / std_q) + (std_q^2 + (mean_q - mean_p)^2) / (2 std_p^2) - 1/2`."""
    q, p = Gaussian(*map(as_float, q)), Gaussian(*map(as_float, p))
    ratio, distance = q.log_std - p.log_std, (q.mean - p.mean) * jnp.exp(-p.log_std)
    return _sum((jnp.expm1(2 * ratio) + jnp.square(distance)) / 2 - ratio)


def precision(prior: Gaussian, evidence: Gaussian) -> Gaussian:
    """The product of the two densities, normalised: precisions add, means are weighed by them.

        1 / std^2 = 1 / std_p^2 + 1 / std_e^2,    mean = std^2 (mean_p / std_p^2 + mean_e / std_e^2)

    This is Bayes' rule with the evidence as a Gaussian likelihood. Source: Sonderby et al. 2016, Section 2.2.
    """
    log_precision = jnp.logaddexp(-2 * prior.log_std, -2 * evidence.log_std)
    weight = jnp.exp(-2 * evidence.log_std - log_precision)
    return Gaussian(prior.mean + weight * (evidence.mean - prior.mean), -log_precision / 2)


def residual(prior: Gaussian, change: Gaussian) -> Gaussian:
    """`N(mean_p + d_mean, (std_p d_std)^2)`: a change of mean 0 and log standard deviation 0 gives the prior.

    Source: Vahdat & Kautz 2020, Eq. 2 and the text around it.
    """
    return Gaussian(prior.mean + change.mean, prior.log_std + change.log_std)


def concat(prior: Gaussian, posterior: Gaussian) -> Gaussian:
    """The network's own posterior: its input has the features of the prior and of the data (Child 2021, Figure 3)."""
    return posterior


MERGES = {"precision": precision, "residual": residual, "concat": concat}


def bounded(mean: Float[Array, "B *z"], raw: Float[Array, "B *z"], bound: float) -> Gaussian:
    """A soft clamp, `log_std = bound tanh(raw / bound)`, which keeps every KL finite.

    Source: the code of Vahdat & Kautz 2020.
    """
    mean, raw = as_float(mean), as_float(raw)
    return Gaussian(mean, bound * jnp.tanh(raw / bound))


def _sum(x: Float[Array, "B *z"]) -> Float[Array, "B"]:
    return flat(x).sum(1)
