"""`log p(x)` from many draws of the latents, each weighed by `w = p(x, z) / q(z | x)`, whose mean is `p(x)`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import keys

LogWeight = Callable[[Key[Array, ""]], Float[Array, "B"]]
"""`key -> log w` of each example, at one draw."""


def iwae(
    log_weight: LogWeight, key: Key[Array, ""], num_samples: int, *, at_once: int | None = None
) -> Float[Array, "B"]:
    """`log 1/k sum_s w_s`, in the mean a bound that rises to `log p(x)` with `k` (Burda et al. 2016, Eq. 8).

    Draw `s` is that of `fold_in(key, s)`, however many there are. `at_once` of them are made at a time (default: all),
    and made again for the gradient.

    Raises ValueError where either is not at least 1.
    """
    size = num_samples if at_once is None else min(at_once, num_samples)
    if size < 1:
        raise ValueError(f"num_samples and at_once must be at least 1, got {num_samples} and {at_once}.")

    def part(start: Int[Array, ""] | int) -> Float[Array, "B"]:
        samples = start + jnp.arange(size)
        log_w = jax.vmap(lambda s: log_weight(jax.random.fold_in(key, s)))(samples)
        return jax.nn.logsumexp(jnp.where((samples < num_samples)[:, None], log_w, -jnp.inf), axis=0)

    if size == num_samples:
        return part(0) - math.log(num_samples)
    part = jax.checkpoint(part)
    add = lambda total, start: (jnp.logaddexp(total, part(start)), None)
    total, _ = jax.lax.scan(add, part(0), jnp.arange(size, num_samples, size))
    return total - math.log(num_samples)


def in_turns(
    log_prob: Callable[[Float[Array, "b *x"], Int[Array, "b"]], Float[Array, "b"]],
    x: Float[Array, "B *x"],
    size: int,
    index: Int[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """`log_prob(x, index)` of `size` examples at a time; each turn takes them from all over, so from every device."""
    count = len(x)
    size = min(count, size)
    turns = -(-count // size)
    index = keys.example_index(count)[0] if index is None else index

    def deal(a: Array) -> Array:
        a = jnp.concatenate([a, jnp.broadcast_to(a[:1], (turns * size - count, *a.shape[1:]))])
        return a.reshape(size, turns, *a.shape[1:]).swapaxes(0, 1)

    values = jax.lax.map(lambda dealt: log_prob(*dealt), (deal(x), deal(index)))
    return values.swapaxes(0, 1).reshape(-1)[:count]
