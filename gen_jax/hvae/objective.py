"""What is minimised: the bound with its sign changed, and what keeps levels from falling silent on the way there."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from gen_jax import keys
from gen_jax.vae import Elbo

_SILENT = 1e-2
"""Added to a KL before its share is taken, in nats: a level that says nothing is not then free of all cost."""


def objective(
    bound: Elbo,
    *,
    beta: ArrayLike = 1.0,
    free_bits: ArrayLike = 0.0,
    balance: Float[Array | np.ndarray, "L"] | None = None,
) -> Float[Array, ""]:
    """The mean over the batch of `-reconstruction + beta sum_l gamma_l max(free_bits, KL_l)`.

    Args:
        bound: `kl [B, L]`.
        beta: weight of the KLs: 1 for the bound, less while it warms up.
        free_bits: nats a level may say for nothing, a number or `[L]`. `KL_l` is the mean over the batch, of all devices,
            so a level that says more of one example and less of another pays for neither (Kingma et al. 2016, Eq. 15).
        balance: `gamma_l = balance_l`, the weights of the levels (see `balanced`); None for 1.

    Raises ValueError for negative free bits.
    """
    if not isinstance(free_bits, jax.core.Tracer) and np.any(np.asarray(free_bits) < 0):
        raise ValueError(f"free_bits must be at least 0 nats, got {free_bits}.")
    free = jnp.broadcast_to(jnp.asarray(free_bits, bound.kl.dtype), bound.kl.shape[1:])
    kl = bound.kl.mean(0)
    paid = jnp.where(_everywhere(kl) > free, kl, free)
    weight = 1.0 if balance is None else jnp.asarray(balance, kl.dtype)
    return beta * (weight * paid).sum() - bound.reconstruction.mean()


def balanced(bound: Elbo, sizes: Float[Array | np.ndarray, "L"]) -> Float[Array, "L"]:
    """Weights that tax the levels that say much and spare those that say little, so that all are put to use.

        gamma_l = L (KL_l / s_l) / sum_k (KL_k / s_k)

    with `KL_l` the mean over the batch, `s_l` the numbers in the latent of level `l`; nothing is differentiated through
    them. For the time of warm-up only: a bound it is not.

    Source: Vahdat & Kautz 2020, Appendix A, with the division by the size that its authors meant (NVlabs/NVAE, issue 26).
    """
    share = (_everywhere(bound.kl.mean(0)) + _SILENT) / jnp.asarray(sizes, bound.kl.dtype)
    return jax.lax.stop_gradient(share / share.mean())


def _everywhere(mean: Float[Array, "L"]) -> Float[Array, "L"]:
    """The mean over all devices, a constant."""
    mean = jax.lax.stop_gradient(mean)
    try:
        return jax.lax.pmean(mean, keys.AXIS)
    except NameError:  # the axis is not bound: the whole batch is in sight
        return mean
