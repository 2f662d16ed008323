"""Quantisers: nearest codes by scipy, moving averages against k-means, grids enumerated, straight-through gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.spatial.distance
import sklearn.cluster
from jax.sharding import Mesh, PartitionSpec

from gen_jax.keys import AXIS
from gen_jax.networks import quantize
from gen_jax.networks.quantize import Codebook

KEY = jax.random.key(0)


def vectors(n=60, features=3, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, features)), jnp.float32)


def test_create_makes_codes_of_unit_variance_in_equal_use():
    book = quantize.create(KEY, 500, 4)
    np.testing.assert_allclose(book.counts.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(np.var(quantize.codes(book)), 1, rtol=0.1)


@pytest.mark.parametrize("shape", [(60,), (2, 5, 6)])
def test_nearest_is_that_of_scipy(shape):
    z, codes = vectors(60), vectors(17, seed=1)
    expected = scipy.spatial.distance.cdist(z, codes).argmin(1).reshape(shape)
    found = jax.jit(quantize.nearest)(codes, z.reshape(*shape, 3))
    np.testing.assert_array_equal(found, expected)


def test_a_code_is_nearest_to_itself():
    codes = 100 + vectors(40)  # far from 0, where squares lose digits
    np.testing.assert_array_equal(quantize.nearest(codes, codes), np.arange(40))


def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other():
    z, z_q = vectors(), vectors(seed=1)
    np.testing.assert_array_equal(quantize.straight_through(z, z_q), z_q)
    weights = vectors(seed=2)
    gradients = jax.grad(lambda z, z_q: jnp.vdot(weights, quantize.straight_through(z, z_q)), (0, 1))(z, z_q)
    np.testing.assert_array_equal(gradients[0], weights)
    np.testing.assert_array_equal(gradients[1], jnp.zeros_like(z))


def test_update_without_memory_is_an_iteration_of_k_means():
    z, start = vectors(200), vectors(5, seed=1)
    book = Codebook(jnp.full(5, 0.2), start / 5)
    step = jax.jit(lambda book, indices: quantize.update(KEY, book, z, indices, decay=0.0, dead=0.0))
    for _ in range(30):
        book = step(book, quantize.nearest(quantize.codes(book), z))
    lloyd = sklearn.cluster.KMeans(
        5, init=np.asarray(start), n_init=1, max_iter=30, tol=0, algorithm="lloyd"
    ).fit(z)
    np.testing.assert_allclose(quantize.codes(book), lloyd.cluster_centers_, atol=1e-5)
    np.testing.assert_allclose(book.counts, np.bincount(lloyd.labels_) / 200, rtol=1e-5)


def test_update_is_the_moving_average():
    """Written out: `d` times the old sums, `1 - d` times those of the batch."""
    z, book = vectors(12), quantize.create(KEY, 4, 3)
    indices = jnp.arange(12) % 3
    moved = quantize.update(KEY, book, z, indices, decay=0.9, dead=0.0)
    for k in range(4):
        mine = np.asarray(z)[np.asarray(indices) == k]
        np.testing.assert_allclose(moved.counts[k], 0.9 * book.counts[k] + 0.1 * len(mine) / 12, rtol=1e-5)
        np.testing.assert_allclose(
            moved.sums[k], 0.9 * book.sums[k] + 0.1 * mine.sum(0) / 12, rtol=1e-5, atol=1e-6
        )


def test_codes_come_to_the_means_of_their_vectors():
    """The limit of many steps with the same vectors and indices."""
    z, indices, book = vectors(30), jnp.arange(30) % 3, quantize.create(KEY, 3, 3)
    step = lambda _, book: quantize.update(KEY, book, z, indices, decay=0.5, dead=0.0)
    book = jax.jit(lambda book: jax.lax.fori_loop(0, 40, step, book))(book)
    means = [np.asarray(z)[k::3].mean(0) for k in range(3)]
    np.testing.assert_allclose(quantize.codes(book), means, atol=1e-6)


def test_a_dead_code_becomes_a_vector_of_the_batch():
    z = vectors(40)
    counts, codes = jnp.array([0.499, 0.5, 0.001]), jnp.array([0.0, 1.0, 99.0])
    book = Codebook(counts, jnp.repeat((counts * codes)[:, None], 3, axis=1))
    indices = quantize.nearest(quantize.codes(book), z)
    assert set(np.asarray(indices)) == {0, 1}
    kept, restarted = (quantize.update(KEY, book, z, indices, decay=0.9, dead=dead) for dead in (0.0, 0.03))
    np.testing.assert_allclose(quantize.codes(kept)[2], 99, rtol=1e-5)
    distance = scipy.spatial.distance.cdist(quantize.codes(restarted)[2:], z)
    assert distance.min() < 1e-5
    np.testing.assert_allclose(quantize.codes(restarted)[:2], quantize.codes(kept)[:2], rtol=1e-5)
    np.testing.assert_allclose(restarted.counts[2], (1 / 3) / (4 / 3), rtol=0.01)
    np.testing.assert_allclose(restarted.counts.sum(), 1, rtol=1e-6)


def test_update_is_the_same_on_all_devices():
    z, book = vectors(64), quantize.create(jax.random.key(1), 6, 3)
    indices = jnp.zeros(64, jnp.int32)  # so that there are codes to restart
    run = lambda z, indices: quantize.update(KEY, book, z, indices, decay=0.1, dead=0.5)
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    split = PartitionSpec(AXIS)
    over = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(split, split), out_specs=PartitionSpec(), check_vma=False)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), over(z, indices), run(z, indices)
    )


def test_follow_is_a_step_of_gradient_descent_to_the_new_codebook():
    book, new = quantize.create(KEY, 5, 2), quantize.create(jax.random.key(1), 5, 2)
    value, gradient = jax.value_and_grad(quantize.follow)(book, new)
    assert value == 0
    descent = optax.sgd(1.0)
    moved = optax.apply_updates(book, descent.update(gradient, descent.init(book))[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), moved, new)


def test_usage_counts_and_perplexity_is_the_number_of_codes_in_equal_use():
    share = quantize.usage(jnp.array([[0, 0, 2], [2, 3, 3]]), 5)
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(quantize.perplexity(share), 3, rtol=1e-6)
    np.testing.assert_allclose(quantize.perplexity(jnp.array([0.0, 1.0])), 1)


@pytest.mark.parametrize("levels", [(3,), (4, 3), (8, 5, 5), (4, 6, 3)])
def test_fsq_takes_every_code_of_its_grid_and_no_other(levels):
    """The grid written out: `floor(L / 2)` steps to -1, and evenly spaced."""
    even = np.random.default_rng(0).uniform(-0.9999, 0.9999, (20_000, len(levels)))
    z = jnp.asarray(np.arctanh(even), jnp.float32)
    z_q, indices = jax.jit(quantize.fsq, static_argnums=1)(z, levels)
    axes = [(np.arange(size) - size // 2) / (size // 2) for size in levels]
    grid = np.array(
        [point[::-1] for point in itertools.product(*axes[::-1])]
    )  # the first level varies fastest
    np.testing.assert_allclose(quantize.fsq_codes(levels), grid, atol=1e-6)
    np.testing.assert_array_equal(np.unique(indices), np.arange(np.prod(levels)))
    np.testing.assert_allclose(z_q, grid[np.asarray(indices)], atol=1e-6)


@pytest.mark.parametrize("levels", [(5,), (8,)])
def test_fsq_rounds_in_order_and_near_its_code(levels):
    z = jnp.linspace(-5, 5, 500)[:, None]
    z_q, indices = quantize.fsq(z, levels)
    assert np.all(np.diff(indices) >= 0)
    at_zero, _ = quantize.fsq(jnp.zeros((1, 1)), levels)
    np.testing.assert_array_equal(at_zero, jnp.zeros((1, 1)))
    assert float(z_q.min()) == -1


def test_fsq_has_the_gradient_of_its_bound():
    """That of `h tanh(z + c) / (L // 2)`, as if nothing were rounded."""
    z = np.asarray(vectors(20, 2))
    gradient = jax.grad(lambda z: quantize.fsq(z, (5, 8))[0].sum())(jnp.asarray(z))
    h = np.array([4, 7]) * (1 + 1e-3) / 2
    shift = np.arctanh(np.array([0, 0.5]) / h)
    np.testing.assert_allclose(gradient, h * (1 - np.tanh(z + shift) ** 2) / [2, 4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize.create(KEY, 1, 4), "num_codes must be at least 2, got 1"),
        (
            lambda: quantize.update(
                KEY, quantize.create(KEY, 3, 3), vectors(), jnp.zeros(60, int), decay=1.0
            ),
            "decay",
        ),
        (lambda: quantize.fsq(vectors(), (8, 5)), "one for each of 3 channels"),
        (lambda: quantize.fsq(vectors(), (8, 5, 1)), r"levels\[2\] must be at least 3, got 1"),
        (lambda: quantize.fsq_codes(()), "levels must be at least one"),
    ],
)
def test_quantisers_say_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
