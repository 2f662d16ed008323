"""The book's hierarchical VAE: an encoder and a decoder at each level, with the neighbouring level as input."""

from dataclasses import dataclass
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax import checks
from gen_jax.hvae import chain, gaussian, importance
from gen_jax.hvae import temperature as temperatures
from gen_jax.hvae.chain import Chain, Terms
from gen_jax.hvae.gaussian import Gaussian
from gen_jax.hvae.temperature import Temperature
from gen_jax.likelihoods import Likelihood
from gen_jax.types import Count, Size
from gen_jax.vae import Elbo
from gen_jax.vae.model import Data, check


class Params(NamedTuple):
    """Variables of the networks of all levels, the level nearest the data first."""

    encoder: tuple[PyTree, ...]
    decoder: tuple[PyTree, ...]


@checks.checked
@dataclass(frozen=True)
class HVAE:
    """A chain of latents, `x -> z_1 -> ... -> z_L` and back (the module `hvae.chain`). One level is a VAE."""

    encoder: tuple[nn.Module, ...]
    """`L` networks `z_{l-1} -> (mean, log_std)` of `q(z_l | z_{l-1})`, each `[B, *latent]`; the first takes `x`."""
    decoder: tuple[nn.Module, ...]
    """`L` networks: `z_1 -> out`, the input of the likelihood; then `z_l -> (mean, log_std)` of `p(z_{l-1} | z_l)`, or
    `z_l -> mean` for `N(mean, I)`, as in the book."""
    likelihood: Likelihood
    latent: tuple[Count | tuple[Count, ...], ...]
    """Size or shape of the latent at each level."""
    terms: Terms = "sampled"
    """Form of the bound: "sampled", or "neighbours", the book's, which is lower (`chain.elbo`)."""

    def __post_init__(self) -> None:
        counts = len(self.encoder), len(self.decoder), len(self.latent)
        if not self.latent or len(set(counts)) > 1:
            raise ValueError(
                "expected an encoder, a decoder and a size for each level, at least one, got {} encoders, "
                "{} decoders and {} sizes.".format(*counts)
            )
        if not all(self.latent_shapes):
            raise ValueError(f"latents must be at least 1 number, got {self.latent}.")
        if self.terms not in ("sampled", "neighbours"):
            raise ValueError(f'terms must be "sampled" or "neighbours", got {self.terms!r}.')

    @property
    def levels(self) -> int:
        """Number of latents."""
        return len(self.encoder)

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the latent at each level."""
        return [(size,) if isinstance(size, int) else tuple(size) for size in self.latent]

    @checks.checked
    def init(self, key: Key[Array, ""], x: Data) -> Params:
        """Initial parameters; only the shape of an example of `x` matters."""
        key_encoder, key_decoder = jax.random.split(key)
        keys_encoder = chain.level_keys(key_encoder, self.levels)
        keys_decoder = chain.level_keys(key_decoder, self.levels)
        latents = [jnp.zeros((1, *shape)) for shape in self.latent_shapes]
        init = lambda net, key, z: net.init(key, z)
        return Params(
            tuple(map(init, self.encoder, keys_encoder, [x[:1], *latents])),
            tuple(map(init, self.decoder, keys_decoder, latents)),
        )

    @checks.checked
    def as_chain(self, params: Params) -> Chain:
        """The chain of the networks with these parameters."""

        def log_likelihood(z_1: Array, x: Array) -> Float[Array, "B"]:
            return self.likelihood.log_prob(self._out(params, z_1), x)

        bind = lambda net, variables: lambda z: _gaussian(net.apply(variables, z))
        return Chain(
            tuple(map(bind, self.encoder, params.encoder)),
            tuple(map(bind, self.decoder[1:], params.decoder[1:])),
            gaussian.standard,
            log_likelihood,
        )

    @checks.checked
    def elbo(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        *,
        index: Int[Array, "B"] | None = None,
    ) -> Elbo:
        """The bound for one draw of the latents, with `kl [B, L]` (`chain.elbo`)."""
        check(self.likelihood, x)
        return chain.elbo(key, self.as_chain(params), x, terms=self.terms, index=index)

    @checks.checked
    def iwae(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        num_samples: Count,
        *,
        index: Int[Array, "B"] | None = None,
        sample_chunk: Count | None = None,
    ) -> Float[Array, "B"]:
        """A lower bound that rises to `log p(x)` with the number of draws, in nats (`importance.iwae`)."""
        return importance.of_model(self, params, key, x, index, num_samples, sample_chunk)

    @checks.checked
    def log_prob(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        num_samples: Count = 5000,
        *,
        index: Int[Array, "B"] | None = None,
        chunk: Count = 100,
        sample_chunk: Count = 50,
    ) -> Float[Array, "B"]:
        """`log p(x)` in nats by importance sampling: `iwae` of many draws, a lower bound in the mean.

        It takes `chunk` examples and `sample_chunk` draws of each at a time. If `x` is sharded over devices along
        its first axis, so is the work, with the same result.
        """
        check(self.likelihood, x)
        return importance.of_model(self, params, key, x, index, num_samples, sample_chunk, chunk)

    @checks.checked
    def encode(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        *,
        index: Int[Array, "B"] | None = None,
    ) -> list[Float[Array, "B ..."]]:
        """A draw of the latents of `x`, the one nearest the data first."""
        check(self.likelihood, x)
        return chain.infer(key, self.as_chain(params), x, index=index)[0]

    @checks.checked
    def decode(self, params: Params, z_1: Float[Array, "B *z"]) -> Float[Array, "B *x"]:
        """The mean of `p(x | z_1)`."""
        return self.likelihood.mean(self._out(params, z_1))

    @checks.checked
    def reconstruct(
        self,
        params: Params,
        key: Key[Array, ""],
        x: Data,
        *,
        levels: Count = 1,
        index: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B *x"]:
        """Encode `x` up to level `levels`, then decode by the means."""
        z = self.encode(params, key, x, index=index)[temperatures.check_levels(levels, self.levels) - 1]
        for decode in reversed(self.as_chain(params).decode[: levels - 1]):
            z = decode(z).mean
        return self.decode(params, z)

    @checks.checked
    def sample(
        self,
        key: Key[Array, ""],
        params: Params,
        n: Size,
        *,
        levels: Size | None = None,
        temperature: Temperature = 1.0,
        mean: bool = False,
        index: Int[Array, "n"] | None = None,
    ) -> Float[Array, "n *x"]:
        """`n` draws from the model, or with `mean=True` the means of `p(x | z_1)`, which look smoother.

        Args:
            key: of the noise; the noise of a level does not depend on how many levels are drawn.
            params: of the model.
            n: number of samples.
            levels: draw only the top `levels` latents and set the others to their means, to see what those decide.
            temperature: factor of the standard deviations, a number or one for each level, the level nearest the data
                first.
            mean: return means.
            index: numbers of the samples, `0..n-1` by default.
        """
        each = temperatures.per_level(temperature, levels, self.levels)
        key_z, key_x = jax.random.split(key)
        noise = chain.level_keys(key_z, self.levels)
        prior = gaussian.standard(jnp.zeros((n, *self.latent_shapes[-1])))
        z = gaussian.sample(noise[-1], prior, temperature=each[-1], index=index)
        for level, decode in reversed(list(enumerate(self.as_chain(params).decode))):
            z = gaussian.sample(noise[level], decode(z), temperature=each[level], index=index)
        out = self._out(params, z)
        return self.likelihood.mean(out) if mean else self.likelihood.sample(key_x, out, index)

    @checks.checked
    def log_weight(self, params: Params, x: Data, index: Int[Array, "B"] | None) -> importance.LogWeight:
        """`key -> log p(x, z) - log q(z | x)` of each example, for one draw; its exponential has mean `p(x)`."""
        check(self.likelihood, x)
        as_chain = self.as_chain(params)
        return lambda key: chain.log_weight(key, as_chain, x, index=index)

    def _out(self, params: Params, z_1: Array) -> Array:
        return cast(Array, self.decoder[0].apply(params.decoder[0], z_1))


def _gaussian(out: Array | tuple[Array, Array]) -> Gaussian:
    """From `(mean, log_std)`, or from a mean alone with unit variance."""
    return Gaussian(*out) if isinstance(out, tuple) else Gaussian(out, jnp.zeros((), out.dtype))
