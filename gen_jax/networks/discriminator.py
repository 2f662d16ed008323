"""A discriminator of patches: `net.apply(params, x) -> logits`, one for each region of an image (Isola et al. 2017)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gen_jax.networks import layers

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 with leaky rectifiers; the logit of a region says how much it looks like data.

    The layers are those of Isola et al. 2017, Appendix 6.1.2, with group norms where they have batch norms. With two
    widths a logit sees 22 x 22 pixels.
    """

    channels: tuple[int, ...] = (32, 64)
    """Channels behind each convolution of stride 2."""
    groups: int = 8
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w 1"]:
        """Logits, in float32."""
        kind: layers.Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = x.astype(self.dtype)
        for i, features in enumerate(self.channels):
            h = layers.Conv(features, kernel=4, stride=2, name=f"conv_{i}", **kind)(h)
            h = layers.GroupNorm(self.groups, name=f"norm_{i}", **kind)(h) if i else h
            h = nn.leaky_relu(h, 0.2)
        return layers.Conv(1, kernel=4, name="out", **kind)(h).astype(jnp.float32)
