"""Asking a denoiser or a network, whose answer has to look like what it was given."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from gen_jax.diffusion.process import Times


def ask(denoise: Callable[[PyTree, Times], PyTree], x_t: PyTree, t: Times) -> PyTree:
    """`denoise(x_t, t)`, which is to look like `x_t`.

    ValueError if it does not; and for a network in the place of a denoiser, which takes one `t` for each row.
    """
    try:
        x0_hat = denoise(x_t, t)
    except Exception as error:
        each = jnp.broadcast_to(jnp.asarray(t), (jax.tree.leaves(x_t)[0].shape[0],))
        if _works(denoise, x_t, t) or not _works(denoise, x_t, each):
            raise
        raise ValueError(
            "denoise must take one t of all samples, but it can not, and takes t [B]: it is a network, which says eps, v "
            "or the like. Make a denoiser of it, prediction.as_denoiser(network, process, predicts=...). With a scalar "
            f"t it raises {type(error).__name__}: {str(error)[:200]}"
        ) from error
    check_like(x0_hat, x_t, "the denoiser")
    return x0_hat


def _works(network: Callable[[PyTree, Times], PyTree], x_t: PyTree, t: Times) -> bool:
    """Whether it returns anything."""
    try:
        jax.eval_shape(lambda: network(x_t, t))
    except Exception:
        return False
    return True


def check_like(y: PyTree, x: PyTree, who: str) -> None:
    """Raises a ValueError unless `y`, which `who` returned, is floating and has the structure and shape of `x`."""
    got_tree, want_tree = str(jax.tree.structure(y)), str(jax.tree.structure(x))
    if got_tree != want_tree:
        raise ValueError(f"{who} must return what it is given, a pytree {want_tree}; it returned {got_tree}.")
    for got, want in zip(jax.tree.leaves(y), jax.tree.leaves(x), strict=True):
        if jnp.shape(got) != jnp.shape(want):
            raise ValueError(
                f"{who} must return the shape of x_t, {jnp.shape(want)}; it returned {jnp.shape(got)}. "
                "If it has more channels (a learned variance, say), return those of the prediction alone."
            )
        if not jnp.issubdtype(jnp.result_type(got), jnp.floating):
            raise ValueError(
                f"{who} must return floating-point numbers, like x_t ({want.dtype}); "
                f"it returned {jnp.result_type(got)}."
            )


def check_pair(output: PyTree) -> tuple[PyTree, PyTree]:
    """Raises a ValueError unless a network returned `(y, v)`."""
    if not isinstance(output, tuple) or len(output) != 2:
        raise ValueError(
            f"the network must return a pair (y, v), got {type(output).__name__}; "
            "variance.split makes one of twice the channels."
        )
    return output


def check_batch(condition: PyTree, x_t: PyTree) -> None:
    """ValueError unless there are as many conditions as samples."""
    batch = jax.tree.leaves(x_t)[0].shape[0]
    for leaf in jax.tree.leaves(condition):
        if jnp.shape(leaf)[:1] != (batch,):
            raise ValueError(
                f"condition must be one for each of the {batch} samples, arrays [{batch}, ...]; got the shape "
                f"{jnp.shape(leaf)}. Repeat one for all of them with jnp.broadcast_to."
            )
