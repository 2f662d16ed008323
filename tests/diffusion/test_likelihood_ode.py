"""Densities along the probability-flow ODE against those of Gaussians and mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm, normal
from gen_jax.diffusion import likelihood, oracle
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR, SubVP

KEY = jax.random.key(0)
PROCESSES = {
    "linear": DDPM(),
    "cosine": DDPM(schedule="cosine"),
    "vp": VP(),
    "vp-cosine": VP(schedule="cosine"),
    "sub-vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "log-snr": LogSNR(lambda t: 10 - 20 * t),
}
EVERY_KIND = ("linear", "sub-vp", "flow")  # the others are like one of these
each_process = pytest.mark.parametrize(
    "name", [n if n in EVERY_KIND else pytest.param(n, marks=pytest.mark.slow) for n in PROCESSES]
)
PURE_NOISE = ("cosine", "flow")  # the data are gone at t_max, to below 1e-3 nats
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def mixture(dims, dtype=jnp.float64):
    """Three components with full covariances of eigenvalues between 0.05 and 1."""
    rng = np.random.default_rng(1)
    roots = rng.normal(size=(3, dims, dims)) * 0.5 / dims**0.5
    covs = roots @ roots.swapaxes(1, 2) + 0.05 * np.eye(dims)
    means = rng.normal(size=(3, dims))
    return gmm.GMM(*(jnp.asarray(a, dtype) for a in ([0.2, 0.3, 0.5], means, covs)))


def drawn(dims, n):
    return np.asarray(gmm.sample(jax.random.key(1), mixture(dims, jnp.float32), n)[0])


def normal_log_prob(x, std):
    return (-0.5 * (x / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).reshape(len(x), -1).sum(1)


def evaluate(denoise, process, **options):
    return jax.jit(lambda x: likelihood.ode(KEY, denoise, process, x, **options))


# --- exact trace ---


@each_process
def test_log_density_of_a_mixture_is_exact(name):
    """To 1e-3 nats in 16 dimensions. What the data become at t_max takes the place of the prior where they differ."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        params, x = mixture(16), jnp.asarray(drawn(16, 8), jnp.float64)
        exact = oracle.mixture(params, process)
        log_prior = None if name in PURE_NOISE else lambda x_T: exact.log_prob(x_T, process.t_max)
        got = evaluate(exact, process, log_prior=log_prior, **TIGHT)(x)
        np.testing.assert_allclose(got.log_prob, gmm.log_prob(params, x), atol=5e-4, rtol=0)
        np.testing.assert_array_equal(got.std_error, np.zeros(8))


