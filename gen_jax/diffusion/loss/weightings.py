"""Weights of the squared error in `x_0`, as functions of the log signal-to-noise ratio."""

from collections.abc import Callable
from typing import Final, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gen_jax import checks

Weighting: TypeAlias = Callable[[Float[Array, "B"]], Float[Array, "B"]]
"""Weight of the squared error in `x_0` as a function of `log_snr_t`."""

simple: Final = None
"""No weighting: the plain squared error of the prediction (`L_simple`; Ho et al. 2020, Eq. 14)."""


@checks.checked
def snr(log_snr: Float[Array | np.ndarray, "B"]) -> Float[Array, "B"]:
    """Weight `w = SNR` on the error in `x_0`: the squared error of the noise, with every prediction."""
    return jnp.exp(log_snr)


@checks.checked
def min_snr(gamma: float = 5.0) -> Weighting:
    """Weight `w = min(SNR, gamma)` on the error in `x_0` (Hang et al. 2023, Section 3.4)."""
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}; the paper's value is 5.")
    return lambda log_snr: jnp.minimum(jnp.exp(log_snr), gamma)


@checks.checked
def edm(sigma_data: float = 0.5) -> Weighting:
    """Weight `w = SNR + 1 / sigma_data^2` on the error in `x_0` (Karras et al. 2022, Table 1).

    The plain squared error of the network inside `prediction.edm_preconditioned`.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}; images in [-1, 1] have about 0.5.")
    return lambda log_snr: jnp.exp(log_snr) + 1 / sigma_data**2


@checks.checked
def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Weight `w = SNR / (k + SNR)^gamma` on the error in `x_0` (P2; Choi et al. 2022, Eq. 8): less near the data."""
    if not (gamma >= 0 and k > 0):
        raise ValueError(
            f"expected gamma >= 0 and k > 0, got {gamma} and {k}; the paper's are 0.5 or 1, and 1."
        )
    return lambda log_snr: jnp.exp(log_snr - gamma * jnp.logaddexp(jnp.log(k), log_snr))


@checks.checked
def sigmoid(bias: float = 2.0) -> Weighting:
    """Weight `w = SNR sigmoid(bias - log_snr)` on the error in `x_0`, a sigmoid on that in `eps` (Kingma & Gao 2023).

    It equals theirs if `log_snr` is linear in time: they also multiply by `-d log_snr / dt`.
    """
    return lambda log_snr: jnp.exp(log_snr) * jax.nn.sigmoid(bias - log_snr)
