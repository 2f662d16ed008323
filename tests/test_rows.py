"""To the last bit, as on real machines: so programs here are compiled as users do it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import keys, rows
from gen_jax.diffusion.process import VP
from tests.marks import slow

KEY = jax.random.key(2)
pytestmark = pytest.mark.usefixtures("optimized")


@pytest.mark.parametrize("d", [1, 3, 16, 17])
def test_narrow_is_the_inverse_of_widen(d):
    x = jax.random.normal(KEY, (4, d))
    wide = rows.widen(x)
    assert wide.shape[1] % rows.LANES == 0
    assert wide.shape[1] - d < rows.LANES
    np.testing.assert_array_equal(wide[:, d:], 0)
    np.testing.assert_array_equal(rows.narrow(wide, d), x)


def test_whole_vectors_are_left_alone():
    x = jnp.ones((3, 28 * 28))
    assert rows.widen(x) is x
    assert rows.narrow(x, 28 * 28) is x


@pytest.mark.parametrize("d", slow([1, 3, 5, 17], but=(1,)))
def test_draws_do_not_depend_on_the_batch(d):
    draw = jax.jit(lambda index: keys.normal(KEY, (len(index), d), index))
    whole = draw(jnp.arange(33))
    for n in (1, 2, 5, 13, 32):
        for start in (0, 33 - n):
            np.testing.assert_array_equal(draw(jnp.arange(start, start + n)), whole[start : start + n])


@pytest.mark.parametrize("d", slow([1, 3, 5, 17], but=(5,)))
def test_combinations_do_not_depend_on_the_batch(d):
    """Of what `samplers.step` does: a sum of products, and noise drawn by XLA into the same loop."""

    @jax.jit
    def combine(x, index):
        wide, z = rows.widen(x), rows.widen(keys.normal(KEY, x.shape, index))
        return rows.narrow(0.3 * wide + 0.7 * jnp.clip(wide, -0.5, 0.5) + 0.1 * z, d)

    x, index = jax.random.normal(jax.random.key(3), (33, d)), jnp.arange(33)
    whole = combine(x, index)
    for n in (1, 2, 5, 13, 32):
        for part in (slice(0, n), slice(33 - n, 33)):
            np.testing.assert_array_equal(combine(x[part], index[part]), whole[part])


def test_draws_of_whole_vectors_are_those_of_jax():
    """As they always were; and narrower ones are the beginning of wider ones.

    Each program is compiled here. Outside jit JAX would take those that other tests have compiled, without optimisations,
    which round one number of these 32 otherwise.
    """
    compiled = lambda draw: np.asarray(jax.jit(lambda: draw())())
    each = lambda: jnp.stack([jax.random.normal(jax.random.fold_in(KEY, i), (4, 4, 1)) for i in range(2)])
    image = compiled(lambda: keys.normal(KEY, (2, 4, 4, 1)))
    np.testing.assert_array_equal(image, compiled(each))
    narrow = compiled(lambda: keys.normal(KEY, (2, 3)))
    np.testing.assert_allclose(narrow, image.reshape(2, 16)[:, :3], rtol=1e-6)
    prior = compiled(lambda: VP().prior(KEY, (2, 4, 4, 1)))
    np.testing.assert_array_equal(prior, compiled(lambda: VP().sigma(1.0) * each()))


def test_derivatives_pass():
    square = lambda x: jnp.square(rows.narrow(2 * rows.widen(x), 3)).sum()
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(jax.grad(square)(x), 8 * x)
    np.testing.assert_allclose(jax.jvp(square, (x,), (jnp.ones_like(x),))[1], (8 * x).sum())
    one = lambda row: rows.narrow(rows.widen(row[None]), 3)[0]
    np.testing.assert_array_equal(jax.vmap(one)(x), x)
