"""Running averages of the parameters: how fast each forgets, and one step of them."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from gen_jax import checks, types

__all__ = ["Decay", "gamma_of_width", "power", "warmup"]

Decay = Callable[[Int[Array, ""]], Float[Array, ""]]
"""`step k -> d_k`: the average becomes `d_k ema + (1 - d_k) params_k+1`."""


@checks.checked
def warmup(decay: types.Decay) -> Decay:
    """`d_k = min(decay, (1 + k) / (10 + k))`: a fixed decay that starts lower, to forget the initial parameters.

    Source: TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    return lambda step: jnp.minimum(decay, (1.0 + step) / (10.0 + step))


@checks.checked
def power(gamma: Annotated[float, checks.Range(-1, above=True)]) -> Decay:
    """`d_k = (1 - 1/t)^(gamma + 1)` with `t = k + 1`: the average of all parameters so far with weights `~ t^gamma`.

    Its width grows with the training, and the initial parameters have no weight. Averages of two exponents, stored
    through the training, give that of any other afterwards. With 6.94 it is over a tenth of the training.

    Raises ValueError unless `gamma > -1`. Source: Karras et al. 2024 ("Analyzing and improving the training dynamics of
    diffusion models"), Eq. 8 and Algorithm 1.
    """
    # by logarithms: in float32, 1 - 1/t has lost what the power would need
    return lambda step: jnp.exp((gamma + 1.0) * jnp.log1p(-1.0 / (1.0 + step)))


WIDEST = 12**-0.5


@checks.checked
def gamma_of_width(width: Annotated[float, checks.Range(0, WIDEST, above=True, below=True)]) -> float:
    """The exponent of `power` whose weights have a standard deviation of `width` times the length of the training.

        width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    Raises ValueError unless `0 < width < 0.288`, the width of equal weights, where gamma is 0.
    Source: Karras et al. 2024, Eq. 126 and Algorithm 2.
    """
    t = width**-2
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


def tracks(ema_decay: float | Mapping[str, float | Decay] | None) -> dict[str, Decay]:
    """The decays by name; a number is of the one average without a name, None of no average.

    Raises ValueError for a decay outside [0, 1).
    """
    if isinstance(ema_decay, Mapping):
        check_names(ema_decay)
        named = dict(ema_decay)
    else:
        named = {} if ema_decay is None else {"": ema_decay}
    for decay in named.values():
        if not callable(decay) and not 0.0 <= decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1) or be None (no average), got {decay}")
    return {name: decay if callable(decay) else warmup(decay) for name, decay in named.items()}


def by_name(ema_params: PyTree, params: PyTree) -> dict[str, PyTree]:
    """The averages of a state by name; one like `params` itself has none."""
    if ema_params is None:
        return {}
    like = jax.tree.structure(params)
    one = not isinstance(ema_params, dict) or jax.tree.structure(ema_params) == like  # type: ignore[operator]
    return {"": ema_params} if one else ema_params


def from_names(named: Mapping[str, PyTree]) -> PyTree:
    """Inverse of `by_name`."""
    return named.get("", dict(named)) if named else None


def check_names(names: Collection[str]) -> None:
    """Raise ValueError unless these can name averages: they are names of directories in a checkpoint."""
    if isinstance(names, str) or not names or not all(re.fullmatch(r"[\w-]+", name) for name in names):
        raise ValueError(
            f"ema must have one or more names of averages, of letters, digits, - and _; got {[*names]}"
        )


def start(params: PyTree) -> PyTree:
    """The average before the first step: a copy of `params`, in float32 or better.

    An average in bfloat16 would not move: `(1 - d) (params - ema)` is less than half of its last digit.
    """
    return jax.tree.map(lambda x: jnp.array(x, _dtype(x)), params)


def update(ema_params: PyTree, params: PyTree, step: Int[Array, ""], decay: Decay) -> PyTree:
    """`d ema + (1 - d) params` with `d = decay(step)`, in the dtype of the average."""
    new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), params, ema_params)
    mean = optax.incremental_update(new, ema_params, 1.0 - decay(step))
    return jax.tree.map(lambda x, old: x.astype(old.dtype), mean, ema_params)


def wide(tree: PyTree) -> PyTree:
    """Floating-point arrays in float32 or better; those that are, as they are."""
    return jax.tree.map(lambda x: x if x.dtype == _dtype(x) else x.astype(_dtype(x)), tree)


def like(tree: PyTree, before: PyTree) -> PyTree:
    """Floating-point arrays in the types that they had: a state that was made in bfloat16 stays so."""
    if jax.tree.structure(tree) != jax.tree.structure(before):  # type: ignore[operator]
        return tree

    def leaf(x: Array, old: Array) -> Array:
        dtype = getattr(old, "dtype", None)
        if dtype is None or dtype == x.dtype or not jnp.issubdtype(dtype, jnp.inexact):
            return x
        return x.astype(dtype)

    return jax.tree.map(leaf, tree, before)


def _dtype(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32) if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype
