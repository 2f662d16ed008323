"""The loss of a network that predicts both mean and variance of a step."""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from gen_jax import checks
from gen_jax.diffusion import matching, prediction, variance
from gen_jax.diffusion.asking import check_like, check_pair
from gen_jax.diffusion.loss.noising import draw
from gen_jax.diffusion.loss.time_sampling import TimeSampling, stratified
from gen_jax.diffusion.process import DDPM, expand
from gen_jax.likelihoods import discretized_log_prob
from gen_jax.types import NotNegative, Predicts


@checks.checked
def hybrid(
    key: Key[Array, ""],
    predict: Callable[[PyTree, Float[Array, "B"]], tuple[PyTree, PyTree]],
    process: DDPM,
    x_0: Annotated[Shaped[Array | np.ndarray, "B *x"], checks.Range()],
    *,
    predicts: Predicts = "eps",
    weight: NotNegative = 1e-3,
    bins: int = 256,
    time_sampling: TimeSampling = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`L_simple + weight L_vlb`, for a network that predicts mean and variance (Nichol & Dhariwal 2021, Eq. 16).

        L_vlb = T mean_i L_i,     L at t > 1:  KL(q(x_{t-1} | x_t, x_0) || N(mean_hat, var_hat))
                                  L at t = 1:  -log P(x_0 | N(mean_hat, var_hat)), in bins

    `L_vlb` is in bits per dimension, as in the authors' code (`T / 1000` times a term in bits), so their weight 0.001
    has the same meaning. In `L_vlb` the mean is constant (`stop_gradient`): the network's `y` learns from `L_simple`
    only, its `v` from `L_vlb` only.

    Args:
        key: as in `denoising`.
        predict: `(x_t [B, ...], t [B]) -> (y, v)`, both of the shape of `x_t`. The variance lies between
            `beta_tilde_t` (`v = 0`) and `beta_t` (`v = 1`), see `variance.log_variance`. `variance.split` makes the
            pair from an output with twice the channels.
        process: a `DDPM` of two steps or more.
        x_0: as in `denoising`.
        predicts: as in `denoising`.
        weight: of `L_vlb`.
        bins: number of evenly spaced values of a pixel in [-1, 1]; each is the middle of its bin.
        time_sampling: as in `denoising`; must be uniform on [0, 1].

    Returns:
        The loss, a scalar in float32 or better, and `{"mse": L_simple, "vlb_bits_per_dim": L_vlb}`, the latter without
        the term of the prior.

    Raises:
        ValueError: as in `denoising`; or `predict` does not return a pair; or `process` is not a `DDPM` of two steps or
            more, or has `zero_terminal_snr` and `predicts` is "eps" or "score".
    """
    prediction.check_predicts(predicts)
    matching.check_steps(process)
    matching.check_determined(process, predicts)
    noised, x_0 = draw(key, process, x_0, time_sampling), jnp.asarray(x_0)
    y, v = check_pair(predict(noised.x_t, noised.t))
    mse = noised.error(x_0, y, predicts).mean()
    check_like(v, noised.x_t, "the network")
    step = variance.ancestral(process, noised.t)
    held = jax.lax.stop_gradient(y)
    x0_hat = prediction.to_x0(held, noised.x_t, noised.alpha_t, noised.sigma_t, predicts=predicts)
    log_var = variance.log_variance(step, v)
    nats = jnp.where(
        expand(noised.t == 1, x_0),
        -discretized_log_prob(x_0, x0_hat, jnp.exp(log_var / 2), bins),
        variance.kl(step, x_0 - x0_hat, log_var),
    )
    bits = process.num_steps * nats.mean() / np.log(2)
    return mse + weight * bits, {"mse": mse, "vlb_bits_per_dim": bits}
