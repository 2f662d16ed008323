"""The layers of the networks here: convolution, norms, time embedding, residual block, attention, resampling."""

import math
from functools import partial
from typing import Annotated, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num

from gen_jax import checks, keys
from gen_jax.networks.attention import Dtypes, attend
from gen_jax.networks.conv import conv
from gen_jax.types import Count, Positive, Size

LARGE_MAP = 2**18
"""Numbers of a feature map from which on `conv_enlarged` saves time."""


class GroupDtypes(Dtypes):
    """The keyword arguments of a layer with group norms."""

    groups: int
    exact_norm: bool


class Conv(nn.Module):
    """`features` channels out of a `kernel` x `kernel` neighbourhood, zero padding, output size `ceil(H / stride)`."""

    features: int
    kernel: int = 3
    stride: int = 1
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    centred: bool = False
    """Where the zeros are with a stride, see `gen_jax.networks.conv.conv`."""
    bias: bool = True
    enlarge: bool = False
    """Convolve the map enlarged to twice its sides (`upsample`)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        """Convolve, in `dtype`."""
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        weights = self.param("kernel", init, shape, self.param_dtype)
        run = partial(conv, stride=self.stride, centred=self.centred) if not self.enlarge else conv_enlarged
        y = run(x.astype(self.dtype), weights.astype(self.dtype))
        if not self.bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return y + bias.astype(self.dtype)[None, None, None]


class GroupNorm(nn.Module):
    """Zero mean and unit variance over space and the channels of a group (Wu & He 2018), statistics in float32.

        y = (x - mean) / sqrt(variance + eps) * scale + bias

    Each pixel becomes `a x + b`, with one `a` and one `b` for each example and channel. The means of the groups come from
    a product with a block matrix of ones. This is three times as fast as `flax.linen.GroupNorm` on a CPU, forward and
    backward, where XLA does not vectorise the latter.

    The variance is `E[x^2] - E[x]^2`, which loses `log10(mean^2 / variance)` digits. With `exact_norm`, `x` is first
    shifted by the mean of the first eighth of its rows, whose distance from the mean is at most `sqrt(8 variance)`, so
    that no more than 1 digit is lost, whatever the mean.

    Raises ValueError with `exact_norm` if the groups do not divide the channels. Without, the number of groups is the
    largest divisor of the channels up to `groups`.
    """

    groups: int = 32
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    eps: float = 1e-5
    exact_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B *space C"],
        film: tuple[Float[Array, "A C"], Float[Array, "A C"]] | None = None,
    ) -> Float[Array, "B *space C"]:
        """Normalise, then scale and shift each channel; with `film`, again by `1 + film[0]` and `film[1]`."""
        if film is not None and any(len(part) != len(x) for part in film):
            raise ValueError(f"film must be one for each of {len(x)} examples, got {checks.came(film[0])}.")
        channels, space = x.shape[-1], tuple(range(1, x.ndim - 1))
        groups = next(g for g in range(min(self.groups, channels), 0, -1) if channels % g == 0)
        if self.exact_norm and groups != self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {channels} channels; take such as divide all."
            )
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        group = jnp.arange(channels) // (channels // groups)
        together = (group[:, None] == group[None]) * (groups / math.prod(x.shape[1:]))
        average = lambda v: jnp.dot(v.sum(space), together, precision="highest")
        if self.exact_norm:
            rows = -(-x.shape[1] // 8)
            near = jax.lax.stop_gradient(average(x[:, :rows]) * (x.shape[1] / rows))
            x = x - jnp.expand_dims(near, space)
        mean = average(x)
        variance = jnp.maximum(average(jnp.square(x)) - jnp.square(mean), 0)
        a = jax.lax.rsqrt(variance + self.eps) * scale[None]
        b = bias[None] - mean * a
        if film is not None:
            a, b = a * (1 + film[0]), b * (1 + film[0]) + film[1]
        return (x * jnp.expand_dims(a, space) + jnp.expand_dims(b, space)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the channels (Ba et al. 2016): `(x - mean) / sqrt(variance + eps) * scale + bias`.

    Statistics are those of `x - mean`, in float32.
    """

    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Normalise, then scale and shift each channel."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        ones = (1,) * (x.ndim - 1)
        return (x * scale.reshape(*ones, -1) + bias.reshape(*ones, -1)).astype(self.dtype)


