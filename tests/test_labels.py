"""Labels: what is refused, and that hiding and choosing belong to the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gen_jax import keys, labels

KEY = jax.random.key(0)


def test_hide_leaves_out_the_share_that_was_asked_for_and_nothing_else():
    label = jnp.arange(20_000) % 10
    hidden = np.asarray(labels.hide(KEY, label, 10, 0.1))
    share = (hidden == 10).mean()
    assert abs(share - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    np.testing.assert_array_equal(hidden[hidden != 10], np.asarray(label)[hidden != 10])
    np.testing.assert_array_equal(labels.hide(KEY, label, 10, 0.0), label)
    assert (labels.hide(KEY, label, 10, 1.0) == 10).all()


def test_hide_does_not_depend_on_the_devices():
    label = jnp.arange(64) % 10
    mesh = jax.make_mesh((8,), (keys.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.shard_map(
        lambda label: labels.hide(KEY, label, 10, 0.5),
        mesh=mesh,
        in_specs=P(keys.AXIS),
        out_specs=P(keys.AXIS),
    )
    np.testing.assert_array_equal(jax.jit(split)(label), labels.hide(KEY, label, 10, 0.5))


def test_choose_draws_for_the_sample_or_takes_what_was_asked_for():
    chosen = np.asarray(labels.choose(None, 10, KEY, jnp.arange(2000)))
    np.testing.assert_array_equal(labels.choose(None, 10, KEY, np.arange(5, 9)), chosen[5:9])
    assert (np.abs(np.bincount(chosen, minlength=10) - 200) < 5 * 13.4).all()
    np.testing.assert_array_equal(labels.choose(7, 10, KEY, jnp.arange(3)), [7, 7, 7])
    assert labels.choose(None, None, KEY, jnp.arange(3)) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: labels.check(np.array([0, 10]), 10), "from 0 to 9, got 0 to 10"),
        (lambda: labels.check(np.array([-1]), 10), "from 0 to 9, got -1"),
        (lambda: labels.check(np.array([0.0]), 10), "integers, got float64"),
        (lambda: labels.choose(10, 10, KEY, jnp.arange(3)), "from 0 to 9, got 10"),
        (lambda: labels.choose(3, None, KEY, jnp.arange(3)), "unconditional: train one with --labels"),
    ],
)
def test_bad_input_is_told_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
