"""Encoders, `x -> (mean, log_std)` of a latent's distribution, and decoders, `z -> out`: of any image size.

    encoder(x [B, ...], label [B])      -> mean, log_std, each [B, latent]
    decoder(z [B, latent], label [B])   -> out [B, *shape]

`shape` is that of the data but for its last entry, which is how many numbers the likelihood asks for at a position
(`likelihood.outputs(channels)`). Labels are given where `num_classes` is, and only there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from gen_jax.networks import layers
from gen_jax.networks.mlp import MLP

Activation = Callable[[Array], Array]


class MLPEncoder(nn.Module):
    """`hidden` layers on all the numbers of an example side by side, and the label's one-hot code beside them."""

    latent: int
    hidden: Sequence[int] = (200,)
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *x"], label: Num[Array, "..."] | None = None
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """Mean and log deviation, float32 or better.

        Raises ValueError for a label that is missing, not asked for, or not one integer an example.
        """
        h = jnp.concatenate([x.reshape(len(x), -1), *_one_hot(label, self.num_classes, x)], axis=-1)
        return _halves(_mlp(self, (*self.hidden, 2 * self.latent))(h))


class MLPDecoder(nn.Module):
    """`hidden` layers on the latent, and the label's one-hot code beside it."""

    shape: Sequence[int]
    """Of an example's output: that of the data, the last entry `likelihood.outputs(channels)`."""
    hidden: Sequence[int] = (200,)
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B *z"], label: Num[Array, "..."] | None = None
    ) -> Float[Array, "B *shape"]:
        """What the likelihood takes.

        Raises ValueError for a label that is missing, not asked for, or not one integer an example.
        """
        h = jnp.concatenate([z.reshape(len(z), -1), *_one_hot(label, self.num_classes, z)], axis=-1)
        width = 1
        for size in self.shape:
            width *= size
        return _mlp(self, (*self.hidden, width))(h).reshape(len(z), *self.shape)


class ConvEncoder(nn.Module):
    """A convolution of stride 2 for each of `channels`, then an affine map of what is left, and of the label."""

    latent: int
    channels: Sequence[int] = (32, 64)
    kernel: int = 3
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], label: Num[Array, "..."] | None = None
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """Mean and log deviation, float32 or better.

        Raises ValueError for a label that is missing, not asked for, or not one integer an example.
        """
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = x.astype(self.dtype)
        for width in self.channels:
            h = self.activation(layers.Conv(width, self.kernel, stride=2, **kind)(h))
        h = jnp.concatenate([h.reshape(len(h), -1), *_one_hot(label, self.num_classes, h)], axis=-1)
        return _halves(nn.Dense(2 * self.latent, **kind)(h))


class ConvDecoder(nn.Module):
    """The way back: an affine map to the smallest map, then for each of `channels`, last first, a doubling and a
    convolution, cropped to the size that halving (rounded up) had at that level: any size comes out as it went in.
    """

    shape: Sequence[int]
    """`(H, W, likelihood.outputs(C))`."""
    channels: Sequence[int] = (32, 64)
    kernel: int = 3
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B *z"], label: Num[Array, "..."] | None = None
    ) -> Float[Array, "B H W O"]:
        """What the likelihood takes.

        Raises ValueError for a label that is missing, not asked for, or not one integer an example.
        """
        kind = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        sizes = [tuple(self.shape[:2])]
        for _ in self.channels:
            sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
        h = jnp.concatenate([z.reshape(len(z), -1), *_one_hot(label, self.num_classes, z)], axis=-1)
        smallest = (*sizes[-1], self.channels[-1])
        h = nn.Dense(smallest[0] * smallest[1] * smallest[2], **kind)(h).reshape(len(z), *smallest)
        for level in reversed(range(len(self.channels))):
            h = layers.upsample(self.activation(h), (len(z), *sizes[level]))
            features = self.channels[level - 1] if level else self.shape[2]
            h = layers.Conv(features, self.kernel, **kind)(h)
        return h


def _mlp(module: Any, features: tuple[int, ...]) -> MLP:
    return MLP(features, module.activation, module.dtype, module.param_dtype)


def _halves(h: Array) -> tuple[Array, Array]:
    mean, log_std = jnp.split(h.astype(jnp.promote_types(h.dtype, jnp.float32)), 2, axis=-1)
    return mean, log_std


def _one_hot(label: Array | None, num_classes: int | None, like: Array) -> list[Array]:
    """The code of each label, in a list that is empty where there are none; NaN where a label is out of range."""
    if (label is None) != (num_classes is None):
        raise ValueError(
            "this network was made with num_classes, so each example needs its label."
            if label is None
            else "this network takes no label: make it with num_classes."
        )
    if label is None or num_classes is None:
        return []
    if label.shape != like.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f"expected an integer label for each of {len(like)} examples, got {label.dtype} of shape {label.shape}."
        )
    known = (label >= 0) & (label < num_classes)  # traced, so it can not be an error here
    code = nn.one_hot(label, num_classes, dtype=like.dtype)
    return [jnp.where(known[:, None], code, jnp.nan)]
