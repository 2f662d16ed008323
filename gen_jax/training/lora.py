"""LoRA: what is learned of a large matrix is a product of two thin ones; the matrix stays as it is.

    W' = W + scale * down up,     down [in, r], up [r, out],     up = 0 at the start

    low = lora.init(key, params, rank=8)                          # a small tree: the parameters that are trained
    step = training.make_step(loss, optimizer, aux=True)
    loss = lambda low, key, batch, aux: ... net.apply(lora.merge(aux.frozen, low), x_t, t) ...

Trained are the kernels whose path matches a pattern, by default all maps of the attentions of `networks.transformer`.
`pretrained.lora_writing` writes files of it for other programs, and `pretrained.lora` reads and merges such files, its
`Lora` being the form that changes have there.
"""

import re

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key, PyTree

from gen_jax import checks

ATTENTION = r"(self|cross)_(query|key|value|out)/kernel"
"""The end of the paths of an attention's queries, keys, values and output."""


def init(key: Key[Array, ""], params: PyTree, rank: int, *, targets: str = ATTENTION) -> PyTree:
    """A new tree `{..., "kernel": {"down": [*in, r], "up": [r, *out]}}`, with the paths of `params` that it changes.

    `down` is uniform on `+-1 / sqrt(in)`, `up` is zero, so that nothing is changed at first. Kernels of queries, keys and
    values are `[in, H, d]`, those of outputs `[H, d, out]`.

    Args:
        key: of the values.
        params: of the network, or their shapes.
        rank: `r`.
        targets: a pattern that fits the end of a path such as "params/down_0_0_transformer/block_0/self_query/kernel".

    Raises:
        ValueError: a rank below 1, or no kernel with such a path.

    Source: Hu et al. 2022, Section 4.1; the start of `down` as in the authors' code.
    """
    checks.whole("rank", rank, "column")
    found = {
        path: leaf
        for path, leaf in traverse_util.flatten_dict(params).items()
        if re.search(f"(^|/){targets}$", "/".join(path))
    }
    if not found:
        raise ValueError(f"no parameter has a path that ends with {targets!r}.")
    low = {}
    for i, (path, leaf) in enumerate(sorted(found.items())):
        reads = len(leaf.shape) - 1 if path[-2].endswith("out") else 1
        inputs, outputs = leaf.shape[:reads], leaf.shape[reads:]
        bound = jnp.prod(jnp.asarray(inputs)) ** -0.5
        shape = (*inputs, rank)
        down = jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-bound, maxval=bound)
        low[(*path, "down")], low[(*path, "up")] = down, jnp.zeros((rank, *outputs))
    tree: PyTree = traverse_util.unflatten_dict(low)
    return tree


def merge(params: PyTree, low: PyTree, scale: float = 1.0) -> PyTree:
    """The parameters with `scale * down up` added to those that `low` changes, in float32 or better. Inside `jit` or not.

    Raises:
        ValueError: `low` is of another network.
    """
    flat, changes = dict(traverse_util.flatten_dict(params)), traverse_util.flatten_dict(low)
    for path in {path[:-1] for path in changes}:
        down, up = changes[(*path, "down")], changes[(*path, "up")]
        shape = (*down.shape[:-1], *up.shape[1:])
        if path not in flat or flat[path].shape != shape:
            there = f"has the shape {flat[path].shape}" if path in flat else "is not there"
            raise ValueError(f"{'/'.join(path)}: expected a parameter of shape {shape}; it {there}.")
        flat[path] = flat[path] + scale * jnp.tensordot(down, up, axes=1)
    merged: PyTree = traverse_util.unflatten_dict(flat)
    return merged
