"""A Markov chain of latents, `x - z_1 - z_2 - ... - z_L`: each level depends on its neighbours only.

    encoder    q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})
    model      p(x | z_1) p(z_1 | z_2) ... p(z_{L-1} | z_L) p(z_L)

    log p(x) >= E_q[log p(x | z_1)] - sum_l E_q[log q(z_l | z_{l-1}) - log p(z_l | z_{l+1})]

A chain is a tuple of functions. They may be networks (`hvae.HVAE`) or only add noise (`hvae.diffusion_chain`). There are
three estimates of the bound from one draw of the latents; see `elbo`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import checks
from gen_jax.hvae import gaussian
from gen_jax.hvae.gaussian import Gaussian
from gen_jax.types import Terms
from gen_jax.vae import Elbo
from gen_jax.vae.model import Data, check_floating

Conditional = Callable[[Float[Array, "B ..."]], Gaussian]
"""`z -> N(mean(z), std(z)^2)`."""


class Chain(NamedTuple):
    """The conditional distributions of a chain of `L` latents; `z_0 = x`."""

    encode: tuple[Conditional, ...]
    """`L` functions `z_{l-1} -> q(z_l | z_{l-1})`."""
    decode: tuple[Conditional, ...]
    """`L - 1` functions `z_{l+1} -> p(z_l | z_{l+1})`."""
    prior: Conditional
    """`z_L -> p(z_L)`, which depends on the shape of `z_L` only."""
    log_likelihood: Callable[[Float[Array, "B ..."], Float[Array, "B ..."]], Float[Array, "B"]]
    """`(z_1, x) -> log p(x | z_1)`."""
    posterior: tuple[Callable[[Float[Array, "B ..."], Float[Array, "B ..."]], Gaussian], ...] = ()
    """`(z_{l+1}, x) -> q(z_l | z_{l+1}, x)` for `l < L`, then `(x, x) -> q(z_L | x)`; empty where unknown."""


def level_keys(key: Key[Array, ""], levels: int) -> list[Key[Array, ""]]:
    """A key for each level. For one level it is `key` itself, so a chain of one level equals the VAE bit for bit."""
    return [key] if levels == 1 else list(jax.random.split(key, levels))


@checks.checked
def infer(
    key: Key[Array, ""], chain: Chain, x: Data, *, index: Int[Array, "B"] | None = None
) -> tuple[list[Float[Array, "B ..."]], list[Gaussian]]:
    """Draw `z_1, ..., z_L` from the encoder, one after the other; returns the draws and the `q(z_l | z_{l-1})`."""
    check_floating(x)
    z, latents, encoded = x, [], []
    for k, encode in zip(level_keys(key, len(chain.encode)), chain.encode, strict=True):
        encoded.append(encode(z))
        z = gaussian.sample(k, encoded[-1], index=index)
        latents.append(z)
    return latents, encoded


@checks.checked
def elbo(
    key: Key[Array, ""],
    chain: Chain,
    x: Data,
    *,
    terms: Terms = "sampled",
    index: Int[Array, "B"] | None = None,
) -> Elbo:
    """An estimate of a lower bound on `log p(x)` from one draw of the latents; the KL term of level `l` has three forms.

        "sampled"       log q(z_l | z_{l-1}) - log p(z_l | z_{l+1}),    and KL(q(z_L | z_{L-1}) || p(z_L))
        "neighbours"    KL(q(z_l | z_{l-1}) || p(z_l | z_{l+1})),       and KL(q(z_L | z_{L-1}) || p(z_L))
        "posterior"     KL(q(z_l | z_{l+1}, x) || p(z_l | z_{l+1})),    and KL(q(z_L | x) || p(z_L))

    "sampled" is an unbiased estimate of the bound above, which equals `log p(x)` if the encoder is the model's posterior.
    "posterior" is unbiased too, with less variance. It needs the reverse of the encoder, which is known for a diffusion
    model (Ho et al. 2020, Eq. 5).

    "neighbours" is the book's. Its term of level `l` averages over `z_l` with `z_{l+1}` fixed, although `z_{l+1}` was
    drawn from `z_l`. Its mean is a lower bound as well, but a looser one. For two levels it is below the bound of an
    encoder `q(z_1 | x) q(z_2 | x)` by the mutual information `I(z_1; z_2 | x)`. So it is never tight, unless the levels
    are independent given `x`.

    With one level all three are the ELBO of a VAE.

    Args:
        key: of the noise; the noise of example `i` depends on `key` and `i` only (`gen_jax.keys`).
        chain: the functions.
        x: data `[B, ...]`.
        terms: the form of the KL terms.
        index: numbers of the examples, `0..B-1` by default.

    Raises:
        ValueError: unknown `terms`, a chain with no level or a wrong number of functions, or "posterior" for a chain
            without one.
    """
    check(chain, terms)
    latents, encoded = infer(key, chain, x, index=index)
    decoded = [decode(z) for decode, z in zip(chain.decode, latents[1:], strict=True)]
    decoded.append(chain.prior(latents[-1]))
    if terms == "posterior":
        above = [*latents[1:], x]
        encoded = [q(z, x) for q, z in zip(chain.posterior, above, strict=True)]
    costs = [gaussian.kl(q, p) for q, p in zip(encoded, decoded, strict=True)]
    if terms == "sampled":
        costs[:-1] = [
            gaussian.log_prob(q, z) - gaussian.log_prob(p, z)
            for q, p, z in zip(encoded[:-1], decoded[:-1], latents[:-1], strict=True)
        ]
    return Elbo.of(chain.log_likelihood(latents[0], x), jnp.stack(costs, axis=1))


def log_weight(
    key: Key[Array, ""], chain: Chain, x: Data, *, index: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """`log p(x, z_1, ..., z_L) - log q(z_1, ..., z_L | x)` for one draw; its exponential has mean `p(x)`."""
    check(chain, "sampled")
    latents, encoded = infer(key, chain, x, index=index)
    decoded = [decode(z) for decode, z in zip(chain.decode, latents[1:], strict=True)]
    decoded.append(chain.prior(latents[-1]))
    weight = chain.log_likelihood(latents[0], x)
    for q, p, z in zip(encoded, decoded, latents, strict=True):
        weight += gaussian.log_prob(p, z) - gaussian.log_prob(q, z)
    return weight


def check(chain: Chain, terms: str) -> None:
    """Raise ValueError if the chain's functions do not fit together."""
    levels = len(chain.encode)
    if levels < 1 or len(chain.decode) != levels - 1:
        raise ValueError(
            "a chain of L >= 1 levels has L functions in encode (x -> z_1, z_1 -> z_2, ...) and L - 1 in decode (z_2 -> "
            f"z_1, ...), got {levels} and {len(chain.decode)}; z_1 -> x is log_likelihood."
        )
    if terms not in ("sampled", "neighbours", "posterior"):
        raise ValueError(f'terms must be "sampled", "neighbours" or "posterior", got {terms!r}.')
    if terms == "posterior" and len(chain.posterior) != levels:
        raise ValueError(
            f'terms="posterior" takes {levels} functions in chain.posterior, q(z_l | z_(l+1), x) for l < L and q(z_L | '
            f'x), got {len(chain.posterior)}; terms="sampled" does without.'
        )
