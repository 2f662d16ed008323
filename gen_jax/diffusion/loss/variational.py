"""The variational bound as a training loss, and what a learned noise schedule makes of it.

The bound weighs the error in `x_0` by how fast the signal-to-noise ratio falls, which no function of `log_snr`
alone can say: it is what time does. In continuous time the schedule drops out of the expectation and stays in
its variance, so a learned schedule (`networks.monotone`) has two kinds of parameters:

    gamma = Monotone()
    proc = lambda params: process.LogSNR(lambda t: -gamma.apply(params, t))

    loss.variational(key, predict, proc(params), x_0)                         its ends, and the network's
    loss.second_moment(key, predict, proc(monotone.fix_ends(params)), x_0)    its inside

The first holds if the network is told `log_snr_t`, not `t`: `predict = lambda x, t: net(x, proc.log_snr(t))`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from gen_jax.diffusion import prediction
from gen_jax.diffusion.loss.denoising import draw
from gen_jax.diffusion.loss.quantiles import Quantiles, stratified
from gen_jax.diffusion.prediction import Predicts
from gen_jax.diffusion.process import DDPM, Process


def variational(
    key: Key[Array, ""],
    predict: Callable[[Float[Array, "B *x"], Float[Array, "B"]], Any],
    process: Process,
    x_0: Shaped[Array, "B *x"],
    *,
    predicts: Predicts = "eps",
    quantiles: Quantiles = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The diffusion term of the variational bound in nats per dimension, one random time an example.

        mean_i  1/2 r_i |x_0 - x0_hat|^2 / D
        r = -d SNR / du  with  t = process.times(u)          continuous time (Kingma et al. 2021, Eq. 16)
        r = T (SNR_{t-1} - SNR_t)                            `DDPM` (Eq. 13), but 0 at t = 1

    In expectation it is `likelihood.vlb(...).diffusion` over the number of dimensions. It is the loss of Kingma
    & Gao 2023 (Eq. 2) with their `w = 1`. DDPM's `t = 1` belongs to the reconstruction,
    as the two terms at the ends of time do: they are not in it. How much it varies depends on `process.times`;
    even in `log_snr` is good.

    It may be differentiated with respect to the process: `LogSNR(lambda t: ...)` of parameters. Arguments and
    errors are those of `denoising`; `quantiles` must be uniform, such as `stratified` and `independent`.

    Returns:
        The loss, a scalar in float32 or better, and `{"mse": ...}`, the error of the prediction without
        weights.
    """
    each, mse = _each(key, predict, process, x_0, predicts, quantiles)
    return each.mean(), {"mse": mse.mean()}


def second_moment(
    key: Key[Array, ""],
    predict: Callable[[Float[Array, "B *x"], Float[Array, "B"]], Any],
    process: Process,
    x_0: Shaped[Array, "B *x"],
    *,
    predicts: Predicts = "eps",
    quantiles: Quantiles = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean square of what `variational` is the mean of: least where that varies least, as its mean is fixed.

    For the inside of a learned schedule alone, whose ends are held (Kingma et al. 2021, Section 5.3 and
    Appendix I.2: of the variance `E[L^2] - E[L]^2` only the first term depends on it). Arguments and errors as
    of `variational`.

    Returns:
        The second moment in nats^2 per dimension^2, and `{"variational": ...}`, the mean.
    """
    each, _ = _each(key, predict, process, x_0, predicts, quantiles)
    return jnp.square(each).mean(), {"variational": each.mean()}


def _each(key, predict, process, x_0, predicts, quantiles) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """The terms of `variational`, and the squared errors of the prediction."""
    prediction.check_predicts(predicts)
    noised = draw(key, process, x_0, quantiles)
    mse = noised.error(x_0, predict(noised.x_t, noised.t), predicts)
    return _fall(process, noised.u) * noised.ratio(predicts) * mse / 2, mse


def _fall(process: Process, u: Float[Array, "B"]) -> Float[Array, "B"]:
    """How fast the signal-to-noise ratio falls with the quantile of time."""
    snr = lambda t: jnp.square(jnp.asarray(process.alpha(t)) / jnp.asarray(process.sigma(t)))
    if isinstance(process, DDPM):
        t = jnp.asarray(process.times(u))
        s = jnp.maximum(t - 1, 1)
        drop = -jnp.expm1(jnp.asarray(process.log_snr(t)) - jnp.asarray(process.log_snr(s)))
        return process.num_steps * snr(s) * drop
    u = jnp.clip(u, 2.0**-24, 1 - 2.0**-24)  # quantiles of a normal (EDM) have no derivative at 0 and 1
    return -jax.jvp(lambda u: snr(process.times(u)), (u,), (jnp.ones_like(u),))[1]
