"""Cheap images of latents, to see a picture while it is drawn.

    see = previews.linear(m, weights)                           # or previews.tiny(config, params), of TAESD's weights
    on_step = previews.saving("preview.png", see)
    images, _ = generate.sample(m, weights, key, 1, prompt="a lighthouse", on_step=on_step)

Decoding a picture of Stable Diffusion takes as long as some steps of its U-Net. A linear map from a latent to a colour,
fitted to the autoencoder, costs nothing and shows a pixel for each latent; a tiny autoencoder shows all of them.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped, UInt8

from gen_jax import checks, plots, programs
from gen_jax.codec import Latents
from gen_jax.data.transforms import to_uint8
from gen_jax.generate import OnStep, Weights
from gen_jax.model import Model
from gen_jax.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from gen_jax.types import AnyPath, Count

See: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""`x_0 [n, h, w, C] -> uint8 [n, H, W, D]`."""


@checks.checked
def linear(model: Model, weights: Weights, images: UInt8[np.ndarray, "N H W D"] | None = None) -> See:
    """Latents to colours, a pixel for each, by the linear map that fits the autoencoder best.

        colour = matrix^T x_0 + offset,      least squares over the squares of pixels that belong to a latent

    Args:
        model, weights: of a model of latents; one of pixels needs no map, and its estimates are shown as they are.
        images: to fit the map to, of any size that the autoencoder encodes; default: squares of random colours.

    Raises:
        ValueError: a model of latents that has no autoencoder, or no weights of one.
    """
    codec = model.codec
    if not isinstance(codec, Latents):
        return lambda x_0: _bytes(127.5 * (x_0 + 1))
    factor, (*_, channels) = codec.image_shape[0] // codec.shape[0], codec.image_shape
    images = squares(16 * factor, 4 * factor, channels) if images is None else images
    if "autoencoder" not in weights:
        raise ValueError(f'weights must have those of the "autoencoder", got {checks.came(weights)}.')
    sized = codec.at(*images.shape[1:3])
    x_0 = programs.run(_encoder, sized, (), {"image": images}, weights["autoencoder"])
    matrix, offset = fit(np.asarray(x_0), images)
    return lambda x_0: _bytes(x_0 @ matrix + offset)


@checks.checked
def fit(
    x_0: Float[np.ndarray, "N h w C"], images: UInt8[np.ndarray, "N H W D"]
) -> tuple[Float[np.ndarray, "C D"], Float[np.ndarray, "D"]]:
    """Matrix and offset of the linear map from a latent to the mean colour, in [0, 255], of its square of pixels."""
    n, h, w, _ = x_0.shape
    checks.some("x_0", x_0, "latent")
    if images.shape[1] % h or images.shape[2] % w or not images.size:
        raise ValueError(
            f"images must have a square of pixels for each of {h} x {w} latents of x_0, got {checks.came(images)}."
        )
    sides = images.shape[1] // h, images.shape[2] // w
    means = images.reshape(n, h, sides[0], w, sides[1], -1).mean((2, 4))
    rows = np.concatenate([x_0.reshape(n * h * w, -1), np.ones((n * h * w, 1))], axis=1)
    found = np.linalg.lstsq(rows, means.reshape(n * h * w, -1), rcond=None)[0].astype(np.float32)
    return found[:-1], found[-1]


@checks.checked
def squares(side: Count, square: Count, channels: Count = 3, num: Count = 4) -> UInt8[np.ndarray, "N H W D"]:
    """Pictures of squares of random colours."""
    if side % square:
        raise ValueError(f"square must divide the side {side}, got {square}.")
    colours = np.random.default_rng(0).integers(0, 256, (num, side // square, side // square, channels))
    return colours.astype(np.uint8).repeat(square, 1).repeat(square, 2)


@checks.checked
def tiny(config: AutoencoderTinyConfig, params: PyTree) -> See:
    """Images of latents by a tiny autoencoder with these parameters (TAESD), which knows latents as the network does."""
    checks.tree("params", params)
    net = config.build()
    host = jax.local_devices(backend="cpu")[0]  # other devices are busy with the samples
    params = jax.device_put(params, host)
    return lambda x_0: np.asarray(programs.run(_decoder, net, (), params, jax.device_put(x_0, host)))


def _encoder(codec: Latents) -> Callable[..., Array]:
    return codec.encode


def _decoder(net: AutoencoderTiny) -> Callable[..., Array]:
    return lambda params, z: to_uint8(jnp.asarray(net.apply(params, z, method="decode")))


def _bytes(x: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


@checks.checked
def saving(path: str | AnyPath, see: See) -> OnStep:
    """For `on_step`: writes one picture of all samples as they stand, anew after each step."""

    def save(step: int, x_0: Shaped[np.ndarray, "n ..."]) -> None:
        plots.save_grid(path, see(x_0))

    return save
