"""Arithmetic on rows `[n, d]` whose result does not depend on how many rows there are, to the last bit.

On a CPU, XLA compiles a loop over `n d` numbers to vector instructions, and to scalar ones for the numbers left at its
end. The two may round differently: one multiplies and adds at once, or takes another polynomial. Which numbers are left
over depends on `n`. Rows of whole vectors leave none over, so arithmetic on rows is done like this:

    wide = rows.widen(x)                    # [n, w], zeros behind, w a multiple of LANES
    x = rows.narrow(f(wide), x.shape[1])    # [n, d]

Rows that are whole vectors already, such as images of 28 x 28 or 32 x 32 x 3, stay as they are.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

LANES = 16
"""Numbers of float32 in the widest vector of a CPU."""


def flat(x: Shaped[Array, "n ..."]) -> Shaped[Array, "n d"]:
    """`[n, ...]` as rows, of no examples too, where `reshape(n, -1)` is an error.

    On a CPU, XLA vectorises loops only along a long last axis, and sums over it 60 times as fast as over several.
    """
    return x.reshape(len(x), math.prod(x.shape[1:]))


def width(d: int) -> int:
    """The least multiple of `LANES` that is at least `d`."""
    return -(-d // LANES) * LANES


def widen(x: Shaped[Array, "n d"]) -> Shaped[Array, "n w"]:
    """Rows with zeros behind, of `width(d)` numbers."""
    d = x.shape[1]
    if d == width(d):
        return x
    # the barriers keep XLA from leaving out what is cut off later
    wide: Array = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (0, width(d) - d))))
    return wide


def narrow(x: Shaped[Array, "n w"], d: int) -> Shaped[Array, "n d"]:
    """The first `d` numbers of every row: the inverse of `widen`."""
    if d == x.shape[1]:
        return x
    wide: Array = jax.lax.optimization_barrier(x)
    return wide[:, :d]
