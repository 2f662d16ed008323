"""A chain of latents, `x - z_1 - z_2 - ... - z_L`, in which each level knows only its neighbours.

    encoder    q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1})          up, from the data
    model      p(x | z_1) p(z_1 | z_2) ... p(z_{L-1} | z_L) p(z_L)   down, to the data

    log p(x) >= E_q[log p(x | z_1)] - sum_l E_q[log q(z_l | z_{l-1}) - log p(z_l | z_{l+1})]

A chain is given by functions, so that networks may stand behind it (`hvae.HVAE`) or nothing but noise
(`hvae.diffusion_chain`). The bound can be estimated in three ways from one draw of the latents; see `elbo`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax.hvae import gaussian
from gen_jax.hvae.gaussian import Gaussian
from gen_jax.types import Terms
from gen_jax.vae import Elbo

Conditional = Callable[[Float[Array, "B ..."]], Gaussian]
"""`z -> N(mean(z), std(z)^2)`."""


class Chain(NamedTuple):
    """A chain of `L` latents, by functions of its neighbours; `z_0 = x`."""

    encode: tuple[Conditional, ...]
    """`L` of them: `z_{l-1} -> q(z_l | z_{l-1})`."""
    decode: tuple[Conditional, ...]
    """`L - 1` of them: `z_{l+1} -> p(z_l | z_{l+1})`."""
    prior: Conditional
    """`z_L -> p(z_L)`, of which it takes no more than the shape."""
    log_likelihood: Callable[[Float[Array, "B ..."], Float[Array, "B ..."]], Float[Array, "B"]]
    """`(z_1, x) -> log p(x | z_1)`."""
    posterior: tuple[Callable[[Float[Array, "B ..."], Float[Array, "B ..."]], Gaussian], ...] = ()
    """`(z_{l+1}, x) -> q(z_l | z_{l+1}, x)` for `l < L`, then `(x, x) -> q(z_L | x)`; where these are known."""


def level_keys(key: Key[Array, ""], levels: int) -> list[Key[Array, ""]]:
    """A key for each level; the key itself where there is one, so that a chain of one level is the VAE."""
    return [key] if levels == 1 else list(jax.random.split(key, levels))


def climb(
    key: Key[Array, ""], chain: Chain, x: Float[Array, "B *x"], *, index: Int[Array, "B"] | None = None
) -> tuple[list[Float[Array, "B ..."]], list[Gaussian]]:
    """Draw `z_1, ..., z_L` from the encoder, one after the other; returns them and the `q(z_l | z_{l-1})`."""
    z, latents, levels = x, [], []
    for k, encode in zip(level_keys(key, len(chain.encode)), chain.encode, strict=True):
        levels.append(encode(z))
        z = gaussian.sample(k, levels[-1], index=index)
        latents.append(z)
    return latents, levels


def elbo(
    key: Key[Array, ""],
    chain: Chain,
    x: Float[Array, "B *x"],
    *,
    terms: Terms = "sampled",
    index: Int[Array, "B"] | None = None,
) -> Elbo:
    """One draw's estimate of a lower bound on `log p(x)`, the term of level `l` in one of three forms.

        "sampled"       log q(z_l | z_{l-1}) - log p(z_l | z_{l+1}),    and KL(q(z_L | z_{L-1}) || p(z_L))
        "neighbours"    KL(q(z_l | z_{l-1}) || p(z_l | z_{l+1})),       and KL(q(z_L | z_{L-1}) || p(z_L))
        "posterior"     KL(q(z_l | z_{l+1}, x) || p(z_l | z_{l+1})),    and KL(q(z_L | x) || p(z_L))

    "sampled" is unbiased for the bound (the module's formula), which is `log p(x)` where the encoder is the model's
    posterior. "posterior" is unbiased for the same bound, and varies less, but needs the encoder backwards: that of a
    diffusion model is known (Ho et al. 2020, Eq. 5).

    "neighbours" is the book's. It takes `z_{l+1}` for given in a term that averages over `z_l`, though `z_{l+1}` was
    drawn from it. In the mean that is a bound as well, but a lower one: already for two levels it is below the bound of
    an encoder `q(z_1 | x) q(z_2 | x)` by the mutual information `I(z_1; z_2 | x)`, so no encoder makes it tight
    unless the levels are independent given `x`. It pays for each level as if it were the only one.

    With one level all three are the ELBO of a VAE.

    Args:
        key: of the noise; example `i` gets noise of its own (`gen_jax.keys`).
        chain: the functions.
        x: data `[B, ...]`.
        terms: the form.
        index: numbers of the examples, `0..B-1` by default.

    Raises:
        ValueError: unknown `terms`, a chain without a level or of the wrong number of functions, or "posterior" of a
            chain that does not have one.
    """
    check(chain, terms)
    latents, encoded = climb(key, chain, x, index=index)
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
    key: Key[Array, ""], chain: Chain, x: Float[Array, "B *x"], *, index: Int[Array, "B"] | None = None
) -> Float[Array, "B"]:
    """`log p(x, z_1, ..., z_L) - log q(z_1, ..., z_L | x)` at one draw: its exponential has the mean `p(x)`."""
    check(chain, "sampled")
    latents, encoded = climb(key, chain, x, index=index)
    decoded = [decode(z) for decode, z in zip(chain.decode, latents[1:], strict=True)]
    decoded.append(chain.prior(latents[-1]))
    weight = chain.log_likelihood(latents[0], x)
    for q, p, z in zip(encoded, decoded, latents, strict=True):
        weight += gaussian.log_prob(p, z) - gaussian.log_prob(q, z)
    return weight


def check(chain: Chain, terms: str) -> None:
    """Raise ValueError for what does not fit together."""
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
