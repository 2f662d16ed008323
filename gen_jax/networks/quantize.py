"""Latents of finitely many values: vectors of a codebook that is learned (VQ), or points of a fixed grid (FSQ).

Both return vectors and the indices of the codes, and pass gradients straight through: `d z_q / d z` is the identity.

    book = quantize.create(key, num_codes=512, features=4)
    indices = quantize.nearest(quantize.codes(book), z)                 # z [..., D] -> int32 [...]
    z_q = quantize.straight_through(z, quantize.codes(book)[indices])
    book = quantize.update(key, book, z, indices)                       # moving averages, dead codes restarted

    z_q, indices = quantize.fsq(z, levels=(8, 5, 5, 5))                 # 1000 codes, nothing to learn

A codebook is a tree of arrays, and `update` a function from one to the next. `follow` is a loss whose gradient is the
difference of the two: where a codebook is among the parameters that `training.make_step` trains, plain gradient descent
with a rate of 1 takes it exactly there.
"""

from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gen_jax import checks, keys
from gen_jax.types import Count, Fraction

__all__ = [
    "Codebook",
    "codes",
    "create",
    "follow",
    "fsq",
    "fsq_codes",
    "nearest",
    "perplexity",
    "straight_through",
    "update",
    "usage",
]


Levels: TypeAlias = tuple[Annotated[int, checks.Range(3)], ...]
"""How many values each channel has, at least 3."""


class Codebook(NamedTuple):
    """Moving averages of which code is `sums / counts` (van den Oord et al. 2017, Eq. 8)."""

    counts: Annotated[Float[Array, "K"], checks.Range(0)]
    """Share of the vectors that fell on each code; they sum to 1."""
    sums: Float[Array, "K D"]
    """Sum of the vectors that fell on each code, divided by the number of all vectors."""


@checks.checked
def create(key: Key[Array, ""], num_codes: Annotated[int, checks.Range(2)], features: Count) -> Codebook:
    """`num_codes` standard normal codes of `features` numbers, all of them in equal use."""
    draws = jax.random.normal(key, (num_codes, features))
    return Codebook(jnp.full(num_codes, 1 / num_codes), draws / num_codes)


@checks.checked
def codes(book: Codebook) -> Float[Array, "K D"]:
    """The codes, `sums / counts`."""
    return book.sums / jnp.maximum(book.counts, jnp.finfo(book.counts.dtype).tiny)[:, None]


@checks.checked
def nearest(codes: Float[Array, "K D"], z: Float[Array, "*n D"]) -> Int[Array, "*n"]:
    """Index of the code at the least Euclidean distance from each vector (van den Oord et al. 2017, Eq. 1)."""
    checks.some("codes", codes, "code")
    product = jnp.einsum("...d,kd->...k", z, codes, precision="highest")
    half = jnp.square(codes).sum(1) / 2  # |z - c|^2 / 2 without |z|^2 / 2, which is the same for all codes
    return jnp.argmax(product - jnp.expand_dims(half, tuple(range(z.ndim - 1))), axis=-1).astype(jnp.int32)


