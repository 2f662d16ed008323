"""Transformer blocks, which networks of images and of text share, and a transformer over the pixels of a feature map.

A block has three residual branches, each with a norm of its own (pre-norm):

    x = x + attend(norm(x))                self-attention
    x = x + attend(norm(x), context)       cross-attention, where there is a context
    x = x + W_2 act(W_1 norm(x))           a perceptron at each position

The submodules have explicit names: those are the paths of their parameters in checkpoints.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from gen_jax import checks
from gen_jax.networks.attention import Dtypes, attend, by_rows
from gen_jax.networks.layers import GroupNorm, LayerNorm
from gen_jax.types import Count

__all__ = ["Block", "Transformer", "attention_maps"]


def gelu(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """`x Phi(x)` with the distribution function `Phi` of N(0, 1), exact (Hendrycks & Gimpel 2016, Section 2)."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _gated(x: Array) -> Array:
    value, gate = jnp.split(x, 2, axis=-1)
    return value * gelu(gate)


ACTIVATIONS: dict[str, tuple[int, Callable[[Array], Array]]] = {
    "geglu": (2, _gated),  # Shazeer 2020, Eq. 5
    "gelu": (1, gelu),
    "quick_gelu": (1, lambda x: x * nn.sigmoid(1.702 * x)),  # Hendrycks & Gimpel 2016, Section 2; of CLIP
}
"""Channels that each reads for one that it gives, and the function."""


class Block(nn.Module):
    """A transformer block: self-attention, cross-attention where it has `context_features`, a perceptron.

    Its parameters do not depend on whether `init` was given a context. Without a context at `apply`, with one of length
    zero or with one that the mask hides in full, the second branch adds exactly zero.
    """

    heads: int
    context_features: int | None = None
    """Size of a token of the context; None for a block without cross-attention."""
    activation: Literal["geglu", "gelu", "quick_gelu"] = "geglu"
    expansion: int = 4
    """Channels inside the perceptron for each one outside."""
    bias: bool = False
    """Whether queries, keys and values have one."""
    causal: bool = False
    """Each position attends to itself and those before it alone."""
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N C"],
        context: Float[Array, "B L K"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B N C"]:
        """Map `x`; `mask` is True for the tokens of the context that are attended to."""
        kind: Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = lambda features, name, x: by_rows(nn.Dense(features, name=name, **kind), x)
        norm = lambda name: LayerNorm(name=f"{name}_norm", **kind)(x)
        channels = x.shape[-1]
        attention = partial(attend, self, heads=self.heads, bias=self.bias, rows=True, **kind)
        x = x + attention(norm("self"), name="self", causal=self.causal)
        if self.context_features is not None:
            if self.is_initializing() and (context is None or not context.shape[1]):
                context, mask = jnp.zeros((len(x), 1, self.context_features)), jnp.zeros((len(x), 1), bool)
            if context is not None and context.shape[1]:
                x = x + attention(norm("cross"), context, mask, name="cross")
        reads, act = ACTIVATIONS[self.activation]
        h = act(dense(reads * self.expansion * channels, "mlp_in", norm("mlp")))
        return x + dense(channels, "mlp_out", h)


class Transformer(nn.Module):
    """`x + W_out(blocks(W_in(norm(x))))` over the pixels of a map (Rombach et al. 2022, Section 3.3 and Appendix E.2.1).

    The last map starts at zero, so a new transformer is the identity. The norm has an `eps` of 1e-6, those of the blocks
    have 1e-5.
    """

    depth: int
    """Number of blocks."""
    heads: int
    """A divisor of the channels."""
    context_features: int | None = None
    """Size of a token of the context; None for no cross-attention."""
    groups: int = 32
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    exact_norm: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        context: Float[Array, "B L K"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Map `x`; `mask` is True for the tokens of the context that are attended to."""
        kind: Dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = x.shape[-1]
        h = x.reshape(len(x), math.prod(x.shape[1:-1]), channels)
        h = GroupNorm(self.groups, eps=1e-6, exact_norm=self.exact_norm, name="norm", **kind)(h)
        h = by_rows(nn.Dense(channels, name="proj_in", **kind), h)
        for i in range(self.depth):
            h = Block(self.heads, self.context_features, name=f"block_{i}", **kind)(h, context, mask)
        h = by_rows(nn.Dense(channels, kernel_init=nn.initializers.zeros, name="proj_out", **kind), h)
        return x + h.reshape(x.shape)


@checks.checked
def attention_maps(
    intermediates: Mapping[str, object], shape: tuple[Count, Count]
) -> Float[Array, "B H W L"]:
    """How much each pixel attends to each token: the mean over heads and layers, at each pixel a distribution.

        _, found = net.apply(params, x, t, cond, context, mask, mutable=["intermediates"])
        maps = transformer.attention_maps(found["intermediates"], x.shape[1:3])

    Args:
        intermediates: what `apply` found besides its output.
        shape: height and width of the result. Coarser maps, whose sides are these halved and rounded up a number of
            times, are enlarged bilinearly.

    Raises:
        ValueError: there is no cross-attention among the `intermediates`, or a map is not of this shape.
    """
    leaves = jax.tree_util.tree_leaves_with_path(intermediates)
    maps = [w.mean(1) for path, w in leaves if jax.tree_util.DictKey("cross_weights") in path]
    if not maps:
        raise ValueError(
            "intermediates must be those of a network with cross-attention and a context, got none."
        )
    enlarged = []
    for each in maps:
        height, width = shape
        while height * width > each.shape[1]:
            height, width = -(-height // 2), -(-width // 2)
        if height * width != each.shape[1]:
            raise ValueError(
                f"shape {shape}, halved a number of times, is not that of a map of {each.shape[1]} pixels."
            )
        each = each.reshape(len(each), height, width, -1)
        enlarged.append(jax.image.resize(each, (len(each), *shape, each.shape[-1]), "bilinear"))
    return jnp.stack(enlarged).mean(0)
