"""Sampling temperatures of the levels."""

from typing import Annotated, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from gen_jax import checks

Temperature: TypeAlias = Annotated[ArrayLike, checks.Range(0)]
"""Factor of standard deviations, from 0 on."""


def per_level(temperature: Temperature, levels: int | None, count: int) -> Float[Array, "L"]:
    """The temperature of each of `count` levels, the level nearest the data first; 0 below the top `levels`.

    Raises ValueError unless there is one temperature or `count` of them, and `levels` is at most `count`.
    """
    given = jnp.asarray(temperature, jnp.float32)
    if given.shape not in ((), (count,)):
        raise ValueError(
            f"temperature must be one number or {count}, one for each level, got shape {given.shape}."
        )
    drawn = count if levels is None else check_levels(levels, count, least=0)
    return jnp.where(jnp.arange(count) >= count - drawn, given, 0.0)


def check_levels(levels: int, count: int, least: int = 1) -> int:
    """`levels`, checked to be from `least` to `count`."""
    if not least <= levels <= count:
        raise ValueError(
            f"this model has {count} levels: levels must be from {least} to {count}, got {levels}."
        )
    return levels
