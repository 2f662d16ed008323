"""Whether trees of parameters are those of a model."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from gen_jax import checks
from gen_jax.model import Model, Network

Shapes = dict[str, tuple[int, ...]]
"""Of the arrays of a tree, by their place in it."""


def check(model: Model, weights: object, guide_model: Model | None = None) -> None:
    """ValueError unless `weights` are a dict of trees, of the networks that the models describe.

    Args:
        model: of the tree "network", and of "text" where that is learned too.
        weights: what came.
        guide_model: of the tree "guide", where there is one; by default `model`.
    """
    trees, hint = named(weights), "Take model and weights of one pretrained.load."
    learned = _learned(model, trees)
    check_tree(model, learned, "weights" if learned is not trees["network"] else 'weights["network"]', hint)
    if "guide" in trees:
        check_tree(guide_model or model, trees["guide"], 'weights["guide"]', hint)


def _learned(model: Model, trees: Mapping[str, PyTree]) -> PyTree:
    """The tree that was trained, as `model.init` makes it."""
    parts = model.parts({"network": None, "text": None})
    if missing := sorted(set(parts) - set(trees)):
        raise ValueError(
            f"weights have no {' and no '.join(map(repr, missing))}, which this model needs; got {checks.came(trees)}."
        )
    return trees["network"] if set(parts) == {"network"} else {name: trees[name] for name in parts}


def named(weights: object) -> Mapping[str, PyTree]:
    """`weights` as they came; ValueError unless they are a dict with "network"."""
    if isinstance(weights, Mapping) and "network" in weights:
        return weights
    raise ValueError(
        'weights must be a dict of trees by name, with the parameters of the network as "network"; got '
        f'{checks.came(weights)}. Of a tree of parameters alone make {{"network": params}}; pretrained.load returns such '
        "a dict."
    )


def check_tree(model: Model, params: PyTree, what: str, hint: str) -> None:
    """ValueError, which names an array, unless `params` are shaped as the parameters of the model's network.

    A network without `init` has nothing to be compared with. `what` begins the message, and `hint` ends it.
    """
    wanted = _wanted(model.undrawn())
    if wanted is not None:
        _compare(wanted, params, f"{what} are not those of the network that the model describes", hint)


def check_like(like: PyTree, params: PyTree, said: str, hint: str) -> None:
    """ValueError, which names an array, unless `params` are shaped as the tree `like`; `said` begins the message."""
    _compare(_shapes(like), params, said, hint)


def _compare(wanted: Shapes, params: PyTree, said: str, hint: str) -> None:
    have = _shapes(params)
    if have == wanted:
        return
    name = next(name for name in {**wanted, **have} if have.get(name) != wanted.get(name))
    raise ValueError(
        f"{said}. {name or 'the tree'}: expected {wanted.get(name, 'nothing')}, got {have.get(name, 'nothing')}. {hint}"
    )


@functools.lru_cache(maxsize=16)
def _wanted(model: Model) -> Shapes | None:
    if not isinstance(model.network.build(), Network):
        return None
    return _shapes(jax.eval_shape(model.init, jax.random.key(0)))


def _shapes(tree: PyTree) -> Shapes:
    return {jax.tree_util.keystr(k): np.shape(x) for k, x in jax.tree.leaves_with_path(tree)}
