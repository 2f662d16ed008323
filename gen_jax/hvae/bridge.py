"""From step 8 to step 9: a diffusion model is a chain of latents whose encoder has nothing to learn.

Take the hierarchical VAE and, for once, restrict: let every latent have the size of `x`, and let every encoder
shrink what it gets and add noise,

    q(z_t | z_s) = N(alpha_t / alpha_s z_s, (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) I)

so that `q(z_t | x) = N(alpha_t x, sigma_t^2 I)` at every level, and at the last little is left of `x`. What remains is
the decoder `p(z_s | z_t)`. Its best guess is the encoder backwards, `q(z_s | z_t, x)`, with an estimate of `x` put in
place of `x`: one network for all levels, told the level. The ELBO of the chain is then the variational bound of
diffusion (`diffusion.likelihood.vlb`), not by analogy but as a number.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.hvae import gaussian
from gen_jax.hvae.chain import Chain, Conditional
from gen_jax.hvae.gaussian import Gaussian


def diffusion_chain(denoise: Denoiser, process: Process, times: Shaped[Array | np.ndarray, "nodes"]) -> Chain:
    """The chain of latents that a denoiser and a grid of times are: one level for each time.

    Its `elbo`, with `terms="sampled"` or "posterior", has the mean of `-likelihood.vlb(..., times=times).nats`; with
    "posterior" the KL of the last level is its prior term, the sum of the others its diffusion term and the
    reconstruction its reconstruction with the sign changed.

    Args:
        denoise: `(x_t [B, ...], t []) -> x0_hat`.
        process: the process the denoiser belongs to.
        times: decreasing, as a sampler's grid: the last is that of `z_1`, the first that of `z_L`. Levels are unrolled,
            so compile time grows with their number: for many use `likelihood.vlb`.

    Raises:
        ValueError: times that do not decrease to above 0.
    """
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 1 or not (np.diff(times) < 0).all() or not times[-1] > 0:
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
            *(_backwards(*args) for args in zip(alpha, alpha[1:], sigma, sigma[1:], strict=False)),
            lambda z, x: _gaussian(alpha[-1] * x, sigma[-1]),
        ),
    )


def _gaussian(mean: Float[Array, "B *x"], std: float) -> Gaussian:
    return Gaussian(mean, jnp.asarray(math.log(std), mean.dtype))


def _noising(alpha_s: float, alpha_t: float, sigma_s: float, sigma_t: float) -> Conditional:
    """`q(z_t | z_s)` (Kingma et al. 2021, Eq. 20)."""
    scale = alpha_t / alpha_s
    return lambda z: _gaussian(scale * z, math.sqrt(sigma_t**2 - (scale * sigma_s) ** 2))


def _backwards(alpha_s: float, alpha_t: float, sigma_s: float, sigma_t: float):
    """`(z_t, x) -> q(z_s | z_t, x)`, by Bayes' rule (Kingma et al. 2021, Eqs. 25 and 26)."""
    scale = alpha_t / alpha_s
    kept = (sigma_s / sigma_t) ** 2  # of the variance at t, what was there at s
    std = sigma_s * math.sqrt(1 - scale**2 * kept)
    return lambda z, x: _gaussian(scale * kept * z + alpha_s * (1 - scale**2 * kept) * x, std)


def _denoising(denoise: Denoiser, t: float, *at: float) -> Conditional:
    """`p(z_s | z_t) = q(z_s | z_t, x0_hat(z_t, t))` (Kingma et al. 2021, Eq. 8)."""
    backwards = _backwards(*at)
    return lambda z: backwards(z, denoise(z, jnp.asarray(t, z.dtype)))
