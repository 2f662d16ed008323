"""The loss of a network that predicts the variance of a step along with its mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped

from gen_jax.diffusion import prediction, variance
from gen_jax.diffusion.loss.denoising import draw
from gen_jax.diffusion.loss.quantiles import Quantiles, stratified
from gen_jax.diffusion.prediction import Predicts
from gen_jax.diffusion.process import DDPM, expand
from gen_jax.likelihoods import discretized_log_prob


def hybrid(
    key: Key[Array, ""],
    predict: Callable[[Float[Array, "B *x"], Float[Array, "B"]], tuple[Any, Any]],
    process: DDPM,
    x_0: Shaped[Array, "B *x"],
    *,
    predicts: Predicts = "eps",
    weight: float = 1e-3,
    levels: int = 256,
    quantiles: Quantiles = stratified,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`L_simple + weight L_vlb`, for a network that predicts mean and variance (Nichol & Dhariwal 2021, Eq. 16).

        L_vlb = T mean_i L_i,     L at t > 1:  KL(q(x_{t-1} | x_t, x_0) || N(mean_hat, var_hat))
                                  L at t = 1:  -log P(x_0 | N(mean_hat, var_hat)), in bins

    `L_vlb` is in bits per dimension, as in the authors' code (`T / 1000` times a term in bits), which their 0.001
    goes with. The mean is held in it (`stop_gradient`): the network's `y` learns from `L_simple` alone, its `v`
    from `L_vlb` alone.

    Args:
        key: as of `denoising`, as are `x_0`, `predicts` and `quantiles` (which must be uniform).
        predict: `(x_t [B, ...], t [B]) -> (y, v)`, both like `x_t`; `v` says where between `beta_tilde_t` (0)
            and `beta_t` (1) the variance lies (`variance.log_variance`). `variance.split` makes the two of
            twice the channels.
        process: a `DDPM` of two steps or more.
        weight: of `L_vlb`.
        levels: number of values that a pixel in [-1, 1] can have; its bins are as wide as they are apart.

    Returns:
        The loss, a scalar in float32 or better, and `{"mse": L_simple, "vlb_bits_per_dim": L_vlb}`, the latter
        without the prior's term.

    Raises:
        ValueError: as of `denoising`; `predict` does not return a pair; or `process` is no such process.
    """
    noised = draw(key, process, x_0, quantiles)
    y, v = variance.check_pair(predict(noised.x_t, noised.t))
    mse = noised.error(x_0, y, predicts).mean()
    prediction.check_like(v, noised.x_t, "the network")
    step = variance.ancestral(process, noised.t)
    held = jax.lax.stop_gradient(y)
    x0_hat = prediction.to_x0(held, noised.x_t, noised.alpha_t, noised.sigma_t, predicts=predicts)
    log_var = variance.log_variance(step, v)
    nats = jnp.where(
        expand(noised.t == 1, x_0),
        -discretized_log_prob(x_0, x0_hat, jnp.exp(log_var / 2), levels),
        variance.kl(step, x_0 - x0_hat, log_var),
    )
    bits = process.num_steps * nats.mean() / np.log(2)
    return mse + weight * bits, {"mse": mse, "vlb_bits_per_dim": bits}
