"""What a decoder says of data, `p(x | z)`: the last step of a VAE, a hierarchical VAE or a latent diffusion model.

A decoder's output `out [B, ..., outputs(C)]` holds, for each position of data `x [B, ..., C]` in [0, 1], the numbers
that the distributions of its `C` channels are made of:

    Bernoulli()             logits                              x in {0, 1}       log-probability
    Gaussian(sigma)         means (and log sigmas)              any x             log-density
    DiscretizedGaussian()   means, log scales                   x = byte / 255    log-probability
    DiscretizedLogistic()   means, log scales                   x = byte / 255    log-probability
    LogisticMixture()       logits, means, log scales, coupling x = byte / 255    log-probability

Everything is in nats, summed over all axes but the first. A log-probability of bytes is `-log_prob / (D log 2)` bits per
dimension, `D` the numbers in an example. A log-density of `x = (byte + u) / 256` with `u` uniform on [0, 1) (see
`data.dequantize`) bounds it: `8 - log_prob / (D log 2)`. A log-density of `x = byte / 255` says nothing of bits.

The discretised ones measure means and scales in [-1, 1], where `x` is `2 x - 1`: a network whose output is about 1 says
something sensible.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Int, Key

from gen_jax import keys

_LOG_2PI = math.log(2 * math.pi)


@runtime_checkable
class Likelihood(Protocol):
    """A family of distributions over data, one member for each output of a decoder."""

    def outputs(self, channels: int) -> int:
        """How many numbers a decoder gives for a position of data with that many channels."""

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """`log p(x | z)` in nats, in float32 or better."""

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
        """The picture to show: the mean of `p(x | z)`."""

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """A draw from `p(x | z)`, that of example `i` from `fold_in(key, i)` (`gen_jax.keys`)."""


@dataclass(frozen=True)
class Bernoulli:
    """Independent bits, `out` their logits: `log p = x out - softplus(out)`.

    Grey values `x` give minus their cross-entropy, the mean of `log p` over bits drawn with them as probabilities. It is
    a bound on a log-probability of such bits and not of the grey values, which this family gives no probability at all.
    """

    def outputs(self, channels: int) -> int:
        """A logit a channel."""
        return channels

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """`sum x out - softplus(out)`."""
        x, logits = _parts(out, x, 1)
        return (x * logits - _softplus(logits)).sum(1)

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
        """The probabilities of ones."""
        return jax.nn.sigmoid(_wide(out))

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Zeros and ones."""
        return _each(lambda k, p: jax.random.bernoulli(k, p).astype(p.dtype), key, self.mean(out), index)


@dataclass(frozen=True)
class Gaussian:
    """Independent normals: `log p = -((x - mean) / sigma)^2 / 2 - log sigma - log(2 pi) / 2`, a density.

    `sigma=None` learns a deviation an output: `out` is then means and their log sigmas, side by side.
    """

    sigma: float | None = 1.0
    squash: bool = False
    """Whether the mean is the sigmoid of the output, for data in [0, 1]."""
    floor: float = 1 / 512
    """Added to a learned sigma: half a grey level. Without it the density of pixels that never vary has no bound."""

    def __post_init__(self):
        if (self.sigma is not None and not self.sigma > 0) or not self.floor > 0:
            raise ValueError(f"sigma and floor must be positive, got {self.sigma} and {self.floor}.")

    def outputs(self, channels: int) -> int:
        """A mean a channel, and a log sigma where it is learned."""
        return channels if self.sigma is not None else 2 * channels

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """The sum of the normal log-densities."""
        x, *parts = _parts(out, x, self.outputs(1))
        mean, log_sigma = self._mean_and_log_sigma(*parts)
        return (-(jnp.square((x - mean) * jnp.exp(-log_sigma)) + _LOG_2PI) / 2 - log_sigma).sum(1)

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
        """The mean."""
        return self._mean_and_log_sigma(*self._split(out))[0]

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """`mean + sigma eps`, which may leave [0, 1]."""
        mean, log_sigma = self._mean_and_log_sigma(*self._split(out))
        eps = _each(lambda k, m: jax.random.normal(k, m.shape, m.dtype), key, mean, index)
        return mean + jnp.exp(log_sigma) * eps

    def _split(self, out: Array) -> list[Array]:
        return jnp.split(_wide(out), self.outputs(1), axis=-1)

    def _mean_and_log_sigma(self, mean: Array, log_sigma: Array | None = None) -> tuple[Array, Array]:
        mean = jax.nn.sigmoid(mean) if self.squash else mean
        if self.sigma is not None or log_sigma is None:
            return mean, jnp.full((1,) * mean.ndim, math.log(self.sigma or 1.0), mean.dtype)
        return mean, jnp.logaddexp(log_sigma, math.log(self.floor))


