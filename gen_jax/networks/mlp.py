"""Step 6: the multilayer perceptron, affine maps with a nonlinearity between them."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from gen_jax import checks


class MLP(nn.Module):
    """`x -> W_L a(... a(W_1 x + b_1) ...) + b_L`: one affine map for each of `features`, `activation` between them.

    The last map has no activation, so the output is unbounded. Weights are drawn with variance `1 / inputs` (LeCun et al.
    1998), biases start at zero.
    """

    features: Sequence[int]
    """Width after each map; the last is that of the output."""
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """Map the last axis of `x`.

        Raises ValueError if `features` is empty.
        """
        if not self.features:
            raise ValueError("MLP expects the width of at least one layer, got features=().")
        for i, width in enumerate(self.features):
            checks.whole("features", width, "unit")
            x = x if i == 0 else self.activation(x)
            x = nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return x
