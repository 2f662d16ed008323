"""Rows of data for a fit: checked, and centred on the host where JAX's floats would round them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def checked_rows(x: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array, np.ndarray | None]:
    """Data and weights, as floats of one type, and what was subtracted from each row, in float64 on the host.

    That is the mean of rows that have more digits than JAX's floats, else None. Raises ValueError if a fit cannot use
    them; the values of traced arrays are not checked.
    """
    weights = np.ones(jnp.shape(x)[0]) if weights is None else weights
    if jnp.shape(weights) != jnp.shape(x)[:1]:
        raise ValueError(
            f"Expected one weight for each of {jnp.shape(x)[0]} rows, got weights of shape {jnp.shape(weights)}."
        )
    if not isinstance(x, jax.core.Tracer) and not isinstance(weights, jax.core.Tracer):
        for name, rows in (("x", np.asarray(x)), ("weights", np.asarray(weights))):
            bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(1))
            if len(bad):
                shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
                raise ValueError(
                    f"{name} has NaN or infinite values in {len(bad)} of {len(rows)} rows: {shown}. "
                    "Remove or mend them."
                )
        check_weights(np.asarray(weights))
        check_spread(np.asarray(x), too_large=True)
    x, offset = (x, None) if isinstance(x, jax.Array) else _centred(np.asarray(x))
    x = jnp.asarray(x)
    x = as_float(x) if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.result_type(float))
    return x, jnp.asarray(weights, x.dtype), offset


def as_float(x: Array) -> Array:
    """Numbers in float32 or better: sums and factorisations of 16 bits are none, or not there at all."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_weights(weights: np.ndarray) -> None:
    """ValueError, which says what came, unless weights are not negative and one is positive."""
    bad = np.flatnonzero(~(weights >= 0))
    if len(bad):
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(
            f"weights must not be negative, got {weights[bad[0]]:g} in {len(bad)} of {len(weights)} rows: {shown}. "
            "Leave a row out by the weight 0."
        )
    if not (weights > 0).any():
        raise ValueError(
            f"weights must not be negative, and at least one must be positive: got {len(weights)} of them, all 0."
        )


def check_spread(x: np.ndarray, *, too_large: bool = False) -> None:
    """ValueError where the squares of differences between rows are too small for JAX's floats, or `too_large`."""
    own = jax.dtypes.canonicalize_dtype(x.dtype)
    floats = jnp.issubdtype(own, jnp.floating)
    kind = jnp.finfo(jnp.promote_types(own, jnp.float32) if floats else jnp.result_type(float))
    with np.errstate(over="ignore"):
        spread = np.ptp(x.astype(np.float64), axis=0).reshape(-1)
        squares = np.square(spread)
        small = (spread > 0) & (squares < float(kind.tiny) * len(x))
        bad = squares * len(x) > float(kind.max) if too_large else small
    where = np.flatnonzero(bad)
    if len(where):
        what = "x" if x.ndim == 1 else f"column {where[0]} of x"
        raise ValueError(
            f"{what} spans {spread[where[0]]:.3g}, of which {kind.dtype} has no square: its variance would be "
            f"{'infinite' if too_large else '0'}. Scale x, to numbers near 1."
        )


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows without their mean, and the mean, where JAX's floats would round them."""
    exact = x.dtype.kind not in "fiu" or x.dtype.itemsize < 4 or x.dtype == np.float32
    if exact or jnp.result_type(float) == jnp.float64:
        return x, None
    x = x.astype(np.float64)
    mean = np.asarray(x.mean(0))
    return x - mean, mean


def moved(mean: Array, offset: np.ndarray | None) -> Array:
    """`mean + offset`, in float64 where it is known: the inverse of what `checked_rows` subtracts."""
    if offset is None:
        return mean
    if isinstance(mean, jax.core.Tracer):
        return mean + jnp.asarray(offset, mean.dtype)
    return jnp.asarray(np.asarray(mean, np.float64) + offset, mean.dtype)
