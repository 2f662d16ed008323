import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import training


def run(optimizer, norms, params=None):
    """Which of the gradients of these norms were taken, and the states."""
    params = {"w": jnp.zeros(2)} if params is None else params

    @jax.jit
    def everything(norms):
        def one(state, norm):
            updates, state = optimizer.update({"w": jnp.asarray([0.6, 0.8]) * norm}, state, params)
            return state, (updates["w"], state.skipped, state.norm)

        return jax.lax.scan(one, optimizer.init(params), norms)

    with jax.debug_nans(False):
        state, (updates, skipped, norm) = everything(jnp.asarray(norms, jnp.float32))
    taken = np.diff(np.asarray(skipped), prepend=0) == 0
    return state, np.asarray(updates), taken, np.asarray(norm)


def test_skip_exploding_takes_what_is_usual_and_equals_the_inner_rule():
    norms = np.random.default_rng(0).uniform(0.5, 2, 50)
    _, updates, taken, _ = run(training.skip_exploding(optax.adam(0.1), warmup=5), norms)
    assert taken.all()
    adam, state, expected = optax.adam(0.1), optax.adam(0.1).init(jnp.zeros(2)), []
    for norm in norms[:10]:
        update, state = adam.update(jnp.asarray([0.6, 0.8], jnp.float32) * jnp.float32(norm), state)
        expected.append(update)
    np.testing.assert_allclose(updates[:10], np.stack(expected), rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e3])
def test_skip_exploding_leaves_no_trace_of_a_bad_step_in_the_inner_rule(bad):
    optimizer = training.skip_exploding(optax.adam(0.1), warmup=5)
    usual = np.ones(20)
    spoilt = np.insert(usual, 10, bad)
    state, updates, taken, _ = run(optimizer, spoilt)
    expected, plain, _, _ = run(optimizer, usual)
    np.testing.assert_array_equal(np.flatnonzero(~taken), [10])
    np.testing.assert_array_equal(updates[10], 0)
    np.testing.assert_allclose(np.delete(updates, 10, axis=0), plain, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected.inner)


def test_skip_exploding_recovers_in_the_time_that_it_says():
    """Gradients a thousand times longer for good: the bound grows geometrically until it has them."""
    factor, decay, larger = 10.0, 0.9, 1e3
    optimizer = training.skip_exploding(optax.sgd(0.1), factor=factor, decay=decay, warmup=20)
    _, _, taken, _ = run(optimizer, [1.0] * 100 + [larger] * 40)
    steps = int(np.ceil(np.log(larger / factor) / np.log(1 + (1 - decay) * (factor - 1))))
    assert not taken[100 : 100 + steps].any()
    assert taken[100 + steps :].all()
    _, _, taken, norm = run(optimizer, [1.0] * 30 + [np.nan] * 30 + [1.0] * 5)
    assert taken[60:].all(), "however many were not finite"
    np.testing.assert_allclose(norm, 1, rtol=1e-6)


def test_skip_exploding_without_a_factor_takes_all_that_is_finite():
    _, _, taken, _ = run(training.skip_exploding(optax.sgd(0.1), factor=None), [1.0, 1e9, np.nan, 1.0])
    np.testing.assert_array_equal(taken, [True, True, False, True])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"factor": 1.0}, "factor must be above 1, got 1"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1, got 1"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
    ],
)
def test_skip_exploding_rejects_what_could_not_recover(options, said):
    with pytest.raises(ValueError, match=said):
        training.skip_exploding(optax.sgd(0.1), **options)
