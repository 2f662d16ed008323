import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen_jax import gmm, normal, samplers
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import DDPM, VP
from tests.marks import slow

KEY = jax.random.key(0)
PROCESSES = {"linear": DDPM(), "cosine": DDPM(schedule="cosine"), "vp": VP()}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
each_structure = pytest.mark.parametrize("structure", gmm.COVARIANCES)
some_processes = pytest.mark.parametrize("process", slow(PROCESSES.values(), but=[VP()]), ids=PROCESSES)
WEIGHTS = jnp.array([0.2, 0.5, 0.3])
MEANS = jnp.array([[2.0, -1.0], [-1.5, 0.5], [0.0, 2.0]])


def mixture(structure):
    full = jnp.array([[[0.5, 0.2], [0.2, 0.3]], [[0.1, 0.0], [0.0, 0.8]], [[0.3, -0.2], [-0.2, 0.3]]])
    covs = {
        "full": full,
        "tied": full[:1],
        "diagonal": jnp.array([[0.5, 0.1], [0.2, 0.2], [0.05, 0.9]]),
        "spherical": jnp.array([[0.5], [0.2], [0.05]]),
    }
    return gmm.GMM(WEIGHTS, MEANS, covs[structure])


def times(process, n=9):
    return [float(process.snap(t)) for t in np.linspace(process.t_min, process.t_max, n)]


def noisy(process, t, n=20):
    x_0, _ = gmm.sample(KEY, mixture("full"), n)
    return process.perturb(x_0, jnp.float32(t), jax.random.normal(jax.random.key(1), x_0.shape))


@each_structure
@some_processes
def test_log_prob_is_that_of_the_diffused_mixture(structure, process):
    params = mixture(structure)
    exact = oracle.mixture(params, process)
    for t in times(process):
        x_t = noisy(process, t)
        noised = gmm.diffuse(params, process.alpha(t), process.sigma(t))
        np.testing.assert_allclose(exact.log_prob(x_t, t), gmm.log_prob(noised, x_t), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(exact.posterior(x_t, t), gmm.responsibilities(noised, x_t), atol=1e-4)


@each_structure
@some_processes
def test_denoiser_satisfies_tweedies_formula(structure, process):
    """With jax.grad of the diffused mixture's density, which shares no code with the oracle; in float64 to 1e-5."""
    with jax.enable_x64(True):
        params = gmm.GMM(*(jnp.asarray(a, jnp.float64) for a in mixture(structure)))
        exact = oracle.mixture(params, process)
        density = lambda x, alpha, sigma: gmm.log_prob(gmm.diffuse(params, alpha, sigma), x[None])[0]
        by_gradient = jax.jit(jax.vmap(jax.grad(density), (0, None, None)))
        by_oracle = jax.jit(lambda x, t: (exact.score(x, t), exact(x, t)))
        for t in times(process):
            alpha, sigma = np.float64(process.alpha(np.float64(t))), np.float64(process.sigma(np.float64(t)))
            x_t = np.float64(noisy(process, t))
            score, (found, x0_hat) = by_gradient(x_t, alpha, sigma), by_oracle(x_t, np.float64(t))
            np.testing.assert_allclose(found, score, rtol=1e-5, atol=1e-7)
            if alpha > 1e-3:  # else the formula itself divides rounding errors by alpha
                np.testing.assert_allclose(x0_hat, (x_t + sigma**2 * score) / alpha, rtol=1e-5, atol=1e-5)


@each_structure
@some_processes
def test_single_precision_keeps_the_digits_of_double(structure, process):
    single = oracle.mixture(mixture(structure), process)
    for t in times(process):
        x_t = noisy(process, t)
        got = single(x_t, t)
        with jax.enable_x64(True):
            params = gmm.GMM(*(jnp.asarray(np.asarray(a), jnp.float64) for a in mixture(structure)))
            expected = oracle.mixture(params, process)(
                jnp.asarray(np.asarray(x_t), jnp.float64), np.float64(t)
            )
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-4)


def test_a_gaussian_is_a_mixture_of_one():
    process = VP()
    params = normal.MultivariateNormal(MEANS[0], mixture("full").covs[0])
    x_t = noisy(process, 0.4)
    exact = oracle.gaussian(params, process)
    alpha, sigma = (np.float64(level(0.4)) for level in (process.alpha, process.sigma))
    mean, cov = map(np.float64, params)
    gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
    expected = mean + (np.float64(x_t) - alpha * mean) @ gain.T
    np.testing.assert_allclose(exact(x_t, 0.4), expected, rtol=1e-4, atol=1e-5)


def test_a_normal_is_for_data_of_any_shape():
    process = VP()
    params = normal.Normal(jnp.asarray(2.0), jnp.asarray(0.5))
    exact = oracle.gaussian(params, process)
    x_t = jax.random.normal(KEY, (4, 3, 2))
    same = oracle.mixture(gmm.GMM(jnp.ones(1), jnp.full((1, 6), 2.0), jnp.full((1, 1), 0.25)), process)
    for name in ("__call__", "score", "log_prob"):
        np.testing.assert_allclose(
            getattr(exact, name)(x_t, 0.3), getattr(same, name)(x_t, 0.3), rtol=1e-5, atol=1e-5
        )


