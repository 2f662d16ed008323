"""The small autoencoder for previews of latents: twenty times cheaper than that of which it has the latents (TAESD).

    net = AutoencoderTinyConfig().build()
    params = net.init(key, x)                                  # x [B, H, W, C] in [-1, 1]
    z = net.apply(params, x, method="encode")                  # [B, H / 8, W / 8, L], as the U-Net has them
    x_hat = net.apply(params, z, method="decode")

It is Madebyollin's "Tiny AutoEncoder for Stable Diffusion", diffusers' `AutoencoderTiny`: convolutions and relu alone.
Latents are those that the diffusion has, scaled, and not those of the large autoencoder. The numbers of `layers_{i}`
are diffusers'; where there are no parameters a number is left out.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.networks import dtypes, layers

__all__ = ["AutoencoderTiny", "AutoencoderTinyConfig"]


@checks.checked
@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """The hyperparameters of a tiny autoencoder; every field is hashable and has a JSON form.

    Raises:
        ValueError: a number that must be positive is not, or a type is not floating.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 64
    """At all levels."""
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    """Blocks at each level, finest first."""
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Blocks at each level, coarsest first."""
    latent_channels: int = 4
    dtype: DTypeLike = "float32"
    """Type of the computation; the results are float32 or better."""
    param_dtype: DTypeLike = "float32"

    def __post_init__(self) -> None:
        dtypes.keep_names(self)
        blocks = (*self.encoder_blocks, *self.decoder_blocks)
        numbers = (self.in_channels, self.out_channels, self.channels, self.latent_channels)
        if not self.encoder_blocks or len(self.encoder_blocks) != len(self.decoder_blocks) or min(blocks) < 0:
            raise ValueError(
                "AutoencoderTinyConfig expects as many levels in the encoder as in the decoder, one or more; got "
                f"encoder_blocks={self.encoder_blocks} and decoder_blocks={self.decoder_blocks}."
            )
        if min(numbers) < 1:
            raise ValueError(f"AutoencoderTinyConfig expects positive numbers of channels, got {self}.")

    @property
    def factor(self) -> int:
        """Pixels of the image along the side of one latent pixel, `2^(levels - 1)`."""
        return 2 ** (len(self.encoder_blocks) - 1)

    def build(self) -> "AutoencoderTiny":
        """The module of this configuration."""
        return AutoencoderTiny(self)


class AutoencoderTiny(nn.Module):
    """An encoder to latents and a decoder, as methods of one module with one tree of parameters."""

    config: AutoencoderTinyConfig

    def setup(self) -> None:
        """Make the parts."""
        self.encoder, self.decoder = Encoder(self.config), Decoder(self.config)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """The decoded latents of images in [-1, 1]. `init` with it makes all parameters."""
        return self.decode(self.encode(x))

    def encode(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w L"]:
        """The latents of images in [-1, 1]. ValueError for other channels, or a size that `factor` does not divide."""
        c = self.config
        if x.shape[-1] != c.in_channels or x.shape[1] % c.factor or x.shape[2] % c.factor:
            raise ValueError(
                f"expected images of {c.in_channels} channels, with a height and a width that {c.factor} divides; got "
                f"{x.shape}."
            )
        return _as_float(self.encoder((x + 1) / 2))

    def decode(self, z: Float[Array, "B h w L"]) -> Float[Array, "B H W D"]:
        """Images of latents, about in [-1, 1], not clipped, of `3 tanh(z / 3)`. ValueError for other channels."""
        if z.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f"z: expected latents of {self.config.latent_channels} channels, got the shape {z.shape}."
            )
        return _as_float(self.decoder(3 * jnp.tanh(z / 3))) * 2 - 1


class Encoder(nn.Module):
    """A convolution at each level, of stride 2 but for the first, then blocks; a convolution to latents."""

    config: AutoencoderTinyConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w L"]:
        """Latents of images in [0, 1]."""
        c, h, n = self.config, x.astype(self.config.dtype), 0
        for level, blocks in enumerate(c.encoder_blocks):
            first, name = level == 0, f"layers_{n}"
            stride = 1 if first else 2
            h = layers.Conv(c.channels, stride=stride, centred=True, bias=first, name=name, **_types(c))(h)
            for i in range(n + 1, n + 1 + blocks):
                h = Block(c, name=f"layers_{i}")(h)
            n += 1 + blocks
        return layers.Conv(c.latent_channels, name=f"layers_{n}", **_types(c))(h)


class Decoder(nn.Module):
    """A convolution and relu; at each level blocks, then nearest-neighbour upsampling but for the last, a convolution."""

    config: AutoencoderTinyConfig

    @nn.compact
    def __call__(self, z: Float[Array, "B h w L"]) -> Float[Array, "B H W D"]:
        """Images in [0, 1] of latents."""
        c = self.config
        h, n = nn.relu(layers.Conv(c.channels, name="layers_0", **_types(c))(z.astype(c.dtype))), 2
        for level, blocks in enumerate(c.decoder_blocks):
            for i in range(n, n + blocks):
                h = Block(c, name=f"layers_{i}")(h)
            n += blocks
            if level < len(c.decoder_blocks) - 1:
                h = layers.upsample(h, (len(h), 2 * h.shape[1], 2 * h.shape[2]))
                h = layers.Conv(c.channels, bias=False, name=f"layers_{n + 1}", **_types(c))(h)
                n += 2
        return layers.Conv(c.out_channels, name=f"layers_{n}", **_types(c))(h)


class Block(nn.Module):
    """`relu(x + conv(relu(conv(relu(conv(x))))))`."""

    config: AutoencoderTinyConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Map `x`."""
        h = x
        for i in (0, 2, 4):
            h = nn.relu(h) if i else h
            h = layers.Conv(self.config.channels, name=f"conv_{i}", **_types(self.config))(h)
        return nn.relu(x + h)


def _types(c: AutoencoderTinyConfig) -> layers.Dtypes:
    return {"dtype": c.dtype, "param_dtype": c.param_dtype}


def _as_float(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
