"""The bound against closed forms: of Gaussian data every term is known, so the tests of the terms have no noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.test_util import check_grads

from gen_jax import gmm, normal, samplers
from gen_jax.diffusion import likelihood, oracle
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR

KEY = jax.random.key(5)
MEAN, STD, DIMS = 0.3, 0.5, 3
PROCESSES = {
    "ddpm": DDPM(100, beta_max=0.2),
    "ddpm-cosine": DDPM(100, schedule="cosine"),
    "ddpm-zero": DDPM(100, zero_terminal_snr=True),
    "vp": VP(),
    "cosine": VP(schedule="cosine"),
    "log-snr": LogSNR(lambda t: 10 - 20 * t),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
}
SLOW = ("ddpm-cosine", "ddpm-zero", "cosine", "log-snr", "ve", "edm")


def each(*names):
    """These processes, all by default; what the others stand for runs with `-m slow`."""
    marks = lambda name: [pytest.mark.slow] if name in SLOW else []
    return pytest.mark.parametrize(
        "process", [pytest.param(PROCESSES[n], id=n, marks=marks(n)) for n in names or PROCESSES]
    )


MIXTURE = gmm.GMM(
    jnp.array([0.3, 0.7]),
    jnp.array([[-0.8, 0.5], [0.6, 0.0]]),
    jnp.array([[[0.2, 0.1], [0.1, 0.1]], [[0.05, 0.0], [0.0, 0.3]]]),
)


def constant_error(process, x, size):
    """A denoiser that is wrong by `size(t)` in every number of `x`, whatever the noise."""
    return lambda x_t, t: x + jnp.asarray(size(t), x.dtype)


def exact_rms(process, t):
    """Root of E|x_0 - E[x_0 | x_t]|^2 a number, of N(mean, STD^2)."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    return STD * sigma / (alpha**2 * STD**2 + sigma**2) ** 0.5


def snr(process, t):
    return (np.float64(process.alpha(np.float64(t))) / np.float64(process.sigma(np.float64(t)))) ** 2


def riemann(process, grid):
    """The diffusion term a number: 1/2 sum (SNR_s - SNR_t) STD^2 / (1 + STD^2 SNR_t)."""
    values = snr(process, grid)
    return 0.5 * np.sum(np.diff(values) * STD**2 / (1 + STD**2 * values[:-1]))


def integral(process):
    """Its limit, 1/2 log((1 + STD^2 SNR_min) / (1 + STD^2 SNR_T))."""
    low, high = snr(process, np.array([process.t_max, process.t_min]))
    return 0.5 * np.log((1 + STD**2 * high) / (1 + STD**2 * low))


def vlb(denoise, process, x, **options):
    """In one compilation."""
    return jax.jit(lambda key, x: likelihood.vlb(key, denoise, process, x, **options))(KEY, x)


# --- the terms, of denoisers with a known error: no noise ---


@each()
def test_terms_equal_closed_forms(process):
    x = jax.random.normal(KEY, (4, DIMS))
    denoise = constant_error(process, x, lambda t: exact_rms(process, t))
    grid = samplers.times.uniform(process, 40, final="stop")
    bound = vlb(denoise, process, x, times=grid)
    expected = 0.5 * snr(process, grid[0]) * np.square(np.float64(x)).sum(1)
    np.testing.assert_allclose(bound.prior, expected, rtol=1e-4, atol=1e-12)
    np.testing.assert_allclose(bound.diffusion, np.full(4, DIMS * riemann(process, grid)), rtol=1e-4)
    r = snr(process, grid[-1]) ** -0.5
    each = -scipy.stats.norm.logpdf(exact_rms(process, np.float64(grid[-1])), scale=r)
    np.testing.assert_allclose(bound.reconstruction, np.full(4, DIMS * each), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bound.nats, bound.prior + bound.diffusion + bound.reconstruction)


def test_prior_is_the_kl_of_normals():
    process, x = VP(beta_max=3.0), jax.random.normal(KEY, (5, 1))
    alpha, sigma = (jnp.asarray(level(1.0)) for level in (process.alpha, process.sigma))
    bound = vlb(lambda x_t, t: x_t, process, x, num_samples=1)
    kl = jax.vmap(lambda x: normal.kl(normal.Normal(alpha * x, sigma), normal.Normal(jnp.zeros(()), sigma)))
    np.testing.assert_allclose(bound.prior, kl(x[:, 0]), rtol=1e-4)


