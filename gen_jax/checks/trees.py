"""Checks of trees of arrays, such as the parameters of a network."""

import jax
import numpy as np
from jaxtyping import PyTree

from gen_jax.checks.call import Call
from gen_jax.checks.rules import dtype_kind
from gen_jax.checks.values import Range, Value
from gen_jax.checks.words import came


def tree(name: str, value: Value) -> None:
    """That a value is a tree with arrays in it, as parameters are, and that none of them is known to have NaN."""
    leaves = jax.tree.leaves(value)
    if value is None or (leaves and not hasattr(leaves[0], "dtype")):
        raise ValueError(f"{name} must be a tree of arrays, as parameters are, got {came(value)}.")
    finite_tree(name, value)


def finite_tree(name: str, value: PyTree) -> None:
    """That no array of a tree is known to have NaN or infinite values; the message names the first that has.

    Arrays of JAX are looked at once in their life, those of other devices by one read.
    """
    call = Call()
    try:
        for path, leaf in jax.tree.leaves_with_path(value):
            if _is_known(leaf):
                call.ask(f"{name}{jax.tree_util.keystr(path)}", leaf, Range())
        call.read()
    except ValueError as error:
        raise ValueError(
            f"{error} The training diverged, or a file is damaged: take an earlier checkpoint, or the file anew."
        ) from None


def _is_known(leaf: Value) -> bool:
    """Whether it is an array of floats that this process can read."""
    if not hasattr(leaf, "dtype") or isinstance(leaf, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        return False
    return dtype_kind(leaf) == "f" and np.size(leaf) > 0 and getattr(leaf, "is_fully_addressable", True)
