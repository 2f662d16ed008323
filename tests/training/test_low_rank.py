"""LoRA: where it starts, what it changes, its gradients, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.test_util import check_grads

from gen_jax.training import lora

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHAPES = {
    ("params", "block_0", "self_query", "kernel"): (12, 2, 6),
    ("params", "block_0", "self_out", "kernel"): (2, 6, 12),
    ("params", "block_0", "self_out", "bias"): (12,),
    ("params", "block_0", "cross_key", "kernel"): (8, 2, 6),
    ("params", "block_0", "mlp_in", "kernel"): (12, 96),
}
CHANGED = {path for path in SHAPES if path[2] != "mlp_in" and path[3] == "kernel"}
PARAMS = traverse_util.unflatten_dict(
    {path: jnp.asarray(RNG.normal(size=shape), jnp.float32) for path, shape in SHAPES.items()}
)


def moved(low, scale=0.3):
    """The same with all of its numbers changed."""
    draw = lambda x: x + scale * RNG.normal(size=x.shape).astype(np.float32)
    return jax.tree.map(draw, low)


def test_init_changes_nothing_at_first():
    merged = lora.merge(PARAMS, lora.init(KEY, PARAMS, 2))
    jax.tree.map(np.testing.assert_array_equal, merged, PARAMS)


def test_init_takes_shapes_and_draws_down_within_its_bound():
    low = lora.init(KEY, jax.eval_shape(lambda: PARAMS), 5)["params"]["block_0"]
    assert low["self_out"]["kernel"]["down"].shape == (2, 6, 5)
    assert low["self_out"]["kernel"]["up"].shape == (5, 12)
    assert low["cross_key"]["kernel"]["up"].shape == (5, 2, 6)
    for name, inputs in (("self_query", 12), ("self_out", 12), ("cross_key", 8)):
        largest = np.abs(low[name]["kernel"]["down"]).max()
        assert 0.8 * inputs**-0.5 < largest <= inputs**-0.5


def test_merge_adds_a_matrix_of_the_rank_to_the_targets_alone():
    merged = traverse_util.flatten_dict(lora.merge(PARAMS, moved(lora.init(KEY, PARAMS, 2)), 0.5))
    for path, before in traverse_util.flatten_dict(PARAMS).items():
        if path not in CHANGED:
            np.testing.assert_array_equal(merged[path], before)
            continue
        rows = 12 if path[2] == "self_out" else before.shape[0]
        change = np.asarray(merged[path] - before).reshape(rows, -1)
        assert np.linalg.matrix_rank(change, tol=1e-4) == 2, path


def test_merge_is_scale_times_the_product():
    low = moved(lora.init(KEY, PARAMS, 3))
    merged = lora.merge(PARAMS, low, 0.25)
    found = low["params"]["block_0"]["self_out"]["kernel"]
    product = np.asarray(found["down"], np.float64).reshape(12, 3) @ np.asarray(found["up"], np.float64)
    kernel = PARAMS["params"]["block_0"]["self_out"]["kernel"]
    wanted = np.asarray(kernel, np.float64) + 0.25 * product.reshape(2, 6, 12)
    np.testing.assert_allclose(
        merged["params"]["block_0"]["self_out"]["kernel"], wanted, rtol=1e-5, atol=1e-6
    )


def test_merge_has_the_gradients_of_finite_differences():
    def value(low):
        return sum(jnp.sin(x).sum() for x in jax.tree.leaves(lora.merge(PARAMS, low, 0.5)))

    check_grads(value, (moved(lora.init(KEY, PARAMS, 2)),), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_merge_of_bfloat16_keeps_what_is_small():
    whole = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    low = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), lora.init(KEY, PARAMS, 2))
    merged = lora.merge(whole, low)["params"]["block_0"]["self_query"]["kernel"]
    np.testing.assert_allclose(
        merged - whole["params"]["block_0"]["self_query"]["kernel"].astype(jnp.float32), 2e-6, atol=3e-7
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lora.init(KEY, PARAMS, 0), "rank"),
        (lambda: lora.init(KEY, PARAMS, 1, targets="conv/kernel"), "no parameter.*conv/kernel"),
        (lambda: lora.merge({"params": {}}, lora.init(KEY, PARAMS, 1)), "is not there"),
    ],
)
def test_what_can_not_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
