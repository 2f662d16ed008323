"""Step 6: the multilayer perceptron, affine maps with a nonlinearity between them."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class MLP(nn.Module):
    """`x -> W_L a(... a(W_1 x + b_1) ...) + b_L`: one affine map for each of `features`, `activation` between them.

    The last map has no activation: what comes out is any number. Weights are drawn with variance `1 / inputs` (LeCun
    et al. 1998), biases start at zero.
    """

    features: Sequence[int]
    """Width after each map; the last is the output's."""
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Map the last axis of `x`.

        Raises ValueError without any layer.
        """
        if not self.features:
            raise ValueError("MLP expects the width of at least one layer, got features=().")
        for i, width in enumerate(self.features):
            x = x if i == 0 else self.activation(x)
            x = nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return x
