"""What trains a diffusion network: `denoising`, the weighted squared error of what it predicts.

A user's loss, in the form that every family of gen_jax trains with, is three lines around it:

    def loss_fn(params, key, batch):
        predict = lambda x_t, t: net.apply(params, x_t, t)
        return loss.denoising(key, predict, proc, batch["image"], predicts="v", weighting=loss.min_snr(5.0))

A *weighting* is a function of the log signal-to-noise ratio, and always weighs the error in `x_0`, whatever
the network predicts:

    E_{t, eps} [ w(log_snr_t) |x_0 - x0_hat|^2 ]

The error is taken in the space of the prediction, where it is well-conditioned, and multiplied by the exact
ratio (`prediction.error_ratio`), so the same weighting is the same loss, with the same gradient, under every
prediction. `simple`, the default, is no weighting: the plain squared error of the prediction. For a
variance-preserving process that is

    predicts   simple is w =      min_snr(5) weighs its error by
    "eps"      SNR                min(SNR, 5) / SNR
    "x0"       1                  min(SNR, 5)
    "v"        SNR + 1            min(SNR, 5) / (SNR + 1)

Noise belongs to the example (`gen_jax.keys`) and times are spread over the global batch, so the value is the
same on 1 and on 8 devices: under `pmap` or `shard_map` over `keys.AXIS`, with one key for all devices, the
`pmean` of the losses is the loss of the whole batch.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from gen_jax import keys
from gen_jax.diffusion import prediction
from gen_jax.diffusion.prediction import Predicts
from gen_jax.diffusion.process import Process

Weighting: TypeAlias = Callable[[Float[Array, "B"]], Float[Array, "B"]]
"""Weight of the squared error in `x_0` as a function of `log_snr_t`."""

Quantiles: TypeAlias = Callable[[Key[Array, ""], int], Float[Array, "B"]]
"""`(key, n) -> u [n]` in [0, 1]: where on the process's axis of times to train."""

simple: Final = None
"""No weighting: the squared error counts where it is made (`L_simple`; Ho et al. 2020, Eq. 14)."""


def snr(log_snr: Float[Array, "B"]) -> Float[Array, "B"]:
    """Weight `w = SNR` on the error in `x_0`: `L_simple` of the noise, under every prediction."""
    return jnp.exp(log_snr)


def min_snr(gamma: float = 5.0) -> Weighting:
    """Weight `w = min(SNR, gamma)` on the error in `x_0` (Hang et al. 2023, Section 3.4)."""
    if not gamma > 0:
        raise ValueError(f"gamma must be positive, got {gamma}; the paper's value is 5.")
    return lambda log_snr: jnp.minimum(jnp.exp(log_snr), gamma)


def edm(sigma_data: float = 0.5) -> Weighting:
    """Weight `w = SNR + 1 / sigma_data^2` on the error in `x_0` (Karras et al. 2022, Table 1).

    The plain squared error of the network inside `prediction.edm_preconditioned`.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}; images in [-1, 1] have about 0.5.")
    return lambda log_snr: jnp.exp(log_snr) + 1 / sigma_data**2


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """Weight `w = SNR / (k + SNR)^gamma` on the error in `x_0` (P2; Choi et al. 2022, Eq. 8): less near the data."""
    if not (gamma >= 0 and k > 0):
        raise ValueError(
            f"expected gamma >= 0 and k > 0, got {gamma} and {k}; the paper's are 0.5 or 1, and 1."
        )
    return lambda log_snr: jnp.exp(log_snr - gamma * jnp.logaddexp(jnp.log(k), log_snr))


def sigmoid(bias: float = 2.0) -> Weighting:
    """Weight `w = SNR sigmoid(bias - log_snr)` on the error in `x_0`, a sigmoid on that in `eps` (Kingma & Gao 2023)."""
    return lambda log_snr: jnp.exp(log_snr) * jax.nn.sigmoid(bias - log_snr)


def stratified(key: Key[Array, ""], n: int) -> Float[Array, "{n}"]:
    """Low-discrepancy quantiles `u_i = (u_0 + i / B) mod 1`, `B` the global batch (Kingma et al. 2021, I.1).

    Each is uniform on [0, 1), and every interval `[j / B, (j + 1) / B)` holds exactly one: the loss varies
    less between batches.
    """
    index, size = keys.example_index(n)
    return jnp.mod(jax.random.uniform(key) + index / size, 1)


def independent(key: Key[Array, ""], n: int) -> Float[Array, "{n}"]:
    """Independent uniform quantiles in [0, 1), one an example."""
    return jax.vmap(jax.random.uniform)(keys.per_example(key, n))


def logit_normal(mean: float = 0.0, std: float = 1.0, *, quantiles: Quantiles = stratified) -> Quantiles:
    """Quantiles `sigmoid(mean + std z)`, `z ~ N(0, 1)`: more of the batch at middle times (Esser et al. 2024, Eq. 19).

    A positive `mean` favours noisy times, where a picture's content is decided. The loss is not reweighted for it, so
    it is the expectation over these times. `quantiles` says how `z = ndtri(u)` is spread, stratified by default.
    """
    if not std > 0:
        raise ValueError(
            f"std must be positive, got {std}; 1 is a usual value, and larger is closer to both ends."
        )
    return lambda key, n: jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(quantiles(key, n)))


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
    weights in log SNR as in Kingma & Gao 2023, Eq. 2).

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
    prediction.check_predicts(predicts)
    if not jnp.issubdtype(x_0.dtype, jnp.floating):
        raise ValueError(
            f"x_0 must be floating-point, in [-1, 1] for images; got {x_0.dtype}. For bytes: x / 127.5 - 1."
        )
    key_t, key_eps = jax.random.split(key)
    t = jnp.asarray(process.times(quantiles(key_t, x_0.shape[0])))
    eps = keys.normal(key_eps, x_0.shape)
    alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
    x_t = process.perturb(x_0, t, eps)
    y_hat = predict(x_t, t)
    prediction.check_like(y_hat, x_t, "the network")
    y = prediction.target(x_0, eps, alpha_t, sigma_t, predicts=predicts)
    mse = jnp.square(y - y_hat).reshape(x_0.shape[0], -1).mean(axis=1)
    if weighting is None:
        return mse.mean(), {"mse": mse.mean()}
    ratio = prediction.error_ratio(alpha_t, sigma_t, predicts=predicts)
    weight = weighting(jnp.asarray(process.log_snr(t))) * ratio
    return (weight * mse).mean(), {"mse": mse.mean()}
