"""The variational bound as a training loss, also for learned noise schedules.

The bound weights the error in `x_0` by how fast the signal-to-noise ratio falls with time. This is not a function of
`log_snr` alone. In continuous time the expectation of the loss does not depend on the schedule between its ends, only
its variance does. So a learned schedule (`networks.monotone`) has two kinds of parameters with a loss each:

    gamma = Monotone()
    proc = lambda params: process.LogSNR(lambda t: -gamma.apply(params, t))

    loss.variational(key, predict, proc(params), x_0)                         for its ends, and the network
    loss.second_moment(key, predict, proc(monotone.fix_ends(params)), x_0)    for its inside

For the first, the network's input must be `log_snr_t`, not `t`: `predict = lambda x, t: net(x, proc.log_snr(t))`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from gen_jax import checks
from gen_jax.diffusion import matching, prediction
from gen_jax.diffusion.loss.noising import Data, draw
from gen_jax.diffusion.loss.time_sampling import TimeSampling, stratified
from gen_jax.diffusion.process import DDPM, Process
from gen_jax.types import Predicts


@checks.checked
def variational(
    key: Key[Array, ""],
    predict: Callable[[PyTree, Float[Array, "B"]], PyTree],
    process: Process,
    x_0: PyTree[Data],
    *,
    predicts: Predicts = "eps",
    time_sampling: TimeSampling = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The diffusion term of the variational bound in nats per dimension, each example at a random time.

        mean_i  1/2 r_i |x_0 - x0_hat|^2 / D
        r = -d SNR / du  with  t = process.times(u)          continuous time (Kingma et al. 2021, Eq. 16)
        r = T (SNR_{t-1} - SNR_t)                            `DDPM` (Eq. 13), but 0 at t = 1

    Its expectation is `likelihood.vlb(...).diffusion` divided by the number of dimensions, and equals the loss of
    Kingma & Gao 2023 (Eq. 2) with `w = 1`. The prior and the reconstruction, to which DDPM's `t = 1` belongs, are not
    included. Its variance depends on `process.times`: times that are even in `log_snr` are a good choice.

    It is differentiable with respect to parameters of the process, such as those of `LogSNR(lambda t: ...)`.
    Arguments and errors are those of `denoising`; `time_sampling` must be uniform, such as `stratified` and
    `independent`. A ValueError as well where "eps" or "score" says nothing about `x_0` at the last step, as of
    `DDPM(zero_terminal_snr=True)`: the bound is infinite.

    Returns:
        The loss, a scalar in float32 or better, and `{"mse": ...}`, the error of the prediction without weights.
    """
    each, mse = _each(key, predict, process, x_0, predicts, time_sampling)
    return each.mean(), {"mse": mse.mean()}


@checks.checked
def second_moment(
    key: Key[Array, ""],
    predict: Callable[[PyTree, Float[Array, "B"]], PyTree],
    process: Process,
    x_0: PyTree[Data],
    *,
    predicts: Predicts = "eps",
    time_sampling: TimeSampling = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean square of the terms whose mean is `variational`.

    Minimised over the inside of a learned schedule with fixed ends, it minimises the variance of the loss: of `E[L^2] -
    E[L]^2` only the first term depends on the inside (Kingma et al. 2021, Section 5.3 and Appendix I.2). Arguments and
    errors are those of `variational`.

    Returns:
        The second moment in nats^2 per dimension^2, and `{"variational": ...}`, the mean.
    """
    each, _ = _each(key, predict, process, x_0, predicts, time_sampling)
    return jnp.square(each).mean(), {"variational": each.mean()}


def _each(
    key: Key[Array, ""],
    predict: Callable[[PyTree, Float[Array, "B"]], PyTree],
    process: Process,
    x_0: PyTree[Data],
    predicts: Predicts,
    time_sampling: TimeSampling,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """The terms of `variational`, and the squared errors of the prediction."""
    prediction.check_predicts(predicts)
    matching.check_determined(process, predicts)
    noised = draw(key, process, x_0, time_sampling)
    mse = noised.error(x_0, predict(noised.x_t, noised.t), predicts)
    return _fall(process, noised.u) * noised.ratio(predicts) * mse / 2, mse


def _fall(process: Process, u: Float[Array, "B"]) -> Float[Array, "B"]:
    """`-d SNR / du` with `t = process.times(u)`, or the difference over a step of `DDPM`."""

    def snr(t: Float[Array, "B"]) -> Float[Array, "B"]:
        return jnp.square(jnp.asarray(process.alpha(t)) / jnp.asarray(process.sigma(t)))

    if isinstance(process, DDPM):
        t = jnp.asarray(process.times(u))
        s = jnp.maximum(t - 1, 1)
        drop = -jnp.expm1(jnp.asarray(process.log_snr(t)) - jnp.asarray(process.log_snr(s)))
        return process.num_steps * snr(s) * drop
    u = jnp.clip(u, 2.0**-24, 1 - 2.0**-24)  # the times of EDM have no derivative at 0 and 1
    slope: Array = jax.jvp(lambda u: snr(jnp.asarray(process.times(u))), (u,), (jnp.ones_like(u),))[1]
    return -slope
