"""Stochastic solvers at 100,000 samples against exact samples: mean, covariance, energy distance, and bias by steps.

The data are a mixture of normals in two dimensions, whose denoiser is exact. Runs begin at exact samples of `x_T` and
end at `t_min` (`final="stop"`), where the mixture with the process's noise is exact, too: all error is the solver's.
Bounds are those of sampling: chi-squared for the moments, and for the energy distance its values between pairs of sets
of exact samples. Solvers are those of `gen_jax.samplers.named`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_jax import gmm, samplers
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import VP, at_log_snr
from gen_jax.gmm import GMM
from gen_jax.samplers import named, times

N = 100_000
PROCESS = VP(t_min=float(at_log_snr(VP(), np.array(5.0))))
START = float(at_log_snr(VP(), np.array(-5.0)))
WEIGHTS = np.array([0.2, 0.5, 0.3])
MEANS = np.array([[-1.0, 0.5], [1.0, 0.8], [0.2, -1.2]])
COVS = np.array([[[0.05, 0.02], [0.02, 0.1]], [[0.2, -0.05], [-0.05, 0.08]], [[0.03, 0.0], [0.0, 0.25]]])


SOLVERS = {name: row for name, row in named.SOLVERS.items() if row.stochastic}


def solver_of(name, steps):
    """Langevin takes as many steps at each of the levels, and smaller ones: bias by lag and by size fall alike."""
    solver = SOLVERS[name].solver
    if isinstance(solver, samplers.AnnealedLangevin):
        return samplers.AnnealedLangevin(steps, min(1.0, 2 / steps))
    return solver


# --- exact samples, and what tells samples from them ---


def mixture():
    return GMM(*(jnp.asarray(a, jnp.float32) for a in (WEIGHTS, MEANS, COVS)))


def levels(t):
    return float(PROCESS.alpha(np.float64(t))), float(PROCESS.sigma(np.float64(t)))


@functools.cache
def exact_sampler(t, n):
    alpha, sigma = levels(t)
    return jax.jit(lambda key: gmm.sample(key, gmm.diffuse(mixture(), alpha, sigma), n)[0])


def exact(seed, t, n):
    return exact_sampler(t, n)(jax.random.key(seed))


def draw(solver, steps, n, seed=0):
    """Samples at `t_min` in numpy, float64."""
    grid = times.log_snr(PROCESS, steps, t_start=START, final="stop")
    x_T = exact(1000 + seed, START, n)
    return np.asarray(run(solver.plan(PROCESS, grid), jax.random.key(seed), x_T), np.float64)


@jax.jit
def run(plan, key, x_T):
    return samplers.sample(key, oracle.mixture(mixture(), PROCESS), plan, x_T)


def exact_moments():
    """Mean and covariance of the mixture with the noise of `t_min`."""
    alpha, sigma = levels(PROCESS.t_min)
    centred = MEANS - WEIGHTS @ MEANS
    cov = np.einsum("k,kij->ij", WEIGHTS, COVS) + (WEIGHTS * centred.T) @ centred
    return alpha * WEIGHTS @ MEANS, alpha**2 * cov + sigma**2 * np.eye(2)


def moments_statistic(x, mean, cov):
    """Hotelling's `T^2` of the means of `d_1, d_2, d_1^2, d_1 d_2, d_2^2`, `d = x - mean`: about chi-squared of 5."""
    d = x - mean
    features = np.stack([d[:, 0], d[:, 1], d[:, 0] ** 2, d[:, 0] * d[:, 1], d[:, 1] ** 2], 1)
    error = features.mean(0) - [0, 0, cov[0, 0], cov[0, 1], cov[1, 1]]
    return len(x) * error @ np.linalg.solve(np.cov(features.T), error)


MOMENTS_BOUND = scipy.stats.chi2.isf(1e-3, 5)


