"""Guidance by the gradient of a classifier of noisy data, and the loss of such a classifier."""

from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax import checks
from gen_jax.diffusion import matching
from gen_jax.diffusion.asking import ask
from gen_jax.diffusion.loss import TimeSampling, stratified
from gen_jax.diffusion.loss.noising import draw
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process, Times
from gen_jax.guidance import weights
from gen_jax.guidance.weights import Weight

Classify: TypeAlias = Callable[[PyTree, Array], Float[Array, "B C"]]
"""A noise-conditional classifier with its parameters bound: `(x_t [B, ...], t [B]) -> logits [B, C]`."""


@checks.checked
def classifier(
    denoise: Denoiser,
    log_prob: Callable[[PyTree, Times], Float[Array, "B"]],
    process: Process,
    weight: Weight = 1.0,
) -> Denoiser:
    """Classifier guidance: adds `weight` times the gradient of `log p_t(y | x_t)` to the score.

        x0_hat' = x0_hat + w (sigma_t^2 / alpha_t) d/dx_t log p_t(y | x_t)

    With `w = 1`, an exact classifier and an exact unconditional denoiser this is the denoiser of `p(x_0 | y)`, by
    Bayes' rule. `y` need not be a class: any log-likelihood of an observation will do, in nats up to a constant.
    Where `alpha_t = 0` nothing is added, because `x_t` is independent of `y`.

    Args:
        denoise: the unconditional denoiser, or a conditional one to be guided further.
        log_prob: `(x_t [B, ...], t []) -> [B]`, differentiable, each row by itself, as `log_class(classify, label)`.
        process: gives `alpha_t` and `sigma_t`.
        weight: `w`, see `Weight`.

    Raises:
        ValueError: `denoise` is known to be of another process; when it is asked, if `log_prob` does not return `[B]`.

    Source: Dhariwal & Nichol 2021, Section 4.1 and Eq. 14; Song et al. 2021, Eq. 14.
    """

    def total(x_t: PyTree, t: Times) -> Float[Array, ""]:
        each = log_prob(x_t, t)
        batch = jax.tree.leaves(x_t)[0].shape[:1]
        if jnp.shape(each) != batch:
            raise ValueError(
                f"log_prob must return one number for each sample, {batch}; got {jnp.shape(each)}. Of a classifier's "
                "output for all classes take that of the label, as guidance.log_class does."
            )
        return each.sum()

    def guided(x_t: PyTree, t: Times) -> PyTree:
        gradient = jax.grad(total)(x_t, t)
        alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
        slope = jnp.where(alpha_t > 0, sigma_t**2 / jnp.where(alpha_t > 0, alpha_t, 1.0), 0.0)
        w = weights.at(weight, t, x_t)
        return jax.tree.map(
            lambda x0_hat, g: x0_hat + w(g) * slope.astype(g.dtype) * g, ask(denoise, x_t, t), gradient
        )

    matching.check(denoise, process)
    return matching.as_those(guided, denoise)


@checks.checked
def log_class(
    classify: Classify, label: Annotated[Int[Array | np.ndarray, "B"], checks.Range(0)]
) -> Callable[[PyTree, Times], Float[Array, "B"]]:
    """`(x_t, t []) -> log p_t(label | x_t) [B]` in nats, from the logits of a classifier."""

    def log_prob(x_t: PyTree, t: Times) -> Float[Array, "B"]:
        batch = jax.tree.leaves(x_t)[0].shape[:1]
        if label.shape != batch:
            raise ValueError(f"label must be one for each sample, {batch}; got {label.shape}.")
        logits = classify(x_t, jnp.broadcast_to(t, label.shape)).astype(jnp.float32)
        if logits.ndim != 2 or logits.shape[:1] != batch:
            raise ValueError(
                f"classify must return logits [B, C] for {batch[0]} samples, got the shape {logits.shape}."
            )
        if not isinstance(label, jax.core.Tracer) and np.max(label, initial=0) >= logits.shape[1]:
            raise ValueError(
                f"label must be from 0 to {logits.shape[1] - 1}, a class of the classifier; got {np.max(label)}."
            )
        nll: Array = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return -nll

    return log_prob


@checks.checked
def classifier_loss(
    classify: Callable[[PyTree, PyTree, Array], Float[Array, "B C"]],
    process: Process,
    *,
    prepare: Callable[[Key[Array, ""], Array], Array] = lambda key, image: image,
    time_sampling: TimeSampling = stratified,
) -> Callable[[PyTree, Key[Array, ""], Mapping[str, Array]], tuple[Array, dict[str, Array]]]:
    """Cross-entropy of a noise-conditional classifier in nats, `E_t E_eps -log p_t(y | x_t)`, for `training.make_step`.

    Args:
        classify: `(params, x_t [B, ...], t [B]) -> logits [B, C]`.
        process: adds the noise.
        prepare: `(key, image) -> x_0`, from images of the data set to the data of the process.
        time_sampling: as in `loss.denoising`.

    Returns:
        `loss(params, key, {"image", "label"})`, with the metric `accuracy`, the fraction of correct labels over all
        times.
    """

    def loss_fn(
        params: PyTree, key: Key[Array, ""], batch: Mapping[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        key_prepare, key = jax.random.split(key)
        noised = draw(key, process, prepare(key_prepare, batch["image"]), time_sampling)
        logits, label = classify(params, noised.x_t, noised.t).astype(jnp.float32), batch["label"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
        return loss, {"accuracy": (logits.argmax(1) == label).mean(dtype=jnp.float32)}

    return loss_fn
