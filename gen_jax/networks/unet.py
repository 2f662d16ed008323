"""The one U-Net of all diffusion models here: `net.apply(params, x_t, t, cond) -> array like x_t`.

    net = unet.mnist_small.build()
    params = net.init(key, x_t, t)

It is the network of Ho et al. 2020 (Appendix B), with FiLM in place of an added time embedding (Dhariwal & Nichol 2021,
Section 3) and an optional space-to-depth stem. It knows nothing of diffusion: `t` has one number for each example, and
`time_scale` sets its unit. It has no mutable state.
"""

from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from gen_jax.networks import layers

__all__ = ["UNet", "UNetConfig", "cifar10", "mnist", "mnist_best", "mnist_small"]


@dataclass(frozen=True)
class UNetConfig:
    """The hyperparameters of a U-Net; the number of image channels comes from the input.

    A level is a resolution: level 0 is that of the input divided by `patch`, each next level half of it (rounded up).

    Every field is hashable and has a JSON form (`gen_jax.model.to_dict`); types are kept by their names.
    """

    channels: tuple[int, ...] = (64, 128)
    """Channels at each level, finest first."""
    blocks: int = 1
    """Residual blocks at each level on the way down; with `dense_skips` there is one more on the way up."""
    attention: tuple[int, ...] = ()
    """Levels with self-attention after each block."""
    middle_attention: bool = False
    """Self-attention between the two blocks of the middle."""
    head_features: int = 64
    patch: int = 1
    """Side of the square patches that the stem folds into channels (space-to-depth); 1 for none."""
    dense_skips: bool = True
    """Skip connections from the stem and the downsampled maps too, as in DDPM; else from the blocks only."""
    resample_conv: bool = True
    """Change the resolution by convolutions (stride 2 down; after nearest-neighbour upsampling). Else by mean pooling
    down, and an affine map of the channels before upsampling, which cost almost nothing."""
    embedding: int = 256
    """Size of the embedding of time and condition."""
    time_scale: float = 1.0
    """Factor of `t` before its sinusoidal embedding, which expects about 0 to 1000; for `t` in [0, 1] use 1000."""
    num_classes: int | None = None
    """Number of labels. Label `num_classes` is the null label; `cond=None` means the null label for all."""
    cond_features: int | None = None
    """Size of a conditioning vector, in place of labels; `cond=None` means a learned null vector for all."""
    dropout: float = 0.0
    """Rate inside the residual blocks; active only if `apply` gets `rngs={"dropout": key}`."""
    groups: int = 32
    dtype: DTypeLike = "float32"
    """Type of the computation, such as "bfloat16" (or `jnp.bfloat16`); norms take their statistics in float32."""
    param_dtype: DTypeLike = "float32"
    remat: bool = False
    """Recompute each residual block in the backward pass instead of storing its activations."""

    def __post_init__(self) -> None:
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, _float_name(name, getattr(self, name)))
        if not self.channels or min(self.channels) < 1 or self.blocks < 1 or self.patch < 1:
            raise ValueError(
                "UNetConfig expects at least one level and positive channels, blocks and patch; "
                f"got channels={self.channels}, blocks={self.blocks}, patch={self.patch}."
            )
        if any(level not in range(len(self.channels)) for level in self.attention):
            raise ValueError(
                f"attention={self.attention} names levels; with channels={self.channels} they are "
                f"0 to {len(self.channels) - 1}."
            )
        if self.num_classes is not None and self.cond_features is not None:
            raise ValueError("Give num_classes (labels) or cond_features (vectors), not both.")

    def build(self) -> "UNet":
        """The module of this configuration."""
        return UNet(self)


