"""The ladder VAE: a bottom-up pass over the data, then a top-down pass that draws a latent at every level.

    q(z | x) = q(z_L | x) q(z_{L-1} | z_L, x) ... q(z_1 | z_2, ..., z_L, x)
    p(z)     = p(z_L)     p(z_{L-1} | z_L)    ... p(z_1 | z_2, ..., z_L)

In a chain (`hvae.chain`) `z_2` is inferred from `z_1` alone. Here each posterior knows the latents above, as its prior
does, and the data. Every term of the bound is then a KL of Gaussians in closed form,

    log p(x) >= E_q[log p(x | z)] - sum_l E_q[KL(q(z_l | z_{>l}, x) || p(z_l | z_{>l}))]

and training is stable with many levels (Sonderby et al. 2016; Vahdat & Kautz 2020, Eq. 1; Child 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax import checks
from gen_jax.hvae import chain, gaussian, importance
from gen_jax.hvae import temperature as temperatures
from gen_jax.hvae.gaussian import Gaussian
from gen_jax.hvae.temperature import Temperature
from gen_jax.likelihoods import Likelihood
from gen_jax.types import Count, Size
from gen_jax.vae import Elbo
from gen_jax.vae.model import Data, check

BOUND = 5.0
"""Largest absolute log standard deviation of a prior, or of the posterior's change to it."""