@dataclass(frozen=True)
class DiscretizedGaussian:
    """Normals integrated over the bins of `bins` even values (`discretized_log_prob`): means and log scales."""

    bins: int = 256

    def __post_init__(self):
        _check_bins(self.bins)

    def outputs(self, channels: int) -> int:
        """A mean and a log scale a channel."""
        return 2 * channels

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """The log-probability of the bins that `x` lies in."""
        x, mean, log_scale = _parts(out, x, 2)
        return discretized_log_prob(2 * x - 1, mean, jnp.exp(log_scale), self.bins).sum(1)

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
        """Where the normal lies, clipped to [0, 1]: the mean, but for tails beyond the ends."""
        return _to_unit_interval(jnp.split(_wide(out), 2, axis=-1)[0])

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Multiples of `1 / (bins - 1)`."""
        mean, log_scale = jnp.split(_wide(out), 2, axis=-1)
        noise = _each(lambda k, m: jax.random.normal(k, m.shape, m.dtype), key, mean, index)
        return _to_bin(mean + jnp.exp(log_scale) * noise, self.bins)


@dataclass(frozen=True)
class DiscretizedLogistic:
    """Logistic distributions integrated over the bins of `bins` even values (Salimans et al. 2017, Eq. 2).

        log p = log(sigmoid((x - mean + h) / s) - sigmoid((x - mean - h) / s)),     h = 1 / (bins - 1)

    on [-1, 1], without an end below the first value and above the last.
    """

    bins: int = 256

    def __post_init__(self):
        _check_bins(self.bins)

    def outputs(self, channels: int) -> int:
        """A mean and a log scale a channel."""
        return 2 * channels

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """The log-probability of the bins that `x` lies in."""
        x, mean, log_scale = _parts(out, x, 2)
        return discretized_logistic_log_prob(2 * x - 1, mean, log_scale, self.bins).sum(1)

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
        """Where the logistic lies, clipped to [0, 1]: the mean, but for tails beyond the ends."""
        return _to_unit_interval(jnp.split(_wide(out), 2, axis=-1)[0])

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Multiples of `1 / (bins - 1)`."""
        mean, log_scale = jnp.split(_wide(out), 2, axis=-1)
        noise = _each(lambda k, m: jax.random.logistic(k, m.shape, m.dtype), key, mean, index)
        return _to_bin(mean + jnp.exp(log_scale) * noise, self.bins)