@each("ddpm", "ddpm-zero")
def test_a_discrete_process_sums_all_its_steps_by_default(process):
    x = jnp.zeros((2, DIMS))
    denoise = constant_error(process, x, lambda t: exact_rms(process, t))
    bound = vlb(denoise, process, x)
    np.testing.assert_allclose(
        bound.diffusion, np.full(2, DIMS * riemann(process, np.arange(100.0, 0, -1))), rtol=1e-4
    )


@each("ddpm", "ve", "flow")
def test_drawn_terms_are_unbiased(process):
    x = jnp.zeros((1, 1))
    denoise = constant_error(process, x, lambda t: exact_rms(process, t) * (1 + jnp.exp(-t)))
    grid = samplers.times.uniform(process, 50, final="stop")
    exact = vlb(denoise, process, x, times=grid).diffusion[0]
    draw = lambda key: likelihood.vlb(key, denoise, process, x, times=grid, num_samples=8).diffusion[0]
    drawn = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2000))
    assert abs(drawn.mean() - exact) < 4 * drawn.std() / 2000**0.5 + 1e-4 * exact


@each("vp", "cosine", "log-snr", "ve", "edm", "flow")
def test_the_integral_equals_its_closed_form(process):
    """By stratified times, whose spread falls as n^-3/2: no step size is left in it."""
    x = jnp.zeros((2, DIMS))
    denoise = constant_error(process, x, lambda t: exact_rms(process, t))
    bound = vlb(denoise, process, x, num_samples=2000)
    np.testing.assert_allclose(bound.diffusion, np.full(2, DIMS * integral(process)), rtol=2e-4)


@each("ve", "flow")
def test_the_integral_is_that_of_snr_over_time(process):
    """-1/2 int SNR'(t) E|x_0 - x0_hat|^2 dt by scipy, with the derivative of jax.jvp."""
    x = jnp.zeros((1, 1))
    error = lambda t: 0.1 + t
    bound = vlb(constant_error(process, x, error), process, x, num_samples=4000)
    with jax.enable_x64(True):
        ratio = lambda t: (process.alpha(t) / process.sigma(t)) ** 2
        slope = jax.jit(lambda t: jax.jvp(ratio, (t,), (jnp.ones_like(t),))[1])
        inside = lambda log_t: -0.5 * float(slope(np.exp(log_t)) * error(np.exp(log_t)) ** 2 * np.exp(log_t))
        ends = np.log([process.t_min, process.t_max])
        expected, _ = scipy.integrate.quad(inside, *ends, limit=200, epsabs=0, epsrel=1e-6)
    np.testing.assert_allclose(bound.diffusion, [expected], rtol=2e-3)


@each("vp", "ve", "edm")
def test_gap_to_the_integral_shrinks_as_one_over_the_steps(process):
    with jax.enable_x64(True):
        x = jnp.zeros((1, 1), jnp.float64)
        denoise = constant_error(process, x, lambda t: exact_rms(process, t))

        def gap(n):
            grid = samplers.times.log_snr(process, n, final="stop")
            return float(vlb(denoise, process, x, times=grid).diffusion[0]) - integral(process)

        gaps = np.array([gap(n) for n in (100, 200, 400)])
    assert (gaps > 0).all()
    np.testing.assert_allclose(np.log2(gaps[:-1] / gaps[1:]), 1, atol=0.1)


@each("ddpm", "log-snr")
def test_num_steps_are_even_in_log_snr(process):
    x = jnp.zeros((1, 1))
    denoise = constant_error(process, x, lambda t: exact_rms(process, t))
    grid = samplers.times.log_snr(process, 30, final="stop")
    by_number = vlb(denoise, process, x, num_steps=30)
    np.testing.assert_allclose(by_number.diffusion, [riemann(process, grid)], rtol=1e-4)


# --- exact denoisers: the bound holds, and is met ---


@each()
def test_bound_on_gaussian_data_is_above_the_exact_likelihood_by_its_closed_form(process):
    n = 4000
    params = normal.Normal(jnp.asarray(MEAN), jnp.asarray(STD))
    x = normal.sample(KEY, params, n)[:, None]
    over = np.float64(
        vlb(oracle.gaussian(params, process), process, x).nats + normal.log_prob(params, x[:, 0])
    )
    first, last = snr(process, np.array([process.t_max, process.t_min]))
    discrete = isinstance(process, DDPM)
    diffusion = riemann(process, np.arange(process.t_max, 0, -1)) if discrete else integral(process)
    reconstruction = 0.5 * (STD**2 * last / (1 + STD**2 * last) + np.log(2 * np.pi / last))
    expected = 0.5 * first * (MEAN**2 + STD**2) + diffusion + reconstruction - float(normal.entropy(params))
    error = over.std() / n**0.5
    assert expected > 0
    assert expected < 0.02 or discrete  # DDPM's 100 steps are not infinitely many
    assert over.mean() > -4 * error
    np.testing.assert_allclose(over.mean(), expected, atol=4 * error)