@runtime_checkable
class Network(Protocol):
    """What a ladder needs of its network with bound parameters, such as `networks.ladder.Ladder`.

    Level 0 is `z_1`. `d` and `h` are features, of any structure: of the data, and of the latents above.
    """

    @property
    def levels(self) -> int:
        """Number of latents."""

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of the latent at each level."""

    def bottom_up(self, x: Array) -> PyTree:
        """PyTree of the data."""

    def top(self, n: int) -> PyTree:
        """The features at the top, for `n` examples."""

    def prior(self, level: int, h: PyTree) -> tuple[tuple[Array, Array], PyTree]:
        """`(mean, log_std)` of the prior, and `h`."""

    def posterior(self, level: int, d: PyTree, h: PyTree = None) -> tuple[Array, Array]:
        """The `(mean, log_std)` that `merge` turns into the posterior, from `d` and, if given, `h`."""

    def push(self, level: int, h: PyTree, z: Array) -> PyTree:
        """`h` with the latent added, for the level below."""

    def output(self, h: PyTree) -> Array:
        """The input of the likelihood."""


class Latent(NamedTuple):
    """The latent of one level, and its distributions."""

    prior: Gaussian
    posterior: Gaussian
    """The prior, where the latent was not inferred."""
    z: Float[Array, "B *z"]


@checks.checked
@dataclass(frozen=True)
class Ladder:
    """A network with a prior and a posterior at every level, the rule for the posterior, and the likelihood."""

    network: nn.Module
    """A linen module with the methods of `Network`."""
    likelihood: Likelihood
    merge: str = "residual"
    """How the posterior is made. "precision": from the data's features alone, multiplied by the prior (Sonderby et al.
    2016). "residual": from both, as a change of the prior (Vahdat & Kautz 2020). "concat": from both, directly (Child
    2021)."""

    def __post_init__(self) -> None:
        if self.merge not in gaussian.MERGES:
            raise ValueError(f"merge must be one of {', '.join(gaussian.MERGES)}, got {self.merge!r}.")

    @property
    def levels(self) -> int:
        """Number of latents."""
        return cast(Network, self.network).levels

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of the latent at each level."""
        return cast(Network, self.network).latent_shapes

    @checks.checked
    def init(self, key: Key[Array, ""], x: Data) -> PyTree:
        """Initial parameters; only the shape of an example of `x` matters."""

        checks.some("x", x)

        def everything(net: Network, x: Array) -> None:
            self._descend(net, 1, net.bottom_up(x))

        return self.network.init(key, x[:1], method=everything)

    @checks.checked
    def elbo(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Data,
        *,
        index: Int[Array, "B"] | None = None,
    ) -> Elbo:
        """The bound for one draw of the latents; `kl` is `[B, L]`, the level nearest the data first."""
        latents, out = self._infer(params, key, x, index)
        kl = [gaussian.kl(latent.posterior, latent.prior) for latent in latents]
        return Elbo.of(self.likelihood.log_prob(out, x), jnp.stack(kl, axis=1))

    @checks.checked
    def iwae(
        self,
        params: PyTree,
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
        params: PyTree,
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
        params: PyTree,
        key: Key[Array, ""],
        x: Data,
        *,
        index: Int[Array, "B"] | None = None,
    ) -> list[Float[Array, "B ..."]]:
        """A draw of the latents of `x`, the one nearest the data first."""
        return [latent.z for latent in self._infer(params, key, x, index)[0]]

    @checks.checked
    def reconstruct(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Data,
        *,
        levels: Size | None = None,
        index: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B *x"]:
        """The mean of `p(x | z)`, with the top `levels` latents inferred from `x` (default: all) and the others at their
        prior means.
        """
        check(self.likelihood, x)
        count = self.levels
        inferred = count if levels is None else temperatures.check_levels(levels, count, least=0)
        net = self._bind(params)
        temperature = jnp.where(jnp.arange(count) >= count - inferred, 1.0, 0.0)
        _, out = self._descend(net, len(x), net.bottom_up(x), key, temperature, index, inferred)
        return self.likelihood.mean(out)

    @checks.checked
    def sample(
        self,
        key: Key[Array, ""],
        params: PyTree,
        n: Size,
        *,
        levels: Size | None = None,
        temperature: Temperature = 1.0,
        mean: bool = False,
        index: Int[Array, "n"] | None = None,
    ) -> Float[Array, "n *x"]:
        """`n` draws from the model, or with `mean=True` the means of `p(x | z)`, which look smoother.

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
        _, out = self._descend(self._bind(params), n, None, key_z, each, index, 0)
        return self.likelihood.mean(out) if mean else self.likelihood.sample(key_x, out, index)

    def _bind(self, params: PyTree) -> Network:
        return cast(Network, self.network.bind(params))

    def _infer(
        self, params: PyTree, key: Array, x: Array, index: Array | None = None
    ) -> tuple[list[Latent], Array]:
        check(self.likelihood, x)
        net = self._bind(params)
        return self._descend(net, len(x), net.bottom_up(x), key, None, index)

    @checks.checked
    def log_weight(self, params: PyTree, x: Data, index: Int[Array, "B"] | None) -> importance.LogWeight:
        """`key -> log p(x, z) - log q(z | x)` of each example, for one draw; its exponential has mean `p(x)`."""
        check(self.likelihood, x)
        net = self._bind(params)
        d = net.bottom_up(x)  # once for all draws

        def log_weight(key: Key[Array, ""]) -> Float[Array, "B"]:
            latents, out = self._descend(net, len(x), d, key, None, index)
            weight = self.likelihood.log_prob(out, x)
            for prior, posterior, z in latents:
                weight += gaussian.log_prob(prior, z) - gaussian.log_prob(posterior, z)
            return weight

        return log_weight

    def _descend(
        self,
        net: Network,
        n: int,
        d: PyTree,
        key: Array | None = None,
        temperature: Array | None = None,
        index: Array | None = None,
        inferred: int | None = None,
    ) -> tuple[list[Latent], Array]:
        """The top-down pass: the top `inferred` latents (default: all) from the posterior, the others from the prior."""
        count = net.levels
        noise = None if key is None else chain.level_keys(key, count)
        lowest = 0 if inferred is None else count - inferred
        h, latents = net.top(n), []
        for level in reversed(range(count)):
            (mean, log_std), h = net.prior(level, h)
            prior = posterior = gaussian.bounded(mean, log_std, BOUND)
            if level >= lowest:
                posterior = self._posterior(net, level, d, h, prior)
            factor = 1.0 if temperature is None else temperature[level]
            z = (
                posterior.mean
                if noise is None
                else gaussian.sample(noise[level], posterior, temperature=factor, index=index)
            )
            h = net.push(level, h, z)
            latents.append(Latent(prior, posterior, z))
        return latents[::-1], net.output(h)

    def _posterior(self, net: Network, level: int, d: PyTree, h: PyTree, prior: Gaussian) -> Gaussian:
        mean, log_std = net.posterior(level, d, None if self.merge == "precision" else h)
        return gaussian.MERGES[self.merge](prior, gaussian.bounded(mean, log_std, BOUND))
