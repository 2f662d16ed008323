"""Random draws that depend on the example, not on the batch, so that a run is the same on 1 and on 8 devices.

They are Threefry's whatever the key: the generators "rbg" and "unsafe_rbg", usual on TPUs, draw the numbers of a batch in
one piece, so that an example's would depend on the batch (`jax.random`, "Advanced RNG configuration").
"""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gen_jax import checks, rows

AXIS = "data"
"""Name of the mesh (and pmap) axis over which a batch is split."""
AXES = ("replica", AXIS, "fsdp")
"""Names of all axes over which a batch is split, outermost first (`training.make_mesh`)."""


@checks.checked
def example_index(n: int) -> tuple[Int[Array, "{n}"], int]:
    """Indices of the local `n` examples in the global batch, and the size of the global batch.

    Under `jit` the program sees the whole batch: `(arange(n), n)`. Inside `pmap` or `shard_map` over some of `AXES`,
    device `d` sees a slice: `(d n + arange(n), n * devices)`.
    """
    if not (axes := _bound()):
        return jnp.arange(n), n
    return jax.lax.axis_index(axes) * n + jnp.arange(n), jax.lax.axis_size(axes) * n


def _bound() -> tuple[str, ...]:
    """Those of `AXES` of which this is a part; none where it is the whole batch."""
    found = []
    for name in AXES:
        with contextlib.suppress(NameError):
            jax.lax.axis_size(name)
            found.append(name)
    return tuple(found)


@checks.checked
def per_example(
    key: Key[Array, ""], n: int, index: Int[Array | np.ndarray, "{n}"] | None = None
) -> Key[Array, "{n}"]:
    """One key per example: `fold_in(key, i)` for its global index `i` (or for `index`, if given).

    ValueError for a key of the old style, `jax.random.PRNGKey`.
    """
    checks.one_key(key)
    numbers = example_index(n)[0] if index is None else jnp.asarray(index)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(threefry(key), numbers)


@checks.checked
def threefry(key: Key[Array, ""]) -> Key[Array, ""]:
    """A key of the generator "threefry2x32", whose draws depend on the key alone also under `vmap`; made of any key."""
    if jax.random.key_impl(key) == "threefry2x32":
        return key
    data = jax.random.key_data(key).ravel()
    made: Array = jax.random.wrap_key_data(data[:2], impl="threefry2x32")
    for part in data[2:]:
        made = jax.random.fold_in(made, part)
    return made


@checks.checked
def normal(
    key: Key[Array, ""], shape: tuple[int, ...], index: Int[Array | np.ndarray, "n"] | None = None
) -> Float[Array, "n ..."]:
    """Standard normal draws `[n, ...]`; row `i` depends only on `key` and its index, not on `n` or the devices."""
    if index is not None:
        checks.of_shape("index", index, (shape[0],))
    d = math.prod(shape[1:])
    if not shape[0]:
        return jnp.zeros(shape)
    draws = jax.vmap(lambda k: jax.random.normal(k, (rows.width(d),)))(per_example(key, shape[0], index))
    return rows.narrow(draws, d).reshape(shape)


@checks.checked
def mean_over_devices(mean: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """The mean over all devices, if each sees a slice of the batch (`example_index`); otherwise `mean` itself."""
    axes = _bound()
    averaged: Array = jax.lax.pmean(mean, axes) if axes else mean
    return averaged
