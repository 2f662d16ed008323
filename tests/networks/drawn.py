"""Parameters for tests of networks, drawn in numpy: an `init` under jit compiles for longer than any test runs."""

import jax
import jax.numpy as jnp
import numpy as np


def parameters(net, *args, scale=0.1, seed=1):
    """Random parameters for `net`, none of them at the zeros that a network may start with.

    Kernels have deviation `1 / sqrt(fan in)` and scales mean 1, as at the start, and all of them `scale` besides.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = scale * rng.normal(size=leaf.shape)
        if leaf.ndim > 1:
            noise += rng.normal(size=leaf.shape) / np.prod(leaf.shape[:-1]) ** 0.5
        return jnp.asarray(noise + (path[-1].key == "scale"), leaf.dtype)

    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    return jax.tree_util.tree_map_with_path(draw, shapes)
