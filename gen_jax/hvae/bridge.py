"""From step 8 to step 9: a diffusion model is a chain of latents with a fixed encoder.

Restrict the hierarchical VAE: every latent has the size of `x`, and every encoder scales its input and adds noise,

    q(z_t | z_s) = N(alpha_t / alpha_s z_s, (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) I)

so `q(z_t | x) = N(alpha_t x, sigma_t^2 I)` at every level, and the last latent is nearly independent of `x`. Only the
decoder `p(z_s | z_t)` is learned. It is the reverse of the encoder, `q(z_s | z_t, x)`, with an estimate in place of `x`:
one network for all levels, with the time as an input. The ELBO of this chain equals the variational bound of diffusion
(`diffusion.likelihood.vlb`).
"""

import math
from collections.abc import Callable
from typing import Annotated, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gen_jax import checks
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.hvae import gaussian
from gen_jax.hvae.chain import Chain, Conditional
from gen_jax.hvae.gaussian import Gaussian

Times: TypeAlias = Annotated[Shaped[Array | np.ndarray, "nodes"], checks.Range(0, above=True)]


@checks.checked
def diffusion_chain(denoise: Denoiser, process: Process, times: Times) -> Chain:
    """The chain of latents of a denoiser on a grid of times, one level for each time.

    Its `elbo`, with `terms="sampled"` or "posterior", has the same mean as `-likelihood.vlb(..., times=times).nats`. With
    "posterior" the terms agree too: the KL of the last level is the prior term, the sum of the other KLs the diffusion
    term, and the reconstruction is minus the reconstruction term.

    Args:
        denoise: `(x_t [B, ...], t []) -> x0_hat`.
        process: the process the denoiser belongs to.
        times: decreasing, as the grid of a sampler: the last is the time of `z_1`, the first that of `z_L`. Levels are
            unrolled, so the time to compile grows with their number; for many levels use `likelihood.vlb`.

    Raises:
        ValueError: times that do not decrease, or are not above 0.
    """
    times = np.asarray(times, np.float64)
    if len(times) < 1 or not (np.diff(times) < 0).all():
        raise ValueError(f"times must be one or more decreasing numbers above 0, got {times}.")
    up = times[::-1]
    alpha = np.asarray(process.alpha(up), np.float64)
    sigma = np.asarray(process.sigma(up), np.float64)

    def log_likelihood(z_1: Float[Array, "B *x"], x: Float[Array, "B *x"]) -> Float[Array, "B"]:
        x0_hat = denoise(z_1, jnp.asarray(up[0], z_1.dtype))
        return gaussian.log_prob(_gaussian(x0_hat, sigma[0] / alpha[0]), x)

    return Chain(
        encode=tuple(
            _noising(*args) for args in zip([1.0, *alpha], alpha, [0.0, *sigma], sigma, strict=False)
        ),
        decode=tuple(
            _denoising(denoise, t, *args)
            for t, *args in zip(up[1:], alpha, alpha[1:], sigma, sigma[1:], strict=False)
        ),
        prior=lambda z: _gaussian(jnp.zeros_like(z), sigma[-1]),
        log_likelihood=log_likelihood,
        posterior=(
            *(_reverse(*args) for args in zip(alpha, alpha[1:], sigma, sigma[1:], strict=False)),
            lambda z, x: _gaussian(alpha[-1] * x, sigma[-1]),
        ),
    )


def _gaussian(mean: Float[Array, "B *x"], std: float) -> Gaussian:
    return Gaussian(mean, jnp.asarray(math.log(std), mean.dtype))


def _noising(alpha_s: float, alpha_t: float, sigma_s: float, sigma_t: float) -> Conditional:
    """`q(z_t | z_s)` (Kingma et al. 2021, Eq. 20)."""
    scale = alpha_t / alpha_s
    return lambda z: _gaussian(scale * z, math.sqrt(sigma_t**2 - (scale * sigma_s) ** 2))


def _reverse(
    alpha_s: float, alpha_t: float, sigma_s: float, sigma_t: float
) -> Callable[[Float[Array, "B ..."], Float[Array, "B ..."]], Gaussian]:
    """`(z_t, x) -> q(z_s | z_t, x)`, by Bayes' rule (Kingma et al. 2021, Eqs. 25 and 26)."""
    scale = alpha_t / alpha_s
    kept = (sigma_s / sigma_t) ** 2
    std = sigma_s * math.sqrt(1 - scale**2 * kept)
    return lambda z, x: _gaussian(scale * kept * z + alpha_s * (1 - scale**2 * kept) * x, std)


def _denoising(denoise: Denoiser, t: float, *at: float) -> Conditional:
    """`p(z_s | z_t) = q(z_s | z_t, x0_hat(z_t, t))` (Kingma et al. 2021, Eq. 8)."""
    reverse = _reverse(*at)
    return lambda z: reverse(z, denoise(z, jnp.asarray(t, z.dtype)))
