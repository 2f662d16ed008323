"""Images that exist, changed by a model: drawn anew from some noise, or in a part of them.

    m, weights = pretrained.load("checkpoints/step10_text_to_image")
    others = retouch.vary(m, weights, key, images, strength=0.6, prompt="a large red seven")
    filled = retouch.inpaint(m, weights, key, images, mask, prompt="a large red seven above a small blue three")

Both work for models of pixels and of latents, with labels, texts or nothing. They are `editing.sdedit` and
`inverse.repaint` with what a model says of itself: its codec, its condition, its guidance.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree, Shaped, UInt8

from gen_jax import editing, generate, guidance, inverse, samplers
from gen_jax.codec import Latents
from gen_jax.conditioning import Label, Prompt
from gen_jax.generate import Weights
from gen_jax.model import Model

Images: TypeAlias = Shaped[np.ndarray, "..."]
"""uint8 `[N, H, W, C]`."""


def vary(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    images: Images,
    *,
    strength: float = 0.6,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
    solver: str | None = None,
    nfe: int | None = None,
    guidance: float | None = None,
) -> Images:
    """Image to image: noise is added to images and taken away again (SDEdit, in latents where the model has them).

        x_t = alpha_t x_0 + sigma_t eps,      t = strength t_max,      x_0 = codec.encode(image)

    Args:
        model, weights: from `pretrained.load`.
        key: image `i` depends on it and on `i`.
        images: uint8, of the size that the model draws.
        strength: in (0, 1]; 1 keeps nothing of the images, small values nearly all.
        label, prompt, negative_prompt, solver, nfe, guidance: as of `generate.sample`. `nfe` evaluations go from
            `strength t_max` to the data.

    Raises:
        ValueError: a strength outside (0, 1], images of another size or type, and as of `generate.sample`.

    Source: Meng et al. 2022, Algorithm 1.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}: 1 keeps nothing of the images.")
    _check(model, images)
    proc, says = model.process, model.sampling
    start = min(max(strength * proc.t_max, proc.t_min), samplers.named.first_time(proc))
    plan = samplers.named.plan(proc, solver or says.solver, nfe or says.nfe, t_start=start)
    cond, null = generate.conditions(
        model, key, len(images), label=label, prompt=prompt, negative_prompt=negative_prompt
    )
    weight = generate.weight(model, weights, guidance)
    out = _vary(model.undrawn())(dict(weights), key, plan, images, cond, null, weight)
    return np.asarray(out)


def inpaint(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    images: Images,
    mask: Shaped[np.ndarray, "..."],
    *,
    resample: int = 5,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
    nfe: int | None = None,
    guidance: float | None = None,
) -> Images:
    """Draw a part of images anew, to fit the rest (RePaint, in latents where the model has them).

    In latents, one is known where all its pixels are; known pixels are those of the images, to the bit.

    Args:
        model, weights, key, images: as of `vary`.
        mask: bool `[N, H, W, 1]`, True where the image is known; `[1, H, W, 1]` is for all of them.
        resample: how often each step is taken; more fits better, and costs as much more.
        label, prompt, negative_prompt, guidance: as of `generate.sample`.
        nfe: steps of DDIM; each is taken `resample` times.

    Raises:
        ValueError: a mask of another size or type, images of another size or type, and as of `generate.sample`.

    Source: Lugmayr et al. 2022, Algorithm 1.
    """
    _check(model, images)
    wanted = (images.shape[1], images.shape[2], 1)
    if mask.dtype != bool or mask.shape[1:] != wanted or len(mask) not in (1, len(images)):
        raise ValueError(
            f"mask must be bool of shape {(len(images), *wanted)} or {(1, *wanted)}, True where the image is known; got "
            f"{mask.dtype} of shape {mask.shape}."
        )
    plan = samplers.named.plan(model.process, "ddim", nfe or model.sampling.nfe)
    cond, null = generate.conditions(
        model, key, len(images), label=label, prompt=prompt, negative_prompt=negative_prompt
    )
    weight = generate.weight(model, weights, guidance)
    run = _inpaint(model.undrawn(), resample)
    return np.asarray(run(dict(weights), key, plan, images, mask, cond, null, weight))


def known_latents(mask: Bool[Array, "M H W 1"], factor: int) -> Bool[Array, "M h w 1"]:
    """True for the latents of which all `factor` x `factor` pixels are known."""
    m, height, width, _ = mask.shape
    squares = mask.reshape(m, height // factor, factor, width // factor, factor, 1)
    return squares.all((2, 4))


@functools.lru_cache(maxsize=16)
def _vary(model: Model) -> Callable[..., UInt8[Array, "N H W C"]]:
    def run(
        weights: Weights,
        key: Key[Array, ""],
        plan: samplers.Plan,
        images: UInt8[Array, "N H W C"],
        cond: PyTree,
        null: PyTree,
        weight: guidance.Weight | None,
    ) -> UInt8[Array, "N H W C"]:
        key_codec, key_noise = jax.random.split(key)
        x_0 = model.codec.encode({"image": images}, weights.get("autoencoder"), key_codec)
        denoise = generate.denoiser(model, weights, cond, weight, null=null)
        x_0 = editing.sdedit(key_noise, denoise, model.process, plan, x_0)
        return model.codec.decode(x_0, weights.get("autoencoder"))

    return jax.jit(run)


@functools.lru_cache(maxsize=16)
def _inpaint(model: Model, resample: int) -> Callable[..., UInt8[Array, "N H W C"]]:
    def run(
        weights: Weights,
        key: Key[Array, ""],
        plan: samplers.Plan,
        images: UInt8[Array, "N H W C"],
        mask: Bool[Array, "M H W 1"],
        cond: PyTree,
        null: PyTree,
        weight: guidance.Weight | None,
    ) -> UInt8[Array, "N H W C"]:
        key_prior, key_noise = jax.random.split(key)
        x_0 = model.codec.encode({"image": images}, weights.get("autoencoder"))
        known = known_latents(mask, _factor(model))
        denoise = generate.denoiser(model, weights, cond, weight, null=null)
        x_T = model.process.prior(key_prior, x_0.shape)
        x_0 = inverse.repaint(key_noise, denoise, model.process, plan, x_T, x_0, known, resample=resample)
        return jnp.where(mask, images, model.codec.decode(x_0, weights.get("autoencoder")))

    return jax.jit(run)


def _factor(model: Model) -> int:
    autoencoder = model.codec.autoencoder if isinstance(model.codec, Latents) else None
    return 1 if autoencoder is None else autoencoder.factor


def _check(model: Model, images: Images) -> None:
    shape = model.codec.image_shape if isinstance(model.codec, Latents) else model.codec.shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"images must be uint8 of shape [N, {', '.join(map(str, shape))}], as the model draws them; got "
            f"{images.dtype} of shape {images.shape}. Resize and crop them first."
        )
