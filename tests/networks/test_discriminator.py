"""The discriminator of patches: how far a logit sees, its shapes and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from gen_jax.networks.discriminator import PatchDiscriminator
from tests.networks.drawn import parameters

KEY = jax.random.key(0)


def test_a_logit_sees_a_patch():
    """Of 4 + 2 (4 - 1) = 10 with one convolution of stride 2; with two, 10 + 4 (4 - 1) = 22, were there no norms."""
    net, x = PatchDiscriminator(channels=(4,)), jax.random.normal(KEY, (1, 40, 40, 3))
    params = parameters(net, x)
    seen = np.asarray(jax.jit(jax.grad(lambda x: net.apply(params, x)[0, 10, 10, 0]))(x)).any((0, 3))
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert rows[-1] - rows[0] + 1 == columns[-1] - columns[0] + 1 == 10


def test_discriminator_gives_a_logit_for_each_region():
    net = PatchDiscriminator()
    for size in ((48, 48), (28, 27)):
        shape = jax.eval_shape(lambda x: net.init_with_output(KEY, x)[0], jnp.zeros((2, *size, 3))).shape
        assert shape == (2, -(-size[0] // 4), -(-size[1] // 4), 1)


def test_discriminator_gradient_is_the_derivative():
    net, x = PatchDiscriminator(channels=(2, 4), groups=2), jax.random.normal(KEY, (1, 8, 8, 1))
    params = parameters(net, x)
    check_grads(jax.jit(lambda x: net.apply(params, x).mean()), (x,), 1, modes=["rev"], rtol=0.02, atol=0.02)
