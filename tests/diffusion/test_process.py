import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import solve_ivp

from gen_jax.diffusion.process import (
    DDPM,
    EDM,
    VE,
    VP,
    FlowMatching,
    LogSNR,
    Process,
    Schedule,
    SubVP,
    expand,
)
from tests.marks import slow

PRESERVING = {
    "ddpm": DDPM(),
    "ddpm_scaled": DDPM(schedule="scaled_linear", beta_min=0.00085, beta_max=0.012),
    "ddpm_cosine": DDPM(schedule="cosine"),
    "ddpm_few": DDPM(num_steps=40, beta_max=0.3),
    "ddpm_zero_snr": DDPM(zero_terminal_snr=True),
    "vp": VP(),
    "vp_slow": VP(beta_min=0.2, beta_max=8.0),
    "vp_cosine": VP(schedule="cosine"),
    "log_snr": LogSNR(lambda t: 12 - 22 * t),
}
PROCESSES = PRESERVING | {
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "schedule": Schedule(alpha=lambda t: 1 - 0.9 * t**2, sigma=lambda t: 2 * t),
}
each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
each_preserving = pytest.mark.parametrize("process", PRESERVING.values(), ids=PRESERVING)


def alpha_bar(betas):
    """The book's product, in plain Python floats: `[1, 1 - beta_1, (1 - beta_1)(1 - beta_2), ...]`."""
    products = [1.0]
    for beta in betas:
        products.append(products[-1] * (1.0 - beta))
    return np.array(products)


def linear_betas(T, low, high):
    return [low + (high - low) * (t - 1) / (T - 1) for t in range(1, T + 1)]


def cosine_betas(T):
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T + 1)]
    return [min(1 - f[t] / f[t - 1], 0.999) for t in range(1, T + 1)]


def scaled_linear_betas(T, low, high):
    return [(low**0.5 + (high**0.5 - low**0.5) * (t - 1) / (T - 1)) ** 2 for t in range(1, T + 1)]


PAPER_BETAS = [
    (DDPM(), linear_betas(1000, 1e-4, 0.02)),
    (DDPM(num_steps=40, beta_max=0.3), linear_betas(40, 1e-4, 0.3)),
    (
        DDPM(schedule="scaled_linear", beta_min=0.00085, beta_max=0.012),
        scaled_linear_betas(1000, 0.00085, 0.012),
    ),
    (DDPM(schedule="cosine"), cosine_betas(1000)),
    (DDPM(num_steps=100, schedule="cosine"), cosine_betas(100)),
]


@pytest.mark.parametrize(("process", "betas"), PAPER_BETAS, ids=[str(p) for p, _ in PAPER_BETAS])
def test_ddpm_has_the_papers_betas_and_alpha_bars(process, betas):
    t = np.arange(process.num_steps + 1.0)
    np.testing.assert_allclose(process.betas, betas, rtol=1e-9)
    np.testing.assert_allclose(process.alpha(t) ** 2, alpha_bar(betas), rtol=1e-10)
    np.testing.assert_allclose(process.sigma(t) ** 2, 1 - alpha_bar(betas), rtol=1e-9)


def test_ddpm_interpolates_log_alpha_linearly():
    process = DDPM(num_steps=10, beta_max=0.5)
    nodes = np.log(process.alpha(np.arange(11.0)))
    between = np.log(process.alpha(np.array([0.25, 4.5, 9.75])))
    expected = [0.25 * nodes[1], 0.5 * (nodes[4] + nodes[5]), 0.25 * nodes[9] + 0.75 * nodes[10]]
    np.testing.assert_allclose(between, expected, rtol=1e-10)


def test_ddpm_with_many_steps_is_vp():
    vp, N = VP(), 20_000
    ddpm = DDPM(num_steps=N, beta_min=vp.beta_min / N, beta_max=vp.beta_max / N)
    t = np.linspace(0.01, 1, 25)
    np.testing.assert_allclose(ddpm.log_alpha(N * t), vp.log_alpha(t), rtol=5e-3)


@pytest.mark.parametrize("vp", [VP(), VP(beta_min=0.2, beta_max=8.0)], ids=str)
def test_vp_has_the_moments_of_its_sde(vp):
    def sde(
        t, moments
    ):  # dx = -beta x / 2 dt + sqrt(beta) dw: d mean = -beta/2 mean dt, d var = beta (1 - var) dt
        mean, variance = moments
        beta = vp.beta_min + (vp.beta_max - vp.beta_min) * t
        return [-0.5 * beta * mean, beta * (1 - variance)]

    t = np.linspace(0, 1, 11)
    mean, variance = solve_ivp(sde, (0, 1), [1.0, 0.0], t_eval=t, rtol=1e-11, atol=1e-13).y
    np.testing.assert_allclose(vp.alpha(t), mean, rtol=1e-7)
    np.testing.assert_allclose(vp.sigma(t) ** 2, variance, rtol=1e-7, atol=1e-12)


@each_process
def test_time_zero_is_the_data(process):
    for zero in (np.zeros(()), jnp.zeros(())):
        assert process.alpha(zero) == 1
        assert process.sigma(zero) == 0
        assert process.log_snr(zero) == np.inf


