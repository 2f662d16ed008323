"""Draws belong to a key and an index, whatever generator the key is of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm, keys, samplers
from gen_jax.diffusion import loss
from gen_jax.diffusion.process import VP

IMPLS = ["threefry2x32", "rbg", "unsafe_rbg"]
PLAN = samplers.DDPM().plan(VP(), samplers.times.uniform(VP(), 3))
MIX = gmm.GMM(jnp.array([0.3, 0.7]), jnp.array([[0.0], [3.0]]), jnp.ones((2, 1)))
START = jnp.ones((8, 3))
DRAWS = {  # of so many, and of two of them alone
    "normal": lambda key, index: keys.normal(key, (len(index), 3), index),
    "prior": lambda key, index: VP().prior(key, (len(index), 3), index=index),
    "sample": lambda key, index: samplers.sample(
        key, lambda x, t: x / 2, PLAN, START[: len(index)], index=index
    ),
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_depends_on_key_and_index_alone(name, impl):
    key, draw = jax.random.key(0, impl=impl), DRAWS[name]
    every = np.asarray(draw(key, jnp.arange(8)))
    np.testing.assert_allclose(draw(key, jnp.array([5, 2])), every[[5, 2]], rtol=1e-6)
    assert len(np.unique(every)) == every.size
    assert not np.allclose(draw(jax.random.key(1, impl=impl), jnp.arange(8)), every)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_draw_does_not_depend_on_how_many_there_are(impl):
    key = jax.random.key(3, impl=impl)
    np.testing.assert_array_equal(gmm.sample(key, MIX, 3)[1], gmm.sample(key, MIX, 9)[1][:3])
    np.testing.assert_allclose(loss.independent(key, 3), loss.independent(key, 9)[:3])


@pytest.mark.parametrize("impl", IMPLS[1:])
def test_all_of_a_long_key_counts(impl):
    data = jnp.arange(4, dtype=jnp.uint32)
    drawn = [
        float(keys.normal(jax.random.wrap_key_data(data.at[i].add(1), impl=impl), (1,))[0]) for i in range(4)
    ]
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("name", ["prior", "sample"])
def test_an_old_key_is_answered(name):
    draw = DRAWS[name]
    words = r"key must be a key of jax\.random\.key\(seed\).*jax\.random\.PRNGKey: take jax\.random\.key"
    with pytest.raises(ValueError, match=words):
        draw(jax.random.PRNGKey(0), jnp.arange(2))
    with pytest.raises(ValueError, match=words):
        jax.jit(draw)(jax.random.PRNGKey(0), jnp.arange(2))