@dataclass(frozen=True)
class LogisticMixture:
    """At each position a mixture of discretised logistics, whose means follow the channels before (PixelCNN++).

        p(x) = sum_k pi_k prod_c logistic(x_c; mean_kc + sum_{d < c} coupling_kcd x_d, scale_kc)

    The components are those of the whole position; couplings are in [-1, 1]. With `coupled=False`, or of one channel,
    each channel is a mixture of its own. Source: Salimans et al. 2017, Eqs. 1 to 3.
    """

    components: int = 10
    bins: int = 256
    coupled: bool = True

    def __post_init__(self):
        _check_bins(self.bins)
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}.")

    def outputs(self, channels: int) -> int:
        """`K` logits, `K C` means, `K C` log scales, `K C (C - 1) / 2` couplings; `3 K C` where not coupled."""
        each = 1 + 2 * channels + channels * (channels - 1) // 2 if self.coupled else 3 * channels
        return self.components * each

    def log_prob(self, out: Float[Array, "B *s O"], x: Float[Array, "B *s C"]) -> Float[Array, "B"]:
        """The log-probability of the bins that `x` lies in."""
        logits, means, log_scales, couplings = self._parameters(out)
        if means.shape[:-1] != x.shape:
            raise ValueError(_unlike(out.shape, x.shape, self.outputs(x.shape[-1])))
        y = _wide(2 * x - 1)[..., None]
        means = jnp.stack([self._mean(means, couplings, y, c) for c in range(x.shape[-1])], axis=-2)
        each = discretized_logistic_log_prob(jnp.broadcast_to(y, means.shape), means, log_scales, self.bins)
        joint = each.sum(-2, keepdims=True) if self.coupled else each
        return _sum(jax.nn.logsumexp(jax.nn.log_softmax(logits) + joint, axis=-1))

    def mean(self, out: Float[Array, "B *s O"]) -> Float[Array, "B *s C"]:
        """The mean of the mixture, each channel's in [0, 1]: the mean, but for tails beyond the ends."""
        logits, means, _, couplings = self._parameters(out)
        y = jnp.zeros_like(means)
        for c in range(means.shape[-2]):
            y = y.at[..., c, :].set(jnp.clip(self._mean(means, couplings, y, c), -1, 1))
        return _to_unit_interval((jax.nn.softmax(logits) * y).sum(-1))

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "B *s O"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Multiples of `1 / (bins - 1)`: a component, then one channel after the other."""
        logits, means, log_scales, couplings = self._parameters(out)
        key_z, key_x = jax.random.split(key)
        z = _each(lambda k, logits: jax.random.categorical(k, logits), key_z, logits, index)[..., None]
        take = lambda a: jnp.take_along_axis(a, jnp.broadcast_to(z, (*a.shape[:-1], 1)), axis=-1)
        means, log_scales = take(means), take(log_scales)
        couplings = take(couplings) if self.coupled else couplings
        noise = _each(lambda k, m: jax.random.logistic(k, m.shape, m.dtype), key_x, means, index)
        x = jnp.zeros_like(means)
        for c in range(means.shape[-2]):
            y = self._mean(means, couplings, 2 * x - 1, c)
            y = y + jnp.exp(log_scales[..., c, :]) * noise[..., c, :]
            x = x.at[..., c, :].set(_to_bin(y, self.bins))
        return x[..., 0]

    def _parameters(self, out: Array) -> tuple[Array, Array, Array, Array]:
        """Logits `[..., 1 or C, K]`, means and log scales `[..., C, K]`, couplings `[..., C (C - 1) / 2, K]`."""
        out = _wide(out)
        channels = next((c for c in range(1, out.shape[-1] + 1) if self.outputs(c) >= out.shape[-1]), 0)
        if self.outputs(channels) != out.shape[-1]:
            raise ValueError(f"{self} has no number of channels with {out.shape[-1]} outputs; see outputs().")
        out = out.reshape(*out.shape[:-1], -1, self.components)
        pairs = channels * (channels - 1) // 2 if self.coupled else 0
        rows = 1 if self.coupled else channels
        logits, means, log_scales, couplings = jnp.split(
            out, [rows, rows + channels, rows + 2 * channels], axis=-2
        )
        assert couplings.shape[-2] == pairs
        return logits, means, log_scales, jnp.tanh(couplings)

    def _mean(self, means: Array, couplings: Array, y: Array, channel: int) -> Array:
        """Means of a channel `[..., K]` given the values `y [..., C, 1 or K]` of those before it."""
        if not self.coupled or channel == 0:
            return means[..., channel, :]
        first = channel * (channel - 1) // 2
        terms = couplings[..., first : first + channel, :] * y[..., :channel, :]
        return means[..., channel, :] + terms.sum(-2)


def discretized_log_prob(
    x: Float[Array, "*x"], mean: Float[Array, "*x"], std: Float[Array, "*#x"], bins: int = 256
) -> Float[Array, "*x"]:
    """Log-probability in nats of each of `bins` even values in [-1, 1] under `N(mean, std^2)` (Ho et al. 2020, Eq. 13).

        log int_{x - h}^{x + h} N(y; mean, std^2) dy,     h = 1 / (bins - 1)

    The first bin begins at minus infinity, the last has no end, so the probabilities sum to 1. Logarithms of tails
    are subtracted, in the tail that is the smaller, so nothing underflows; in float32 it is good to about `1e-7 std
    / h` nats.

    Raises:
        ValueError: `bins < 2`.
    """
    _check_bins(bins)
    h = 1 / (bins - 1)
    centre, half = (x - mean) / std, h / std
    # log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - Phi(a) / Phi(b)), mirrored into the lower tail. The integral is even in
    # centre, so its derivative at 0 is 0; jnp.abs, whose derivative at 0 is 1, would leave a rounding error there.
    distance = centre * jnp.sign(centre)
    a, b = -distance - half, -distance + half
    log_b = log_ndtr(b)
    ratio = jnp.minimum(log_ndtr(a) - log_b, -jnp.finfo(log_b.dtype).tiny)
    inside = log_b + jnp.log(-jnp.expm1(ratio))
    first, last = x < -1 + h, x > 1 - h
    tail = log_ndtr(jnp.where(first, centre, -centre) + half)
    return jnp.where(first | last, tail, inside)


def discretized_logistic_log_prob(
    x: Float[Array, "*x"], mean: Float[Array, "*x"], log_scale: Float[Array, "*x"], bins: int = 256
) -> Float[Array, "*x"]:
    """Log-probability in nats of each of `bins` even values in [-1, 1] under a logistic distribution.

        log(sigmoid(b) - sigmoid(a)) = log(1 - e^{a - b}) - softplus(a) - softplus(-b),     a, b = (x - mean -+ h) / s

    with `h = 1 / (bins - 1)`, `a = -inf` at -1 and `b = inf` at 1 (Salimans et al. 2017, Eq. 2). The right side loses
    no digits however far out `x` is.

    Raises:
        ValueError: `bins < 2`.
    """
    _check_bins(bins)
    h = 1 / (bins - 1)
    rate = jnp.exp(-log_scale)
    a, b = (x - mean - h) * rate, (x - mean + h) * rate
    first, last = x < -1 + h, x > 1 - h
    below, above = -_softplus(-b), -_softplus(a)  # log-probabilities up to b, and from a
    inside = jnp.log(-jnp.expm1(-2 * h * rate)) + below + above
    return jnp.where(first, below, jnp.where(last, above, inside))


def _softplus(x: Array) -> Array:
    """`log(1 + e^x)`; a third of the time of `jax.nn.softplus` on a CPU, where it is what a decoder of bits waits for."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _parts(out: Array, x: Array, count: int) -> list[Array]:
    """`x` and the `count` arrays like it that lie side by side in `out`, the numbers of an example in a row.

    In a row, as XLA's CPU backend takes 60 times as long to sum over axes of which the last has a single entry.
    """
    if out.shape != (*x.shape[:-1], count * x.shape[-1]):
        raise ValueError(_unlike(out.shape, x.shape, count * x.shape[-1]))
    return [a.reshape(len(a), -1) for a in (x, *jnp.split(_wide(out), count, axis=-1))]


def _unlike(out: tuple[int, ...], x: tuple[int, ...], outputs: int) -> str:
    return f"expected outputs of shape {(*x[:-1], outputs)} for data of shape {x}, got {out}: see outputs()."


def _check_bins(bins: int) -> None:
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}; bytes have 256.")


def _wide(out: Array) -> Array:
    return out.astype(jnp.promote_types(out.dtype, jnp.float32))


def _sum(each: Array) -> Array:
    return each.reshape(len(each), -1).sum(1)


def _each(draw: Callable[[Array, Array], Array], key: Array, parameters: Array, index: Array | None) -> Array:
    """`draw(key_i, parameters_i)` for each example."""
    return jax.vmap(draw)(keys.per_example(key, len(parameters), index), parameters)


def _to_unit_interval(y: Array) -> Array:
    return jnp.clip((y + 1) / 2, 0, 1)


def _to_bin(y: Array, bins: int) -> Array:
    """The nearest of `bins` values, in [0, 1], to `y` in [-1, 1] or beyond."""
    return jnp.round(_to_unit_interval(y) * (bins - 1)) / (bins - 1)
