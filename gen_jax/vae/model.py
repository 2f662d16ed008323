"""The model of a VAE: bounds on `log p(x)`, samples, reconstructions and interpolations."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from gen_jax import checks, keys, programs
from gen_jax.likelihoods import Likelihood
from gen_jax.likelihoods.base import as_float, check_data
from gen_jax.rows import flat
from gen_jax.types import Count, Size
from gen_jax.vae import importance

Data: TypeAlias = Annotated[Num[Array, "B *x"], checks.Range()]
"""Data of the likelihood."""


class Params(NamedTuple):
    """Variables of the two networks."""

    encoder: PyTree
    decoder: PyTree


class Posterior(NamedTuple):
    """`q(z | x) = N(mean, diag(exp(log_std))^2)`."""

    mean: Float[Array, "B *L"]
    log_std: Float[Array, "B *L"]


class Elbo(NamedTuple):
    """A lower bound on `log p(x)` in nats, `value = reconstruction - sum of kl`, an unbiased estimate."""

    value: Float[Array, "B"]
    reconstruction: Float[Array, "B"]
    """`log p(x | z)`."""
    kl: Float[Array, "B *levels"]
    """`KL(q(z | x) || p(z))`; in a hierarchical VAE `[B, L]`, one KL for each level."""

    @classmethod
    @checks.checked
    def of(cls, reconstruction: Float[Array, "B"], kl: Float[Array, "B *levels"]) -> "Elbo":
        """The bound of these terms, in float32 or better."""
        reconstruction, kl = as_float(reconstruction), as_float(kl)
        return cls(reconstruction - flat(kl).sum(1), reconstruction, kl)


@checks.checked
def kl_to_prior(posterior: Posterior) -> Float[Array, "B *L"]:
    """`KL(N(mean, std^2) || N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std`, in nats, for each number in the latent.

    In float32 or better.
    """
    mean, log_std = map(as_float, posterior)
    return (jnp.square(mean) + jnp.expm1(2 * log_std)) / 2 - log_std


@checks.checked
@dataclass(frozen=True)
class VAE:
    """An encoder, a decoder and the likelihood `p(x | z)`."""

    encoder: nn.Module
    """`(x [B, ...], label [B]?) -> (mean, log_std)`, each `[B, *latent]`: from `networks.autoencoder`, or your own."""
    decoder: nn.Module
    """`(z [B, *latent], label [B]?) -> out`, the input of the likelihood."""
    likelihood: Likelihood
    latent: Count | tuple[Count, ...]
    """Size or shape of the latent."""

    def __post_init__(self) -> None:
        if not self.latent_shape:
            raise ValueError(f"latent must be at least 1 number, got {self.latent}.")

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the latent of an example."""
        return (self.latent,) if isinstance(self.latent, int) else tuple(self.latent)

    @checks.checked
    def init(self, key: Key[Array, ""], x: Data, label: Int[Array, "B"] | None = None) -> Params:
        """Initial parameters; only the shape of an example of `x` matters."""
        key_encoder, key_decoder = jax.random.split(key)
        more = () if label is None else (label[:1],)
        encoder = self.encoder.init(key_encoder, x[:1], *more)
        return Params(encoder, self.decoder.init(key_decoder, jnp.zeros((1, *self.latent_shape)), *more))

    @checks.checked
    def encode(self, params: Params, x: Data, label: Int[Array, "B"] | None = None) -> Posterior:
        """`q(z | x)`, in float32 or better.

        Raises ValueError if `x` is not floating, or is known to be outside of the interval that the likelihood has, or
        if the encoder's output has another shape than the latent.
        """
        check(self.likelihood, x)
        posterior = Posterior(*map(as_float, self.encoder.apply(params.encoder, x, *given(label))))
        if posterior.mean.shape != (len(x), *self.latent_shape):
            raise ValueError(
                f"the encoder gives latents of shape {posterior.mean.shape[1:]}, the model says {self.latent_shape}."
            )
        return posterior

    @checks.checked
    def decode(
        self, params: Params, z: Float[Array, "B *L"], label: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *x"]:
        """The mean of `p(x | z)`."""
        return self.likelihood.mean(self.out(params, z, label))

    @checks.checked
    def elbo(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        label: Int[Array, "B"] | None = None,
        *,
        index: Int[Array, "B"] | None = None,
    ) -> Elbo:
        """The bound: `log p(x | z)` for one draw of `z`, and the KL in closed form (Kingma & Welling 2014, Eq. 10).

        Args:
            params: of the model.
            key: of the noise in `z`; example `i` uses `fold_in(key, i)`.
            x: data of the likelihood.
            label: for networks with labels.
            index: numbers `i` of the examples, `0..B-1` of the global batch by default.
        """
        posterior = self.encode(params, x, label)
        z = posterior.mean + jnp.exp(posterior.log_std) * keys.normal(key, posterior.mean.shape, index)
        reconstruction = self.likelihood.log_prob(self.out(params, z, label), x)
        return Elbo.of(reconstruction, flat(kl_to_prior(posterior)).sum(1))

    @checks.checked
    def iwae(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        num_samples: Count,
        label: Int[Array, "B"] | None = None,
        *,
        index: Int[Array, "B"] | None = None,
        chunk: Count | None = None,
    ) -> Float[Array, "B"]:
        """An unbiased estimate, in nats, of the IWAE bound, which rises to `log p(x)` with the number of samples.

            E log 1/k sum_i w_i,    w_i = p(x | z_i) p(z_i) / q(z_i | x),   z_i ~ q(z | x)        Burda et al. 2016, Eq. 8

        Args:
            params, key, x, label, index: as in `elbo`; sample `s` of an example is the same for any `num_samples`.
            num_samples: `k`.
            chunk: number of latents decoded at once, examples times samples; by default as many as give the decoder an
                output of 256 MiB. If there are more, the samples are computed chunk by chunk, and recomputed for the
                gradient: a third more time, but bounded memory.
        """
        check(self.likelihood, x)
        chunk = self.chunk_for(params, label, 2**26) if chunk is None else chunk
        groups = -(-num_samples // max(1, chunk // max(len(x), 1)))
        size = -(-num_samples // groups)
        return programs.run(_iwae, self, (num_samples, size), params, key, x, label, index)

    @checks.checked
    def log_prob(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        num_samples: Count = 5000,
        label: Int[Array, "B"] | None = None,
        *,
        index: Int[Array, "B"] | None = None,
        chunk: Count | None = None,
    ) -> Float[Array, "B"]:
        """`log p(x)` in nats by importance sampling: `iwae` for many samples and examples, a lower bound in the mean.

        `chunk` latents are decoded at once (by default as many as give the decoder an output of 32 MiB). If `x`
        is sharded over devices along its first axis, so is the work, with the same result.
        """
        check(self.likelihood, x)
        count = len(x)
        if not count:
            return jnp.zeros(0)
        check(self.likelihood, x)
        chunk = self.chunk_for(params, label, 2**23) if chunk is None else chunk
        index = keys.example_index(count)[0] if index is None else index
        return programs.run(_log_prob, self, (num_samples, chunk), params, key, x, label, index)

    @checks.checked
    def sample(
        self,
        key: Key[Array, ""],
        params: Params,
        n: Size,
        label: Int[Array, "n"] | None = None,
        *,
        mean: bool = False,
        index: Int[Array, "n"] | None = None,
    ) -> Float[Array, "n *x"]:
        """`n` draws `x ~ p(x | z)`, `z ~ N(0, I)`, or with `mean=True` the means of `p(x | z)`, which look smoother."""
        key_z, key_x = jax.random.split(key)
        out = self.out(params, keys.normal(key_z, (n, *self.latent_shape), index), label)
        return self.likelihood.mean(out) if mean else self.likelihood.sample(key_x, out, index)

    @checks.checked
    def reconstruct(
        self, params: Params, x: Data, label: Int[Array, "B"] | None = None
    ) -> Float[Array, "B *x"]:
        """The decoded mean of `q(z | x)`."""
        return self.decode(params, self.encode(params, x, label).mean, label)

    @checks.checked
    def interpolate(
        self,
        params: Params,
        a: Data,
        b: Data,
        num: Count = 10,
        label: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B num *x"]:
        """`num` images decoded along the straight line between the latent means of `a` and `b`, both ends included."""
        ends = (self.encode(params, x, label).mean for x in (a, b))
        line = jax.vmap(lambda z_a, z_b: jnp.linspace(z_a, z_b, num))(*ends)
        label = None if label is None else jnp.repeat(label, num)
        pictures = self.decode(params, line.reshape(-1, *self.latent_shape), label)
        return pictures.reshape(len(a), num, *pictures.shape[1:])

    @checks.checked
    def out(self, params: Params, z: Float[Array, "B *L"], label: Int[Array, "B"] | None = None) -> Array:
        """The decoder's output, which is the input of the likelihood."""
        return cast(Array, self.decoder.apply(params.decoder, z, *given(label)))

    @checks.checked
    def noise(
        self, key: Key[Array, ""], count: int, samples: Int[Array, "k"], index: Int[Array, "B"] | None = None
    ) -> Float[Array, "B k *L"]:
        """Standard normal draws; sample `s` of example `i` uses `fold_in(fold_in(key, i), s)`."""
        draw = lambda key_i, s: jax.random.normal(jax.random.fold_in(key_i, s), self.latent_shape)
        return jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(keys.per_example(key, count, index), samples)

    @checks.checked
    def latents(self, posterior: Posterior, eps: Float[Array, "B k *L"]) -> Float[Array, "B k *L"]:
        """Draws from `q(z | x)`, `mean + std eps` (Kingma & Welling 2014, Eq. 4)."""
        mean, log_std = posterior
        return mean[:, None] + jnp.exp(log_std)[:, None] * eps

    @checks.checked
    def log_weights(
        self,
        decoder: PyTree,
        z: Float[Array, "B k *L"],
        posterior: Posterior,
        x: Data,
        label: Int[Array, "B"] | None,
    ) -> Float[Array, "B k"]:
        """`log p(x | z) + log p(z) - log q(z | x)`."""
        check(self.likelihood, x)
        count, k = z.shape[:2]
        rows = z.reshape(count * k, *self.latent_shape)
        labels = given(None if label is None else jnp.repeat(label, k))
        out = cast(Array, self.decoder.apply(decoder, rows, *labels))
        each = lambda out, x: self.likelihood.log_prob(out, jnp.broadcast_to(x[None], (k, *x.shape)))
        log_lik = jax.vmap(each)(out.reshape(count, k, *out.shape[1:]), x)
        mean, log_std = (a[:, None] for a in posterior)
        ratio = (jnp.square((z - mean) * jnp.exp(-log_std)) - jnp.square(z)) / 2 + log_std
        return log_lik + ratio.reshape(count, k, math.prod(self.latent_shape)).sum(2)

    @checks.checked
    def chunk_for(self, params: Params, label: Array | None, floats: int) -> int:
        """The number of latents whose decoded output has about `floats` numbers, at least 1."""
        z = jax.ShapeDtypeStruct((1, *self.latent_shape), jnp.float32)
        out = jax.eval_shape(self.out, params, z, None if label is None else label[:1])
        return max(1, floats // out.size)


def check(likelihood: Likelihood, x: Num[Array, "..."]) -> None:
    """ValueError unless `x` are data that a likelihood can be of."""
    check_floating(x)
    check_data(likelihood, x)


def check_floating(x: Num[Array, "..."]) -> None:
    """ValueError for bytes, or other integers."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, got {x.dtype}. For bytes: data.to_zero_one or data.binarize.")


def given(label: Int[Array, "B"] | None) -> tuple[Array, ...]:
    """The label as a tuple of arguments, empty without a label."""
    return () if label is None else (label,)


def _iwae(model: VAE, num_samples: int, size: int) -> Callable[..., Float[Array, "B"]]:
    """`VAE.iwae` as `(params, key, x, label, index) -> [B]`, `size` samples at a time."""

    def iwae(
        params: Params, key: Key[Array, ""], x: Array, label: Array | None, index: Array | None
    ) -> Float[Array, "B"]:
        posterior = model.encode(params, x, label)

        def log_weights(samples: Int[Array, "s"]) -> Float[Array, "s B"]:
            z = model.latents(posterior, model.noise(key, len(x), samples, index))
            return model.log_weights(params.decoder, z, posterior, x, label).T

        return importance.mean_weight(log_weights, num_samples, size)

    return iwae


def _log_prob(model: VAE, num_samples: int, chunk: int) -> Callable[..., Float[Array, "B"]]:
    """`VAE.log_prob` as `(params, key, x, label, index) -> [B]`."""

    def log_prob(
        params: Params, key: Key[Array, ""], x: Array, label: Array | None, index: Array
    ) -> Float[Array, "B"]:
        one = lambda x, label, index: model.iwae(params, key, x, num_samples, label, index=index, chunk=chunk)
        return importance.in_chunks(one, min(chunk, 128), x, label, index)

    return log_prob