@checks.checked
def sinusoidal(
    t: Annotated[Num[Array, " B"], checks.Range()],
    features: Annotated[int, checks.Range(2)],
    max_period: Positive = 10_000.0,
    *,
    cosines_first: bool = False,
    endpoint: bool = True,
) -> Float[Array, "B F"]:
    """Sines and cosines of `t` at `features / 2` frequencies from 1 to `1 / max_period` (Vaswani et al. 2017, 3.5).

    The frequencies are `max_period^(-i / (n - 1))` for `i` in `0 ... n - 1`, `n = features / 2`; without the `endpoint`
    `max_period^(-i / n)`, as in Vaswani et al. and in Stable Diffusion, which also has the cosines first.
    """
    half = features // 2
    last = half - 1 if endpoint else half
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half) / max(last, 1))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = (jnp.cos, jnp.sin) if cosines_first else (jnp.sin, jnp.cos)
    return jnp.concatenate([wave(angles) for wave in parts], axis=-1)


@checks.checked
def dropped(
    key: Key[Array, ""], x: Float[Array, "B *x"], rate: Annotated[float, checks.Range(0, 1, below=True)]
) -> Float[Array, "B *x"]:
    """Dropout (Srivastava et al. 2014): each number is zero with probability `rate`, else divided by `1 - rate`.

    What an example loses depends on the key and its index in the batch alone (`keys.per_example`), so a run is the same
    on 1 and on 8 devices.
    """
    each = keys.per_example(key, len(x))
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(each)
    return jnp.where(keep, x / (1 - rate), 0)


