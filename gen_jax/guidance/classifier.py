"""Guidance by the gradient of a classifier that reads noised data, and the loss which such a one is trained by."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from gen_jax.diffusion.loss import TimeSampling, stratified
from gen_jax.diffusion.loss.denoising import draw
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.guidance import weights
from gen_jax.guidance.weights import Weight

Classify: TypeAlias = Callable[[Any, Any], Float[Array, "B C"]]
"""A noise-conditional classifier with its parameters bound: `(x_t [B, ...], t [B]) -> logits [B, C]`."""


def classifier(
    denoise: Denoiser,
    log_prob: Callable[[Any, Any], Float[Array, "B"]],
    process: Process,
    weight: Weight = 1.0,
) -> Denoiser:
    """Classifier guidance: `weight` times the gradient of `log p_t(y | x_t)` is added to the score.

        x0_hat' = x0_hat + w (sigma_t^2 / alpha_t) d/dx_t log p_t(y | x_t)

    With `w = 1`, an exact classifier and an exact unconditional denoiser this is the denoiser of `p(x_0 | y)`, by Bayes'
    rule. Nothing here knows classes: any log-likelihood of what was observed does, in nats up to a constant. Where
    `alpha_t = 0` nothing is added, as `x_t` says nothing of `y`.

    Args:
        denoise: unconditional; or conditional, to guide it further.
        log_prob: `(x_t [B, ...], t []) -> [B]`, differentiable, row by row: `log_class(classify, label)`.
        process: what `alpha_t` and `sigma_t` are.
        weight: `w`, see `Weight`.

    Source: Dhariwal & Nichol 2021, Section 4.1 and Eq. 14; Song et al. 2021, Eq. 14.
    """

    def guided(x_t: Any, t: Any) -> Any:
        gradient = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
        alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
        slope = jnp.where(alpha_t > 0, sigma_t**2 / jnp.where(alpha_t > 0, alpha_t, 1.0), 0.0)
        w = weights.at(weight, t, x_t)
        return jax.tree.map(
            lambda x0_hat, g: x0_hat + w(g) * slope.astype(g.dtype) * g, denoise(x_t, t), gradient
        )

    return guided


def log_class(classify: Classify, label: Int[Array, "B"]) -> Callable[[Any, Any], Float[Array, "B"]]:
    """`(x_t, t []) -> log p_t(label | x_t) [B]`, in nats, of a classifier's logits."""

    def log_prob(x_t: Any, t: Any) -> Float[Array, "B"]:
        logits = classify(x_t, jnp.broadcast_to(t, label.shape)).astype(jnp.float32)
        return -optax.softmax_cross_entropy_with_integer_labels(logits, label)

    return log_prob


def classifier_loss(
    classify: Callable[[Any, Any, Any], Float[Array, "B C"]],
    process: Process,
    *,
    prepare: Callable[[Any, Any], Any] = lambda key, image: image,
    time_sampling: TimeSampling = stratified,
) -> Callable[..., Any]:
    """Cross-entropy of a noise-conditional classifier in nats, `E_t E_eps -log p_t(y | x_t)`, for `training.make_step`.

    Args:
        classify: `(params, x_t [B, ...], t [B]) -> logits [B, C]`.
        process: how data are noised.
        prepare: `(key, image) -> x_0`: what the data set holds as the process takes it.
        time_sampling: as in `loss.denoising`.

    Returns:
        `loss(params, key, {"image", "label"})`, with the metric `accuracy`: the share read rightly, over all times.
    """

    def loss_fn(params: Any, key: Key[Array, ""], batch: Any) -> tuple[Array, dict[str, Array]]:
        key_prepare, key = jax.random.split(key)
        noised = draw(key, process, prepare(key_prepare, batch["image"]), time_sampling)
        logits, label = classify(params, noised.x_t, noised.t).astype(jnp.float32), batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return loss, {"accuracy": (logits.argmax(1) == label).mean(dtype=jnp.float32)}

    return loss_fn