@each("vp", "cosine", "log-snr", "ve", "edm", "ddpm-cosine")
def test_bound_on_a_mixture_is_above_the_exact_likelihood_and_meets_it(process):
    n = 3000
    x, _ = gmm.sample(KEY, MIXTURE, n)
    options = {"num_steps": 1000, "num_samples": 128} if isinstance(process, DDPM) else {}
    over = np.float64(vlb(oracle.mixture(MIXTURE, process), process, x, **options).nats)
    over += np.float64(gmm.log_prob(MIXTURE, x))
    error = over.std() / n**0.5
    assert -4 * error < over.mean() < 4 * error + 0.03
    assert error < 0.04


@pytest.mark.slow
def test_worse_denoisers_have_worse_bounds():
    process, params = VP(), normal.Normal(jnp.asarray(MEAN), jnp.asarray(STD))
    exact, x = oracle.gaussian(params, process), normal.sample(KEY, params, 500)[:, None]

    @jax.jit
    def nats(off):
        return likelihood.vlb(KEY, lambda x_t, t: exact(x_t, t) + off, process, x, num_samples=16).nats.mean()

    assert nats(0.0) < nats(0.1) < nats(0.2)


def test_bound_of_an_example_depends_neither_on_the_batch_nor_on_jit():
    process, x = DDPM(20, beta_max=0.3), jax.random.normal(KEY, (6, 4, 2))
    denoise = lambda x_t, t: 0.5 * x_t
    whole = likelihood.vlb(KEY, denoise, process, x)
    part = vlb(denoise, process, x[2:4], index=jnp.arange(2, 4))
    np.testing.assert_allclose(part.nats, whole.nats[2:4], rtol=1e-5)


