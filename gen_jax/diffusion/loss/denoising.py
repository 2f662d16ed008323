"""The weighted squared error of a prediction, and the random times and noise that all losses here use."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree, Shaped

from gen_jax import keys
from gen_jax.diffusion import prediction
from gen_jax.diffusion.loss.time_sampling import TimeSampling, stratified
from gen_jax.diffusion.loss.weightings import Weighting, simple
from gen_jax.diffusion.process import Process
from gen_jax.types import Predicts


def denoising(
    key: Key[Array, ""],
    predict: Callable[[Float[Array, "B *x"], Float[Array, "B"]], PyTree],
    process: Process,
    x_0: Shaped[Array, "B *x"],
    *,
    predicts: Predicts = "eps",
    weighting: Weighting | None = simple,
    time_sampling: TimeSampling = stratified,
    offset_noise: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over examples and dimensions of the weighted squared error of a prediction, each at a random time.

        mean_i  w(log_snr_{t_i}) q_i^2 |y_i - predict(x_{t_i}, t_i)|^2 / D,   x_t = alpha_t x_0 + sigma_t eps

    with `q^2` of `prediction.error_ratio`; `simple` leaves out both factors (Ho et al. 2020, Eq. 14). Weights are
    functions of log SNR as in Kingma & Gao 2023, Eq. 2, but without their factor `-d log_snr / dt`: how times are drawn
    matters.

    Args:
        key: the key of the step, the same on every device. The noise of example `i` comes from `fold_in(key_eps, i)`.
        predict: `(x_t [B, ...], t [B]) -> y [B, ...]`: the network with parameters, labels and dropout key bound.
        process: the process; its `times` maps draws in [0, 1] to training times.
        x_0: data `[B, ...]`, floating, in the range that samples should have ([-1, 1] for images). On several devices,
            the slice of this device.
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
    noised = draw(key, process, x_0, time_sampling, offset_noise)
    mse = noised.error(x_0, predict(noised.x_t, noised.t), predicts)
    if weighting is None:
        return mse.mean(), {"mse": mse.mean()}
    weight = weighting(jnp.asarray(process.log_snr(noised.t))) * noised.ratio(predicts)
    return (weight * mse).mean(), {"mse": mse.mean()}


class Noised(NamedTuple):
    """A batch with noise, each example at a random time."""

    u: Float[Array, "B"]
    """The draws in [0, 1] that `process.times` maps to `t`."""
    t: Float[Array, "B"]
    alpha_t: Float[Array, "B"]
    sigma_t: Float[Array, "B"]
    eps: Float[Array, "B *x"]
    x_t: Float[Array, "B *x"]

    def error(self, x_0: Float[Array, "B *x"], y_hat: PyTree, predicts: Predicts) -> Float[Array, "B"]:
        """`|y - y_hat|^2 / D` of each example; a ValueError if `y_hat` has another shape than `x_t`."""
        prediction.check_like(y_hat, self.x_t, "the network")
        y = prediction.target(x_0, self.eps, self.alpha_t, self.sigma_t, predicts=predicts)
        return jnp.square(y - y_hat).reshape(len(x_0), -1).mean(axis=1)

    def ratio(self, predicts: Predicts) -> Float[Array, "B"]:
        """`prediction.error_ratio` of each example."""
        return prediction.error_ratio(self.alpha_t, self.sigma_t, predicts=predicts)


def draw(
    key: Key[Array, ""],
    process: Process,
    x_0: Shaped[Array, "B *x"],
    time_sampling: TimeSampling,
    offset_noise: float = 0.0,
) -> Noised:
    """Noises a batch at random times, as described in `denoising`.

    Raises:
        ValueError: `x_0` is not floating.
    """
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise ValueError(
            f"x_0 must be floating-point, in [-1, 1] for images; got {x_0.dtype}. For bytes: x / 127.5 - 1."
        )
    key_t, key_eps = jax.random.split(key)
    u = time_sampling(key_t, x_0.shape[0])
    t = jnp.asarray(process.times(u))
    eps = keys.normal(key_eps, x_0.shape)
    if offset_noise:
        channels = (len(x_0), *[1] * (x_0.ndim - 2), x_0.shape[-1])
        eps = eps + offset_noise * keys.normal(jax.random.fold_in(key, 2), channels)
    alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
    return Noised(u, t, alpha_t, sigma_t, eps, process.perturb(x_0, t, eps))