def energy_distance(x, y, directions=8):
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|` of two-dimensional samples, by sorting.

    `|v|` is `pi / 2` times the mean of `|v . u|` over directions `u`; over 8 of them it is the norm whose unit ball is a
    polygon of 16 sides, within 2% of it, and what it makes of the samples is again 0 for equal distributions alone. Of
    numbers, the distance is `2 int (F - G)^2`.
    """
    angles = np.pi * (np.arange(directions) + 0.5) / directions
    each = []
    for u in np.stack([np.cos(angles), np.sin(angles)], 1):
        z = np.concatenate([x @ u, y @ u])
        order = np.argsort(z)
        gap = np.cumsum(np.where(order < len(x), 1 / len(x), -1 / len(y)))[:-1]
        each.append(2 * np.sum(gap**2 * np.diff(z[order])))
    return np.pi / 2 * np.mean(each)


# --- what the tests rest on ---


def test_energy_distance_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)), rng.normal(size=(400, 2)) * [1.0, 0.5] + [0.5, 0.0]
    mean = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1).mean()
    exact = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    np.testing.assert_allclose(energy_distance(x, y, directions=100), exact, rtol=1e-3)
    np.testing.assert_allclose(energy_distance(x, y), exact, rtol=0.02)
    assert energy_distance(x, x) < 1e-12


def test_moments_statistic_is_chi_squared():
    rng, (mean, cov) = np.random.default_rng(0), exact_moments()
    alpha, sigma = levels(PROCESS.t_min)

    def drawn(n):
        k = rng.choice(len(WEIGHTS), size=n, p=WEIGHTS)
        x_0 = MEANS[k] + np.einsum("nij,nj->ni", np.linalg.cholesky(COVS)[k], rng.normal(size=(n, 2)))
        return alpha * x_0 + sigma * rng.normal(size=(n, 2))

    found = [moments_statistic(drawn(2000), mean, cov) for _ in range(200)]
    assert scipy.stats.kstest(found, scipy.stats.chi2(5).cdf).pvalue > 1e-3
    assert moments_statistic(1.05 * drawn(20_000), mean, cov) > MOMENTS_BOUND


# --- solvers ---


def test_stochastic_solver_has_the_mean_and_covariance_of_exact_samples():
    """One of them, with fewer samples; `test_stochastic_solver_gives_exact_samples` asks all."""
    x = draw(samplers.SDEDPMSolverPP(2), 60, 10_000)
    assert moments_statistic(x, *exact_moments()) < MOMENTS_BOUND


def test_langevin_has_the_law_of_its_chain():
    """Of normal data every step is linear: mean and covariance after all of them by the paper's own update.

    `x + e / 2 score(x) + sqrt(e) z`, with `e = 2 d sigma^2` (Song & Ermon 2019, Algorithm 1); `x / alpha` between levels.
    """
    steps, d, n = 3, 0.3, 20_000
    mu, cov = np.array([0.7, -0.3]), np.array([[0.2, -0.05], [-0.05, 0.08]])
    grid = times.log_snr(PROCESS, 6, t_start=START, final="stop")
    mean, spread, before = np.zeros(2), np.eye(2), levels(START)[0]
    for t in grid:
        alpha, sigma = levels(t)
        mean, spread, before = alpha / before * mean, (alpha / before) ** 2 * spread, alpha
        shrink = np.eye(2) - d * sigma**2 * np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
        for _ in range(steps):
            mean = alpha * mu + shrink @ (mean - alpha * mu)
            spread = shrink @ spread @ shrink.T + 2 * d * sigma**2 * np.eye(2)
    data = GMM(*(jnp.asarray(a, jnp.float32) for a in ([1.0], mu[None], cov[None])))
    plan = samplers.AnnealedLangevin(steps, d).plan(PROCESS, grid)
    start = jax.random.normal(jax.random.key(1), (n, 2))
    x = jax.jit(lambda x_T: samplers.sample(jax.random.key(2), oracle.mixture(data, PROCESS), plan, x_T))(
        start
    )
    x = np.asarray(x, np.float64)
    assert moments_statistic(x, mean, spread) < MOMENTS_BOUND
    alpha, sigma = levels(PROCESS.t_min)
    assert moments_statistic(x, alpha * mu, alpha**2 * cov + sigma**2 * np.eye(2)) > MOMENTS_BOUND  # its bias


@pytest.fixture(scope="module")
def null():
    """Energy distances of 99 pairs of sets of exact samples, and one more set."""
    each = lambda seed: np.asarray(exact(seed, PROCESS.t_min, N), np.float64)
    return np.array([energy_distance(each(2 * i), each(2 * i + 1)) for i in range(99)]), each(500)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_bias_of_stochastic_solver_shrinks_with_steps(name, null):
    """The energy distance is the square of a bias, which falls at least as `steps^(-1/2)` until sampling hides it."""
    hidden, other = null[0].max(), null[1]
    coarse, *finer = (energy_distance(draw(solver_of(name, n), n, N), other) for n in (10, 20, 40))
    assert coarse > hidden
    for fine in finer:
        assert fine < max(coarse / 2, hidden)
        coarse = fine


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in SOLVERS.items() if row.enough])
def test_stochastic_solver_gives_exact_samples(name, null):
    """Mean, covariance and energy distance of 100,000 are within the error of so many samples."""
    steps = SOLVERS[name].enough
    x = draw(solver_of(name, steps), steps, N)
    assert moments_statistic(x, *exact_moments()) < MOMENTS_BOUND
    assert energy_distance(x, null[1]) < null[0].max()
