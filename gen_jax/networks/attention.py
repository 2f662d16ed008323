"""Attention with several heads, over a sequence itself or over a context with a mask."""

from functools import partial
from typing import TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from gen_jax import checks

__all__ = ["Dtypes"]

TABLE = 2**19
"""Numbers of a table of logits that stay in the cache of a CPU's core."""


class Dtypes(TypedDict):
    """The two types of a layer, as its keyword arguments."""

    dtype: DTypeLike
    """Type of the computation."""
    param_dtype: DTypeLike


def by_rows(layer: nn.Module, x: Float[Array, "B N *C"]) -> Float[Array, "B N *D"]:
    """`layer(x)` of `[B N, ...]`: the gradients of products of two axes are faster on a CPU than of three."""
    y = layer(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def attend(
    module: nn.Module,
    x: Float[Array, "B N C"],
    context: Float[Array, "B L K"] | None = None,
    mask: Bool[Array, "B L"] | None = None,
    *,
    name: str,
    heads: int,
    bias: bool = True,
    causal: bool = False,
    zero_init: bool = False,
    rows: bool = False,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> Float[Array, "B N C"]:
    """`softmax(q k^T / sqrt(d)) v W + b` with `q` of `x`, and `k` and `v` of the context (Vaswani et al. 2017, 3.2).

    Its layers are named `{name}_query`, `{name}_key`, `{name}_value` and `{name}_out`, in the `module` whose compact
    method calls it. The softmax is in float32. `apply(..., mutable=["intermediates"])` returns what it is for a context,
    too, as `{name}_weights`, float32 `[B, heads, N, L]`; otherwise this costs nothing.

    Args:
        module: the module that calls.
        x: what attends.
        context: what is attended to; None is `x` itself.
        mask: True for what may be attended to; None is all. An example for which nothing is True gets zeros, without
            the bias of the output.
        name: prefix of the names of the layers.
        heads: number of heads, a divisor of the channels.
        bias: whether query, key and value have one; the output has.
        causal: position `i` attends to positions up to `i` alone.
        zero_init: the output starts at zero.
        rows: see `by_rows`; a matter of speed alone.
        dtype: of the products.
        param_dtype: of the parameters.

    Raises:
        ValueError: more heads than channels, or a context or a mask of another batch.
    """
    heads = checks.whole("heads", heads, "head", most=x.shape[-1])
    for name_of, given in (("context", context), ("mask", mask)):
        if given is not None and len(given) != len(x):
            raise ValueError(
                f"{name_of} must be one for each of {len(x)} examples, got {checks.came(given)}."
            )
    kind: Dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    size = x.shape[-1] // heads
    apply = by_rows if rows else lambda layer, a: layer(a)
    project = lambda part, a: apply(
        nn.DenseGeneral((heads, size), use_bias=bias, name=f"{name}_{part}", **kind), a
    )
    source = x if context is None else context.astype(dtype)
    query, key, value = project("query", x), project("key", source), project("value", source)
    allowed = None if mask is None else mask[:, None, None]
    out = _mix(query, key, value, allowed, causal)
    if context is not None and module.is_mutable_collection("intermediates"):
        module.sow("intermediates", f"{name}_weights", _weights(query, key, allowed))
    start = nn.initializers.zeros if zero_init else nn.initializers.lecun_normal()
    dense = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), kernel_init=start, name=f"{name}_out", **kind)
    out = apply(dense, out)
    return out if mask is None else jnp.where(mask.any(1)[:, None, None], out, 0)


def _mix(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Float[Array, "B N H d"]:
    """`softmax(q k^T / sqrt(d)) v`; on a CPU by parts, where the logits are many and all are used."""
    plain = partial(jax.nn.dot_product_attention, mask=mask, is_causal=causal)
    if mask is not None or causal or query.shape[1] * key.shape[1] <= TABLE:
        return plain(query, key, value)
    return lax.platform_dependent(query, key, value, cpu=_by_parts, default=plain)


def _by_parts(
    query: Float[Array, "B N H d"], key: Float[Array, "B L H d"], value: Float[Array, "B L H d"]
) -> Float[Array, "B N H d"]:
    """For some queries of a head at a time: the logits never leave the cache, and backward they are computed again.

    Queries are columns of the tables, so that maxima and sums are of whole vectors of the processor.
    """
    length, most = query.shape[1], max(TABLE // key.shape[1], 1)
    size = next(n for n in range(min(most, length), 0, -1) if length % n == 0)
    heads = tuple(a.swapaxes(1, 2).reshape(-1, a.shape[1], a.shape[3]) for a in (query, key, value))
    kind, scale = query.dtype, query.shape[3] ** -0.5

    def each(head: tuple[Array, Array, Array]) -> Array:
        query, key, value = head

        @jax.checkpoint
        def part(query: Array) -> Array:
            logits = scale * jnp.dot(key, query.T, preferred_element_type=jnp.float32)
            weights = jnp.exp(logits - logits.max(0, keepdims=True))
            sums = weights.sum(0, keepdims=True)
            return jnp.dot(value.T, weights.astype(kind), preferred_element_type=jnp.float32) / sums

        return lax.map(part, query.reshape(-1, size, query.shape[1]))

    out = lax.map(each, heads).astype(kind)  # [B H, N / n, d, n]
    out = out.swapaxes(2, 3).reshape(*query.swapaxes(1, 2).shape)
    return out.swapaxes(1, 2)


def _weights(
    query: Float[Array, "B N H d"], key: Float[Array, "B L H d"], mask: Bool[Array, "B 1 1 L"] | None
) -> Float[Array, "B H N L"]:
    """The softmax of attention; zero where nothing may be attended to."""
    query, key = query.astype(jnp.float32), key.astype(jnp.float32)
    logits = jnp.einsum("bnhd,blhd->bhnl", query, key) / jnp.sqrt(query.shape[-1])
    if mask is None:
        return nn.softmax(logits)
    return jnp.where(mask, nn.softmax(jnp.where(mask, logits, -1e30)), 0)