@each_process
def test_empirical_is_the_mixture_of_points(process, monkeypatch):
    monkeypatch.setattr(oracle, "_CHUNK", 7)
    points = np.random.default_rng(0).normal(size=(30, 2, 2)).astype(np.float32)
    weights = np.random.default_rng(1).uniform(0.5, 2, 30)
    exact = oracle.empirical(points, process, weights=weights)
    same = oracle.mixture(
        gmm.GMM(
            jnp.asarray(weights / weights.sum(), jnp.float32),
            jnp.asarray(points.reshape(30, 4)),
            jnp.zeros((30, 1)),
        ),
        process,
    )
    every = jax.jit(lambda den, x, t: (den(x, t), den.log_prob(x, t), den.score(x, t)))
    for t in times(process):
        x_t = process.perturb(jnp.asarray(points), jnp.float32(t), jax.random.normal(KEY, points.shape))
        (x0_hat, log_prob, score), expected = every(exact, x_t, t), every(same, x_t, t)
        np.testing.assert_allclose(x0_hat, expected[0], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(log_prob, expected[1], rtol=1e-3, atol=1e-2)
        np.testing.assert_allclose(score, expected[2], rtol=1e-2, atol=1e-2 / process.sigma(t))


def test_class_conditional_oracles_are_bayes_rule():
    process, labels = VP(), jnp.array([0, 1, 0])
    params = mixture("full")
    exact = oracle.mixture(params, process, labels=labels)
    x_t, t = noisy(process, 0.3), 0.3
    posterior = np.asarray(exact.posterior(x_t, t))
    for label, members in ((0, [0, 2]), (1, [1])):
        asked = jnp.full(len(x_t), label)
        np.testing.assert_allclose(
            np.exp(exact.log_class(x_t, t, asked)), posterior[:, members].sum(1), rtol=1e-4, atol=1e-6
        )
        part = gmm.GMM(
            WEIGHTS[jnp.array(members)] / WEIGHTS[jnp.array(members)].sum(),
            MEANS[jnp.array(members)],
            params.covs[jnp.array(members)],
        )
        conditional = jax.jit(lambda label: exact.given(label)(x_t, t))(label)
        np.testing.assert_allclose(conditional, oracle.mixture(part, process)(x_t, t), rtol=1e-4, atol=1e-5)
    by_classes = sum(
        np.exp(exact.log_class(x_t, t, jnp.full(len(x_t), y)))[:, None] * exact.given(y)(x_t, t)
        for y in (0, 1)
    )
    np.testing.assert_allclose(by_classes, exact(x_t, t), rtol=1e-4, atol=1e-5)


def test_oracles_go_through_jit_vmap_and_grad():
    process, params = VP(), mixture("full")
    exact = oracle.mixture(params, process)
    x_t = noisy(process, 0.3, n=4)
    np.testing.assert_allclose(
        jax.jit(lambda den, x, t: den(x, t))(exact, x_t, 0.3), exact(x_t, 0.3), rtol=1e-5
    )
    ts = jnp.array([0.1, 0.5])
    both = jax.vmap(exact, (None, 0))(x_t, ts)
    np.testing.assert_allclose(both[1], exact(x_t, 0.5), rtol=1e-5)
    score = jax.grad(lambda x: exact.log_prob(x, 0.3).sum())(x_t)
    np.testing.assert_allclose(score, exact.score(x_t, 0.3), rtol=1e-4, atol=1e-5)
    check_grads(jax.jit(lambda x: exact(x, 0.3)), (x_t,), order=2, modes=["rev"], rtol=0.05, atol=0.05)
    points = oracle.empirical(np.asarray(x_t), process)
    check_grads(jax.jit(lambda x: points(x, 0.9)), (x_t,), order=1, modes=["rev"], rtol=0.05, atol=0.05)


@pytest.mark.slow  # in CI: its score, and what solvers make of one
def test_samples_of_the_oracle_have_the_mixtures_moments():
    process, params = VP(), mixture("full")
    plan = samplers.DPMSolverPP(order=2).plan(process, samplers.times.log_snr(process, 120, final="denoise"))
    x = samplers.sample(
        KEY, oracle.mixture(params, process), plan, process.prior(jax.random.key(1), (20_000, 2))
    )
    drawn, _ = gmm.sample(KEY, params, 20_000)
    np.testing.assert_allclose(x.mean(0), drawn.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), np.cov(drawn.T), atol=0.08)
    np.testing.assert_allclose(gmm.log_prob(params, x).mean(), gmm.log_prob(params, drawn).mean(), atol=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: oracle.mixture(mixture("full"), VP())(jnp.ones((4, 3)), 0.3), "2 numbers a row"),
        (
            lambda: oracle.mixture(mixture("full"), VP(), labels=np.array([0, 1])),
            "labels must be .* where K = 3 of params.weights",
        ),
        (lambda: oracle.empirical(np.zeros((3, 2), np.uint8), VP()), "127.5"),
        (
            lambda: oracle.empirical(np.zeros((3, 2), np.float32), VP(), labels=np.array([1])),
            "labels must be .* where N = 3 of data",
        ),
    ],
)
def test_oracles_say_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
