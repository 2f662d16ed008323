"""The autoencoder of latent diffusion: images to small maps of latents and back (Rombach et al. 2022, Appendix G).

    net = autoencoder_kl.mnist.build()
    params = net.init(key, x)                                           # x [B, H, W, C] in [-1, 1]
    mean, log_variance = net.apply(params, x, method="encode")          # q(z | x), each [B, H / f, W / f, L]
    x_hat = net.apply(params, z, method="decode")

`f` is `config.factor`. It is the autoencoder of Stable Diffusion (`sd`) with any number of levels, and with an optional
space-to-depth stem, which makes it cheap on a CPU. Parameters have the names of the U-Net, one for each of diffusers':

    stem  out_norm  out                          conv_in  conv_norm_out  conv_out
    down_{l}_{i}                                 down_blocks.{l}.resnets.{i}
    up_{l}_{i}                                   up_blocks.{last - l}.resnets.{i}
    down_{l}                                     down_blocks.{l}.downsamplers.0.conv
    up_{l}                                       up_blocks.{last - l}.upsamplers.0.conv
    middle_0  middle_attention  middle_1         mid_block.resnets.0  mid_block.attentions.0  mid_block.resnets.1
    GroupNorm_0  Conv_0  GroupNorm_1  Conv_1     norm1  conv1  norm2  conv2, in a block
    Dense_1                                      conv_shortcut, in a block
    self_norm  self_query  self_key  self_value  group_norm  to_q  to_k  to_v, in the attention
    self_out                                     to_out.0, in the attention
    quant  post_quant                            quant_conv  post_quant_conv

for level `l` (of `last + 1`) and block `i`, all but the last row in "encoder" or "decoder".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.networks import dtypes, layers
from gen_jax.networks.conv import conv

__all__ = ["AutoencoderKL", "AutoencoderKLConfig", "mnist", "scenes", "sd"]

EPS = 1e-6
"""Of every group norm."""


@checks.checked
@dataclass(frozen=True)
class AutoencoderKLConfig:
    """The hyperparameters of an autoencoder; every field is hashable and has a JSON form.

    A level is a resolution: level 0 is that of the image divided by `patch`, each next level half of it. The last level
    is that of the latents.

    Raises:
        ValueError: a number that must be positive is not, or a type is not floating.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 512)
    """Channels at each level, finest first."""
    blocks: int = 2
    """Residual blocks at each level of the encoder; the decoder has one more."""
    latent_channels: int = 4
    middle_attention: bool = True
    """Self-attention of one head between the two blocks at the level of the latents."""
    groups: int = 32
    patch: int = 1
    """Side of the square patches of the image that are folded into channels (space-to-depth); 1 for none."""
    quant: bool = True
    """An affine map of the moments behind the encoder, and one of the latents before the decoder."""
    exact_norm: bool = False
    """Group norms that are exact for any mean and refuse channels that `groups` does not divide, see
    `layers.GroupNorm`."""
    dtype: DTypeLike = "float32"
    """Type of the computation; norms take their statistics in float32, and the results are float32 or better."""
    param_dtype: DTypeLike = "float32"
    remat: bool = False
    """Recompute each residual block in the backward pass instead of storing its activations."""

    def __post_init__(self) -> None:
        dtypes.keep_names(self)
        numbers = (
            self.in_channels,
            self.out_channels,
            self.latent_channels,
            self.groups,
            self.blocks,
            self.patch,
        )
        if not self.channels or min(*self.channels, *numbers) < 1:
            raise ValueError(
                "AutoencoderKLConfig expects at least one level, and positive channels, blocks, groups and patch; got "
                f"in_channels={self.in_channels}, out_channels={self.out_channels}, channels={self.channels}, "
                f"latent_channels={self.latent_channels}, groups={self.groups}, blocks={self.blocks}, "
                f"patch={self.patch}."
            )

    @property
    def factor(self) -> int:
        """Pixels of the image along the side of one latent pixel, `patch 2^(levels - 1)`."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @checks.checked
    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Height, width and channels of the latents of an image of shape (height, width, channels).

        Raises:
            ValueError: the channels are others, or `factor` does not divide the height and the width.
        """
        height, width, channels = image_shape
        if channels != self.in_channels:
            raise ValueError(f"expected images of {self.in_channels} channels, got the shape {image_shape}.")
        if height % self.factor or width % self.factor:
            up = tuple(-(-size // self.factor) * self.factor for size in (height, width))
            raise ValueError(
                f"images of {height} x {width} pixels have no latents: this autoencoder makes one latent pixel of "
                f"{self.factor} x {self.factor} pixels, so {self.factor} must divide height and width. Resize, crop or "
                f"pad to {up[0]} x {up[1]}, for example, or take other levels (channels={self.channels}, "
                f"patch={self.patch})."
            )
        return height // self.factor, width // self.factor, self.latent_channels

    def build(self) -> "AutoencoderKL":
        """The module of this configuration."""
        return AutoencoderKL(self)


sd = AutoencoderKLConfig(exact_norm=True)
"""That of Stable Diffusion 1, 2 and XL, 83.7 M parameters: 8 x 8 pixels to one latent pixel of 4 numbers."""

scenes = AutoencoderKLConfig(channels=(64,), blocks=1, middle_attention=False, groups=8, patch=4)
"""For the captioned scenes on a CPU: 48 x 48 x 3 to 12 x 12 x 4."""

mnist = AutoencoderKLConfig(1, 1, channels=(32, 64), blocks=1, middle_attention=False, groups=8, patch=2)
"""For MNIST on a CPU: 28 x 28 x 1 to 7 x 7 x 4."""


class AutoencoderKL(nn.Module):
    """An encoder to the moments of `q(z | x)` and a decoder, as methods of one module with one tree of parameters."""

    config: AutoencoderKLConfig

    def setup(self) -> None:
        """Make the parts."""
        c = self.config
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        if c.quant:
            self.quant = _pointwise(c, 2 * c.latent_channels)
            self.post_quant = _pointwise(c, c.latent_channels)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        """The decoded mean of `q(z | x)`, for images in [-1, 1]. `init` with it makes all parameters."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w L"], Float[Array, "B h w L"]]:
        """Mean and log variance of `q(z | x)` for images in [-1, 1], the log variance clipped to [-30, 20].

        Where the latents are quantised (`networks.quantize`), the mean is what is quantised; the other is not used.
        Raises ValueError for images of another number of channels, or of a size that `factor` does not divide.
        """
        self.config.latent_shape(x.shape[1:])
        h = self.encoder(x)
        h = _as_float(self.quant(h) if self.config.quant else h)
        mean, log_variance = jnp.split(h, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, z: Float[Array, "B h w L"]) -> Float[Array, "B H W D"]:
        """Images of latents, about in [-1, 1], not clipped. Raises ValueError for another number of channels."""
        c = self.config
        if z.shape[-1] != c.latent_channels:
            raise ValueError(f"z: expected latents of {c.latent_channels} channels, got the shape {z.shape}.")
        return _as_float(self.decoder(self.post_quant(z) if c.quant else z))


class Encoder(nn.Module):
    """Residual blocks and a convolution of stride 2 at each level, then the middle: two blocks, attention between."""

    config: AutoencoderKLConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w M"]:
        """The moments, concatenated, before the last affine map."""
        c = self.config
        convolve, block, _ = _parts(c)
        h = layers.space_to_depth(x.astype(c.dtype), c.patch)
        h = convolve(c.channels[0], name="stem")(h)
        for level, features in enumerate(c.channels):
            for i in range(c.blocks):
                h = block(features, name=f"down_{level}_{i}")(h)
            if level < len(c.channels) - 1:  # zeros below and to the right: "SAME", for even sizes
                h = convolve(features, stride=2, name=f"down_{level}")(h)
        h = _middle(c, h)
        return convolve(2 * c.latent_channels, name="out")(_out_norm(c, h))


class Decoder(nn.Module):
    """The middle, then residual blocks at each level, nearest-neighbour upsampling and a convolution between levels."""

    config: AutoencoderKLConfig

    @nn.compact
    def __call__(self, z: Float[Array, "B h w L"]) -> Float[Array, "B H W D"]:
        """The images."""
        c = self.config
        convolve, block, _ = _parts(c)
        h = _middle(c, convolve(c.channels[-1], name="stem")(z.astype(c.dtype)))
        for level in reversed(range(len(c.channels))):
            for i in range(c.blocks + 1):
                h = block(c.channels[level], name=f"up_{level}_{i}")(h)
            if level > 0:
                h = convolve(c.channels[level], enlarge=True, name=f"up_{level}")(h)
        h = convolve(c.patch**2 * c.out_channels, name="out")(_out_norm(c, h))
        return layers.depth_to_space(h, c.patch, (len(h), c.patch * h.shape[1], c.patch * h.shape[2]))


def _pointwise(c: AutoencoderKLConfig, features: int) -> nn.Dense:
    """An affine map of the channels, as a 1 x 1 convolution, whose gradients are faster on a CPU."""
    as_conv = lambda x, matrix, *_, **__: conv(x, matrix[None, None])
    return nn.Dense(features, dtype=c.dtype, param_dtype=c.param_dtype, dot_general=as_conv)


def _parts(
    c: AutoencoderKLConfig,
) -> tuple[Callable[..., layers.Conv], Callable[..., layers.ResBlock], layers.GroupDtypes]:
    """Makers of convolutions and residual blocks, and what layers with a norm take."""
    kind: layers.Dtypes = {"dtype": c.dtype, "param_dtype": c.param_dtype}
    norm: layers.GroupDtypes = {"groups": c.groups, "exact_norm": c.exact_norm, **kind}
    block = nn.remat(layers.ResBlock) if c.remat else layers.ResBlock
    return partial(layers.Conv, **kind), partial(block, eps=EPS, **norm), norm


def _middle(c: AutoencoderKLConfig, h: Array) -> Array:
    """Two blocks at the level of the latents, with attention between them; called in a compact method."""
    _, block, norm = _parts(c)
    features = c.channels[-1]
    h = block(features, name="middle_0")(h)
    if c.middle_attention:
        h = layers.Attention(features, eps=EPS, name="middle_attention", **norm)(h)
    return block(features, name="middle_1")(h)


def _out_norm(c: AutoencoderKLConfig, h: Array) -> Array:
    return nn.silu(layers.GroupNorm(eps=EPS, name="out_norm", **_parts(c)[2])(h))


def _as_float(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
