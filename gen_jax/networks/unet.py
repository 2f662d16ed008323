"""The one U-Net that every diffusion family here shares: `net.apply(params, x_t, t, cond) -> array like x_t`.

It is the network of Ho et al. 2020 (Appendix B), with FiLM in place of an added time embedding (Dhariwal & Nichol 2021,
Section 3) and, where asked, a space-to-depth stem. It knows nothing of diffusion: `t` is a number an example, of whatever
scale `time_scale` says. It keeps no mutable state.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from gen_jax.networks import layers


@dataclass(frozen=True)
class UNetConfig:
    """Everything that shapes a U-Net; its number of image channels comes from the input.

    A level is a resolution: level 0 is the input's over `patch`, each further one half of that (rounded up).
    """

    channels: tuple[int, ...] = (64, 128)
    """Features at each level, finest first."""
    blocks: int = 1
    """Residual blocks a level on the way down; there is one more on the way up where `dense_skips`."""
    attention: tuple[int, ...] = ()
    """Levels with self-attention after each block."""
    middle_attention: bool = False
    """Self-attention between the two blocks of the middle."""
    head_features: int = 64
    patch: int = 1
    """Side of the squares that the stem folds into channels; 1 leaves the image as it is."""
    dense_skips: bool = True
    """Whether the stem and the downsampled maps are handed across too, as in DDPM, or the blocks' outputs alone."""
    resample_conv: bool = True
    """Whether resolution changes with a convolution (stride 2 down; after nearest-neighbour up) or by pooling
    down and a change of width up, which costs next to nothing."""
    embedding: int = 256
    """Features of the embedding of time and condition."""
    time_scale: float = 1.0
    """Multiplies `t` before its sinusoidal embedding, which expects about 0 to 1000; for `t` in [0, 1] use 1000."""
    num_classes: int | None = None
    """Number of labels; label `num_classes` is the null label, which `cond=None` stands for."""
    cond_features: int | None = None
    """Length of a conditioning vector, in place of labels; `cond=None` stands for a learned null vector."""
    dropout: float = 0.0
    """Rate inside the residual blocks; active only where `apply` is given `rngs={"dropout": key}`."""
    groups: int = 32
    dtype: Any = jnp.float32
    """Type of the computation; norms gather their statistics in float32 whatever it is."""
    param_dtype: Any = jnp.float32
    remat: bool = False
    """Recompute each residual block in the backward pass instead of keeping its activations."""

    def __post_init__(self):
        if not self.channels or min(self.channels) < 1 or self.blocks < 1 or self.patch < 1:
            raise ValueError(
                "UNetConfig expects at least one level and positive channels, blocks and patch, "
                f"got channels={self.channels}, blocks={self.blocks}, patch={self.patch}."
            )
        if any(level not in range(len(self.channels)) for level in self.attention):
            raise ValueError(
                f"attention={self.attention} names levels; with channels={self.channels} they are "
                f"0 to {len(self.channels) - 1}."
            )
        if self.num_classes is not None and self.cond_features is not None:
            raise ValueError("Give num_classes (labels) or cond_features (vectors), not both.")


mnist_small = UNetConfig(
    channels=(24, 64), patch=2, dense_skips=False, resample_conv=False, embedding=128, groups=8
)
"""The default on a CPU: 14 x 14 and 7 x 7 behind a space-to-depth stem."""

mnist_best = replace(mnist_small, channels=(48, 160), middle_attention=True)
"""The same with more channels and attention at 7 x 7."""

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
    """Images and a time (and a condition) to images of the same shape; zero at the start of training."""

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
            t: a time for each image, integer or not.
            cond: labels, int `[B]`, or vectors, `[B, cond_features]`; None is the null condition.
            context: tokens for cross-attention wherever there is attention, or None.

        Raises:
            ValueError: where `t` or `cond` does not fit the images or the configuration.
        """
        c = self.config
        kind = {"groups": c.groups, "dtype": c.dtype, "param_dtype": c.param_dtype}
        conv = {"dtype": c.dtype, "param_dtype": c.param_dtype}
        block_type = nn.remat(layers.ResBlock) if c.remat else layers.ResBlock
        emb = self._embed(x, t, cond)

        def block(h, level, name):
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
            elif level > 0:  # fewer channels first, while there are fewer pixels
                h = nn.Dense(c.channels[level - 1], name=f"up_{level}", **conv)(h)
                h = layers.upsample(h, skips[-1].shape)

        h = nn.silu(layers.GroupNorm(name="out_norm", **kind)(h))
        h = layers.Conv(depth, zero_init=True, name="out", **conv)(h)
        return layers.depth_to_space(h, c.patch, x.shape).astype(x.dtype)

    def _embed(self, x, t, cond):
        """One vector an example, out of its time and its condition."""
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
