"""Encoders and decoders of a VAE, for images of any size.

    encoder(x [B, ...], label [B])      -> mean, log_std of q(z | x), each [B, latent]
    decoder(z [B, latent], label [B])   -> out [B, *shape], the input of a likelihood

`shape` is the shape of an example with the number of channels replaced by `likelihood.outputs(channels)`. A network with
`num_classes` takes a label for each example, one without takes none.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from gen_jax import checks
from gen_jax.networks import layers
from gen_jax.networks.mlp import MLP
from gen_jax.rows import flat

__all__ = ["ConvDecoder", "ConvEncoder", "MLPDecoder", "MLPEncoder"]

Activation = Callable[[Array], Array]


class MLPEncoder(nn.Module):
    """An MLP of the flattened example and the one-hot code of its label."""

    latent: int
    hidden: Sequence[int] = (200,)
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B *x"], label: Num[Array, "..."] | None = None
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """Mean and log standard deviation, in float32 or better.

        Raises ValueError unless labels are given exactly where `num_classes` is, one integer for each example.
        """
        h = jnp.concatenate([flat(x), *_one_hot(label, self.num_classes, x)], axis=-1)
        return _halves(_mlp(self, (*self.hidden, 2 * self.latent))(h))


class MLPDecoder(nn.Module):
    """An MLP of the latent and the one-hot code of the label."""

    shape: Sequence[int]
    """Shape of the output for one example, `(..., likelihood.outputs(channels))`."""
    hidden: Sequence[int] = (200,)
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B *z"], label: Num[Array, "..."] | None = None
    ) -> Float[Array, "B *shape"]:
        """The input of the likelihood.

        Raises ValueError unless labels are given exactly where `num_classes` is, one integer for each example.
        """
        h = jnp.concatenate([flat(z), *_one_hot(label, self.num_classes, z)], axis=-1)
        width = 1
        for size in self.shape:
            width *= size
        return _mlp(self, (*self.hidden, width))(h).reshape(len(z), *self.shape)


class ConvEncoder(nn.Module):
    """A convolution of stride 2 for each of `channels`, then an affine map of the flattened result and the label."""

    latent: int
    channels: Sequence[int] = (32, 64)
    kernel: int = 3
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], label: Num[Array, "..."] | None = None
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """Mean and log standard deviation, in float32 or better.

        Raises ValueError unless labels are given exactly where `num_classes` is, one integer for each example.
        """
        kind: layers.Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = x.astype(self.dtype)
        for width in self.channels:
            h = self.activation(layers.Conv(width, self.kernel, stride=2, **kind)(h))
        h = jnp.concatenate([flat(h), *_one_hot(label, self.num_classes, h)], axis=-1)
        return _halves(nn.Dense(2 * self.latent, **kind)(h))


class ConvDecoder(nn.Module):
    """The reverse of `ConvEncoder`: an affine map, then upsampling and a convolution for each of `channels`, last first.

    Each upsampled map is cropped to the size that the encoder had there, so any image size is possible.
    """

    shape: Sequence[int]
    """`(H, W, likelihood.outputs(C))`."""
    channels: Sequence[int] = (32, 64)
    kernel: int = 3
    activation: Activation = nn.relu
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: Float[Array, "B *z"], label: Num[Array, "..."] | None = None
    ) -> Float[Array, "B H W O"]:
        """The input of the likelihood.

        Raises ValueError unless labels are given exactly where `num_classes` is, one integer for each example.
        """
        kind: layers.Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        sizes = [tuple(self.shape[:2])]
        for _ in self.channels:
            sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
        h = jnp.concatenate([flat(z), *_one_hot(label, self.num_classes, z)], axis=-1)
        smallest = (*sizes[-1], self.channels[-1])
        h = nn.Dense(smallest[0] * smallest[1] * smallest[2], **kind)(h).reshape(len(z), *smallest)
        for i in reversed(range(len(self.channels))):
            h = layers.upsample(self.activation(h), (len(z), *sizes[i]))
            features = self.channels[i - 1] if i else self.shape[2]
            h = layers.Conv(features, self.kernel, **kind)(h)
        return h


def _mlp(module: MLPEncoder | MLPDecoder, features: tuple[int, ...]) -> MLP:
    return MLP(features, module.activation, module.dtype, module.param_dtype)


def _halves(h: Array) -> tuple[Array, Array]:
    mean, log_std = jnp.split(h.astype(jnp.promote_types(h.dtype, jnp.float32)), 2, axis=-1)
    return mean, log_std


def _one_hot(label: Array | None, num_classes: int | None, like: Array) -> list[Array]:
    """`[one-hot codes]`, or `[]` for a network without labels; NaN where a traced label is out of range."""
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
    checks.within("label", label, 0, num_classes - 1)
    known = (label >= 0) & (label < num_classes)  # values may be traced, so no error is possible here
    code = nn.one_hot(label, num_classes, dtype=like.dtype)
    return [jnp.where(known[:, None], code, jnp.nan)]
