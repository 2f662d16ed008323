"""At which times a batch trains: draws `u` in [0, 1], which `process.times` maps to times."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gen_jax import checks, keys
from gen_jax.types import Size

TimeSampling: TypeAlias = Callable[[Key[Array, ""], int], Float[Array, "B"]]
"""`(key, n) -> u [n]` in [0, 1]: the training times, as `process.times(u)`."""


@checks.checked
def stratified(key: Key[Array, ""], n: Size) -> Float[Array, "{n}"]:
    """Low-discrepancy draws `u_i = (u_0 + i / B) mod 1`, `B` the global batch (Kingma et al. 2021, App. I.1).

    Each is uniform on [0, 1), and every interval `[j / B, (j + 1) / B)` holds exactly one. The loss varies less
    between batches.
    """
    index, size = keys.example_index(n)
    return jnp.mod(jax.random.uniform(key) + index / size, 1)


@checks.checked
def independent(key: Key[Array, ""], n: Size) -> Float[Array, "{n}"]:
    """Independent uniform draws from [0, 1), one for each example."""
    return jax.vmap(jax.random.uniform)(keys.per_example(key, n))


@checks.checked
def logit_normal(mean: float = 0.0, std: float = 1.0, *, uniform: TimeSampling = stratified) -> TimeSampling:
    """Draws `sigmoid(mean + std z)`, `z ~ N(0, 1)`: more of the batch at middle times (Esser et al. 2024, Eq. 19).

    A positive `mean` favours noisy times, where the content of a picture is decided. The loss is not reweighted: it is
    the expectation over these times. With `u` from `uniform`, `z = ndtri(u)`.
    """
    if not std > 0:
        raise ValueError(
            f"std must be positive, got {std}; 1 is a usual value, and larger is closer to both ends."
        )
    return lambda key, n: jax.nn.sigmoid(mean + std * jax.scipy.special.ndtri(uniform(key, n)))
