"""Random draws that depend on the example, not on the batch, so that a run is the same on 1 and on 8 devices."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from gen_jax import rows

AXIS = "data"
"""Name of the mesh (and pmap) axis over which a batch is split."""


def example_index(n: int) -> tuple[Int[Array, "{n}"], int]:
    """Indices of the local `n` examples in the global batch, and the size of the global batch.

    Under `jit` the program sees the whole batch: `(arange(n), n)`. Inside `pmap` or `shard_map` over `AXIS`, device
    `d` sees a slice: `(d n + arange(n), n * devices)`.
    """
    try:
        device, devices = jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS)
    except NameError:  # the axis is not bound: this is the whole batch
        return jnp.arange(n), n
    return device * n + jnp.arange(n), devices * n


def per_example(key: Key[Array, ""], n: int, index: Int[Array, "{n}"] | None = None) -> Key[Array, "{n}"]:
    """One key per example: `fold_in(key, i)` for its global index `i` (or for `index`, if given)."""
    index = example_index(n)[0] if index is None else index
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def normal(
    key: Key[Array, ""], shape: tuple[int, ...], index: Int[Array, "n"] | None = None
) -> Float[Array, "n ..."]:
    """Standard normal draws `[n, ...]`; row `i` depends only on `key` and its index, not on `n` or the devices."""
    d = math.prod(shape[1:])
    draws = jax.vmap(lambda k: jax.random.normal(k, (rows.width(d),)))(per_example(key, shape[0], index))
    return rows.narrow(draws, d).reshape(shape)


def mean_over_devices(mean: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """The mean over all devices, if each sees a slice of the batch (`example_index`); otherwise `mean` itself."""
    try:
        averaged: Array = jax.lax.pmean(mean, AXIS)
    except NameError:
        return mean
    return averaged
