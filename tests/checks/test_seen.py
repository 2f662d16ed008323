"""A tuple of parameters that was found right is not looked at again; one that can change, or was wrong, always is."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm
from gen_jax.checks.call import Call
from gen_jax.checks.seen import MOST, Seen

X = jnp.zeros((4, 3))


def mixture(of=jnp):
    return gmm.GMM(of.full(2, 0.5), of.zeros((2, 3)), of.stack([of.eye(3)] * 2))


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the arrays whose values were read or looked up."""
    names, ask = [], Call.ask

    def told(call, name, *rest):
        if call.reads:
            names.append(name)
        ask(call, name, *rest)

    monkeypatch.setattr(Call, "ask", told)
    return names


def test_right_arrays_of_jax_are_looked_at_once(looked_at):
    params = mixture()
    first = gmm.log_prob(params, X)
    assert [name for name in looked_at if name.startswith("params")]
    looked_at.clear()
    np.testing.assert_array_equal(gmm.log_prob(params, X), first)
    np.testing.assert_array_equal(
        gmm.log_prob(gmm.GMM(*params), X), first
    )  # another tuple of the same arrays
    assert not [name for name in looked_at if name.startswith("params")]


def test_what_it_gave_a_size_still_names_it():
    params = mixture()
    for _ in range(3):
        gmm.log_prob(params, X)
        with pytest.raises(ValueError, match=r"x must be .* where D = 3 of params.means, got .*\(4, 2\)"):
            gmm.log_prob(params, X[:, :2])


def test_wrong_values_are_wrong_every_time():
    params = mixture()._replace(weights=jnp.ones(2))
    for _ in range(3):
        with pytest.raises(ValueError, match=r"params\.weights must sum to 1"):
            gmm.log_prob(params, X)


def test_an_array_of_numpy_may_change():
    params = mixture(np)
    gmm.log_prob(params, X)
    params.weights[:] = 1
    with pytest.raises(ValueError, match=r"params\.weights must sum to 1"):
        gmm.log_prob(params, X)


def test_one_exchanged_array_is_looked_at():
    params = mixture()
    gmm.log_prob(params, X)
    with pytest.raises(ValueError, match=r"params\.means must be"):
        gmm.log_prob(params._replace(means=jnp.full((2, 3), jnp.inf)), X)


def test_inside_jit_nothing_is_remembered_as_right():
    """There values are not read."""
    params = mixture()._replace(weights=jnp.ones(2))
    jax.jit(gmm.log_prob)(params, X)
    with pytest.raises(ValueError, match=r"params\.weights must sum to 1"):
        gmm.log_prob(params, X)


def test_few_are_remembered_and_none_is_kept_alive():
    seen = Seen()
    arrays = [jnp.full(3, i) for i in range(MOST + 5)]
    for array in arrays:
        seen.add((array, None), {})
    assert seen.find((arrays[-1], None)) == {}
    assert seen.find((arrays[0], None)) is None
    kept = {id(array): array for array in arrays[-3:]}
    del arrays, array
    gc.collect()
    assert sum(each[0][0]() is not None for each in seen._tuples.values()) == len(kept)
