"""EM against scikit-learn, the book, and its own identities."""

import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh

from gen_jax import data, em, gmm, keys, training
from gen_jax.em import Status
from tests.em.problems import KEY, each_structure, precision, problem, start_at
from tests.marks import slow

BOOK = Path(__file__).resolve().parents[3] / "shared" / "data" / "book"


@each_structure
@pytest.mark.parametrize("x64", [True, False], ids=["float64", "float32"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_log_likelihood_of_each_iteration_equals_scikit_learn(covariance, x64, offset):
    mixture = pytest.importorskip("sklearn.mixture")
    x, means = problem(dtype=np.float64)
    x, means, scale = x + offset, means + offset, 2.0
    precisions = np.eye(3) / scale
    name = {"diagonal": "diag"}.get(covariance, covariance)
    theirs = mixture.GaussianMixture(
        3,
        covariance_type=name,
        tol=0.0,
        max_iter=25,
        weights_init=np.full(3, 1 / 3),
        means_init=means,
        precisions_init={
            "full": np.stack([precisions] * 3),
            "tied": precisions,
            "diagonal": np.full((3, 3), 1 / scale),
            "spherical": np.full(3, 1 / scale),
        }[covariance],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 25 iterations do not converge
        theirs.fit(x)
    with precision(x64):
        dtype = np.float64 if x64 else np.float32
        init = start_at(means.astype(dtype), covariance, scale)
        ours = em.fit(
            KEY, x.astype(dtype), 3, covariance=covariance, init=init, tol=0.0, max_iters=25, chunk_size=150
        )
        count = min(len(theirs.lower_bounds_), int(ours.num_iters))
        assert count > 5
        np.testing.assert_allclose(
            ours.log_likelihood[:count], theirs.lower_bounds_[:count], rtol=1e-9 if x64 else 1e-4
        )
        if x64 and count == 25:
            np.testing.assert_allclose(np.sort(ours.params.weights), np.sort(theirs.weights_), rtol=1e-7)


def test_old_faithful_from_the_books_start():
    x = data.table("old_faithful")
    with jax.enable_x64(True):
        init = gmm.GMM(
            jnp.array([0.5, 0.5]), jnp.array([[0.0, 50.0], [0.0, 100.0]]), jnp.stack([jnp.eye(2)] * 2)
        )
        fit = em.fit(KEY, x, 2, init=init, tol=1e-13, max_iters=1000, regularization=0.0)
        assert fit.status == Status.CONVERGED
        np.testing.assert_allclose(fit.log_likelihood[-1], -4.155382207, atol=1e-9)
        np.testing.assert_allclose(gmm.bic(fit.params, x), 2322.1917, atol=1e-4)
        # The book stops, and prints, where a step gains less than 1e-4.
        step = jax.jit(partial(em.step, regularization=0.0))
        params, new, gain, previous = init, init, np.inf, -np.inf
        while gain >= 1e-4:
            params = new
            new, log_likelihood = step(params, x)
            gain, previous = abs(log_likelihood - previous), log_likelihood
        np.testing.assert_allclose(params.weights, [0.355951, 0.644049], atol=6e-7)
        np.testing.assert_allclose(params.means, [[2.036579, 54.480446], [4.289830, 79.970142]], atol=6e-7)
    init = gmm.GMM(*(jnp.asarray(a, jnp.float32) for a in init))
    single = em.fit(KEY, jnp.asarray(x, jnp.float32), 2, init=init, tol=1e-6, max_iters=1000)
    np.testing.assert_allclose(single.log_likelihood[-1], -4.155382, atol=1e-5)


@pytest.mark.skipif(not BOOK.exists(), reason="the book's files are not here")
def test_the_books_old_faithful_is_the_embedded_table():
    np.testing.assert_array_equal(np.loadtxt(BOOK / "old_faithful.txt"), data.table("old_faithful"))


@pytest.mark.slow  # in CI: step 5, and its value of the book's fit
def test_bic_picks_two_components_for_old_faithful():
    x = data.table("old_faithful")
    with jax.enable_x64(True):
        fits = [em.fit(KEY, x, k, num_restarts=5, tol=1e-7, max_iters=500).params for k in range(1, 6)]
        assert np.argmin([jax.jit(gmm.bic)(params, x) for params in fits]) == 1


@jax.jit
def elbo(r, params, x):
    return jnp.mean(jnp.sum(r * (gmm.log_joint(params, x) - jnp.log(jnp.maximum(r, 1e-37))), axis=1))


@jax.jit
def step_and_densities(params, x):
    new, log_likelihood = em.step(params, x, regularization=0.0, chunk_size=25)
    return gmm.responsibilities(params, x), new, log_likelihood, gmm.log_prob(params, x), gmm.log_prob(new, x)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    covariance=st.sampled_from(gmm.COVARIANCES),
    components=st.integers(1, 4),
)
def test_the_bound_touches_the_likelihood_and_never_falls(seed, covariance, components):
    """ELBO(q, params) = E_q[log p(x, z)] + H(q), with q from the E-step of the old parameters."""
    x, means = problem(n=60, dims=2, components=components, seed=seed)
    params = start_at(means, covariance)
    for _ in range(4):
        r, new, log_likelihood, before, after = step_and_densities(params, x)
        bound = elbo(r, params, x)
        np.testing.assert_allclose(bound, log_likelihood, rtol=1e-5, atol=1e-5)  # touches
        np.testing.assert_allclose(before.mean(), log_likelihood, rtol=1e-5, atol=1e-5)
        if not np.isfinite(after).all():
            return  # a component fell onto one point, which has no maximum
        assert elbo(r, new, x) >= bound - 1e-4
        assert after.mean() >= log_likelihood - 1e-4
        params = new


@pytest.mark.parametrize("covariance", slow(gmm.COVARIANCES, but=("full", "tied")))
def test_statistics_do_not_depend_on_chunks_devices_or_order(covariance):
    x, means = problem(n=403)
    w = np.random.default_rng(1).uniform(0, 2, len(x)).astype(np.float32)
    params = start_at(means, covariance)
    step = jax.jit(em.step, static_argnames="chunk_size")
    whole, _ = step(params, x, w, chunk_size=403)
    mesh = Mesh(np.array(jax.devices()), (keys.AXIS,))
    assert len(jax.devices()) == 8
    order = np.random.default_rng(2).permutation(len(x))
    for other in (
        step(params, x, w, chunk_size=100)[0],
        step(params, x[order], w[order], chunk_size=64)[0],
        em.compile_step()(params, x, w)[0],
        em.compile_step(mesh=mesh, chunk_size=20)(params, x, w)[0],
        em.compile_step(parallel="pmap")(params, x, w)[0],
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, whole)


def test_fit_on_eight_devices_is_fit_on_one():
    x, means = problem(n=403)
    fit = partial(em.fit, KEY, x, 3, init=start_at(means, "full"), tol=1e-5)
    one, eight = fit(), fit(mesh=Mesh(np.array(jax.devices()), (keys.AXIS,)))
    np.testing.assert_allclose(eight.log_likelihood[:10], one.log_likelihood[:10], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), eight.params, one.params
    )


def test_whole_weights_are_repeated_rows_and_zero_weights_are_no_rows():
    x, means = problem(n=50)
    w = np.random.default_rng(1).integers(0, 3, len(x)).astype(np.float32)
    fit = partial(em.fit, KEY, num_components=3, init=start_at(means, "full"), max_iters=5, tol=0.0)
    a, b = fit(x, weights=w), fit(np.repeat(x, w.astype(int), axis=0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), a.params, b.params)


def test_a_stream_finds_what_the_whole_data_set_has():
    x, means = problem(n=20_000, dims=2, spread=8.0)
    whole = em.fit(KEY, x, 3, init=start_at(means, "full"), tol=1e-6, max_iters=500)
    params, stats = start_at(means, "full"), None
    e_step, stepwise, m_step = map(jax.jit, (em.e_step, em.stepwise, em.m_step))
    for k in range(400):
        batch = x[np.random.default_rng(k).integers(len(x), size=500)]
        stats = stepwise(stats, e_step(params, batch), (k + 2) ** -0.7)
        params = m_step(stats)
    assert gmm.log_prob(params, x).mean() > whole.log_likelihood[-1] - 2e-3


def test_recentre_leaves_the_fit_alone():
    x, means = problem()
    stats = jax.jit(em.e_step)(start_at(means, "full"), x)
    moved = jax.jit(em.recentre)(stats, stats.centre + 3.0)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        em.m_step(moved),
        em.m_step(stats),
    )


