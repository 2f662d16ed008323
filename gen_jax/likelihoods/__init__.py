"""Distributions of data given the output of a decoder, `p(x | z)`: the last step of a VAE or a hierarchical VAE.

For data `x [B, ..., C]` in [0, 1] a decoder returns `out [B, ..., outputs(C)]`: for each position, the parameters of the
distributions of its `C` channels.

    Bernoulli()             logits                              x in {0, 1}       log-probability
    Gaussian(sigma)         means (and log sigmas)              any x             log-density
    DiscretizedGaussian()   means, log scales                   x = byte / 255    log-probability
    DiscretizedLogistic()   means, log scales                   x = byte / 255    log-probability
    LogisticMixture()       logits, means, log scales, coupling x = byte / 255    log-probability

All results are in nats, summed over all axes but the first. A log-probability of bytes is `-log_prob / (D log 2)`
bits per dimension, with `D` numbers in an example. A log-density of `x = (byte + u) / 256` with `u` uniform on [0, 1)
(see `data.dequantize`) gives an upper bound on it, `8 - log_prob / (D log 2)`. A log-density of `x = byte / 255`
gives none.

The discretised ones have means and scales in the unit of `2 x - 1`, which is in [-1, 1]. So outputs of about 1, as of
a new network, are reasonable parameters.
"""

from gen_jax.likelihoods.base import Likelihood
from gen_jax.likelihoods.continuous import Bernoulli, Gaussian
from gen_jax.likelihoods.discretized import (
    DiscretizedGaussian,
    DiscretizedLogistic,
    discretized_log_prob,
    discretized_logistic_log_prob,
)
from gen_jax.likelihoods.mixture import LogisticMixture

__all__ = [
    "Bernoulli",
    "DiscretizedGaussian",
    "DiscretizedLogistic",
    "Gaussian",
    "Likelihood",
    "LogisticMixture",
    "discretized_log_prob",
    "discretized_logistic_log_prob",
]
