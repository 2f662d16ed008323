"""The configurations of the U-Net of `gen_jax.networks.unet`, which is where to import them from."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import flax.linen as nn
from jax.typing import DTypeLike

from gen_jax import checks
from gen_jax.networks import dtypes
from gen_jax.types import Count


@checks.checked
@dataclass(frozen=True)
class UNetConfig:
    """The hyperparameters of a U-Net; the number of image channels comes from the input.

    A level is a resolution: level 0 is that of the input divided by `patch`, each next level half of it (rounded up).

    Every field is hashable and has a JSON form (`gen_jax.model.to_dict`); types are kept by their names.
    """

    channels: tuple[int, ...] = (64, 128)
    """Channels at each level, finest first."""
    out_channels: int | None = None
    """Channels of the output where they are not as many as those of the input: a network for inpainting reads the mask
    and the masked image beside `x_t`, and gives as many channels as `x_t` has."""
    blocks: int = 1
    """Residual blocks at each level on the way down; with `dense_skips` there is one more on the way up."""
    attention: tuple[int, ...] = ()
    """Levels with one layer of self-attention after each residual block."""
    middle_attention: bool = False
    """Attention between the two blocks of the middle: with `depth` a transformer as deep as the coarsest one of the
    levels, else one layer of self-attention."""
    head_features: Count = 64
    """Size of a head of attention, where `heads` is None."""
    depth: tuple[int, ...] = ()
    """Blocks of the transformer after each residual block, by level: 0 for no transformer there; () for none at all."""
    heads: tuple[int, ...] | int | None = None
    """Heads of the transformers, by level or the same at all."""
    context_features: Count | None = None
    """Size of a token of the context, to which the transformers attend; None for no context."""
    patch: int = 1
    """Side of the square patches that the stem folds into channels (space-to-depth); 1 for none."""
    dense_skips: bool = True
    """Skip connections from the stem and the downsampled maps too, as in DDPM; else from the blocks only."""
    resample_conv: bool = True
    """Change the resolution by convolutions (stride 2 down; after nearest-neighbour upsampling). Else by mean pooling
    down, and an affine map of the channels before upsampling, which cost almost nothing."""
    resample_centred: bool = False
    """Zeros around the convolutions of stride 2 as in PyTorch, see `gen_jax.networks.conv.conv`."""
    embedding: int = 256
    """Size of the embedding of time and condition."""
    time: Literal["film", "add"] = "film"
    """How a residual block takes the embedding, see `layers.ResBlock`."""
    sinusoid_features: int | None = None
    """Size of the sinusoidal embedding of time, from which the embedding is made; None: `embedding`."""
    sinusoid_cosines_first: bool = False
    sinusoid_endpoint: bool = True
    """Whether the lowest frequency is reached, see `layers.sinusoidal`."""
    time_scale: float = 1.0
    """Factor of `t` before its sinusoidal embedding, which expects about 0 to 1000; for `t` in [0, 1] use 1000."""
    time_offset: float = 0.0
    """The embedding is that of `t time_scale + time_offset`. Networks that count times from 0, as Stable Diffusion does,
    have -1: a time of `process.DDPM` is 1 to 1000."""
    guidance_features: int | None = None
    """Size of the sinusoidal embedding of a guidance weight, for a network distilled at many weights; None for none."""
    num_classes: Count | None = None
    """Number of labels. Label `num_classes` is the null label; `cond=None` means the null label for all."""
    cond_features: Count | None = None
    """Size of a conditioning vector, in place of labels."""
    cond_layers: Literal[1, 2] = 1
    """Layers between the vector and the embedding. With 1, `cond=None` means a learned null vector for all; with 2 there
    is silu between them, and it means zeros."""
    dropout: Annotated[float, checks.Range(0, 1, below=True)] = 0.0
    """Rate inside the residual blocks; active only if `apply` gets `rngs={"dropout": key}`."""
    groups: Count = 32
    exact_norm: bool = False
    """Group norms that are exact for any mean and refuse channels that `groups` does not divide, see
    `layers.GroupNorm`."""
    dtype: DTypeLike = "float32"
    """Type of the computation, such as "bfloat16" (or `jnp.bfloat16`); norms take their statistics in float32."""
    param_dtype: DTypeLike = "float32"
    remat: bool = False
    """Recompute each residual block and transformer in the backward pass instead of storing its activations."""

    def __post_init__(self) -> None:
        dtypes.keep_names(self)
        optional = [n for n in (self.out_channels, self.guidance_features) if n is not None]
        if not self.channels or min(*self.channels, self.blocks, self.patch, *optional) < 1:
            raise ValueError(
                "UNetConfig expects at least one level and positive channels, blocks, patch, out_channels and "
                f"guidance_features; got channels={self.channels}, blocks={self.blocks}, patch={self.patch}, "
                f"out_channels={self.out_channels}, guidance_features={self.guidance_features}."
            )
        if any(level not in range(len(self.channels)) for level in self.attention):
            raise ValueError(
                f"attention={self.attention} names levels; with channels={self.channels} they are "
                f"0 to {len(self.channels) - 1}."
            )
        if self.num_classes is not None and self.cond_features is not None:
            raise ValueError("Give num_classes (labels) or cond_features (vectors), not both.")
        if self.cond_layers == 2 and self.cond_features is None:
            raise ValueError("cond_layers=2 are those of a conditioning vector: give its cond_features.")
        if min(self.sinusoid_features or self.embedding, self.guidance_features or 2) < 2:
            raise ValueError(
                "A sinusoidal embedding has a sine and a cosine at least: expected 2 or more features, got "
                f"sinusoid_features={self.sinusoid_features}, embedding={self.embedding} and "
                f"guidance_features={self.guidance_features}."
            )
        self._check_transformers()

    def _check_transformers(self) -> None:
        by_level = [self.depth, *([self.heads] if isinstance(self.heads, tuple) else [])]
        if any(values and (len(values) != len(self.channels) or min(values) < 0) for values in by_level):
            raise ValueError(
                f"depth and heads have one number for each level, 0 or more; got depth={self.depth} and "
                f"heads={self.heads} with channels={self.channels}."
            )
        if any(self.transformer(level)[0] for level in self.attention):
            raise ValueError(
                f"A level has a transformer or one layer of self-attention, not both; got depth={self.depth} and "
                f"attention={self.attention}."
            )
        levels = [level for level in range(-1, len(self.channels)) if self.transformer(level)[0]]
        if self.context_features is not None and not levels:
            raise ValueError("Transformers attend to the context: give context_features with a depth.")
        for level in levels:
            heads, channels = self.transformer(level)[1], self.channels[level]
            if heads < 1 or channels % (heads if self.heads else self.head_features):
                raise ValueError(
                    f"The heads of a transformer divide its channels; got {channels} channels with heads={self.heads} "
                    f"and head_features={self.head_features}. Set either."
                )

    @checks.checked
    def transformer(self, level: int) -> tuple[int, int]:
        """Depth and heads of the transformers of a level; depth 0 is none. The middle is level -1."""
        checks.whole("level", level, "level", least=-1, most=len(self.channels) - 1)
        if level == -1:
            depth = next((d for d in reversed(self.depth) if d), 0) if self.middle_attention else 0
        else:
            depth = self.depth[level] if self.depth else 0
        heads = self.heads[level] if isinstance(self.heads, tuple) and self.heads else self.heads
        return depth, heads if isinstance(heads, int) else self.channels[level] // self.head_features

    def build(self) -> nn.Module:
        """The module of this configuration, a `unet.UNet`."""
        from gen_jax.networks.unet import UNet  # which imports this file

        return UNet(self)


mnist_small = UNetConfig(
    channels=(24, 64), patch=2, dense_skips=False, resample_conv=False, embedding=128, groups=8
)
"""The default on a CPU: levels of 14 x 14 and 7 x 7 pixels after a space-to-depth stem."""

mnist_best = replace(mnist_small, channels=(48, 160), middle_attention=True)
"""`mnist_small` with more channels, and attention at 7 x 7."""

mnist = UNetConfig(channels=(64, 128), embedding=100, resample_conv=False)
"""The size of the book's network, about 2.2 M parameters."""

