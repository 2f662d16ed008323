"""Pixels to numbers and back, and the augmentations: pure functions, the random ones of a key per example."""

from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Shaped, UInt8

from gen_jax import checks, keys

Numbers: TypeAlias = Annotated[Shaped[Array | np.ndarray, "*shape"], checks.Range()]


@checks.checked
def to_unit(images: UInt8[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """8-bit pixels as float32 in [-1, 1]: `x / 127.5 - 1`. The inverse is `to_uint8`."""
    return jnp.asarray(images).astype(jnp.float32) / 127.5 - 1.0


@checks.checked
def to_uint8(x: Numbers) -> UInt8[Array, "*shape"]:
    """Numbers in [-1, 1] as 8-bit pixels: `round(127.5 (x + 1))`, clipped to 0..255. ValueError for bytes."""
    _not_bytes(x, -1)
    return jnp.clip(jnp.round(127.5 * (jnp.asarray(x) + 1.0)), 0.0, 255.0).astype(jnp.uint8)


@checks.checked
def flip(key: Key[Array, ""], x: Shaped[Array | np.ndarray, "b h w c"]) -> Shaped[Array, "b h w c"]:
    """Mirror each image left to right with probability 1/2.

    The coin of image `i` comes from `fold_in(key, i)`, `i` its index in the global batch: how the batch is
    split over devices changes nothing. With the same key, `flip` undoes itself.
    """
    coin = jax.vmap(jax.random.bernoulli)(keys.per_example(key, x.shape[0]))
    return jnp.where(coin[:, None, None, None], x[:, :, ::-1, :], x)


@checks.checked
def dequantize(
    key: Key[Array, ""], images: UInt8[Array | np.ndarray, "b *shape"]
) -> Float[Array, "b *shape"]:
    """8-bit pixels as a continuous density in [0, 1): `(x + u) / 256` with `u` uniform on [0, 1).

    `u` is a multiple of 2^-16, so that `x + u` has 24 bits and is exact in float32: `floor(256 y) == x`
    without exception (a float32 `u` next to 1 would round up into the pixel above, about once in a hundred
    thousand). Theis et al. 2016, Sec. 3.1: the log-density of `y`, in bits and in the mean over `u`, bounds
    the log-probability of the 8-bit image: `log2 p(y) - 8 D <= log2 P(x)` for `D` values an image.
    """
    noise = jax.vmap(lambda k: jax.random.bits(k, images.shape[1:], jnp.uint16))(
        keys.per_example(key, images.shape[0])
    )
    return (jnp.asarray(images).astype(jnp.uint32) * 65536 + noise).astype(jnp.float32) / 2.0**24


@checks.checked
def to_zero_one(images: UInt8[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape"]:
    """8-bit pixels as float32 in [0, 1]: `x / 255`. The inverse is `from_zero_one`."""
    return jnp.asarray(images).astype(jnp.float32) / 255


@checks.checked
def from_zero_one(x: Numbers) -> UInt8[Array, "*shape"]:
    """Numbers in [0, 1] as 8-bit pixels: `round(255 x)`, clipped to 0..255. ValueError for bytes."""
    _not_bytes(x, 0)
    return jnp.clip(jnp.round(255 * jnp.asarray(x)), 0, 255).astype(jnp.uint8)


@checks.checked
def binarize(key: Key[Array, ""], images: UInt8[Array | np.ndarray, "b *shape"]) -> Float[Array, "b *shape"]:
    """Bits 0.0 or 1.0 that are drawn with the grey values as their probabilities, `P(1) = x / 255`.

    Drawn anew at each step this is "dynamic" binarisation (Burda et al. 2016, Sec. 5.1), drawn once and kept "static"
    (Salakhutdinov & Murray 2008): figures of the two are not to be compared. Bits of image `i` come from `fold_in(key,
    i)`; black and white are exact, and a probability is off by less than 2^-16.
    """
    noise = jax.vmap(lambda k: jax.random.bits(k, images.shape[1:], jnp.uint16))(
        keys.per_example(key, images.shape[0])
    )
    return (noise.astype(jnp.uint32) * 255 < jnp.asarray(images).astype(jnp.uint32) * 65536).astype(
        jnp.float32
    )


FAR = 8
"""Floats of the host beyond this are no numbers of the interval that a network has drawn a little outside of it."""


def _not_bytes(x: Numbers, least: int) -> None:
    """ValueError for bytes: integers that are not the few that lie in the interval, and floats far beyond it."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        if isinstance(x, np.ndarray) and x.size and x.max() > FAR:
            raise ValueError(
                f"x must be numbers in [{least}, 1], got {checks.spread(x)}: of pixels from 0 to 255 take "
                "x.round().astype(np.uint8)."
            )
        return
    known = not isinstance(x, jax.core.Tracer)
    if not known or (x.size and (x.min() < least or x.max() > 1)):
        raise ValueError(
            f"x must be numbers in [{least}, 1], got {checks.spread(x)}: bytes are 8-bit pixels already."
        )