@checks.checked
def straight_through(z: Float[Array, "*n"], z_q: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`z_q`, with the gradient of `z` (Bengio et al. 2013, Section 4)."""
    # not z + stop_gradient(z_q - z), whose rounding error would move the codes
    return _straight(z, jax.lax.stop_gradient(z_q))


@jax.custom_jvp
def _straight(z: Array, z_q: Array) -> Array:
    return z_q


_straight.defjvps(lambda tangent, out, z, z_q: tangent, None)


@checks.checked
def update(
    key: Key[Array, ""],
    book: Codebook,
    z: Float[Array, "*n D"],
    indices: Int[Array, "*n"],
    *,
    decay: Annotated[float, checks.Range(0, 1, below=True)] = 0.99,
    dead: Fraction = 0.03,
) -> Codebook:
    """The codebook after a batch: a step of the moving averages, then a restart of the codes that are hardly used.

        counts_k <- decay counts_k + (1 - decay) mean_n [i_n = k]                       van den Oord et al. 2017, Eq. 6
        sums_k   <- decay sums_k + (1 - decay) mean_n [i_n = k] z_n                                               Eq. 7

    With `decay = 0` a code is the mean of its vectors: an iteration of k-means.

    Args:
        key: of the restarts.
        book: before the batch.
        z: vectors of the batch.
        indices: of their codes, by `nearest`.
        decay: of the averages, in [0, 1).
        dead: a code with less than `dead / K` of the vectors becomes a vector of the batch, drawn at random, in average
            use (Dhariwal et al. 2020, Section 3.1); 0 restarts none.

    Raises:
        ValueError: `decay` is outside [0, 1), or `dead` outside [0, 1]; an index of no code; no vectors.
    """
    checks.some("z", z, "vector")
    checks.within("indices", indices, 0, len(book.counts) - 1)
    rows, num = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), len(book.counts)
    one_hot = jax.nn.one_hot(indices.reshape(-1), num, dtype=rows.dtype) / len(rows)
    sums = jnp.einsum("nk,nd->kd", one_hot, rows, precision="highest")
    counts, sums = (keys.mean_over_devices(a) for a in (one_hot.sum(0), sums))
    mix = lambda old, new: decay * old + (1 - decay) * new
    moved = Codebook(mix(book.counts, counts), mix(book.sums, sums))
    if not dead:
        return moved
    fresh = _draw_rows(key, rows, num)
    gone = moved.counts < dead / num
    counts = jnp.where(gone, 1 / num, moved.counts)
    sums = jnp.where(gone[:, None], fresh / num, moved.sums)
    total = counts.sum()
    return Codebook(counts / total, sums / total)


def _draw_rows(key: Key[Array, ""], rows: Float[Array, "n D"], num: int) -> Float[Array, "{num} D"]:
    """`num` rows drawn from those of all devices, the same on each of them."""
    index, total = keys.example_index(len(rows))
    place = jax.random.randint(key, (num,), 0, total) - index[0]
    here = (place >= 0) & (place < len(rows))
    mine = jnp.where(here[:, None], rows[jnp.clip(place, 0, len(rows) - 1)], 0)
    return keys.mean_over_devices(mine) * (total // len(rows))


@checks.checked
def follow(book: Codebook, new: Codebook) -> Float[Array, ""]:
    """A scalar whose gradient with respect to `book` is `book - new`; its value is 0.

    Gradient descent with a rate of 1, `optax.sgd(1.0)`, then makes `new` of `book`. A mean of such gradients over devices
    or microbatches makes the mean of the `new`.
    """
    book_now, new = jax.lax.stop_gradient((book, new))
    terms = jax.tree.map(lambda b, b0, n: jnp.vdot(b - b0, b0 - n), book, book_now, new)
    return terms.counts + terms.sums


@checks.checked
def usage(indices: Int[Array, "..."], num_codes: Count) -> Float[Array, "K"]:
    """Share of each code among the indices. ValueError for an index of no code, or for none."""
    checks.some("indices", indices, "index")
    checks.within("indices", indices, 0, num_codes - 1)
    flat = indices.reshape(-1)
    return jnp.zeros(num_codes).at[flat].add(1.0) / flat.size


@checks.checked
def perplexity(usage: Annotated[Float[Array, "K"], checks.Probabilities()]) -> Float[Array, ""]:
    """`exp(-sum_k p_k log p_k)`: the number of codes in use, if all were used equally often."""
    return jnp.exp(-(usage * jnp.log(jnp.where(usage > 0, usage, 1))).sum())


@checks.checked
def fsq(z: Float[Array, "*n D"], levels: Levels) -> tuple[Float[Array, "*n D"], Int[Array, "*n"]]:
    """Each number of `z` rounded to one of `levels[d]` values, evenly spaced in [-1, 1], and the index of the code.

    A number is bounded by a hyperbolic tangent before it is rounded, with straight-through gradients of the rounding:

        y = h tanh(z + atanh(o / h)) - o,     z_q = round(y) / floor(L / 2)

    with `h = (L - 1) (1 + 1e-3) / 2`, and `o = 1/2` for an even `L`, 0 for an odd one. The index has the numbers as
    digits, the first of them the lowest. Source: Mentzer et al. 2023, Section 3.1 and Appendix A.

    Raises:
        ValueError: a level below 3 (the authors advise at least 5), or another number of levels than `D`.
    """
    _check_levels(levels)
    if z.shape[-1] != len(levels):
        raise ValueError(f"levels must be one for each of {z.shape[-1]} channels of z, got {levels}.")
    lead = tuple(range(z.ndim - 1))
    wide = lambda a: jnp.expand_dims(jnp.asarray(a, z.dtype), lead)
    size = np.asarray(levels)
    half, offset = (size - 1) * (1 + 1e-3) / 2, np.where(size % 2 == 0, 0.5, 0.0)
    y = wide(half) * jnp.tanh(z + wide(np.arctanh(offset / half))) - wide(offset)
    whole = jnp.round(y)
    digits = whole.astype(jnp.int32) + jnp.expand_dims(jnp.asarray(size // 2, jnp.int32), lead)
    place = jnp.expand_dims(jnp.asarray(_places(levels), jnp.int32), lead)
    return straight_through(y, whole) / wide(size // 2), (digits * place).sum(-1)


@checks.checked
def fsq_codes(levels: Levels) -> Float[np.ndarray, "K D"]:
    """All codes of `fsq`, in the order of their indices."""
    _check_levels(levels)
    size = np.asarray(levels)
    digits = np.arange(np.prod(size))[:, None] // _places(levels) % size
    found: np.ndarray = ((digits - size // 2) / (size // 2)).astype(np.float32)
    return found


def _places(levels: tuple[int, ...]) -> Int[np.ndarray, "D"]:
    """Value of each digit of an index."""
    return np.cumprod((1, *levels[:-1]))


def _check_levels(levels: Levels) -> None:
    if not levels:
        raise ValueError(f"levels must be at least one number, such as (8, 5, 5, 5), got {levels}.")
