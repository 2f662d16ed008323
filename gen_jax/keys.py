"""Random draws that belong to an example, not to a batch: what makes a run the same on 1 and on 8 devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

AXIS = "data"
"""Name of the mesh (and pmap) axis over which a batch is split."""


def example_index(n: int) -> tuple[Int[Array, "{n}"], int]:
    """Where the `n` examples at hand stand in the global batch, and the size of that batch.

    Under `jit` the program sees the whole batch, and this is `(arange(n), n)`. Inside `pmap` or `shard_map` over `AXIS`
    device `d` sees a slice, and this is `(d n + arange(n), n * devices)`.
    """
    try:
        device, devices = jax.lax.axis_index(AXIS), jax.lax.axis_size(AXIS)
    except NameError:  # the axis is not bound: the whole batch is in sight
        return jnp.arange(n), n
    return device * n + jnp.arange(n), devices * n


def per_example(key: Key[Array, ""], n: int, index: Int[Array, "{n}"] | None = None) -> Key[Array, "{n}"]:
    """One key an example: `fold_in(key, i)` for the global index `i` (or for `index`, where given)."""
    index = example_index(n)[0] if index is None else index
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def normal(
    key: Key[Array, ""], shape: tuple[int, ...], index: Int[Array, "n"] | None = None
) -> Float[Array, "n ..."]:
    """Standard normal draws `[n, ...]`; row `i` depends on `key` and its index alone, not on `n` or the devices."""
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:]))(per_example(key, shape[0], index))


def over_devices(mean: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """The mean over the devices' slices of the batch, where there are such (`example_index`)."""
    try:
        return jax.lax.pmean(mean, AXIS)
    except NameError:
        return mean
