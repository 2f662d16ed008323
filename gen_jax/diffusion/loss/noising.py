"""A batch with noise at random times, which all losses begin with."""

from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from gen_jax import checks, keys
from gen_jax.diffusion import prediction
from gen_jax.diffusion.asking import check_like
from gen_jax.diffusion.loss.time_sampling import TimeSampling
from gen_jax.diffusion.process import Process, expand
from gen_jax.types import Predicts

Data: TypeAlias = Annotated[Shaped[Array | np.ndarray, "B ..."], checks.Range()]
"""Rows of data, finite; `draw` says what is wrong with another dtype."""


class Noised(NamedTuple):
    """A batch with noise, each example at a random time."""

    u: Float[Array, "B"]
    """The draws in [0, 1] that `process.times` maps to `t`."""
    t: Float[Array, "B"]
    alpha_t: Float[Array, "B"]
    sigma_t: Float[Array, "B"]
    eps: PyTree[Float[Array, "B ..."]]
    x_t: PyTree[Float[Array, "B ..."]]

    def error(self, x_0: PyTree, y_hat: PyTree, predicts: Predicts) -> Float[Array, "B"]:
        """`|y - y_hat|^2 / D` of each example; a ValueError if `y_hat` has another shape than `x_t`."""
        check_like(y_hat, self.x_t, "the network")

        def squares(x_0: Array, eps: Array, y_hat: Array) -> Float[Array, "B D"]:
            y = prediction.target(x_0, eps, self.alpha_t, self.sigma_t, predicts=predicts)
            return jnp.square(y - y_hat).reshape(len(x_0), -1)

        each = jax.tree.leaves(jax.tree.map(squares, x_0, self.eps, y_hat))
        return each[0].mean(axis=1) if len(each) == 1 else jnp.concatenate(each, axis=1).mean(axis=1)

    def ratio(self, predicts: Predicts) -> Float[Array, "B"]:
        """`prediction.error_ratio` of each example."""
        return prediction.error_ratio(self.alpha_t, self.sigma_t, predicts=predicts)


def draw(
    key: Key[Array, ""],
    process: Process,
    x_0: PyTree,
    time_sampling: TimeSampling,
    offset_noise: float = 0.0,
) -> Noised:
    """Noises a batch at random times, as described in `denoising`.

    Raises:
        ValueError: `x_0` is not floating; or `time_sampling` returned another number of times.
    """
    checks.floating("x_0", x_0)
    leaves, tree = jax.tree.flatten(x_0)
    batch = jnp.shape(leaves[0])[0]
    if not batch:
        raise ValueError("x_0 must have at least one example, got none.")
    key_t, key_eps = jax.random.split(key)
    u = time_sampling(key_t, batch)
    if jnp.shape(u) != (batch,):
        raise ValueError(f"time_sampling must return one u for each of {batch} examples, got {jnp.shape(u)}.")
    t = jnp.asarray(process.times(u))
    split = [key_eps] if len(leaves) == 1 else jax.random.split(key_eps, len(leaves))
    eps = [keys.normal(k, jnp.shape(x)) for k, x in zip(split, leaves, strict=True)]
    if offset_noise:
        eps = [e + offset_noise * _of_channels(key, i, e) for i, e in enumerate(eps)]
    noise = jax.tree.unflatten(tree, eps)
    alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
    x_t = jax.tree.map(lambda x, z: expand(alpha_t, x) * x + expand(sigma_t, x) * z, x_0, noise)
    return Noised(u, t, alpha_t, sigma_t, noise, x_t)


def _of_channels(key: Key[Array, ""], i: int, like: Array) -> Float[Array, "..."]:
    """One normal number for each example and channel, of the `i`-th array."""
    if like.ndim == 1:
        return keys.normal(jax.random.fold_in(key, 2 + i), like.shape)
    return keys.normal(jax.random.fold_in(key, 2 + i), (len(like), *[1] * (like.ndim - 2), like.shape[-1]))
