"""Data of the host with a large offset: fits are those of numpy in float64, not of what float32 leaves of the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import em, normal

KEY = jax.random.key(0)
OFFSETS = (1e7, 1.7e9, -3e12)


def rows(offset, shape=(400,)):
    return offset + np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_deviation_of_numbers_is_that_of_float64(offset):
    x = rows(offset)
    params = normal.fit(x)
    np.testing.assert_allclose(params.std, x.std(), rtol=1e-6)
    assert params.mean == np.float32(x.mean())
    assert params.mean.dtype == params.std.dtype == jnp.float32


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", OFFSETS)
def test_the_covariance_of_columns_is_that_of_float64(offset, weighted):
    x = rows(np.array([offset, 0.5 * offset, 1.0]), (400, 3)) @ np.array(
        [[1.0, 0.2, 0], [0, 1, 0.4], [0, 0, 1]]
    )
    weights = np.arange(1, 401.0) if weighted else None
    params = normal.fit(x, weights=weights, unbiased=not weighted)
    cov = np.cov((x - x[0]).T, aweights=weights, ddof=0 if weighted else 1)
    np.testing.assert_allclose(params.cov, cov, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(params.mean, np.float32(np.average(x, 0, weights)))


def test_whole_numbers_of_64_bits_are_not_cut():
    """Milliseconds since 1970 do not fit into 32 bits, and nanoseconds not into the digits of a float64."""
    x = 1_700_000_000_000 + np.random.default_rng(0).integers(0, 1000, 300)
    np.testing.assert_allclose(normal.fit(x).std, (x - x[0]).std(), rtol=1e-6)


def test_a_list_is_as_good_as_an_array():
    x = rows(1.7e9)
    np.testing.assert_array_equal(normal.fit(list(x)).std, normal.fit(x).std)


def test_data_of_float32_keep_their_bits():
    """They are as they were before: nothing that is there can be saved."""
    x = rows(1e4).astype(np.float32)
    np.testing.assert_array_equal(normal.fit(x), normal.fit(jnp.asarray(x)))


def test_rows_that_are_not_finite_are_named_beside_an_offset():
    x = rows(1.7e9, (5, 2))
    x[3, 1] = np.nan
    for fit in (normal.fit, lambda x: em.fit(KEY, x, 1)):
        with pytest.raises(ValueError, match="in 1 of 5 rows: 3"):
            fit(x)


@pytest.mark.parametrize(("covariance", "offset"), [("full", 1e7), ("full", 1.7e9), ("spherical", 1.7e9)])
def test_em_of_data_far_away_is_em_of_data_at_zero(offset, covariance):
    """Against the closed form of one component, and of two against the same data without the offset."""
    x = rows(0, (200, 2)) + 4 * (np.arange(200) % 2)[:, None]
    near, far = (
        em.fit(KEY, x + o, 2, covariance=covariance, max_iters=20, regularization=0) for o in (0, offset)
    )
    # x + offset has been rounded to float64's digits there
    np.testing.assert_allclose(far.params.covs, near.params.covs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(far.params.weights, near.params.weights, rtol=1e-4)
    np.testing.assert_allclose(far.log_likelihood, near.log_likelihood, rtol=1e-4)
    moved = np.float64(near.params.means) + offset
    np.testing.assert_allclose(far.params.means, moved, rtol=1.2e-7)
    one = em.fit(KEY, x + offset, 1, covariance=covariance, regularization=0).params.covs
    cov = np.cov(x.T, ddof=0)
    spread = np.array([[np.diag(cov).mean()]]) if covariance == "spherical" else np.diag(cov)[None]
    np.testing.assert_allclose(one, spread if one.ndim == 2 else cov[None], rtol=1e-5)


def test_em_starts_where_it_is_told_beside_an_offset():
    x = rows(0, (200, 1)) + 6 * (np.arange(200) % 2)[:, None]
    start = em.fit(KEY, x + 1e6, 2, max_iters=1).params
    assert em.fit(KEY, x + 1e6, 2, init=start).status == "converged"


def test_em_shares_fewer_rows_than_devices():
    x = rows(0, (3, 1)).astype(np.float32)
    start = em.fit(KEY, x, 1, max_iters=1).params
    alone, _ = em.step(start, x)
    for parallel in ("jit", "pmap"):
        shared, _ = em.compile_step(parallel=parallel)(start, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), shared, alone)
    mesh = jax.make_mesh((8,), ("data",))
    np.testing.assert_allclose(em.fit(KEY, x, 1, mesh=mesh).params.means[0], x.mean(0), rtol=1e-5)
