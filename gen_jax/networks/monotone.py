"""A network that is an increasing function of one number, such as a learned noise schedule."""

from collections.abc import Callable
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from gen_jax import checks

__all__ = ["ENDS", "Monotone", "fix_ends"]

ENDS = ("first", "log_range")
"""Names of the two parameters that set the values at the ends."""

Tree = TypeVar("Tree", bound=PyTree)


class Monotone(nn.Module):
    """`t -> gamma(t)`, increasing, between two learned values (Kingma et al. 2021, Appendix H and Eq. 59).

        gamma(t) = first + exp(log_range) (g(u) - g(0)) / (g(1) - g(0)),      u = (t - t_0) / (t_1 - t_0)
        g(u) = u + 1/F sum_j c_j sigmoid(a_j u + b_j),                        a_j, c_j > 0

    The weights are positive, so `g` increases for any parameters. The normalisation gives the two end values parameters
    of their own, on which the others have no influence. At the start it is nearly a straight line. With `-gamma` as
    `log_snr` it is the noise schedule of the paper (whose network has 1,024 features and another initialisation):

        params = Monotone().init(key, 0.5)
        process.LogSNR(lambda t: -Monotone().apply(params, t))
    """

    ends: tuple[float, float] = (-13.3, 5.0)
    """Values at `between`, at the start of training."""
    between: tuple[float, float] = (1e-3, 1.0)
    """`t_0, t_1`: the `t_min, t_max` of the process. Outside them the function still increases."""
    features: int = 256
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, t: Float[Array | np.ndarray, "*t"] | float) -> Float[Array, "*t"]:
        """`gamma(t)` for each number.

        Raises ValueError unless `ends` and `between` increase.
        """
        if not (self.ends[0] < self.ends[1] and self.between[0] < self.between[1]):
            raise ValueError(f"ends and between must increase, got {self.ends} and {self.between}.")
        span = self.ends[1] - self.ends[0]
        number = lambda value: lambda key: jnp.asarray(value, self.param_dtype)
        first = self.param(ENDS[0], number(self.ends[0]))
        log_range = self.param(ENDS[1], number(jnp.log(span)))
        weights = lambda name, mean: self.param(
            name, _normal_around(mean), (self.features,), self.param_dtype
        )
        slope, shift, height = weights("slope", 4.0), weights("shift", -2.0), weights("height", -3.0)

        def g(u: Array) -> Array:
            inner = u[..., None] * _row(jax.nn.softplus(slope), u) + _row(shift, u)
            return u + (jax.nn.sigmoid(inner) * _row(jax.nn.softplus(height), u)).mean(-1)

        t = jnp.asarray(t)
        low, high = g(jnp.zeros(())), g(jnp.ones(()))
        u = (t - self.between[0]) / (self.between[1] - self.between[0])
        return first + jnp.exp(log_range) * (g(u) - low) / (high - low)


@checks.checked
def fix_ends(params: Tree) -> Tree:
    """The same parameters, with no gradient to those of the two ends. ValueError where there are none of these."""
    is_end = lambda path: bool(path) and getattr(path[-1], "key", None) in ENDS
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if sum(map(is_end, paths)) < len(ENDS):
        raise ValueError(
            f"params must be those of a Monotone, with {' and '.join(ENDS)}, got {checks.came(params)}."
        )
    fix = lambda path, leaf: jax.lax.stop_gradient(leaf) if is_end(path) else leaf
    return jax.tree_util.tree_map_with_path(fix, params)


def _normal_around(mean: float) -> Callable[[Key[Array, ""], tuple[int, ...], DTypeLike], Array]:
    """Initializer: normal with standard deviation 2 around `mean`."""
    return lambda key, shape, dtype: mean + 2 * jax.random.normal(key, shape, dtype)


def _row(weights: Float[Array, "F"], u: Float[Array, "*t"]) -> Float[Array, "*ones F"]:
    return weights.reshape((1,) * u.ndim + (-1,))
