"""Importance sampling of `log p(x)`: draws of the latents with weights `w = p(x, z) / q(z | x)`, whose mean is `p(x)`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import keys

LogWeight = Callable[[Key[Array, ""]], Float[Array, "B"]]
"""`key -> log w` of each example, for one draw."""


def iwae(
    log_weight: LogWeight, key: Key[Array, ""], num_samples: int, *, sample_chunk: int | None = None
) -> Float[Array, "B"]:
    """`log 1/k sum_s w_s`, whose mean is a lower bound that rises to `log p(x)` with `k` (Burda et al. 2016, Eq. 8).

    Draw `s` has the key `fold_in(key, s)`, whatever their number. They are made `sample_chunk` at a time (default: all at
    once), and recomputed for the gradient.

    Raises ValueError unless `num_samples` and `sample_chunk` are at least 1.
    """
    size = num_samples if sample_chunk is None else min(sample_chunk, num_samples)
    if size < 1:
        raise ValueError(
            f"num_samples and sample_chunk must be at least 1, got {num_samples} and {sample_chunk}."
        )

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


def in_chunks(
    log_prob: Callable[[Float[Array, "b *x"], Int[Array, "b"]], Float[Array, "b"]],
    x: Float[Array, "B *x"],
    size: int,
    index: Int[Array, "B"] | None = None,
) -> Float[Array, "B"]:
    """`log_prob(x, index)`, `size` examples at a time.

    Each chunk takes examples at even distances, so that every device has some of them.
    """
    count = len(x)
    if not count:
        return jnp.zeros(0)
    size = min(count, size)
    chunks = -(-count // size)
    index = keys.example_index(count)[0] if index is None else index

    def split(a: Array) -> Array:
        a = jnp.concatenate([a, jnp.broadcast_to(a[:1], (chunks * size - count, *a.shape[1:]))])
        return a.reshape(size, chunks, *a.shape[1:]).swapaxes(0, 1)

    values = jax.lax.map(lambda chunk: log_prob(*chunk), (split(x), split(index)))
    return values.swapaxes(0, 1).reshape(-1)[:count]
