"""The learned variance of an ancestral step: a network predicts where it lies between two bounds.

    x_{t-1} | x_t  ~  N(alpha_s r x0_hat + ..., var),      log var = v log beta_t + (1 - v) log beta_tilde_t

`beta_tilde_t = sigma_s^2 r`, the variance of `q(x_s | x_t, x_0)`, is exact if the data are a single point, and `beta_t
= sigma_t^2 r` if they are standard normal (Nichol & Dhariwal 2021, Eq. 15; `s = t - 1`, `r = 1 - SNR_t / SNR_s`).
`loss.hybrid` trains such a network, `samplers.learned.sample` samples with it.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from gen_jax import checks
from gen_jax.diffusion import matching, prediction
from gen_jax.diffusion.asking import check_like, check_pair
from gen_jax.diffusion.process import DDPM, Process, Times, expand
from gen_jax.types import Predicts

VarianceDenoiser: TypeAlias = Callable[[PyTree, Times], tuple[PyTree, PyTree]]
"""`(x_t [B, ...], t []) -> (x0_hat, v)`, each of the shape of `x_t`."""


class Ancestral(NamedTuple):
    """`q(x_{t-1} | x_t, x_0)`, and the two bounds of a learned variance."""

    x0_weight: Float[Array, "*t"]
    """`alpha_s r`, the error in the mean for an error of 1 in `x_0`."""
    log_low: Float[Array, "*t"]
    """`log beta_tilde_t`; at `t = 1`, where it is minus infinity, `log beta_tilde_2` (Ho et al. 2020)."""
    log_high: Float[Array, "*t"]
    """`log beta_t`."""


@checks.checked
def ancestral(process: DDPM, t: Float[Array, "*t"]) -> Ancestral:
    """The step from `t` to `t - 1`, `t = 1, ..., T`.

    Raises:
        ValueError: `process` is not a `DDPM` of two steps or more.
    """
    matching.check_steps(process)
    checks.within("t", t, 1, process.num_steps)

    def fall(t: Float[Array, "*t"]) -> Float[Array, "*t"]:
        return -jnp.expm1(process.log_snr(t) - process.log_snr(t - 1))

    s, at_least_2 = t - 1, jnp.maximum(t, 2)
    log_low = 2 * jnp.log(process.sigma(at_least_2 - 1)) + jnp.log(fall(at_least_2))
    log_high = 2 * jnp.log(process.sigma(t)) + jnp.log(fall(t))
    return Ancestral(jnp.asarray(process.alpha(s)) * fall(t), log_low, log_high)


@checks.checked
def log_variance(step: Ancestral, v: Float[Array, "B *x"]) -> Float[Array, "B *x"]:
    """`v log beta_t + (1 - v) log beta_tilde_t`; `v` may leave [0, 1] (Nichol & Dhariwal 2021, Eq. 15)."""
    low, high = expand(step.log_low, v), expand(step.log_high, v)
    return low + v * (high - low)


@checks.checked
def kl(step: Ancestral, error: Float[Array, "B *x"], log_var: Float[Array, "B *x"]) -> Float[Array, "B *x"]:
    """`KL(q(x_{t-1} | x_t, x_0) || N(mean_hat, var))` in nats, element by element, with `error = x_0 - x0_hat`.

        2 kl = log(var / beta_tilde) + beta_tilde / var - 1 + (alpha_s r error)^2 / var

    The last term is that of Ho et al. 2020, Eq. 8.
    """
    low = expand(step.log_low, error)
    squares = jnp.square(expand(step.x0_weight, error) * error) * jnp.exp(-log_var)
    return (log_var - low + jnp.expm1(low - log_var) + squares) / 2


@checks.checked
def split(output: Shaped[Array, "... D"]) -> tuple[Shaped[Array, "... C"], Shaped[Array, "... C"]]:
    """`(y, v)` from the output of a network with twice the channels: `y` is the first half, `v = (second half + 1) / 2`.

    Raises:
        ValueError: an odd number of channels.
    """
    if output.shape[-1] % 2:
        raise ValueError(
            f"output must have an even number of channels, two for each channel of x_t; got {output.shape}."
        )
    y, v = jnp.split(output, 2, axis=-1)
    return y, (v + 1) / 2


@checks.checked
def as_denoiser(
    apply: Callable[[PyTree, Float[Array, "B"]], tuple[PyTree, PyTree]],
    process: Process,
    *,
    predicts: Predicts = "eps",
) -> VarianceDenoiser:
    """`denoise(x_t, t) -> (x0_hat, v)` of a network that returns `(y, v)`; otherwise as `prediction.as_denoiser`."""

    def denoise(x_t: PyTree, t: Times) -> tuple[PyTree, PyTree]:
        seen = []

        def mean(x_t: PyTree, t: Float[Array, "B"]) -> PyTree:
            y, v = check_pair(apply(x_t, t))
            seen.append(v)
            return y

        x0_hat = prediction.as_denoiser(mean, process, predicts=predicts)(x_t, t)
        check_like(seen[0], x_t, "the network")
        return x0_hat, seen[0]

    prediction.check_predicts(predicts)
    return matching.mark(denoise, process, predicts)
