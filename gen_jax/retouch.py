"""Images that exist, changed by a model: drawn anew from some noise, or in a part of them.

    m, weights = pretrained.load("checkpoints/step10_text_to_image")
    others = retouch.vary(m, weights, key, images, strength=0.6, prompt="a large red seven")
    filled = retouch.inpaint(m, weights, key, images, mask, prompt="a large red seven above a small blue three")

Both work for models of pixels and of latents, with labels, texts or nothing, and for images of any size that the codec
can make. `vary` is SDEdit and the image-to-image of Stable Diffusion; `inpaint` asks a network that was trained for it,
or is RePaint with any other.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped, UInt8

from gen_jax import checks, generate, guidance, inverse, keys, parameters, samplers
from gen_jax.codec import Latents, image_shape
from gen_jax.conditioning import Label, Prompt
from gen_jax.data.transforms import to_unit
from gen_jax.generate import OnStep, Weights
from gen_jax.model import Model
from gen_jax.samplers import schedule
from gen_jax.types import Count, Fraction, RescaleOf, SolverName

Images: TypeAlias = Shaped[np.ndarray, "..."]
"""uint8 `[N, H, W, C]`."""

Noise: TypeAlias = Float[Array | np.ndarray, "N ..."]


@checks.checked
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
    solver: SolverName | None = None,
    nfe: Count | None = None,
    guidance: float | None = None,
    rescale: Fraction = 0.0,
    rescale_of: RescaleOf = "x0",
    noise: Noise | None = None,
    drawn: bool = True,
    on_step: OnStep | None = None,
) -> Images:
    """Image to image: noise is added to images and taken away again (SDEdit, in latents where the model has them).

        x_t = alpha_t x_0 + sigma_t eps,      t = strength t_max,      x_0 = codec.encode(image)

    Of a model with a schedule `t` is where the last `int(strength nfe)` of the `nfe` steps begin, as in diffusers.

    Args:
        model, weights: from `pretrained.load`.
        key: image `i` depends on it and on `i`.
        images: uint8, of any size that the model can draw.
        strength: in (0, 1]; 1 keeps nothing of the images, small values nearly all.
        label, prompt, negative_prompt, solver, nfe, guidance, rescale, rescale_of, on_step: as of `generate.sample`.
            Without a schedule, `nfe` evaluations go from `strength t_max` to the data.
        noise: `eps`, `[N, *shape]` of `x_0`; default: drawn.
        drawn: whether latents are drawn from what the encoder says of an image, or are the mean of it.

    Raises:
        ValueError: a strength outside (0, 1], or one that leaves no step; images of another type, or of a size that the
            codec can not make; and as of `generate.sample`.

    Source: Meng et al. 2022, Algorithm 1.
    """
    _check_strength(strength)
    parameters.check(model, weights)
    model = _at(model, images)
    steps = _from_strength(model, strength, solver, nfe)
    key_codec, key_noise, key_draw = jax.random.split(key, 3)
    x_t = _noised(model, weights, key_noise, key_codec if drawn else None, images, steps, noise)
    out, _ = generate.sample(
        model,
        weights,
        key_draw,
        len(images),
        label=label,
        prompt=prompt,
        negative_prompt=negative_prompt,
        solver=solver,
        guidance=guidance,
        rescale=rescale,
        rescale_of=rescale_of,
        x_T=x_t,
        steps=steps,
        on_step=on_step,
    )
    return out


@checks.checked
def inpaint(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    images: Images,
    mask: Shaped[np.ndarray, "..."],
    *,
    strength: float = 1.0,
    resample: Count = 5,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
    solver: SolverName | None = None,
    nfe: Count | None = None,
    guidance: float | None = None,
    rescale: Fraction = 0.0,
    rescale_of: RescaleOf = "x0",
    noise: Noise | None = None,
    drawn: bool = True,
    on_step: OnStep | None = None,
) -> Images:
    """Draw a part of images anew, to fit the rest; known pixels are those of the images, to the bit.

    A network that sees the mask and the latents of the rest of the picture beside `x_t` (`model.beside`) is asked with
    these. Any other one is made to fit by RePaint, in latents where the model has them, of which one is known where all
    its pixels are.

    Args:
        model, weights, key, images, noise, drawn: as of `vary`.
        mask: bool `[N, H, W, 1]`, True where the image is known; `[1, H, W, 1]` is for all of them. A network for
            inpainting sees the upper left pixel of each latent's square, as in diffusers, whose masks are True where this
            one is False.
        strength: how much of what is drawn anew is changed, as of `vary`; 1 keeps nothing of it.
        resample: of RePaint: how often each step is taken; more fits better, and costs as much more.
        label, prompt, negative_prompt, guidance, rescale, rescale_of: as of `generate.sample`.
        solver, nfe, on_step: as of `generate.sample`. RePaint takes `nfe` steps of a one-step solver, by default "ddim",
            each `resample` times, and calls nothing.

    Raises:
        ValueError: a mask of another size or type, and as of `vary`.

    Source: Rombach et al. 2022, Section 4.5; Lugmayr et al. 2022, Algorithm 1.
    """
    _check_strength(strength)
    parameters.check(model, weights)
    model = _at(model, images)
    _check_mask(images, mask)
    said = {"label": label, "prompt": prompt, "negative_prompt": negative_prompt}
    if model.beside:
        key_codec, key_noise, key_draw = jax.random.split(key, 3)
        see = _beside(model.undrawn())
        beside = see(weights.get("autoencoder"), key_codec if drawn else None, images, mask)
        steps = None
        if strength < 1:
            steps = _from_strength(model, strength, solver, nfe)
            noise = _noised(model, weights, key_noise, key_codec if drawn else None, images, steps, noise)
        out, _ = generate.sample(
            model,
            weights,
            key_draw,
            len(images),
            **said,  # type: ignore[arg-type]
            solver=solver,
            nfe=nfe,
            guidance=guidance,
            rescale=rescale,
            rescale_of=rescale_of,
            x_T=noise,
            steps=steps,
            beside=beside,
            on_step=on_step,
        )
        return np.where(mask, images, out)
    _, nfe = model.sampling.chosen(solver, nfe)
    start = None if strength == 1 else _start(model, strength)
    plan = samplers.named.plan(model.process, "ddim" if solver is None else solver, nfe, t_start=start)
    cond, null = generate.conditions(model, key, len(images), **said)  # type: ignore[arg-type]
    weight = generate.weight(model, weights, guidance)
    checks.finite_tree("weights", weights)
    run = _repaint(model.undrawn(), resample, rescale, rescale_of, strength < 1)
    return np.asarray(run(dict(weights), key, plan, images, mask, cond, null, weight, noise))


@checks.checked
def known_latents(mask: Bool[Array | np.ndarray, "M H W 1"], factor: Count) -> Bool[Array, "M h w 1"]:
    """True for the latents of which all `factor` x `factor` pixels are known."""
    m, height, width, _ = mask.shape
    if height % factor or width % factor:
        raise ValueError(f"factor must divide the sides of the mask, {height} x {width}; got {factor}.")
    squares = jnp.asarray(mask).reshape(m, height // factor, factor, width // factor, factor, 1)
    return squares.all((2, 4))


def _check_strength(strength: float) -> None:
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}: 1 keeps nothing of the images.")


def _noised(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    key_codec: Key[Array, ""] | None,
    images: Images,
    steps: samplers.Plan,
    noise: Noise | None,
) -> Float[Array, "N ..."]:
    """The images with the noise from which the steps begin."""
    x_0 = _encoder(model.undrawn())(weights.get("autoencoder"), key_codec, images)
    eps = keys.normal(key, x_0.shape) if noise is None else noise
    checks.of_shape("noise", eps, x_0.shape)
    return model.process.perturb(x_0, steps.t[0], jnp.asarray(eps))


def _from_strength(model: Model, strength: float, solver: str | None, nfe: int | None) -> samplers.Plan:
    """The steps from the noise of a strength on."""
    process, says = model.process, model.sampling
    solver, nfe = says.chosen(solver, nfe)
    if says.schedule is not None and solver is not None:
        first = schedule.first_step(nfe, strength)
        return says.schedule.plan(process, solver, nfe, predicts=model.predicts, start=first)
    return samplers.named.plan(process, solver, nfe, t_start=_start(model, strength))


def _start(model: Model, strength: float) -> float:
    """The time that has the noise of a strength, of a model without a schedule."""
    process = model.process
    return min(max(strength * process.t_max, process.t_min), samplers.named.first_time(process))


@functools.lru_cache(maxsize=16)
def _encoder(model: Model) -> Callable[..., Float[Array, "N ..."]]:
    return jax.jit(lambda params, key, images: model.codec.encode({"image": images}, params, key))


@functools.lru_cache(maxsize=16)
def _beside(model: Model) -> Callable[..., Float[Array, "N h w B"]]:
    """What a network for inpainting sees: 1 where it is to draw, and the latents of the rest on grey."""
    codec, factor = model.codec, _factor(model)
    if not isinstance(codec, Latents) or model.beside != 1 + codec.shape[-1]:
        raise ValueError(
            f"the network sees {model.beside} channels beside {codec.shape[-1]} of x_t: expected one of a mask, and "
            "latents of the picture, for inpainting."
        )

    def see(
        params: PyTree,
        key: Key[Array, ""] | None,
        images: UInt8[Array, "N H W C"],
        mask: Bool[Array, "M H W 1"],
    ) -> Float[Array, "N h w B"]:
        rest = codec.of_unit(to_unit(images) * mask, params, key)
        to_draw = 1.0 - mask[:, ::factor, ::factor].astype(jnp.float32)
        return jnp.concatenate([jnp.broadcast_to(to_draw, (*rest.shape[:-1], 1)), rest], axis=-1)

    return jax.jit(see)


@functools.lru_cache(maxsize=16)
def _repaint(
    model: Model, resample: int, rescale: float, rescale_of: RescaleOf, part: bool
) -> Callable[..., UInt8[Array, "N H W C"]]:
    """RePaint; with `part` from the images with the noise of the first step, else from noise alone."""

    def run(
        weights: Weights,
        key: Key[Array, ""],
        plan: samplers.Plan,
        images: UInt8[Array, "N H W C"],
        mask: Bool[Array, "M H W 1"],
        cond: PyTree,
        null: PyTree,
        weight: guidance.Weight | None,
        noise: Noise | None,
    ) -> UInt8[Array, "N H W C"]:
        key_prior, key_noise = jax.random.split(key)
        x_0 = model.codec.encode({"image": images}, weights.get("autoencoder"))
        if noise is not None:
            checks.of_shape("noise", noise, x_0.shape)
        known = known_latents(mask, _factor(model))
        denoise = generate.denoiser(
            model, weights, cond, weight, null=null, rescale=rescale, rescale_of=rescale_of
        )
        x_T = model.process.prior(key_prior, x_0.shape) if noise is None else noise
        if part:
            eps = keys.normal(key_prior, x_0.shape) if noise is None else noise
            x_T = model.process.perturb(x_0, plan.t[0], jnp.asarray(eps))
        x_0 = inverse.repaint(key_noise, denoise, model.process, plan, x_T, x_0, known, resample=resample)
        return jnp.where(mask, images, model.codec.decode(x_0, weights.get("autoencoder")))

    return jax.jit(run)


def _factor(model: Model) -> int:
    autoencoder = model.codec.autoencoder if isinstance(model.codec, Latents) else None
    return 1 if autoencoder is None else autoencoder.factor


def _at(model: Model, images: Images) -> Model:
    """The model for images of this size; ValueError for what is no image of its kind."""
    shape = image_shape(model.codec)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3:] != shape[2:] or not len(images):
        raise ValueError(
            f"images must be uint8 of shape [N, H, W, {shape[-1]}], as the model draws them; got {images.dtype} of shape "
            f"{images.shape}."
        )
    return model if images.shape[1:] == shape else model.at(*images.shape[1:3])


def _check_mask(images: Images, mask: Shaped[np.ndarray, "..."]) -> None:
    wanted = (*images.shape[1:3], 1)
    if mask.dtype != bool or mask.shape[1:] != wanted or len(mask) not in (1, len(images)):
        raise ValueError(
            f"mask must be bool of shape {(len(images), *wanted)} or {(1, *wanted)}, True where the image is known; got "
            f"{mask.dtype} of shape {mask.shape}."
        )
