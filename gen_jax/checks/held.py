"""What of an array of numpy a device can hold."""

import jax
import numpy as np


def unmasked(name: str, value: np.ndarray) -> None:
    """That an array has no mask, which JAX would not see."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(
            f"{name} must be an array without a mask, got one that hides {np.ma.count_masked(value)} of {value.size} "
            "values: take .compressed() of it, or .filled(number)."
        )


def integers(name: str, value: np.ndarray) -> None:
    """That integers are some that JAX can hold: it would make others of those of 64 bits."""
    if value.dtype.kind not in "iu" or value.dtype.itemsize < 8 or not value.size:
        return
    held = np.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
    for found in (int(value.min()), int(value.max())):
        if not held.min <= found <= held.max:
            raise ValueError(
                f"{name} must be integers from {held.min:,} to {held.max:,}, which JAX holds, got {found:,}: number them "
                "anew (np.unique(return_inverse=True)), or take floats of their distance from the first."
            )


def as_it_is(name: str, value: np.ndarray) -> None:
    """That an array of numpy reaches a device as what it is."""
    unmasked(name, value)
    integers(name, value)
