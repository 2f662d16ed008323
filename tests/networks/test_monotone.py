import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks import monotone
from gen_jax.networks.monotone import Monotone

KEY = jax.random.key(0)


def wild(net, scale=3.0):
    """Parameters far from where they start."""
    params = net.init(KEY, 0.5)
    leaves, tree = jax.tree.flatten(params)
    moved = [p + scale * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.parametrize("start", ["init", "wild"])
def test_monotone_increases_between_its_ends(start):
    net = Monotone(ends=(-8.0, 4.0), between=(0.1, 2.0), features=16)
    params = net.init(KEY, 0.5) if start == "init" else wild(net)
    gamma = net.apply(params, jnp.linspace(0.1, 2.0, 200))
    assert (np.diff(gamma) > 0).all()
    first = params["params"]["first"]
    last = first + np.exp(params["params"]["log_range"])
    np.testing.assert_allclose([gamma[0], gamma[-1]], [first, last], rtol=1e-4, atol=1e-4)
    if start == "init":
        np.testing.assert_allclose([first, last], [-8, 4], rtol=1e-6)
        np.testing.assert_allclose(gamma, np.linspace(-8, 4, 200), atol=0.1 * 12)


def test_the_inside_does_not_move_the_ends():
    net = Monotone(features=8)

    def ends(params):
        return net.apply(monotone.fix_ends(params), jnp.array([1e-3, 1.0])).sum()

    gradient = jax.grad(ends)(wild(net))
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-4
    middle = jax.grad(lambda p: net.apply(monotone.fix_ends(p), 0.3))(wild(net))["params"]
    assert all(float(middle[name]) == 0 for name in monotone.ENDS)
    assert all(np.abs(middle[name]).max() > 0 for name in ("slope", "shift", "height"))


def test_monotone_takes_any_shape():
    net = Monotone(features=8)
    params, t = net.init(KEY, 0.5), jnp.linspace(0.1, 0.9, 6)
    grid = net.apply(params, t.reshape(2, 3))
    np.testing.assert_allclose(grid.reshape(-1), net.apply(params, t), rtol=1e-6)
    np.testing.assert_allclose(net.apply(params, 0.1), grid[0, 0], rtol=1e-5)


def test_monotone_rejects_ends_that_decrease():
    with pytest.raises(ValueError, match="must increase"):
        Monotone(ends=(5.0, -13.3)).init(KEY, 0.5)
