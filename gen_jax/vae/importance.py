"""Means over draws and over examples, in parts of bounded memory."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


def mean_weight(
    log_weights: Callable[[Int[Array, "s"]], Float[Array, "s B"]], num_samples: int, size: int
) -> Float[Array, "B"]:
    """`log 1/k sum_s w_s` over `k = num_samples` draws, given `log w` of draws by their numbers.

    `size` draws are made at a time. Where that is not all of them, they are made again for the gradient.
    """

    def part(start: Int[Array, ""] | int) -> Float[Array, "B"]:
        samples = start + jnp.arange(size)
        log_w = jnp.where((samples < num_samples)[:, None], log_weights(samples), -jnp.inf)
        return jax.nn.logsumexp(log_w, axis=0)

    if size >= num_samples:
        return part(0) - math.log(num_samples)
    part = jax.checkpoint(part)
    add = lambda total, start: (jnp.logaddexp(total, part(start)), None)
    total, _ = jax.lax.scan(add, part(0), jnp.arange(size, num_samples, size))
    return total - math.log(num_samples)


def in_chunks(
    log_prob: Callable[..., Float[Array, "b"]], size: int, x: Float[Array, "B *x"], *more: PyTree
) -> Float[Array, "B"]:
    """`log_prob(x, *more)`, `size` examples at a time; `more` are pytrees of arrays `[B, ...]`.

    Each chunk takes examples at even distances, so that every device has some of them.
    """
    count = len(x)
    size = min(count, size)
    chunks = -(-count // size)

    def split(a: Array) -> Array:
        a = jnp.concatenate([a, jnp.broadcast_to(a[:1], (chunks * size - count, *a.shape[1:]))])
        return a.reshape(size, chunks, *a.shape[1:]).swapaxes(0, 1)

    values = jax.lax.map(lambda chunk: log_prob(*chunk), jax.tree.map(split, (x, *more)))
    return values.swapaxes(0, 1).reshape(-1)[:count]
