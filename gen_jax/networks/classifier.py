"""A classifier of images at a time: `net.apply(params, x_t, t) -> logits`, for guidance and for judging samples."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from gen_jax.networks import layers


class Classifier(nn.Module):
    """The way down of the U-Net, averaged over space: residual blocks that are told the time, a linear map to logits.

    Any image size and number of channels; `t` is a number an example, of whatever scale `time_scale` says.
    """

    num_classes: int
    channels: tuple[int, ...] = (32, 64, 128)
    """Features at each resolution, finest first; each further one has half the side."""
    patch: int = 2
    """Side of the squares that the stem folds into channels."""
    embedding: int = 128
    time_scale: float = 1.0
    """Multiplies `t` before its sinusoidal embedding, which expects about 0 to 1000."""
    groups: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], t: Num[Array, " B"], *, features: bool = False
    ) -> Float[Array, "B K"]:
        """Logits of each class, in float32; with `features` what they are a linear map of."""
        kind = {"groups": self.groups, "dtype": self.dtype}
        emb = layers.sinusoidal(self.time_scale * t, self.embedding).astype(self.dtype)
        emb = nn.Dense(self.embedding, dtype=self.dtype, name="time")(emb)
        h = layers.space_to_depth(x.astype(self.dtype), self.patch)
        h = layers.Conv(self.channels[0], dtype=self.dtype, name="stem")(h)
        for level, channels in enumerate(self.channels):
            h = layers.pool(h) if level else h
            h = layers.ResBlock(channels, name=f"block_{level}", **kind)(h, emb)
        h = nn.silu(layers.GroupNorm(self.groups, dtype=self.dtype, name="norm")(h))
        h = h.mean((1, 2)).astype(jnp.float32)
        return h if features else nn.Dense(self.num_classes, name="logits")(h)