@pytest.mark.parametrize(
    "name", ["linear", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flow", "ve", "edm"))]
)
def test_single_precision_and_default_tolerance_are_exact_to_a_thousandth_of_a_nat(name):
    process = PROCESSES[name]
    params, x = mixture(16, jnp.float32), jnp.asarray(drawn(16, 32))
    exact = oracle.mixture(params, process)
    log_prior = None if name in PURE_NOISE else lambda x_T: exact.log_prob(x_T, process.t_max)
    got = evaluate(exact, process, log_prior=log_prior)(x)
    assert got.log_prob.dtype == jnp.float32
    np.testing.assert_allclose(got.log_prob, gmm.log_prob(params, x), atol=1e-3, rtol=0)


@pytest.mark.parametrize("process", [SubVP(), VE()], ids=["sub-vp", "ve"])
def test_log_density_is_that_of_the_prior_carried_to_the_data(process):
    """For normal data the flow is linear, so N(0, sigma_T^2 I) becomes a normal, which is not quite the data's."""
    mu, s = 0.7, 0.4
    x = np.linspace(-1.0, 2.0, 16).reshape(2, 4, 2, 1)
    alpha, sigma = float(process.alpha(np.float64(process.t_max))), float(process.sigma(process.t_max))
    slope = np.hypot(alpha * s, sigma) / s
    with jax.enable_x64(True):
        denoise = oracle.gaussian(normal.Normal(jnp.asarray(mu), jnp.asarray(s)), process)
        got = evaluate(denoise, process, **TIGHT)(jnp.asarray(x))
        x_T = alpha * mu + slope * (x - mu)
        np.testing.assert_allclose(got.x_T, x_T, rtol=1e-5, atol=1e-4)
        expected = normal_log_prob(x_T, sigma) + 8 * np.log(slope)
        np.testing.assert_allclose(got.log_prob, expected, atol=1e-4)


@pytest.mark.slow
def test_log_density_of_noised_data():
    process = FlowMatching()
    with jax.enable_x64(True):
        exact, t = oracle.mixture(mixture(3), process), 0.3
        x_t = jnp.asarray(drawn(3, 10), jnp.float64) + 0.1
        run = evaluate(exact, process, t=t, log_prior=lambda x: exact.log_prob(x, process.t_max), **TIGHT)
        np.testing.assert_allclose(run(x_t).log_prob, exact.log_prob(x_t, t), atol=1e-6)


def test_at_the_last_time_it_is_the_prior():
    process = VE()
    x_T = process.prior(KEY, (4, 3))
    got = evaluate(lambda x, t: x, process, t=1)(x_T)
    np.testing.assert_allclose(got.log_prob, normal_log_prob(x_T, process.sigma_max), rtol=1e-5)
    np.testing.assert_allclose(got.x_T, x_T, rtol=1e-6)
    assert got.nfe == 0


@pytest.mark.slow
def test_density_of_any_network_integrates_to_one():
    """No oracle: whatever the denoiser says, paths carry probability along."""
    process = EDM(sigma_min=0.05, sigma_max=5.0)
    denoise = lambda x, t: jnp.tanh(2 * x / (1 + t)) + 0.1 * t
    with jax.enable_x64(True):
        x = jnp.linspace(-3.0, 3.0, 601)[:, None]
        density = jnp.exp(evaluate(denoise, process, t=0.05, rtol=1e-6, atol=1e-6)(x).log_prob)
        assert density.max() > 0.1
        np.testing.assert_allclose(density.sum() * 0.01, 1, atol=1e-5)


@pytest.mark.slow
def test_the_step_from_the_data_errs_by_the_fourth_power_of_its_noise():
    errors = []
    with jax.enable_x64(True):
        x = jnp.linspace(-0.5, 1.5, 5)[:, None]
        for low in (0.1, 0.05):
            process = EDM(sigma_min=low, sigma_max=20.0)
            denoise = oracle.gaussian(normal.Normal(jnp.asarray(0.5), jnp.asarray(0.5)), process)
            log_prior = lambda x_T, denoise=denoise: denoise.log_prob(x_T, 20.0)
            got = evaluate(denoise, process, log_prior=log_prior, rtol=1e-10, atol=1e-10)(x)
            errors.append(np.abs(got.log_prob - normal_log_prob(x - 0.5, 0.5)).max())
    assert abs(np.log2(errors[0] / errors[1]) - 4) < 0.2, errors


@pytest.mark.slow
def test_gradient_of_the_log_density_is_the_score():
    process = VP()
    with jax.enable_x64(True):
        params, x = mixture(2), jnp.asarray(drawn(2, 6), jnp.float64)
        exact = oracle.mixture(params, process)
        options = {"log_prior": lambda x_T: exact.log_prob(x_T, process.t_max), "rtol": 1e-7, "atol": 1e-7}
        total = lambda x: likelihood.ode_log_prob(KEY, exact, process, x, **options).sum()
        score = jax.grad(lambda x: gmm.log_prob(params, x).sum())(x)
        np.testing.assert_allclose(jax.jit(jax.grad(total))(x), score, rtol=1e-3, atol=1e-3)


# --- Hutchinson's estimate ---


@pytest.mark.slow
def test_probes_estimate_the_trace_and_know_their_error():
    """One point 600 times, each time with probes of its own."""
    process, n = FlowMatching(), 600
    params = mixture(8, jnp.float32)
    exact = oracle.mixture(params, process)
    x = jnp.broadcast_to(jnp.asarray(drawn(8, 1)), (n, 8))
    got = evaluate(exact, process, num_probes=4)(x)
    truth, spread = gmm.log_prob(params, x[:1])[0], got.log_prob.std()
    assert spread > 0.01
    assert abs(got.log_prob.mean() - truth) < 4 * spread / n**0.5 + 1e-3
    np.testing.assert_allclose(jnp.sqrt(jnp.square(got.std_error).mean()), spread, rtol=0.15)


def test_probes_are_exact_where_numbers_are_independent():
    """v_i^2 = 1, so signs miss nothing of a diagonal. Pytrees are flattened."""
    process = FlowMatching()
    denoise = oracle.gaussian(normal.Normal(jnp.asarray(0.7), jnp.asarray(0.4)), process)
    x = {"a": jnp.linspace(-1.0, 1.0, 12).reshape(2, 3, 2), "b": [jnp.ones((2, 1))]}
    got = evaluate(lambda x, t: jax.tree.map(lambda x: denoise(x, t), x), process, num_probes=3)(x)
    exact = sum(normal_log_prob(leaf - 0.7, 0.4) for leaf in jax.tree.leaves(x))
    np.testing.assert_allclose(got.log_prob, exact, atol=1e-3)
    np.testing.assert_allclose(got.std_error, 0, atol=1e-4)
    assert jax.tree.structure(got.x_T) == jax.tree.structure(x)


@pytest.mark.slow
def test_probes_belong_to_the_example():
    process = FlowMatching()
    exact, x = oracle.mixture(mixture(4, jnp.float32), process), jnp.asarray(drawn(4, 6))
    run = jax.jit(lambda x, index: likelihood.ode_log_prob(KEY, exact, process, x, num_probes=1, index=index))
    together, part = run(x, jnp.arange(6)), run(x[3:5], jnp.array([3, 4]))
    np.testing.assert_allclose(part, together[3:5], atol=1e-3)
    assert np.abs(run(x[3:5], jnp.array([7, 8])) - part).max() > 0.05


@pytest.mark.parametrize("dims", [likelihood.EXACT_DIMS, likelihood.EXACT_DIMS + 1])
def test_the_default_is_the_exact_trace_in_small_dimension(dims):
    denoise = lambda x, t: jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
    shape = jax.eval_shape(evaluate(denoise, VP()), jnp.ones((2, dims)))
    assert shape.std_error.shape == (2,)
    got = evaluate(denoise, VP(), rtol=0.1, atol=0.1)(jnp.ones((2, dims)))
    assert (got.std_error > 0).all() == (dims > likelihood.EXACT_DIMS)


def test_one_probe_does_not_know_its_error():
    got = evaluate(lambda x, t: 0.5 * x, VP(), num_probes=1, rtol=0.1, atol=0.1)(jnp.ones((2, 3)))
    np.testing.assert_array_equal(got.std_error, np.inf)


# --- what is rejected ---


def test_too_few_steps_are_not_silent():
    with jax.debug_nans(False):
        got = evaluate(lambda x, t: 0.5 * x, VP(), max_steps=2)(jnp.ones((2, 3)))
        assert not got.success
        assert np.isnan(got.log_prob).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": jnp.ones((2, 3), jnp.uint8)}, "floating-point.*; got uint8.*127.5"),
        ({"t": 1e-4}, "t must be 0 .*below t_min"),
        ({"t": 1.1}, "got 1.1"),
        ({"num_probes": 0}, "num_probes must be at least 1, got 0"),
        ({"atol": -1.0}, "atol must be above 0, got -1"),
        ({"denoise": lambda x, t: x[0]}, "the denoiser must return the shape of x_t"),
    ],
)
def test_log_prob_rejects_bad_input(change, words):
    args = {"key": KEY, "denoise": lambda x, t: x, "process": VP(), "x": jnp.ones((2, 3)), **change}
    with pytest.raises(ValueError, match=words):
        likelihood.ode_log_prob(**args)


def test_a_misspelt_option_is_an_error():
    with pytest.raises(TypeError, match="num_probe"):
        likelihood.ode_log_prob(KEY, lambda x, t: x, VP(), jnp.ones((2, 3)), num_probe=3)