cifar10 = UNetConfig(
    channels=(128, 256, 256, 256),
    blocks=2,
    attention=(1,),
    middle_attention=True,
    head_features=256,
    dropout=0.1,
)
"""The network of Ho et al. 2020 for CIFAR-10, 35.7 M parameters."""

scenes = UNetConfig(
    channels=(64, 128),
    depth=(0, 1),
    middle_attention=True,
    head_features=32,
    dense_skips=False,
    resample_conv=False,
    embedding=128,
    groups=8,
)
"""For latents of captioned scenes on a CPU, 12 x 12 x 4; it reads a text once `context_features` are given."""

sd15 = UNetConfig(
    channels=(320, 640, 1280, 1280),
    blocks=2,
    middle_attention=True,
    depth=(1, 1, 1, 0),
    heads=8,
    context_features=768,
    embedding=1280,
    time="add",
    sinusoid_features=320,
    sinusoid_cosines_first=True,
    sinusoid_endpoint=False,
    time_offset=-1.0,
    resample_centred=True,
    exact_norm=True,
)
"""That of Stable Diffusion 1 (Rombach et al. 2022), 859,520,964 parameters with 4 channels; `t` is 1 to 1000. For
inpainting it has `out_channels=4` and reads 9: `x_t`, the mask, and the latents of the masked image."""

sd21 = replace(sd15, heads=None, head_features=64, context_features=1024)
"""That of Stable Diffusion 2, 865,910,724 parameters."""

sdxl = replace(
    sd21,
    channels=(320, 640, 1280),
    depth=(0, 2, 10),
    context_features=2048,
    cond_features=2816,
    cond_layers=2,
)
"""That of Stable Diffusion XL (Podell et al. 2023, Table 1), 2,567,463,684 parameters. Its vector is the pooled text,
1280 numbers, and `layers.sinusoidal(n, 256, cosines_first=True, endpoint=False)` of six: the height and width of the
original picture, top and left of the crop, and the height and width to draw."""

sdxl_refiner = replace(
    sdxl,
    channels=(384, 768, 1536, 1536),
    depth=(0, 4, 4, 0),
    context_features=1280,
    cond_features=2560,
    embedding=1536,
    sinusoid_features=384,
)
"""That which ends what `sdxl` began, 2,259,526,660 parameters. Its vector is the pooled text and five numbers: the height
and width of the original picture, top and left of the crop, and an aesthetic score."""
