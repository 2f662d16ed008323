"""The weighted squared error of a prediction, and the random times and noise that all losses here use."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from gen_jax import checks
from gen_jax.diffusion import prediction
from gen_jax.diffusion.loss.noising import Data, Noised, draw
from gen_jax.diffusion.loss.time_sampling import TimeSampling, stratified
from gen_jax.diffusion.loss.weightings import Weighting, simple
from gen_jax.diffusion.process import Process
from gen_jax.types import NotNegative, Predicts

LEAST_LOG_SNR = -46.0
"""Where the limit of a weight at zero SNR is taken: the square of 1e-10 in float32."""


@checks.checked
def denoising(
    key: Key[Array, ""],
    predict: Callable[[PyTree, Float[Array, "B"]], PyTree],
    process: Process,
    x_0: PyTree[Data],
    *,
    predicts: Predicts = "eps",
    weighting: Weighting | None = simple,
    time_sampling: TimeSampling = stratified,
    offset_noise: NotNegative = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over examples and dimensions of the weighted squared error of a prediction, each at a random time.

        mean_i  w(log_snr_{t_i}) q_i^2 |y_i - predict(x_{t_i}, t_i)|^2 / D,   x_t = alpha_t x_0 + sigma_t eps

    with `q^2` of `prediction.error_ratio`; `simple` leaves out both factors (Ho et al. 2020, Eq. 14). Weights are
    functions of log SNR as in Kingma & Gao 2023, Eq. 2, but without their factor `-d log_snr / dt`: how times are drawn
    matters. Where `alpha_t = 0`, `w q^2` is its limit, which is infinite for `edm` with "eps" or "score".

    Args:
        key: the key of the step, the same on every device. The noise of example `i` comes from `fold_in(key_eps, i)`.
        predict: `(x_t [B, ...], t [B]) -> y [B, ...]`: the network with parameters, labels and dropout key bound.
        process: the process; its `times` maps draws in [0, 1] to training times.
        x_0: data `[B, ...]`, floating, in the range that samples should have ([-1, 1] for images), or a pytree of such
            arrays, of `D` numbers in all. On several devices, the slice of this device.
        predicts: what `y` is, one of `prediction.PREDICTIONS`.
        weighting: weight on the error in `x_0` as a function of `log_snr_t`, or `simple`.
        time_sampling: `(key, n) -> u [n]` in [0, 1], mapped to times by `process.times`: `stratified`, `independent`,
            `logit_normal(mean, std)` or your own.
        offset_noise: of the number that is added to the noise of a whole channel, `eps + offset_noise z` with one
            `z ~ N(0, 1)` for each example and channel (the last axis): a network that has seen it draws pictures that are
            dark or bright as a whole. Stable Diffusion XL was trained with 0.05 (Podell et al. 2023, Appendix E); 0 is
            none.

    Returns:
        The loss, a scalar in float32 or better, and `{"mse": ...}`, the error of the prediction without weights.

    Raises:
        ValueError: `x_0` is not floating, the network's output has another shape than `x_t`, or `predicts` is unknown.
    """
    prediction.check_predicts(predicts)
    noised = draw(key, process, x_0, time_sampling, offset_noise)
    mse = noised.error(x_0, predict(noised.x_t, noised.t), predicts)
    if weighting is None:
        return mse.mean(), {"mse": mse.mean()}
    return (_weight(weighting, process, noised, predicts) * mse).mean(), {"mse": mse.mean()}


def _weight(weighting: Weighting, process: Process, noised: Noised, predicts: Predicts) -> Float[Array, "B"]:
    """`w(log_snr_t) q^2` of each example.

    At zero SNR one factor is 0 and the other infinite, so there the product is that of nearly no signal, its limit; or
    infinite, where it still grows.
    """
    log_snr = jnp.asarray(process.log_snr(noised.t))
    none = log_snr < LEAST_LOG_SNR
    norm = jnp.hypot(noised.alpha_t, noised.sigma_t)

    def near(low: float) -> Float[Array, "B"]:
        """With as little signal as that where there is none."""
        w = weighting(jnp.where(none, low, log_snr))
        if jnp.shape(w) != log_snr.shape:
            raise ValueError(
                f"weighting must return {log_snr.shape}, one for each log_snr; got {jnp.shape(w)}."
            )
        alpha_t = jnp.where(none, norm * np.exp(low / 2), noised.alpha_t)
        return w * prediction.error_ratio(alpha_t, noised.sigma_t, predicts=predicts)

    limit = near(LEAST_LOG_SNR)
    return jnp.where(none & (near(LEAST_LOG_SNR - 10) > 100 * limit), jnp.inf, limit)
