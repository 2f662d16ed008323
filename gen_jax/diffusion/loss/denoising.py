"""The weighted squared error of a prediction, and the draw of times and noise that every loss here begins with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from gen_jax import keys
from gen_jax.diffusion import prediction
from gen_jax.diffusion.loss.quantiles import Quantiles, stratified
from gen_jax.diffusion.loss.weightings import Weighting, simple
from gen_jax.diffusion.prediction import Predicts
from gen_jax.diffusion.process import Process


def denoising(
    key: Key[Array, ""],
    predict: Callable[[Float[Array, "B *x"], Float[Array, "B"]], Any],
    process: Process,
    x_0: Shaped[Array, "B *x"],
    *,
    predicts: Predicts = "eps",
    weighting: Weighting | None = simple,
    quantiles: Quantiles = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean over examples and dimensions of the weighted squared error of a prediction, each at a random time.

        mean_i  w(log_snr_{t_i}) q_i^2 |y_i - predict(x_{t_i}, t_i)|^2 / D,   x_t = alpha_t x_0 + sigma_t eps

    with `q^2` of `prediction.error_ratio`; with `simple` both factors are left out (Ho et al. 2020, Eq. 14;
    weights in log SNR as in Kingma & Gao 2023, Eq. 2, without their `-d log_snr / dt`: what times are drawn counts).

    Args:
        key: the step's key, the same on every device. Noise of example `i` comes from `fold_in(key_eps, i)`.
        predict: `(x_t [B, ...], t [B]) -> y [B, ...]`: the network with parameters, labels and dropout key
            bound.
        process: the process; its `times` says at which times to train.
        x_0: data `[B, ...]`, floating, in the scale the samples shall have ([-1, 1] for images). On several
            devices, this one's slice.
        predicts: what `y` is, one of `prediction.PREDICTIONS`.
        weighting: weight on the error in `x_0` as a function of `log_snr_t`, or `simple`.
        quantiles: `(key, n) -> u [n]` in [0, 1], mapped to times by `process.times`: `stratified`,
            `independent`, `logit_normal(mean, std)` or your own.

    Returns:
        The loss, a scalar in float32 or better, and `{"mse": ...}`, the error of the prediction without
        weights.

    Raises:
        ValueError: `x_0` is not floating, the network's output does not look like `x_t`, or `predicts` is
            unknown.
    """
    noised = draw(key, process, x_0, quantiles)
    mse = noised.error(x_0, predict(noised.x_t, noised.t), predicts)
    if weighting is None:
        return mse.mean(), {"mse": mse.mean()}
    weight = weighting(jnp.asarray(process.log_snr(noised.t))) * noised.ratio(predicts)
    return (weight * mse).mean(), {"mse": mse.mean()}


class Noised(NamedTuple):
    """A batch at random times, one an example."""

    u: Float[Array, "B"]
    """Quantiles in [0, 1] of the times."""
    t: Float[Array, "B"]
    alpha_t: Float[Array, "B"]
    sigma_t: Float[Array, "B"]
    eps: Float[Array, "B *x"]
    x_t: Float[Array, "B *x"]

    def error(self, x_0: Float[Array, "B *x"], y_hat: Any, predicts: Predicts) -> Float[Array, "B"]:
        """`|y - y_hat|^2 / D` of each example; ValueError where `y_hat` does not look like `x_t`."""
        prediction.check_like(y_hat, self.x_t, "the network")
        y = prediction.target(x_0, self.eps, self.alpha_t, self.sigma_t, predicts=predicts)
        return jnp.square(y - y_hat).reshape(len(x_0), -1).mean(axis=1)

    def ratio(self, predicts: Predicts) -> Float[Array, "B"]:
        """What an error of 1 in the prediction is in `x_0`, squared (`prediction.error_ratio`)."""
        return prediction.error_ratio(self.alpha_t, self.sigma_t, predicts=predicts)


def draw(key: Key[Array, ""], process: Process, x_0: Shaped[Array, "B *x"], quantiles: Quantiles) -> Noised:
    """Times and noise for a batch, as `denoising` documents them.

    Raises:
        ValueError: `x_0` is not floating.
    """
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise ValueError(
            f"x_0 must be floating-point, in [-1, 1] for images; got {x_0.dtype}. For bytes: x / 127.5 - 1."
        )
    key_t, key_eps = jax.random.split(key)
    u = quantiles(key_t, x_0.shape[0])
    t = jnp.asarray(process.times(u))
    eps = keys.normal(key_eps, x_0.shape)
    alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
    return Noised(u, t, alpha_t, sigma_t, eps, process.perturb(x_0, t, eps))
