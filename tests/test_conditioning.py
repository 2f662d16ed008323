"""Conditions: what is refused, and that dropping and choosing belong to the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gen_jax import conditioning, keys
from gen_jax.conditioning import Condition, Labels, Nothing

KEY = jax.random.key(0)


@pytest.mark.parametrize("condition", [Nothing(), Labels(3), Labels(3, dropout=0.0)])
def test_conditions_keep_the_protocol(condition):
    assert isinstance(condition, Condition)
    null, chosen = condition.null(4), condition.choose(KEY, jnp.arange(4))
    assert jax.tree.map(jnp.shape, null) == jax.tree.map(jnp.shape, chosen)
    batch = {"image": jnp.zeros((4, 2)), "label": jnp.arange(4) % 3}
    seen = jax.jit(condition.of_batch)(KEY, batch)
    assert jax.tree.map(jnp.shape, seen) == jax.tree.map(jnp.shape, null)


def test_drop_leaves_out_the_share_that_was_asked_for_and_nothing_else():
    label = jnp.arange(20_000) % 10
    dropped = np.asarray(Labels(10, 0.1).of_batch(KEY, {"label": label}))
    share = (dropped == 10).mean()
    assert abs(share - 0.1) < 5 * (0.09 / 20_000) ** 0.5
    np.testing.assert_array_equal(dropped[dropped != 10], np.asarray(label)[dropped != 10])
    np.testing.assert_array_equal(conditioning.drop(KEY, label, 10, 0.0), label)
    assert (conditioning.drop(KEY, label, 10, 1.0) == 10).all()


def test_drop_does_not_depend_on_the_devices():
    label = jnp.arange(64) % 10
    mesh = jax.make_mesh((8,), (keys.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.shard_map(
        lambda label: conditioning.drop(KEY, label, 10, 0.5),
        mesh=mesh,
        in_specs=P(keys.AXIS),
        out_specs=P(keys.AXIS),
    )
    np.testing.assert_array_equal(jax.jit(split)(label), conditioning.drop(KEY, label, 10, 0.5))


def test_choose_draws_for_the_sample_or_takes_what_was_asked_for():
    condition = Labels(10)
    chosen = np.asarray(condition.choose(KEY, jnp.arange(2000)))
    np.testing.assert_array_equal(condition.choose(KEY, np.arange(5, 9)), chosen[5:9])
    assert (np.abs(np.bincount(chosen, minlength=10) - 200) < 5 * 13.4).all()
    np.testing.assert_array_equal(condition.choose(KEY, jnp.arange(3), 7), [7, 7, 7])
    assert Nothing().choose(KEY, jnp.arange(3)) is None


def test_a_class_is_asked_for_by_name_or_number():
    animals = Labels(3, names=("cat", "dog", "emu"))
    choose = lambda label, n=2: np.asarray(animals.choose(KEY, jnp.arange(n), label)).tolist()
    assert choose("dog") == choose(1) == [1, 1]
    assert choose(["emu", "cat"]) == choose(np.array([2, 0])) == [2, 0]
    assert [animals.name(i) for i in (0, 2)] == ["cat", "emu"]
    assert Labels(3).name(2) == "2"
    digits = Labels(2, names=("1", "0"))  # a number is the number of a class, a string is a name
    assert (digits.numbers(1), digits.numbers("1")) == (1, 0)


def test_only_a_network_that_saw_no_label_can_guide():
    assert [c.guides for c in (Nothing(), Labels(3), Labels(3, dropout=0.0))] == [False, True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conditioning.check_labels(np.array([0, 10]), 10), "from 0 to 9, got 0 to 10"),
        (lambda: conditioning.check_labels(np.array([-1]), 10), "from 0 to 9, got -1"),
        (lambda: conditioning.check_labels(np.array([0.0]), 10), "integers, got float64"),
        (lambda: Labels(10).choose(KEY, jnp.arange(3), 10), "from 0 to 9, got 10"),
        (
            lambda: Nothing().choose(KEY, jnp.arange(3), 3),
            "unconditional. Train one whose condition is Labels",
        ),
        (lambda: Labels(0), "num_classes must be at least 1, got 0"),
        (lambda: Labels(3, dropout=1.0), "dropout must be at least 0 and below 1, got 1"),
        (lambda: Labels(3, dropout=float("nan")), "dropout must be at least 0 and below 1, got nan"),
    ],
)
def test_bad_input_is_told_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
