import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen_jax.networks.mlp import MLP

KEY = jax.random.key(0)


def test_mlp_equals_numpy():
    net, x = MLP((5, 7, 2), activation=jnp.tanh), jax.random.normal(KEY, (4, 3))
    params = jax.tree.map(lambda p: p + 0.1, net.init(KEY, x))
    h = np.float64(x)
    for i, layer in enumerate(params["params"][f"Dense_{i}"] for i in range(3)):
        h = (h if i == 0 else np.tanh(h)) @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
    np.testing.assert_allclose(net.apply(params, x), h, rtol=1e-5, atol=1e-5)


def test_mlp_of_one_layer_is_affine_and_any_leading_axes_are_rows():
    net, x = MLP((3,)), jax.random.normal(KEY, (2, 4, 5))
    params = net.init(KEY, x)
    np.testing.assert_allclose(net.apply(params, 2 * x), 2 * net.apply(params, x), rtol=1e-5)
    np.testing.assert_allclose(net.apply(params, x)[1], net.apply(params, x[1]), rtol=1e-5, atol=1e-6)


def test_mlp_has_the_right_gradient():
    net, x = MLP((4, 1), activation=jax.nn.sigmoid), jax.random.normal(KEY, (3, 2))
    check_grads(jax.jit(net.apply), (net.init(KEY, x), x), order=2, rtol=0.02, atol=0.02)


def test_mlp_needs_a_layer():
    with pytest.raises(ValueError, match="at least one layer"):
        MLP(()).init(KEY, jnp.ones((1, 2)))
