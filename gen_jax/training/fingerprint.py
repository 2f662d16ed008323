"""Paths, shapes and a checksum of a tree of arrays, to tell whether it is what was saved."""

import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, UInt32


class Fingerprint(NamedTuple):
    """A checksum of all bits of a tree, and whether its numbers are finite."""

    checksum: int
    finite: bool


def fingerprint(trees: dict[str, PyTree]) -> dict[str, Fingerprint]:
    """Checksum and finiteness of each tree, computed where the arrays are.

        checksum = sum_a w_a sum_i (2 i + 1) bits_{a, i}  mod 2^32       over the words i of the arrays a

    with the odd weight `w_a = crc32(path of a) | 1`. As the weights are odd, any one flipped bit changes it. It does not
    depend on how arrays are spread over devices or processes, nor on the classes of the containers. `finite` says
    whether every floating-point number is finite.
    """
    leaves = {name: jax.tree_util.tree_leaves_with_path(tree) for name, tree in trees.items()}
    parts = jax.device_get({name: [_fingerprint(x) for _, x in found] for name, found in leaves.items()})
    weights = {
        name: [zlib.crc32(leaf_path(path).encode()) | 1 for path, _ in found]
        for name, found in leaves.items()
    }
    return {
        name: Fingerprint(
            sum(w * int(x) for w, (x, _) in zip(weights[name], part, strict=True)) % 2**32,
            all(bool(finite) for _, finite in part),
        )
        for name, part in parts.items()
    }


@jax.jit
def _fingerprint(x: Array) -> tuple[UInt32[Array, ""], Bool[Array, ""]]:
    """Of one array: compiled once a shape, which is much faster than once for a whole tree."""
    finite = jnp.all(jnp.isfinite(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.array(True)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], -1)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}").astype(jnp.uint32)
    weights = jnp.ones_like(words)
    for d in range(words.ndim):
        stride = 2 * math.prod(words.shape[d + 1 :]) % 2**32
        weights += jnp.uint32(stride) * jax.lax.broadcasted_iota(jnp.uint32, words.shape, d)
    return jnp.sum(words * weights, dtype=jnp.uint32), finite


def describe(tree: PyTree) -> dict[str, str]:
    """`{path: "float32[3,3]"}` of every array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_path(path): f"{x.dtype}[{','.join(map(str, x.shape))}]" for path, x in leaves}


def leaf_path(path: jax.tree_util.KeyPath) -> str:
    """`a/b/0` for `tree["a"].b[0]`: the same whatever the class of the containers."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_arrays(saved: dict[str, str], now: dict[str, str]) -> None:
    """Raise ValueError that names the arrays in which a checkpoint and the state to restore differ."""
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if names:
        lines = [
            f"\n  {name}: {saved.get(name, 'absent')} saved, {now.get(name, 'absent')} now"
            for name in names[:8]
        ]
        more = f"\n  and {len(names) - 8} more" if len(names) > 8 else ""
        raise ValueError(
            f"the checkpoint does not fit the model or the optimizer:{''.join(lines)}{more}\n"
            "Use the code and options that wrote it, or another workdir."
        )
