"""Leaving out steps whose gradient is not finite or far larger than those before."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from gen_jax import checks
from gen_jax.types import Decay, Size


class SkipState(NamedTuple):
    """What is remembered of the gradients so far."""

    norm: Float[Array, ""]
    """A moving average of the norm, of exploding ones only what was allowed; 0 before the first."""
    seen: Int[Array, ""]
    """How many were finite."""
    skipped: Int[Array, ""]
    """How many were not taken."""
    inner: optax.OptState


@checks.checked
def skip_exploding(
    inner: optax.GradientTransformation,
    *,
    factor: Annotated[float, checks.Range(1, above=True)] | None = 10.0,
    decay: Decay = 0.99,
    warmup: Size = 100,
) -> optax.GradientTransformationExtraArgs:
    """`inner` without the steps whose gradient `g` is not finite or is longer than `factor` times the usual.

        taken_k   <=>  g_k finite and (k < warmup or |g_k| <= factor n_k)
        n_k+1      =   n_k + (1 - decay) (min(|g_k|, factor n_k) - n_k)          for finite g_k

    A skipped step changes neither the parameters nor the state of `inner`. The bound follows the gradients, also those
    that were skipped. If gradients become a thousand times longer and stay so, steps are taken again after
    `log(1000 / factor) / log(1 + (1 - decay) (factor - 1))` of them. With a fixed bound training would stop there without
    a message. Gradients that are not finite are always skipped and do not move the bound; `training.fit` ends a run after
    100 of them in a row. `factor=None` skips only those.

    `optax.apply_if_finite` and `optax.skip_large_updates` do the same with a fixed bound.

    Returns a transformation; how many steps were skipped is `SkipState.skipped`.
    Raises ValueError for `factor <= 1`, or `decay` outside [0, 1).
    Source: the skip of Child 2021, Section 3.2, with a bound that adapts.
    """
    whole = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(jnp.zeros((), jnp.float32), zero, zero, inner.init(params))

    def update(
        grads: PyTree, state: SkipState, params: PyTree = None, **extra: ArrayLike | PyTree
    ) -> tuple[PyTree, SkipState]:
        norm = jnp.asarray(optax.tree.norm(grads), jnp.float32)
        finite = jnp.isfinite(norm)
        limit = (
            jnp.inf
            if factor is None
            else jnp.where(state.seen < max(warmup, 1), jnp.inf, factor * state.norm)
        )
        taken = finite & (norm <= limit)
        weight = jnp.where(finite, jnp.maximum(1 - decay, 1.0 / (1 + state.seen)), 0.0)
        allowed = jnp.where(finite, jnp.minimum(norm, limit), 0.0)
        # zeros in place of a gradient that is not taken: whatever inner makes of them is thrown away
        updates, new = whole.update(_choose(taken, grads, _zeros(grads)), state.inner, params, **extra)
        return _choose(taken, updates, _zeros(updates)), SkipState(
            state.norm + weight * (allowed - state.norm),
            state.seen + finite.astype(jnp.int32),
            state.skipped + (~taken).astype(jnp.int32),
            _choose(taken, new, state.inner),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _choose(taken: Bool[Array, ""], a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(taken, x, y), a, b)


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)