@each_preserving
def test_variance_is_preserved(process):
    t = np.linspace(process.t_min, process.t_max, 500)
    np.testing.assert_allclose(process.alpha(t) ** 2 + process.sigma(t) ** 2, 1, rtol=1e-12)


@each_process
def test_schedule_is_consistent(process):
    t = np.linspace(process.t_min, process.t_max, 500)
    alpha, sigma, log_snr = process.alpha(t), process.sigma(t), process.log_snr(t)
    assert alpha.dtype == sigma.dtype == log_snr.dtype == np.float64
    with np.errstate(divide="ignore"):
        expected = np.log(alpha**2 / sigma**2)
    np.testing.assert_allclose(log_snr, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_snr, Process.log_snr(process, t), rtol=1e-9, atol=1e-9)
    assert (np.diff(log_snr) < 0).all()


def test_zero_terminal_snr_shifts_and_scales_alpha():
    """Lin et al. 2024, Algorithm 1: the first alpha stays, the last is 0, the map between them is linear."""
    plain, process, t = DDPM(), DDPM(zero_terminal_snr=True), np.arange(1.0, 1001.0)
    low, high = plain.alpha(t[-1]), plain.alpha(t[0])
    np.testing.assert_allclose(process.alpha(t), (plain.alpha(t) - low) * high / (high - low), atol=1e-12)
    assert process.alpha(np.array(1000.0)) == 0
    assert process.log_snr(np.array(1000.0)) == -np.inf
    np.testing.assert_allclose(process.alpha(np.array(999.25)), 0.75 * process.alpha(np.array(999.0)))


@pytest.mark.parametrize("process", [SubVP(), SubVP(beta_min=0.2, beta_max=8.0)], ids=str)
def test_sub_vp_has_the_moments_of_its_sde(process):
    def sde(t, moments):  # dx = -beta x / 2 dt + sqrt(beta (1 - exp(-2 int beta))) dw
        mean, variance, integral = moments
        beta = process.beta_min + (process.beta_max - process.beta_min) * t
        return [-0.5 * beta * mean, -beta * variance + beta * -np.expm1(-2 * integral), beta]

    t = np.linspace(0, 1, 11)
    mean, variance, _ = solve_ivp(sde, (0, 1), [1.0, 0.0, 0.0], t_eval=t, rtol=1e-11, atol=1e-13).y
    np.testing.assert_allclose(process.alpha(t), mean, rtol=1e-7)
    np.testing.assert_allclose(process.sigma(t) ** 2, variance, rtol=1e-6, atol=1e-11)


def test_ve_grows_by_its_sde():
    """d sigma^2 / dt = g^2, g = sigma_min r^t sqrt(2 log r) (Song et al. 2021, Eq. 30)."""
    process, t = VE(0.02, 30.0), np.linspace(0.1, 1, 9)
    ratio, step = 30.0 / 0.02, 1e-6
    slope = (process.sigma(t + step) ** 2 - process.sigma(t - step) ** 2) / (2 * step)
    np.testing.assert_allclose(slope, (0.02 * ratio**t) ** 2 * 2 * np.log(ratio), rtol=1e-6)
    np.testing.assert_allclose(process.sigma(np.array([1e-9, 1.0])), [0.02, 30.0], rtol=1e-6)


def test_edm_trains_at_log_normal_noise():
    process, u = EDM(), (np.arange(100_000) + 0.5) / 100_000
    log_sigma = np.log(process.times(u))
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=2e-3)
    np.testing.assert_allclose(
        process.times(jnp.asarray([0.2, 0.9])), process.times(np.array([0.2, 0.9])), rtol=1e-5
    )
    np.testing.assert_array_equal(process.times(np.array([0.0, 1.0])), [0.002, 80.0])


def test_vp_cosine_is_the_limit_of_the_discrete_one():
    ddpm, vp, t = DDPM(schedule="cosine"), VP(schedule="cosine"), np.linspace(0.01, 0.99, 30)
    np.testing.assert_allclose(ddpm.log_alpha(1000 * t), vp.log_alpha(t), rtol=1e-4, atol=1e-7)


@each_process
@pytest.mark.parametrize("name", ["alpha", "sigma", "log_snr"])
def test_float32_is_accurate_from_the_data_to_the_prior(process, name):
    t = np.geomspace(process.t_min, process.t_max, 300).astype(np.float32)
    exact = getattr(process, name)(t.astype(np.float64))
    for values in (jax.jit(getattr(process, name))(jnp.asarray(t)), getattr(process, name)(t)):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, exact, rtol=2e-5, atol=1e-6)


@each_process
def test_times_of_any_type_are_understood(process):
    t = process.t_max if process.t_max >= 1 else 0.5
    whole = [int(t)] if t >= 1 else []
    for form in (t, np.float64(t), np.array(t), jnp.asarray(t), jnp.asarray(t, jnp.bfloat16), *whole):
        np.testing.assert_allclose(process.sigma(form), process.sigma(np.array(t)), rtol=1e-6)


