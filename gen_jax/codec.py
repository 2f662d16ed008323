"""What a network sees of the data: a codec maps data to `x_0` and samples back to data.

A codec knows the shape of `x_0`, the range that it has, and everything that lies between the numbers of a data set and
those of a network. It is a part of `gen_jax.model.Model`, so that training and sampling can not differ in it.

    Pixels     8-bit images               x_0 = x / 127.5 - 1, in [-1, 1]
    Latents    floating-point arrays      x_0 = (z - shift) scale, of any range
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from gen_jax.data.transforms import to_uint8, to_unit
from gen_jax.diffusion.prediction import Denoiser, clipped

Batch: TypeAlias = Mapping[str, Shaped[Array | np.ndarray, "..."]]
"""Arrays of a data set by name, with one leading axis of examples."""


@runtime_checkable
class Codec(Protocol):
    """Between data and `x_0`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example of `x_0`, without the batch axis."""
        ...

    def encode(self, batch: Batch) -> Float[Array, "B ..."]:
        """`x_0` of a batch of a data set, float32 `[B, *shape]`. May be called inside `jit`."""
        ...

    def decode(self, x_0: Float[Array, "B ..."]) -> Shaped[Array, "B ..."]:
        """Data of samples: the inverse of `encode`, up to rounding. May be called inside `jit`."""
        ...

    def bound(self, denoise: Denoiser) -> Denoiser:
        """The denoiser with `x0_hat` kept in the range that `x_0` has, where it has one."""
        ...


@dataclass(frozen=True)
class Pixels:
    """8-bit images, `x_0 = x / 127.5 - 1` in [-1, 1].

    Args:
        shape: height, width and channels.

    Raises:
        ValueError: `shape` is not three positive integers.
    """

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f"shape must be (height, width, channels), three positive integers, got {self.shape}."
            )

    def encode(self, batch: Batch) -> Float[Array, "B H W C"]:
        """`x_0` of `batch["image"]`, uint8 `[B, H, W, C]`. ValueError for another type or shape."""
        image = batch["image"]
        if image.dtype != jnp.uint8 or image.shape[1:] != self.shape:
            raise ValueError(
                f"expected images of type uint8 and shape {self.shape}, got {image.dtype} of shape {image.shape[1:]}. "
                "Scale other types to 0..255 and convert them to uint8 first."
            )
        return to_unit(image)

    def decode(self, x_0: Float[Array, "*b H W C"]) -> UInt8[Array, "*b H W C"]:
        """Images: `round(127.5 (x_0 + 1))`, clipped to 0..255; with any leading axes."""
        return to_uint8(x_0)

    def bound(self, denoise: Denoiser) -> Denoiser:
        """`x0_hat` clipped to [-1, 1] (static thresholding; Saharia et al. 2022, Section 2.3)."""
        return clipped(denoise)


@dataclass(frozen=True)
class Latents:
    """Floating-point arrays of any shape and range, `x_0 = (z - shift) scale`. `x0_hat` is never clipped.

    For data that are latents of an autoencoder, or any numbers: with `shift` their mean and `scale` one over their
    standard deviation, `x_0` has mean 0 and deviation 1, which is what schedules are made for.

    Args:
        shape: of one example.
        scale, shift: see the formula.
        name: of the array in a batch.

    Raises:
        ValueError: `shape` is empty or not positive, or `scale` is 0 or not finite.
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    shift: float = 0.0
    name: str = "latent"

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must be at least one positive integer, got {self.shape}.")
        if self.scale == 0 or not abs(self.scale) < float("inf") or not abs(self.shift) < float("inf"):
            raise ValueError(
                f"scale must be finite and not 0, and shift finite, got {self.scale} and {self.shift}."
            )

    def encode(self, batch: Batch) -> Float[Array, "B ..."]:
        """`x_0` of `batch[name]`, `[B, *shape]`. ValueError for integers or another shape."""
        z = batch[self.name]
        if not jnp.issubdtype(z.dtype, jnp.floating) or z.shape[1:] != self.shape:
            raise ValueError(
                f"expected floating-point arrays of shape {self.shape}, got {z.dtype} of shape {z.shape[1:]}."
            )
        return (jnp.asarray(z, jnp.float32) - self.shift) * self.scale

    def decode(self, x_0: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Latents: `x_0 / scale + shift`."""
        return x_0 / self.scale + self.shift

    def bound(self, denoise: Denoiser) -> Denoiser:
        """The denoiser as it is: latents have no bounds."""
        return denoise
