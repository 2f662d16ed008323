"""EM on data that are hard to fit or cannot be fitted, and the errors for wrong input."""

import jax
import numpy as np
import pytest

from gen_jax import em
from gen_jax.em import Status
from tests.em.problems import KEY, each_structure, problem, start_at

HARD = {
    "offset of 1e4": lambda rng: rng.normal(size=(300, 2)) + 1e4,
    "constant column": lambda rng: np.stack([rng.normal(size=300), np.full(300, 5.0)], axis=1),
    "duplicates": lambda rng: np.repeat(rng.normal(size=(10, 2)), 30, axis=0),
    "more columns than rows": lambda rng: rng.normal(size=(12, 30)),
    "one far point": lambda rng: np.concatenate([rng.normal(size=(299, 2)), [[1e3, 1e3]]]),
    "tiny": lambda rng: 1e-3 * rng.normal(size=(300, 2)),
}


@each_structure
@pytest.mark.parametrize("case", HARD)
def test_hard_data_are_fitted_or_said_to_be_impossible(case, covariance):
    x = HARD[case](np.random.default_rng(0)).astype(np.float32)
    with jax.debug_nans(False):
        fit = em.fit(KEY, x, 3, covariance=covariance, regularization=1e-4 if case != "tiny" else 1e-9)
    assert fit.status in (Status.CONVERGED, Status.MAX_ITERATIONS)
    assert all(np.isfinite(a).all() for a in fit.params)
    assert np.isfinite(fit.log_likelihood).all()
    assert len(fit.log_likelihood) == fit.num_iters
    np.testing.assert_allclose(fit.params.weights.sum(), 1, rtol=1e-5)
    weighted_mean = np.float64(fit.params.weights) @ np.float64(fit.params.means)
    np.testing.assert_allclose(weighted_mean, np.float64(x).mean(0), rtol=1e-5, atol=1e-3 * np.abs(x).max())


def test_an_offset_changes_nothing_but_the_means():
    """scikit-learn #30382: in float32 the variances of data near 1e4 came out negative."""
    x, means = problem(spread=2.0)
    x = np.round(x * 64) / 64  # so that adding the offset is exact
    fits = [
        em.fit(KEY, x + offset, 3, init=start_at(means + offset, "full"), max_iters=20, tol=0.0)
        for offset in (np.float32(0), np.float32(8192))
    ]
    np.testing.assert_allclose(fits[1].log_likelihood, fits[0].log_likelihood, rtol=1e-3)
    np.testing.assert_allclose(fits[1].params.covs, fits[0].params.covs, rtol=0.02, atol=2e-3)


def test_all_points_equal_is_one_component_with_the_regularization():
    fit = em.fit(KEY, np.full((20, 2), 3.0, np.float32), 1, regularization=0.25)
    np.testing.assert_allclose(fit.params.means, [[3.0, 3.0]])
    np.testing.assert_allclose(fit.params.covs, [0.25 * np.eye(2)], atol=1e-6)
    assert fit.status == Status.CONVERGED


def test_an_empty_component_starts_again_and_is_counted():
    x, means = problem(n=500, dims=2, components=2, spread=6.0)
    lost = np.concatenate([means, np.full((1, 2), 1e4, np.float32)])
    fit = em.fit(KEY, x, 3, init=start_at(lost, "full"), tol=1e-5)
    assert fit.num_reseeded >= 1
    assert np.abs(fit.params.means).max() < 100
    assert fit.status == Status.CONVERGED
    assert em.fit(KEY, x, 2, init=start_at(means, "full")).num_reseeded == 0


def test_what_is_not_finite_is_never_converged():
    x = np.full((20, 2), 3.0, np.float32)
    with jax.debug_nans(False):
        fit = em.fit(KEY, x, 1, regularization=0.0)
    assert fit.status == Status.NOT_FINITE


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.arange(5.0), {}, r"x\[:, None\]"),
        (np.zeros((0, 2)), {}, "at least one row"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), {}, r"1 of 2 rows: 1\."),
        (np.ones((9, 2)), {"num_components": 2}, "as many distinct rows .* x has 1"),
        (np.eye(3), {"num_components": 0}, "at least 1"),
        (np.eye(3), {"covariance": "diag"}, "'full', 'tied', 'diagonal', 'spherical'; got 'diag'"),
        (np.eye(3), {"init": "kmeans"}, "kmeans"),
        (
            np.eye(3),
            {"init": start_at(np.eye(2, 3, dtype=np.float32), "tied"), "num_components": 2},
            "covs of shapes",
        ),
        (np.eye(3), {"weights": np.zeros(3)}, "at least one must be positive"),
        (np.eye(3), {"weights": np.ones(4)}, "one weight"),
        (np.eye(3), {"max_iters": 0}, "at least 1"),
        (np.eye(3), {"tol": -1.0}, "tol must be at least 0, got -1"),
    ],
)
def test_fit_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        em.fit(KEY, x, **{"num_components": 1, **options})


def test_statistics_of_variances_cannot_make_matrices():
    x, means = problem()
    with pytest.raises(ValueError, match="needs statistics of matrices"):
        em.m_step(em.e_step(start_at(means, "diagonal"), x), covariance="full")
    with pytest.raises(ValueError, match="parallel"):
        em.compile_step(parallel="threads")