def _float_name(field: str, dtype: DTypeLike) -> str:
    """The name of a floating-point type."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f'{field} must be a floating-point type such as "bfloat16", got {dtype!r}.')
    return found.name


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


class UNet(nn.Module):
    """Maps images, times and optional conditions to images of the same shape; zero at initialisation."""

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        t: Num[Array, " T"],
        cond: Num[Array, "B ..."] | None = None,
        context: Float[Array, "B L K"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Map `x` at times `t`.

        Args:
            x: images.
            t: a time for each image, integer or floating.
            cond: labels, int `[B]`, or vectors, `[B, cond_features]`; None is the null condition.
            context: tokens; each attention layer then attends to them as well.

        Raises:
            ValueError: `t` or `cond` does not fit the images or the configuration.
        """
        c = self.config
        conv: layers.Dtypes = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        kind: layers.GroupDtypes = {"groups": c.groups, **conv}
        block_type = nn.remat(layers.ResBlock) if c.remat else layers.ResBlock
        emb = self._embed(x, t, cond)

        def block(h: Array, level: int, name: str) -> Array:
            h = block_type(c.channels[level], c.dropout, name=name, **kind)(h, emb)
            if level in c.attention:
                h = layers.Attention(c.head_features, name=f"{name}_attention", **kind)(h, context)
            return h

        h = layers.space_to_depth(x.astype(c.dtype), c.patch)
        depth, last = h.shape[-1], len(c.channels) - 1
        h = layers.Conv(c.channels[0], name="stem", **conv)(h)
        skips = [h] if c.dense_skips else []
        for level in range(last + 1):
            for i in range(c.blocks):
                h = block(h, level, f"down_{level}_{i}")
                skips.append(h)
            if level < last:
                if c.resample_conv:
                    h = layers.Conv(c.channels[level], stride=2, name=f"down_{level}", **conv)(h)
                else:
                    h = layers.pool(h)
                if c.dense_skips:
                    skips.append(h)

        h = block_type(c.channels[-1], c.dropout, name="middle_0", **kind)(h, emb)
        if c.middle_attention:
            h = layers.Attention(c.head_features, name="middle_attention", **kind)(h, context)
        h = block_type(c.channels[-1], c.dropout, name="middle_1", **kind)(h, emb)

        for level in reversed(range(last + 1)):
            for i in range(c.blocks + c.dense_skips):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_{i}")
            if level > 0 and c.resample_conv:
                h = layers.upsample(h, skips[-1].shape)
                h = layers.Conv(c.channels[level], name=f"up_{level}", **conv)(h)
            elif level > 0:  # reduce the channels first: there are still few pixels
                h = nn.Dense(c.channels[level - 1], name=f"up_{level}", **conv)(h)
                h = layers.upsample(h, skips[-1].shape)

        h = nn.silu(layers.GroupNorm(name="out_norm", **kind)(h))
        h = layers.Conv(depth, zero_init=True, name="out", **conv)(h)
        return layers.depth_to_space(h, c.patch, x.shape).astype(x.dtype)

    def _embed(self, x: Array, t: Array, cond: Array | None) -> Float[Array, "B E"]:
        """The embedding of each example's time and condition."""
        c = self.config
        dense = lambda name: nn.Dense(c.embedding, dtype=c.dtype, param_dtype=c.param_dtype, name=name)
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"Expected one time for each of {x.shape[0]} images, t of shape {x.shape[:1]}, got {t.shape}."
            )
        emb = layers.sinusoidal(t * c.time_scale, c.embedding)
        emb = dense("time_1")(nn.silu(dense("time_0")(emb)))
        if c.num_classes is not None:
            cond = jnp.full(t.shape, c.num_classes) if cond is None else cond
            if cond.shape != t.shape or not jnp.issubdtype(cond.dtype, jnp.integer):
                raise ValueError(
                    f"Expected integer labels of shape {t.shape}, got {cond.dtype} of shape {cond.shape}."
                )
            embed = nn.Embed(c.num_classes + 1, c.embedding, param_dtype=c.param_dtype, name="label")
            return emb + embed(cond).astype(c.dtype)
        if c.cond_features is not None:
            null = self.param("null_cond", nn.initializers.normal(0.02), (c.embedding,), c.param_dtype)
            if cond is None:
                return emb + null.astype(c.dtype)[None]
            if cond.shape != (*t.shape, c.cond_features):
                raise ValueError(f"Expected cond of shape {(*t.shape, c.cond_features)}, got {cond.shape}.")
            return emb + dense("cond")(cond)
        if cond is not None:
            raise ValueError(
                "This network takes no condition: set num_classes or cond_features in its UNetConfig."
            )
        return emb