def test_ddpm_trains_at_every_step_equally_often():
    process = DDPM(num_steps=50)
    t = process.times((jnp.arange(5000) + 0.5) / 5000)
    values, counts = np.unique(np.asarray(t), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(1.0, 51.0))
    np.testing.assert_array_equal(counts, 100)
    assert process.times(jnp.asarray(np.nextafter(np.float32(1), np.float32(0)))) == 50


def test_vp_trains_between_t_min_and_t_max():
    process = VP(t_min=0.01)
    np.testing.assert_allclose(process.times(np.array([0.0, 0.5, 1.0])), [0.01, 0.505, 1.0])


@each_process
def test_perturb_broadcasts_one_time_or_one_a_row(process):
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    t = process.times(jnp.asarray([0.1, 0.5, 0.9]))
    rows = jnp.stack([process.perturb(x_0[i], t[i], eps[i]) for i in range(3)])
    np.testing.assert_allclose(process.perturb(x_0, t, eps), rows, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(process.perturb(x_0, 0.0, eps), x_0)


@each_preserving
def test_perturb_of_standard_normal_data_stays_standard_normal(process):
    x_0, eps = jax.random.normal(jax.random.key(0), (2, 100_000))
    x_t = process.perturb(x_0, process.times(jnp.linspace(0, 0.999, 100_000)), eps)
    assert abs(x_t.mean()) < 5 / 100_000**0.5
    assert abs(x_t.var() - 1) < 5 * (2 / 100_000) ** 0.5


@pytest.mark.parametrize("process", slow(PROCESSES.values(), but=(VP(), VE(), DDPM())), ids=PROCESSES)
@pytest.mark.usefixtures("optimized")  # equal to the last bit
def test_prior_is_normal_and_row_depends_on_its_index_alone(process):
    prior = jax.jit(lambda key, shape, index=None: process.prior(key, shape, index=index), static_argnums=1)
    x_T = prior(jax.random.key(0), (4000, 5)) / process.sigma(process.t_max)
    assert abs(x_T.mean()) < 5 / 20_000**0.5
    assert abs(x_T.std() - 1) < 5 / 40_000**0.5
    part = prior(jax.random.key(0), (3, 5), jnp.asarray([7, 0, 3999])) / process.sigma(process.t_max)
    np.testing.assert_array_equal(part, x_T[jnp.asarray([7, 0, 3999])])


def test_vp_derivatives():
    with jax.enable_x64(True):
        for name in ("alpha", "sigma", "log_snr"):
            check_grads(jax.jit(getattr(VP(), name)), (jnp.asarray(0.3),), order=1)


def test_process_of_ones_own_needs_two_functions():
    @dataclasses.dataclass(frozen=True)
    class FlowMatching(Process):
        t_min: float = 0.01
        t_max: float = 1.0

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t

    process = FlowMatching()
    assert isinstance(process, Process)
    np.testing.assert_allclose(process.log_snr(np.array([0.5, 0.25])), [0, 2 * np.log(3)])
    np.testing.assert_allclose(process.times(np.array([0.0, 0.5])), [0.01, 0.505])
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(process.perturb(x, jnp.asarray([0.0, 1.0]), 2 * x), [[1] * 3, [2] * 3])
    assert process.prior(jax.random.key(0), (2, 3)).shape == (2, 3)


def test_expand_appends_axes():
    x = jnp.ones((2, 3, 4))
    assert expand(jnp.ones(2), x).shape == (2, 1, 1)
    assert expand(jnp.ones(()), x).shape == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDPM(num_steps=0), "num_steps"),
        (lambda: DDPM(num_steps=2**30), "num_steps must be at most 1,000,000, got 1,073,741,824: VP"),
        (lambda: DDPM(schedule="quadratic"), "'scaled_linear' or 'cosine'.*quadratic"),
        (lambda: DDPM(num_steps=1, zero_terminal_snr=True), "at least 2"),
        (lambda: VP(schedule="quadratic"), '"linear" or "cosine".*quadratic'),
        (lambda: SubVP(beta_max=0.0), "0 < beta_min"),
        (lambda: VE(sigma_min=0.0), "sigma_min < sigma_max"),
        (lambda: EDM(sigma_max=0.001), "sigma_min < sigma_max"),
        (lambda: EDM(log_std=0.0), "log_std.*1.2"),
        (lambda: FlowMatching(t_min=1.0), "t_min"),
        (lambda: LogSNR(lambda t: -t, t_min=2.0), r"t_min.*\(0, 1\)"),
        (lambda: Schedule(alpha=lambda t: t, sigma=lambda t: 1 - t), "strictly decrease"),
        (lambda: DDPM(beta_min=0.1, beta_max=0.01), "beta_min <= beta_max"),
        (lambda: DDPM(beta_max=1.5), "beta_max < 1"),
        (lambda: VP(beta_min=0.0), "0 < beta_min"),
        (lambda: VP(t_min=0.0), "t_min.*1e-3"),
    ],
)
def test_process_rejects_bad_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()
