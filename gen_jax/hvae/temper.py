"""Temperatures of the levels when a sample is drawn."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


def each(temperature: ArrayLike, levels: int | None, count: int) -> Float[Array, "L"]:
    """A temperature for each of `count` levels, that nearest the data first; 0 below the top `levels`.

    Raises ValueError for a number of temperatures that is neither one nor that of the levels, or for `levels` that there
    are not.
    """
    given = jnp.asarray(temperature, jnp.float32)
    if given.shape not in ((), (count,)):
        raise ValueError(f"expected one temperature or {count}, one a level, got shape {given.shape}.")
    drawn = count if levels is None else check_levels(levels, count, least=0)
    return jnp.where(jnp.arange(count) >= count - drawn, given, 0.0)


def check_levels(levels: int, count: int, least: int = 1) -> int:
    """`levels`, if there are that many, else ValueError."""
    if not least <= levels <= count:
        raise ValueError(
            f"this model has {count} levels: levels must be from {least} to {count}, got {levels}."
        )
    return levels