class ResBlock(nn.Module):
    """`x + conv(act(norm(conv(act(norm(x))))))` with silu as `act`, conditioned on an embedding between the convolutions.

    With `time="film"` the embedding scales and shifts the second norm (FiLM, Perez et al. 2018); with "add" an affine map
    of it is added to the first convolution (Ho et al. 2020). Without an embedding there is neither.

    The last convolution starts at zero, so a new block is the identity (a linear map where the width changes).
    """

    features: int
    dropout: float = 0.0
    groups: int = 32
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    time: Literal["film", "add"] = "film"
    eps: float = 1e-5
    """Of the norms."""
    exact_norm: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "A E"] | None = None
    ) -> Float[Array, "B H W D"]:
        """Map `x`, conditioned on `emb`; dropout is active if the call has `rngs={"dropout": key}`.

        Raises ValueError unless there is an embedding for each example.
        """
        if emb is not None and len(emb) != len(x):
            raise ValueError(f"emb must be one for each of {len(x)} examples, got {checks.came(emb)}.")
        kind: Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = lambda: GroupNorm(self.groups, eps=self.eps, exact_norm=self.exact_norm, **kind)
        h = Conv(self.features, **kind)(nn.silu(norm()(x)))
        film = None
        if emb is not None and self.time == "film":
            scale, shift = jnp.split(nn.Dense(2 * self.features, **kind)(nn.silu(emb)), 2, axis=-1)
            film = scale, shift
        elif emb is not None:
            h = h + nn.Dense(self.features, **kind)(nn.silu(emb))[:, None, None]
        h = nn.silu(norm()(h, film))
        if self.dropout and self.has_rng("dropout"):
            h = dropped(self.make_rng("dropout"), h, self.dropout)
        h = Conv(self.features, zero_init=True, **kind)(h)
        if x.shape[-1] != self.features:
            # as a 1 x 1 convolution, whose gradients are faster on a CPU
            as_conv = lambda x, matrix, *_, **__: conv(x, matrix[None, None])
            x = nn.Dense(self.features, dot_general=as_conv, name="Dense_1", **kind)(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over all positions: `x + attend(norm(x))`.

    The output projection starts at zero, so a new layer is the identity. Source: Vaswani et al. 2017, Eq. 1.
    """

    head_features: int = 64
    groups: int = 32
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    eps: float = 1e-5
    """Of the norm."""
    exact_norm: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Attend over the positions."""
        kind: Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = x.reshape(len(x), math.prod(x.shape[1:-1]), x.shape[-1])
        norm = GroupNorm(self.groups, eps=self.eps, exact_norm=self.exact_norm, name="self_norm", **kind)
        heads = max(x.shape[-1] // self.head_features, 1)
        h = h + attend(self, norm(h), name="self", heads=heads, zero_init=True, **kind)
        return h.reshape(x.shape)


@checks.checked
def pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Mean over 2 x 2 pixels; an odd size is first extended by repeating its last row or column."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return x.reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels).mean((2, 4))


@checks.checked
def upsample(x: Float[Array, "B h w C"], shape: tuple[Size, ...]) -> Float[Array, "B H W C"]:
    """Repeat each pixel 2 x 2 times (nearest neighbour), then crop to the `shape` [B, H, W, ...]."""
    batch, height, width, channels = x.shape
    _check_crop(shape, 2 * height, 2 * width)
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)[:, : shape[1], : shape[2]]


@checks.checked
def conv_enlarged(x: Float[Array, "B h w C"], weights: Float[Array, "3 3 C D"]) -> Float[Array, "B H W D"]:
    """`conv(upsample(x), weights)` at twice the height and width.

    On a CPU, of a large map in float32, in 4/9 of the arithmetic: a pixel of the result sees 2 x 2 pixels of `x`. Which
    ones, and with which sums of the weights, depends on whether its row and its column are even or odd.
    """
    height, width = x.shape[1:3]
    plain = lambda x, w: conv(upsample(x, (len(x), 2 * height, 2 * width)), w)
    if x.dtype != jnp.float32 or weights.shape[:2] != (3, 3) or math.prod(x.shape[1:]) < LARGE_MAP:
        return plain(x, weights)

    def by_parity(x: Array, w: Array) -> Array:
        sums = lambda w: (jnp.stack([w[0], w[1] + w[2]]), jnp.stack([w[0] + w[1], w[2]]))
        four = [each.swapaxes(0, 1) for rows in sums(w) for each in sums(rows.swapaxes(0, 1))]
        y = conv(jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0))), jnp.concatenate(four, axis=-1))
        y = y.reshape(*y.shape[:3], 2, 2, -1)
        part = lambda i, j: y[:, i : i + height, j : j + width, i, j]
        y = jnp.stack([jnp.stack([part(i, 0), part(i, 1)], axis=3) for i in (0, 1)], axis=2)
        return y.reshape(len(x), 2 * height, 2 * width, weights.shape[-1])

    return jax.lax.platform_dependent(x, weights, cpu=by_parity, default=plain)


@checks.checked
def space_to_depth(x: Float[Array, "B H W C"], patch: Count) -> Float[Array, "B h w P"]:
    """Each `patch` x `patch` square becomes one pixel; the image is first padded with zeros to a multiple of `patch`."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows, columns, patch * patch * channels)


@checks.checked
def depth_to_space(
    x: Float[Array, "B h w P"], patch: Count, shape: tuple[Size, ...]
) -> Float[Array, "B H W C"]:
    """The inverse of `space_to_depth`, cropped to the `shape` [B, H, W, ...]."""
    batch, rows, columns, depth = x.shape
    if depth % patch**2:
        raise ValueError(f"patch = {patch} must be a side whose square divides the {depth} channels of x.")
    _check_crop(shape, patch * rows, patch * columns)
    x = x.reshape(batch, rows, columns, patch, patch, depth // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * patch, columns * patch, depth // patch**2)[:, : shape[1], : shape[2]]


def _check_crop(shape: tuple[int, ...], height: int, width: int) -> None:
    if len(shape) < 3 or shape[1] > height or shape[2] > width:
        raise ValueError(f"shape must be (B, H, W, ...) with at most {height} x {width} pixels, got {shape}.")
