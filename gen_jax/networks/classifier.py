"""A classifier of noisy images: `net.apply(params, x_t, t) -> logits`, for guidance and for judging samples."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from gen_jax.networks import layers


class Classifier(nn.Module):
    """The downward half of a U-Net: residual blocks conditioned on time, the mean over space, a linear map to logits.

    It takes any image size and number of channels. `t` has one number for each example; `time_scale` sets its unit.
    """

    num_classes: int
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels at each resolution, finest first; each resolution has half the side of the one before."""
    patch: int = 2
    """Side of the squares that the stem folds into channels."""
    embedding: int = 128
    time_scale: float = 1.0
    """Multiplies `t` before its sinusoidal embedding, which expects about 0 to 1000."""
    groups: int = 8
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], t: Num[Array, " B"], *, features: bool = False
    ) -> Float[Array, "B K"]:
        """Logits of the classes in float32, or with `features=True` the input of the last layer."""
        groups, dtype = self.groups, self.dtype
        emb = layers.sinusoidal(self.time_scale * t, self.embedding).astype(dtype)
        emb = nn.Dense(self.embedding, dtype=dtype, name="time")(emb)
        h = layers.space_to_depth(x.astype(dtype), self.patch)
        h = layers.Conv(self.channels[0], dtype=dtype, name="stem")(h)
        for level, channels in enumerate(self.channels):
            h = layers.pool(h) if level else h
            h = layers.ResBlock(channels, groups=groups, dtype=dtype, name=f"block_{level}")(h, emb)
        h = nn.silu(layers.GroupNorm(groups, dtype=dtype, name="norm")(h))
        h = h.mean((1, 2)).astype(jnp.float32)
        return h if features else nn.Dense(self.num_classes, name="logits")(h)