@pytest.mark.parametrize("init", ["kmeans++", "random"])
def test_fit_finds_the_clusters_that_are_there(init):
    x, _ = problem(n=2000, dims=2, components=4, spread=8.0, seed=3)
    truth = em.fit(
        KEY, x, 4, init=start_at(problem(n=2000, dims=2, components=4, spread=8.0, seed=3)[1], "full")
    )
    found = em.fit(KEY, x, 4, init=init, num_restarts=8)
    assert found.status == Status.CONVERGED
    assert found.log_likelihood[-1] > truth.log_likelihood[-1] - 1e-2


def test_more_restarts_are_never_worse():
    x, _ = problem(n=300, dims=2, components=5, seed=1)
    best = [float(em.fit(KEY, x, 5, num_restarts=n, init="random").log_likelihood[-1]) for n in (1, 4, 12)]
    assert best == sorted(best)


@pytest.mark.slow  # a second proof; in CI: scikit-learn's, and the bound
@pytest.mark.parametrize("covariance", slow(gmm.COVARIANCES, but=("full",)))
def test_gradient_descent_meets_em(covariance):
    x, means = problem(n=300, dims=2, spread=8.0)
    init = start_at(means, covariance)
    by_em = em.fit(KEY, x, 3, covariance=covariance, init=init, tol=1e-7, max_iters=500, regularization=0.0)

    def loss(free, key, batch):
        return -gmm.log_prob(gmm.constrain(free), batch).mean(), {}

    optimizer, _ = training.adam(0.03, num_steps=1500)
    state = training.TrainState.create(gmm.unconstrain(init), optimizer, KEY, ema=False)
    everything = lambda step, count: jnp.broadcast_to(jnp.arange(len(x)), (count, len(x)))
    step = training.compile_step(
        training.make_step(loss, optimizer, ema_decay=None),
        steps_per_call=1500,
        select=everything,
        mesh=Mesh(np.array(jax.devices()[:1]), (keys.AXIS,)),
    )
    state, _ = step(state, x)
    by_gradient = gmm.constrain(jax.device_get(state.params))
    np.testing.assert_allclose(gmm.log_prob(by_gradient, x).mean(), by_em.log_likelihood[-1], atol=2e-4)
    order_a, order_b = np.argsort(by_gradient.means[:, 0]), np.argsort(by_em.params.means[:, 0])
    np.testing.assert_allclose(by_gradient.means[order_a], by_em.params.means[order_b], atol=0.03)
