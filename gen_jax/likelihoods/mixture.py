"""Mixtures of discretised logistics, whose channels depend on each other."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import checks
from gen_jax.likelihoods.base import (
    Bins,
    Data,
    Out,
    as_float,
    in_zero_one,
    per_example,
    shape_message,
    to_bin,
    to_unit_interval,
)
from gen_jax.likelihoods.discretized import discretized_logistic_log_prob
from gen_jax.rows import flat
from gen_jax.types import Count


@checks.checked
@dataclass(frozen=True)
class LogisticMixture:
    """At each position a mixture of discretised logistics, whose means depend on previous channels (PixelCNN++).

        p(x) = sum_k pi_k prod_c logistic(x_c; mean_kc + sum_{d < c} coupling_kcd x_d, scale_kc)

    All channels of a position share the component; couplings are in [-1, 1]. With `coupled=False`, or with one channel,
    each channel is a mixture of its own. Source: Salimans et al. 2017, Eqs. 1 to 3.
    """

    components: Count = 10
    bins: Bins = 256
    coupled: bool = True
    bounded: ClassVar[bool] = True

    @checks.checked
    def outputs(self, channels: Count) -> int:
        """`K` logits, `K C` means, `K C` log scales, `K C (C - 1) / 2` couplings; `3 K C` if not coupled."""
        each = 1 + 2 * channels + channels * (channels - 1) // 2 if self.coupled else 3 * channels
        return self.components * each

    @checks.checked
    def log_prob(self, out: Out, x: Data) -> Float[Array, "B"]:
        """The log-probability of the bins of `x`."""
        logits, means, log_scales, couplings = self._parameters(out)
        if means.shape[:-1] != x.shape:
            raise ValueError(shape_message(out.shape, x.shape, self.outputs(x.shape[-1])))
        y = 2 * in_zero_one(self, x)[..., None] - 1
        means = jnp.stack([self._mean(means, couplings, y, c) for c in range(x.shape[-1])], axis=-2)
        each = discretized_logistic_log_prob(jnp.broadcast_to(y, means.shape), means, log_scales, self.bins)
        joint = each.sum(-2, keepdims=True) if self.coupled else each
        return flat(jax.nn.logsumexp(jax.nn.log_softmax(logits) + joint, axis=-1)).sum(1)

    @checks.checked
    def mean(self, out: Out) -> Float[Array, "B *s C"]:
        """The mean of the mixture, clipped to [0, 1]: the mean except for tails outside."""
        logits, means, _, couplings = self._parameters(out)
        y = jnp.zeros_like(means)
        for c in range(means.shape[-2]):
            y = y.at[..., c, :].set(jnp.clip(self._mean(means, couplings, y, c), -1, 1))
        return to_unit_interval((jax.nn.softmax(logits) * y).sum(-1))

    @checks.checked
    def sample(
        self, key: Key[Array, ""], out: Out, index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *s C"]:
        """Multiples of `1 / (bins - 1)`: first the component, then the channels in order. NaN of logits with NaN."""
        logits, means, log_scales, couplings = self._parameters(out)
        key_z, key_x = jax.random.split(key)
        z = per_example(lambda k, logits: jax.random.categorical(k, logits), key_z, logits, index)[..., None]

        def take(a: Array) -> Array:
            return jnp.take_along_axis(a, jnp.broadcast_to(z, (*a.shape[:-1], 1)), axis=-1)

        chosen = jnp.where(jnp.isnan(logits).any(-1, keepdims=True), jnp.nan, 0)
        means, log_scales = take(means) + chosen, take(log_scales)
        couplings = take(couplings) if self.coupled else couplings
        noise = per_example(lambda k, m: jax.random.logistic(k, m.shape, m.dtype), key_x, means, index)
        x = jnp.zeros_like(means)
        for c in range(means.shape[-2]):
            y = self._mean(means, couplings, 2 * x - 1, c)
            y = y + jnp.exp(log_scales[..., c, :]) * noise[..., c, :]
            x = x.at[..., c, :].set(to_bin(y, self.bins))
        return x[..., 0]

    def _parameters(self, out: Array) -> tuple[Array, Array, Array, Array]:
        """Logits `[..., 1 or C, K]`, means and log scales `[..., C, K]`, couplings `[..., C (C - 1) / 2, K]`."""
        out = as_float(out)
        channels = next((c for c in range(1, out.shape[-1] + 1) if self.outputs(c) >= out.shape[-1]), 0)
        if self.outputs(channels) != out.shape[-1]:
            raise ValueError(f"{self} has no number of channels with {out.shape[-1]} outputs; see outputs().")
        out = out.reshape(*out.shape[:-1], out.shape[-1] // self.components, self.components)
        rows = 1 if self.coupled else channels
        logits, means, log_scales, couplings = jnp.split(
            out, [rows, rows + channels, rows + 2 * channels], axis=-2
        )
        return logits, means, log_scales, jnp.tanh(couplings)

    def _mean(self, means: Array, couplings: Array, y: Array, channel: int) -> Array:
        """Means of a channel `[..., K]` given the values `y [..., C, 1 or K]` of the channels before it."""
        if not self.coupled or channel == 0:
            return means[..., channel, :]
        first = channel * (channel - 1) // 2
        terms = couplings[..., first : first + channel, :] * y[..., :channel, :]
        return means[..., channel, :] + terms.sum(-2)
