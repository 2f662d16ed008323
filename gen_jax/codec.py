"""What a network sees of the data: a codec maps data to `x_0` and samples back to data.

A codec knows the shape of `x_0`, the range that it has, and everything that lies between the numbers of a data set and
those of a network. It is a part of `gen_jax.model.Model`, so that training and sampling can not differ in it.

    Pixels     8-bit images               x_0 = x / 127.5 - 1, in [-1, 1]
    Latents    floating-point arrays      x_0 = (z - shift) scale, of any range; also z of images, by an autoencoder
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped, UInt8

from gen_jax import checks, keys
from gen_jax.data.transforms import to_uint8, to_unit
from gen_jax.diffusion.prediction import Denoiser, clipped
from gen_jax.types import Count

Batch: TypeAlias = Mapping[str, Shaped[Array | np.ndarray, "..."]]
"""Arrays of a data set by name, with one leading axis of examples."""


@runtime_checkable
class Module(Protocol):
    """A network without its parameters."""

    @property
    def init(self) -> Callable[..., PyTree]:
        """`init(key, x) -> params`."""
        ...

    @property
    def apply(self) -> Callable[..., PyTree]:
        """`apply(params, x, method=name)`."""
        ...


@runtime_checkable
class Codec(Protocol):
    """Between data and `x_0`. `weights` are the parameters of its autoencoder, where it has one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example of `x_0`, without the batch axis."""
        ...

    def encode(
        self, batch: Batch, weights: PyTree = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B ..."]:
        """`x_0` of a batch of a data set, float32 `[B, *shape]`. May be called inside `jit`.

        With a `key` a codec that is random draws from it; without one it gives the mean.
        """
        ...

    def decode(self, x_0: Float[Array, "B ..."], weights: PyTree = None) -> Shaped[Array, "B ..."]:
        """Data of samples: the inverse of `encode`, up to what is lost. May be called inside `jit`."""
        ...

    def bound(self, denoise: Denoiser) -> Denoiser:
        """The denoiser with `x0_hat` kept in the range that `x_0` has, where it has one."""
        ...


@runtime_checkable
class Autoencoder(Protocol):
    """A frozen dataclass of everything that shapes an autoencoder of images in [-1, 1], such as `AutoencoderKLConfig`.

    The module that it builds has two methods: `encode`, images to the mean and the log variance of `z`, and `decode`.
    """

    @property
    def in_channels(self) -> int:
        """Of the images."""
        ...

    @property
    def factor(self) -> int:
        """Pixels of an image along the side of one latent."""
        ...

    def build(self) -> Module:
        """The module."""
        ...


@checks.checked
@dataclass(frozen=True)
class Pixels:
    """8-bit images, `x_0 = x / 127.5 - 1` in [-1, 1].

    Args:
        shape: height, width and channels.

    Raises:
        ValueError: `shape` is not three positive integers.
    """

    shape: tuple[Count, Count, Count]

    @checks.checked
    def at(self, height: Count, width: Count) -> "Pixels":
        """For images of so many pixels."""
        return Pixels((height, width, self.shape[2]))

    @checks.checked
    def encode(
        self, batch: Batch, weights: PyTree = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B H W C"]:
        """`x_0` of `batch["image"]`, uint8 `[B, H, W, C]`. ValueError for another type or shape, or without images."""
        return to_unit(_images(batch, self.shape))

    @checks.checked
    def decode(self, x_0: Float[Array, "*b H W C"], weights: PyTree = None) -> UInt8[Array, "*b H W C"]:
        """Images: `round(127.5 (x_0 + 1))`, clipped to 0..255; with any leading axes."""
        return to_uint8(x_0)

    @checks.checked
    def bound(self, denoise: Denoiser) -> Denoiser:
        """`x0_hat` clipped to [-1, 1] (static thresholding; Saharia et al. 2022, Section 2.3)."""
        return clipped(denoise)


@checks.checked
@dataclass(frozen=True)
class Latents:
    """Floating-point arrays of any shape and range, `x_0 = (z - shift) scale`. `x0_hat` is never clipped.

    For data that are latents of an autoencoder, or any numbers: with `shift` their mean and `scale` one over their
    standard deviation, `x_0` has mean 0 and deviation 1, which is what schedules are made for.

    With an `autoencoder` the data are images: `z` is drawn from its normal distribution, `z = mean + deviation eps`, and
    samples are decoded to bytes (latent diffusion; Rombach et al. 2022, Section 3). A batch of latents that were encoded
    once (`gen_jax.latent.encode_all`) holds the two as `name` and `name_deviation`, a batch of images is encoded as it
    comes.

    Args:
        shape: of one example; of latents (height, width, channels).
        scale, shift: see the formula.
        name: of the array in a batch.
        autoencoder: its configuration. Its parameters are an argument of `encode` and `decode`.

    Raises:
        ValueError: `shape` is empty or not positive, or `scale` is 0 or not finite.
    """

    shape: tuple[Count, ...]
    scale: float = 1.0
    shift: float = 0.0
    name: str = "latent"
    autoencoder: Autoencoder | None = None

    def __post_init__(self) -> None:
        if not self.shape:
            raise ValueError(f"shape must be at least one positive integer, got {self.shape}.")
        if self.scale == 0:
            raise ValueError("scale must not be 0.")
        if self.autoencoder is not None and len(self.shape) != 3:
            raise ValueError(f"shape must be (height, width, channels) of latents, got {self.shape}.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the images of the autoencoder; ValueError where there is none."""
        if self.autoencoder is None:
            raise ValueError("these latents have no autoencoder, so there are no images of them.")
        height, width = (side * self.autoencoder.factor for side in self.shape[:2])
        return height, width, self.autoencoder.in_channels

    @checks.checked
    def at(self, height: Count, width: Count) -> "Latents":
        """For images of so many pixels; ValueError without an autoencoder, or where it does not divide them."""
        if self.autoencoder is None:
            raise ValueError("these latents have no autoencoder, so there are no images of them.")
        factor = self.autoencoder.factor
        if height % factor or width % factor or min(height, width) < 1:
            raise ValueError(f"{factor} must divide height and width of images, got {height} x {width}.")
        return replace(self, shape=(height // factor, width // factor, self.shape[2]))

    @checks.checked
    def encode(
        self, batch: Batch, weights: PyTree = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B ..."]:
        """`x_0` of `batch[name]`, `[B, *shape]`, or of `batch["image"]`; drawn with a `key`, else its mean.

        ValueError for integers or another shape, and for images without the weights of an autoencoder.
        """
        return self._drawn(*self.moments(batch, weights), key)

    @checks.checked
    def of_unit(
        self, images: Float[Array, "B H W C"], weights: PyTree, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B ..."]:
        """`x_0` of images in [-1, 1] that need not be bytes, as of `encode`; such as those with a part left out."""
        return self._drawn(*self._read(images, weights), key)

    @checks.checked
    def decode(self, x_0: Float[Array, "*b"], weights: PyTree = None) -> Shaped[Array, "..."]:
        """Latents `x_0 / scale + shift`, or with an autoencoder the images of these; with any leading axes."""
        z = x_0 / self.scale + self.shift
        if self.autoencoder is None:
            return z
        self._check(weights)
        flat = z.reshape(-1, *self.shape)
        images = to_uint8(self.autoencoder.build().apply(weights, flat, method="decode"))
        return images.reshape(*z.shape[:-3], *images.shape[1:])

    @checks.checked
    def bound(self, denoise: Denoiser) -> Denoiser:
        """The denoiser as it is: latents have no bounds."""
        return denoise

    @checks.checked
    def moments(
        self, batch: Batch, weights: PyTree = None
    ) -> tuple[Shaped[Array | np.ndarray, "..."], Shaped[Array | np.ndarray, "..."] | None]:
        """Mean and deviation of `z`, before scale and shift; None for the deviation where `z` is known."""
        if self.autoencoder is not None and self.name not in batch:
            return self._read(to_unit(_images(batch, self.image_shape)), weights)
        z = _named(batch, self.name)
        if not jnp.issubdtype(z.dtype, jnp.floating) or z.shape[1:] != self.shape:
            raise ValueError(
                f"expected floating-point arrays of shape {self.shape}, got {z.dtype} of shape {z.shape[1:]}."
            )
        return z, batch.get(f"{self.name}_deviation")

    def _read(self, images: Float[Array, "B H W C"], weights: PyTree) -> tuple[Array, Array]:
        """Mean and deviation of `z` of images in [-1, 1]."""
        if self.autoencoder is None:
            raise ValueError("these latents have no autoencoder, so there are none of images.")
        self._check(weights)
        mean, log_variance = self.autoencoder.build().apply(weights, images, method="encode")
        return mean, jnp.exp(log_variance / 2)

    def _drawn(
        self,
        mean: Shaped[Array | np.ndarray, "..."],
        deviation: Shaped[Array | np.ndarray, "..."] | None,
        key: Key[Array, ""] | None,
    ) -> Float[Array, "B ..."]:
        z = jnp.asarray(mean, jnp.float32)
        if key is not None and deviation is not None:
            z = z + jnp.asarray(deviation, jnp.float32) * keys.normal(key, z.shape)
        return (z - self.shift) * self.scale

    def _check(self, weights: PyTree) -> None:
        if weights is None:
            raise ValueError(
                'expected the parameters of the autoencoder, got None: they are weights["autoencoder"] of '
                "pretrained.load."
            )


@checks.checked
def image_shape(codec: Codec) -> tuple[int, ...]:
    """Of one image of a codec: that of `Latents.image_shape`, and of any other codec that of `x_0`."""
    return codec.image_shape if isinstance(codec, Latents) else codec.shape


@checks.checked
def check_data(codec: Codec, batch: Batch) -> None:
    """Raise ValueError, which says what was found, unless arrays are what a codec encodes; once, on the host.

    Besides type and shape, which `encode` checks too, it looks at the values of a whole data set or a good part of it: at
    images whose brightest pixel is 1, which would be black, and at latents that are not finite. Codecs of one's own are
    not checked.
    """
    if isinstance(codec, Latents) and (codec.autoencoder is None or codec.name in batch):
        for name in (codec.name, f"{codec.name}_deviation"):
            if name in batch:
                checks.within(f'"{name}"', batch[name])
        codec.moments({name: x[:1] for name, x in batch.items()})
    elif isinstance(codec, Pixels | Latents):
        image = _images(batch, image_shape(codec))
        if np.size(image) and np.max(image) == 1:
            raise ValueError(
                "expected images from 0 to 255, got uint8 with the values 0 and 1 alone, and both are black: multiply "
                "them by 255."
            )


def _images(batch: Batch, shape: tuple[int, ...]) -> Shaped[Array | np.ndarray, "..."]:
    """The images of a batch, 8-bit and of a shape; ValueError, which says what was found, for others."""
    image = _named(batch, "image")
    if image.dtype != jnp.uint8 or image.shape[1:] != shape:
        known = not isinstance(image, jax.core.Tracer) and np.size(image) and image.dtype != jnp.uint8
        values = f", with {checks.extent(image)}" if known else ""
        first = checks.MEND if known and checks.not_finite(np.asarray(image)) else ""
        raise ValueError(
            f"expected images of type uint8 and shape {shape}, got {image.dtype} of shape {image.shape[1:]}{values}. "
            f"{first}Scale other types to 0..255 and convert them to uint8 first: data.from_zero_one makes bytes of "
            "[0, 1], data.to_uint8 of [-1, 1]."
        )
    return image


def _named(batch: Batch, name: str) -> Shaped[Array | np.ndarray, "B ..."]:
    """An array of a batch."""
    if name not in batch:
        raise ValueError(f'expected an array "{name}" in the batch, got {checks.came(batch)}.')
    return batch[name] if hasattr(batch[name], "dtype") else np.asarray(batch[name])
