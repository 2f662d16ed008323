"""Types of numbers as configurations keep them: by their names, so that they are hashable and have a JSON form."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from gen_jax import checks


@checks.checked
def float_name(field: str, dtype: DTypeLike) -> str:
    """The name of a floating-point type, such as "bfloat16". ValueError, which names the `field`, for anything else."""
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f'{field} must be a floating-point type such as "bfloat16", got {dtype!r}.')
    return found.name


def keep_names(config: object) -> None:
    """Replace the `dtype` and the `param_dtype` of a frozen dataclass, which calls this in `__post_init__`, by names."""
    for field in ("dtype", "param_dtype"):
        object.__setattr__(config, field, float_name(field, getattr(config, field)))
