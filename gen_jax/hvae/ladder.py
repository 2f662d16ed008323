"""The ladder: up from the data once, without a draw, then down again, a latent at every level.

    q(z | x) = q(z_L | x) q(z_{L-1} | z_L, x) ... q(z_1 | z_2, ..., z_L, x)
    p(z)     = p(z_L)     p(z_{L-1} | z_L)    ... p(z_1 | z_2, ..., z_L)

Where the chain (`hvae.chain`) infers `z_2` from `z_1` alone, each posterior here knows what its prior knows and the data
besides, and both go the same way. So every term of the bound is a KL between Gaussians in closed form,

    log p(x) >= E_q[log p(x | z)] - sum_l E_q[KL(q(z_l | z_{>l}, x) || p(z_l | z_{>l}))]

and training remains stable with many levels (Sonderby et al. 2016; Vahdat & Kautz 2020, Eq. 1; Child 2021).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from gen_jax.hvae import chain, gaussian, importance, temper
from gen_jax.hvae.gaussian import Gaussian
from gen_jax.likelihoods import Likelihood
from gen_jax.vae import Elbo

BOUND = 5.0
"""Largest log deviation of a prior, or of what a posterior adds."""


@runtime_checkable
class Network(Protocol):
    """What a ladder asks of its network once parameters are bound; `networks.ladder.Ladder` is one. Level 0 is `z_1`."""

    @property
    def levels(self) -> int:
        """How many latents there are."""

    @property
    def latent_shapes(self) -> Any:
        """Shape of the latent of each level."""

    def bottom_up(self, x: Any) -> Any:
        """Features of the data."""

    def top(self, n: int) -> Any:
        """Where the way down starts, `n` times."""

    def prior(self, level: int, h: Any) -> Any:
        """`(mean, raw log_std), h`."""

    def posterior(self, level: int, d: Any, h: Any = None) -> Any:
        """`mean, raw log_std`, or what `merge` makes them of; without `h` from the features `d` alone."""

    def push(self, level: int, h: Any, z: Any) -> Any:
        """`h` with the latent told, for the level below."""

    def output(self, h: Any) -> Any:
        """What the likelihood takes."""


class Rung(NamedTuple):
    """What one level has come to."""

    prior: Gaussian
    posterior: Gaussian
    """The prior, where nothing was inferred."""
    z: Float[Array, "B *z"]


@dataclass(frozen=True)
class Ladder:
    """A network that has a prior and a posterior at every level, how the posterior is made, and the likelihood."""

    network: Any
    """A linen module with the methods of `Network`."""
    likelihood: Likelihood
    merge: str = "residual"
    """How a posterior comes about: from the data's features alone, combined with the prior ("precision", Sonderby et al.
    2016); from both sides, as a change of the prior ("residual", Vahdat & Kautz 2020); or from both sides as it is
    ("concat", Child 2021)."""

    def __post_init__(self):
        if self.merge not in gaussian.MERGES:
            raise ValueError(f"merge must be one of {', '.join(gaussian.MERGES)}, got {self.merge!r}.")

    @property
    def levels(self) -> int:
        """How many latents there are."""
        return self.network.levels

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """Shape of the latent of each level."""
        return self.network.latent_shapes

    def init(self, key: Key[Array, ""], x: Float[Array, "B *x"]) -> PyTree:
        """Parameters to start from; of `x` only the shape of an example matters."""

        def everything(net: Any, x: Array) -> None:
            self._descend(net, 1, net.bottom_up(x))

        return self.network.init(key, x[:1], method=everything)

    def elbo(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        *,
        index: Int[Array, "B"] | None = None,
    ) -> Elbo:
        """The bound at one draw of the latents, `kl [B, L]`, the level nearest the data first."""
        rungs, out = self._infer(params, key, x, index)
        kl = [gaussian.kl(rung.posterior, rung.prior) for rung in rungs]
        return Elbo.of(self.likelihood.log_prob(out, x), jnp.stack(kl, axis=1))

    def iwae(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        num_samples: int,
        *,
        index: Int[Array, "B"] | None = None,
        at_once: int | None = None,
    ) -> Float[Array, "B"]:
        """A bound that rises to `log p(x)` with the number of draws, in nats (`importance.iwae`)."""
        return importance.iwae(self._weigh(params, x, index), key, num_samples, at_once=at_once)

    def log_prob(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        num_samples: int = 5000,
        *,
        index: Int[Array, "B"] | None = None,
        size: int = 100,
        at_once: int = 50,
    ) -> Float[Array, "B"]:
        """`log p(x)` in nats by importance sampling: `iwae` of many draws, a lower bound in the mean.

        `size` examples and `at_once` draws of each are taken at a time. Jit it; where `x` is sharded over devices along
        its first axis so is the work, and the numbers stay the same.
        """
        one = lambda x, index: self.iwae(params, key, x, num_samples, index=index, at_once=at_once)
        return importance.in_turns(one, x, size, index)

    def encode(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        *,
        index: Int[Array, "B"] | None = None,
    ) -> list[Float[Array, "B ..."]]:
        """A draw of the latents of `x`, that nearest the data first."""
        return [rung.z for rung in self._infer(params, key, x, index)[0]]

    def reconstruct(
        self,
        params: PyTree,
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        *,
        levels: int | None = None,
        index: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B *x"]:
        """The mean of `p(x | z)`, the top `levels` inferred from `x` (default: all), the others at their prior means."""
        count = self.levels
        inferred = count if levels is None else temper.check_levels(levels, count, least=0)
        net = self.network.bind(params)
        heat = jnp.where(jnp.arange(count) >= count - inferred, 1.0, 0.0)
        _, out = self._descend(net, len(x), net.bottom_up(x), key, heat, index, inferred)
        return self.likelihood.mean(out)

    def sample(
        self,
        key: Key[Array, ""],
        params: PyTree,
        n: int,
        *,
        levels: int | None = None,
        temperature: ArrayLike = 1.0,
        mean: bool = False,
        index: Int[Array, "n"] | None = None,
    ) -> Float[Array, "n *x"]:
        """`n` draws from the model, or with `mean=True` the means of `p(x | z)`, which look smoother.

        Args:
            key: of the noise; a level's is the same however many levels are drawn.
            params: of the model.
            n: how many.
            levels: draw the top `levels` of them, and take the others at their means: what these levels decide.
            temperature: factor of the standard deviations; a number or one a level, the one nearest the data first.
            mean: whether to return means.
            index: numbers of the samples, `0..n-1` by default.
        """
        heat = temper.each(temperature, levels, self.levels)
        key_z, key_x = jax.random.split(key)
        _, out = self._descend(self.network.bind(params), n, None, key_z, heat, index, 0)
        return self.likelihood.mean(out) if mean else self.likelihood.sample(key_x, out, index)

    def _infer(
        self, params: PyTree, key: Array, x: Array, index: Array | None = None
    ) -> tuple[list[Rung], Array]:
        net = self.network.bind(params)
        return self._descend(net, len(x), net.bottom_up(x), key, None, index)

    def _weigh(
        self, params: PyTree, x: Float[Array, "B *x"], index: Int[Array, "B"] | None
    ) -> importance.LogWeight:
        net = self.network.bind(params)
        d = net.bottom_up(x)  # once for all draws

        def log_weight(key: Key[Array, ""]) -> Float[Array, "B"]:
            rungs, out = self._descend(net, len(x), d, key, None, index)
            weight = self.likelihood.log_prob(out, x)
            for rung in rungs:
                weight += gaussian.log_prob(rung.prior, rung.z) - gaussian.log_prob(rung.posterior, rung.z)
            return weight

        return log_weight

    def _descend(
        self,
        net: Any,
        n: int,
        d: Any,
        key: Array | None = None,
        heat: Array | None = None,
        index: Array | None = None,
        inferred: int | None = None,
    ) -> tuple[list[Rung], Array]:
        """The way down; the top `inferred` latents (all by default) from the posterior, the others from the prior."""
        count = net.levels
        noise = None if key is None else chain.level_keys(key, count)
        lowest = 0 if inferred is None else count - inferred
        h, rungs = net.top(n), []
        for level in reversed(range(count)):
            (mean, raw), h = net.prior(level, h)
            prior = posterior = gaussian.bounded(mean, raw, BOUND)
            if level >= lowest:
                posterior = self._posterior(net, level, d, h, prior)
            temperature = 1.0 if heat is None else heat[level]
            z = (
                posterior.mean
                if noise is None
                else gaussian.sample(noise[level], posterior, temperature=temperature, index=index)
            )
            h = net.push(level, h, z)
            rungs.append(Rung(prior, posterior, z))
        return rungs[::-1], net.output(h)

    def _posterior(self, net: Any, level: int, d: Any, h: Any, prior: Gaussian) -> Gaussian:
        mean, raw = net.posterior(level, d, None if self.merge == "precision" else h)
        return gaussian.MERGES[self.merge](prior, gaussian.bounded(mean, raw, BOUND))