def test_memory_does_not_grow_with_the_steps():
    x, sizes = jnp.zeros((64, 256)), []
    for n in (10, 1000):
        process = DDPM(n)
        run = jax.jit(lambda x: likelihood.vlb(KEY, lambda x_t, t: 0.5 * x_t, process, x).nats)
        sizes.append(run.lower(x).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < sizes[0] + 64 * 1000  # tables of times and weights


@pytest.mark.slow
def test_bound_may_be_differentiated_with_respect_to_the_denoiser():
    process, x = DDPM(8, beta_max=0.3), jax.random.normal(KEY, (3, 2))

    def nats(scale):
        denoise = lambda x_t, t: scale * x_t
        return likelihood.vlb(KEY, denoise, process, x, reconstruction="discretized").nats.sum() / 100

    check_grads(jax.jit(nats), (0.9,), order=1, modes=["rev"], rtol=0.02, atol=0.02, eps=1e-3)


# --- pixels ---


def test_discretized_log_prob_equals_scipy():
    x = np.arange(256) / 127.5 - 1
    for mean, std in [(0.1, 0.01), (0.9, 0.1), (-1.3, 0.05), (0.0, 1.0), (2.0, 0.5), (0.123, 0.002)]:
        edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
        upper = edges[:-1] > mean
        a, b = (
            np.where(upper, -edges[1:] + mean, edges[:-1] - mean),
            np.where(upper, -edges[:-1] + mean, edges[1:] - mean),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            log_a, log_b = scipy.stats.norm.logcdf(a / std), scipy.stats.norm.logcdf(b / std)
            expected = log_b + np.log1p(-np.exp(log_a - log_b))
        got = likelihood.discretized_log_prob(jnp.float32(x), jnp.full(256, mean), jnp.full(256, std))
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-4)
        np.testing.assert_allclose(np.exp(np.float64(got)).sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("bins", [2, 16, 256])
def test_discretized_probabilities_are_differences_of_the_cdf(bins):
    x, mean, std = np.linspace(-1, 1, bins), 0.2, 0.4
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    got = likelihood.discretized_log_prob(jnp.float32(x), jnp.full(bins, mean), jnp.asarray(std), bins)
    np.testing.assert_allclose(np.exp(got), np.diff(scipy.stats.norm.cdf(edges, mean, std)), rtol=2e-4)


def test_discretized_log_prob_is_finite_and_differentiable_far_out():
    """Up to 50 deviations away, in float32; its derivatives by differences, in float64."""
    x, means = jnp.array([-1.0, -0.5, 0.0, 0.5, 1.0] * 3), jnp.repeat(jnp.array([-4.0, 0.0, 4.0]), 5)
    value = jax.jit(lambda mean, log_std: likelihood.discretized_log_prob(x, mean, jnp.exp(log_std)).sum())
    log_stds = jnp.full(15, jnp.log(0.1))
    single = jax.jit(jax.value_and_grad(value, (0, 1)))(means, log_stds)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(single))
    with jax.enable_x64(True):
        args = jnp.asarray(means, jnp.float64), jnp.asarray(log_stds, jnp.float64)
        check_grads(value, args, order=1, modes=["rev"], rtol=1e-4)
        double = jax.grad(value, (0, 1))(*args)
    for got, want in zip(single[1], double, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-6)


@pytest.mark.slow
def test_bound_on_pixels_is_a_code_length():
    """Pixels of known probabilities, -1 or 1: no code is shorter than their entropy, and the bound comes near it."""
    process, n, p = VP(t_min=1e-5), 4000, 0.8
    points = np.array([[-1.0], [1.0]], np.float32)
    x = jnp.where(jax.random.bernoulli(KEY, p, (n, 1)), 1.0, -1.0)
    denoise = oracle.empirical(points, process, weights=np.array([1 - p, p]))
    bits = np.float64(vlb(denoise, process, x, reconstruction="discretized").bits_per_dim(1))
    exact = np.where(np.asarray(x[:, 0]) > 0, -np.log2(p), -np.log2(1 - p))
    error = (bits - exact).std() / n**0.5
    assert -4 * error < (bits - exact).mean() < 4 * error + 0.02


def test_bits_per_dim_of_a_density_is_that_of_bytes():
    """A density of x in [-1, 1] is, per byte, 255 / 2 times less: -log2 p(byte) = -log2 p(x) + log2(127.5)."""
    bound = likelihood.Bound(jnp.array([1.0]), jnp.array([2.0]), jnp.array([-1.0]))
    np.testing.assert_allclose(bound.bits_per_dim(2, 2), [2 / (4 * np.log(2))], rtol=1e-6)
    expected = [2 / (4 * np.log(2)) + np.log2(127.5)]
    np.testing.assert_allclose(bound.bits_per_dim(4, bin_width=2 / 255), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="shape of an example"):
        bound.bits_per_dim()


@pytest.mark.slow
def test_gaussian_and_discretized_bits_agree_where_bins_are_narrow():
    """A density times the width of a bin is the bin's probability, if the density is even over the bin."""
    process, x = VP(t_min=0.1), jnp.round(jax.random.uniform(KEY, (8, 5), minval=30, maxval=220)) / 127.5 - 1
    bound = lambda how: vlb(lambda x_t, t: x_t, process, x, num_samples=4, reconstruction=how)
    gaussian, bins = bound("gaussian"), bound("discretized")
    np.testing.assert_allclose(
        gaussian.bits_per_dim(5, bin_width=2 / 255), bins.bits_per_dim(5), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"times": np.array([1.0, 0.5, 0.0])}, 'final="stop"'),
        ({"times": np.array([0.5, 1.0])}, "decreasing"),
        ({"times": np.array([1.5, 1.0])}, r"\[0.001, 1\]"),
        ({"times": np.array([1.0, 0.5]), "num_steps": 3}, "not both"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"reconstruction": "pixels"}, "'pixels'"),
        ({"process": FlowMatching(), "num_steps": 3}, "log_snr must be finite"),
        ({"x": jnp.zeros((2, 3), jnp.uint8)}, "uint8.*127.5"),
        ({"denoise": lambda x_t, t: x_t[:, :1]}, r"returned \(2, 1\)"),
        ({"reconstruction": "discretized", "bins": 1}, "bins must be at least 2, got 1"),
    ],
)
def test_bound_says_what_does_not_fit(options, words):
    fine = {"denoise": lambda x_t, t: x_t, "process": VP(), "x": jnp.zeros((2, 3))}
    with pytest.raises(ValueError, match=words):
        likelihood.vlb(KEY, **(fine | options))
