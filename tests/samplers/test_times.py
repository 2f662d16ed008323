import re

import jax
import numpy as np
import pytest
from scipy import stats

from gen_jax import samplers
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR, Schedule, SubVP, at_log_snr
from gen_jax.samplers import times

LATENT = DDPM(schedule="scaled_linear", beta_min=0.00085, beta_max=0.012)  # Stable Diffusion's
PROCESSES = [
    DDPM(),
    DDPM(schedule="cosine"),
    DDPM(num_steps=37),
    DDPM(zero_terminal_snr=True),
    VP(),
    VP(schedule="cosine"),
    VP(beta_max=8.0, t_min=0.01),
    SubVP(),
    VE(),
    EDM(),
    FlowMatching(),
    LogSNR(lambda t: 10 - 20 * t),
    Schedule(alpha=lambda t: 1 - 0.9 * t**2, sigma=lambda t: t),
]
names = lambda process: re.sub(r"<function .*? at 0x\w+>", "f", str(process))
each_process = pytest.mark.parametrize("process", PROCESSES, ids=names)


def interpolated(process, n, *, t_start=None, **options):
    """Through 7 ratios of the process's own, down from `t_start` or `t_max`."""
    t = np.array([process.t_max if t_start is None else t_start, process.t_min])
    first, last = np.exp(-0.5 * process.log_snr(t))
    return times.interpolated(process, np.geomspace(first, last, 7), n, t_start=t_start, **options)


ALL, TO_T_MIN = ("zero", "denoise", "stop"), ("denoise", "stop")
GRIDS = [
    (grid, final)
    for grid, finals in [
        (times.uniform, ALL),
        (times.quadratic, ALL),
        (times.power, TO_T_MIN),
        (times.beta, ALL),
        (times.cosine, ALL),
        (times.log_snr, TO_T_MIN),
        (times.exponential, TO_T_MIN),
        (times.karras, TO_T_MIN),
        (interpolated, ALL),
    ]
    for final in finals
]
each_grid = pytest.mark.parametrize(("grid", "final"), GRIDS, ids=[f"{g.__name__}-{f}" for g, f in GRIDS])
ENDLESS = [p for p in PROCESSES if p.alpha(np.float64(p.t_max)) == 0]
NEED_FINITE = (times.log_snr, times.exponential, times.karras, interpolated)


def tried(make):
    try:
        return make(), None
    except ValueError as error:
        return None, str(error)


def check(process, t, n, first, final):
    assert t.shape == (n + 1,)
    assert t.dtype == np.float64
    assert t[0] == first
    assert (np.diff(t) < 0).all()
    assert t[-1] == 0 if final != "stop" else abs(t[-1] - process.t_min) < 1e-9
    assert samplers.DDIM().plan(process, t).nfe == n


@each_process
@each_grid
def test_grid_is_n_plus_one_decreasing_times_that_a_solver_accepts(process, grid, final):
    """Of one step and of many; and from t_start."""
    first = 0.9 * process.t_max if process in ENDLESS and grid in NEED_FINITE else None
    for n in (1, 30):
        t, reason = tried(lambda n=n: grid(process, n, final=final, t_start=first))
        if t is None:  # 30 steps are many on 37 times, or from a large t_min to 0
            assert n == 30
            assert re.search(r"steps are too many for a process with 37|even steps to t = 0", reason)
        else:
            check(process, t, n, process.t_max if first is None else first, final)
    t_start = float(process.snap(0.6 * process.t_max))
    check(process, grid(process, 5, final=final, t_start=t_start), 5, t_start, final)


@each_process
@pytest.mark.parametrize(
    ("grid", "final"),
    [(grid, final) for grid, final in GRIDS if final != "zero" and grid is not interpolated],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_grid_ends_at_t_end(process, grid, final):
    t_start, t_end = (float(process.snap(part * process.t_max)) for part in (0.6, 0.2))
    t = grid(process, 5, final=final, t_start=t_start, t_end=t_end)
    assert t.shape == (6,)
    np.testing.assert_allclose(t[-2 if final == "denoise" else -1], t_end, rtol=1e-9)
    assert (np.diff(t) < 0).all()
    assert final == "stop" or t[-1] == 0
    samplers.DDIM().plan(process, t)


@each_grid
def test_t_start_at_t_max_is_the_default(grid, final):
    np.testing.assert_array_equal(
        grid(VP(), 9, final=final, t_start=1.0),
        grid(VP(), 9, final=final),
    )


def test_uniform_of_all_steps_is_every_step():
    np.testing.assert_array_equal(times.uniform(DDPM(), 1000), np.arange(1000, -1, -1))
    np.testing.assert_array_equal(times.uniform(DDPM(), 1000, final="denoise"), np.arange(1000, -1, -1))


@pytest.mark.parametrize("n", [3, 10, 50, 333, 999])
def test_uniform_of_a_discrete_process_is_integer_and_even(n):
    for final in ("zero", "denoise"):
        t = times.uniform(DDPM(), n, final=final)
        np.testing.assert_array_equal(t, np.round(t))
        steps = -np.diff(t if final == "zero" else t[:-1])
        assert steps.max() - steps.min() <= 1


def test_uniform_grids_of_the_literature():
    np.testing.assert_array_equal(times.uniform(DDPM(), 4), [1000, 750, 500, 250, 0])
    np.testing.assert_array_equal(times.uniform(DDPM(), 4, final="denoise"), [1000, 667, 334, 1, 0])


def test_uniform_of_ve_is_geometric_and_ends_in_the_denoised_estimate():
    """sigma jumps from sigma_min to 0 at t = 0: no solver divides by the jump."""
    process = VE()
    t = times.uniform(process, 10)
    sigma = process.sigma(t)
    np.testing.assert_allclose(sigma[:-1], 50 * (0.01 / 50) ** (np.arange(10) / 10), rtol=1e-12)
    for solver in (samplers.DDIM(), samplers.DPMSolverPP(order=3), samplers.DEIS(), samplers.Heun()):
        plan = solver.plan(process, t)
        got = samplers.sample(
            jax.random.key(0), lambda x, t: 0 * x + 0.3, plan, np.full((1, 1), 50.0, np.float32)
        )
        np.testing.assert_allclose(got, 0.3, rtol=1e-5)


# --- each grid is even in its own variable, or is a formula of its paper ---


@each_process
def test_log_snr_and_karras_are_even_in_their_own_variable(process):
    t_start = 0.9 * process.t_max if process in ENDLESS else None
    steps = np.diff(process.log_snr(times.log_snr(process, 20, final="stop", t_start=t_start)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    t = times.karras(process, 20, final="stop", rho=7.0, t_start=t_start)
    steps = np.diff((process.sigma(t) / process.alpha(t)) ** (1 / 7))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


@each_process
@pytest.mark.parametrize("final", ["zero", "stop"])
def test_cosine_is_even_in_the_angle(process, final):
    t = times.cosine(process, 20, final=final)
    steps = np.diff(np.arctan2(process.sigma(t), process.alpha(t)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_cosine_of_flow_matching_in_closed_form():
    """tan(phi) = t / (1 - t)."""
    phi = np.pi / 2 * (1 - np.arange(11) / 10)
    expected = np.sin(phi) / (np.sin(phi) + np.cos(phi))
    np.testing.assert_allclose(
        times.cosine(FlowMatching(), 10, final="zero"), expected, rtol=1e-9, atol=1e-15
    )


def test_karras_of_edm_is_equation_5():
    i, rho = np.arange(12) / 11, 7
    expected = (80 ** (1 / rho) + i * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(times.karras(EDM(), 12)[:-1], expected, rtol=1e-9)


def test_quadratic_is_even_in_the_root():
    for process in (VP(), EDM(), FlowMatching()):
        steps = np.diff(np.sqrt(times.quadratic(process, 12, final="stop")))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    t = times.quadratic(DDPM(), 20, final="zero")
    assert np.abs(t - 1000 * (1 - np.arange(21) / 20) ** 2).max() < 0.5 + 1e-9
    np.testing.assert_array_equal(t, np.round(t))
    grids = times.quadratic(EDM(), 12, final="stop"), times.karras(EDM(), 12, final="stop", rho=2.0)
    np.testing.assert_allclose(*grids, rtol=1e-9)


def test_beta_has_the_quantiles_of_scipy():
    """On EDM, where t is sigma, it is what diffusers makes of `use_beta_sigmas`."""
    quantiles = stats.beta.ppf(1 - np.linspace(0, 1, 15), 0.6, 0.6)
    np.testing.assert_allclose(times.beta(EDM(), 15)[:-1], 0.002 + 79.998 * quantiles, rtol=1e-9)
    t = times.beta(DDPM(), 15)[:-1]
    np.testing.assert_array_equal(t, np.round(1 + 999 * quantiles))


@pytest.mark.parametrize("final", ["zero", "denoise", "stop"])
def test_beta_in_its_limits(final):
    even, u = times.uniform(VP(), 12, final=final), np.linspace(1, 0, 13)
    np.testing.assert_allclose(times.beta(VP(), 12, a=1.0, b=1.0, final=final), even, rtol=1e-9)
    if final == "zero":  # the arcsine distribution
        t = times.beta(VP(), 12, a=0.5, b=0.5, final=final)
        np.testing.assert_allclose(t, np.sin(np.pi / 2 * u) ** 2, atol=1e-12)


@pytest.mark.parametrize("p", [0.35, 0.5, 1.0])
@pytest.mark.parametrize("process", [DDPM(), VP(), FlowMatching()], ids=names)
def test_power_is_even_in_the_power_of_time(process, p):
    t = times.power(process, 12, p=p, t_start=0.8 * process.t_max, t_end=0.05 * process.t_max)
    steps = np.diff(t[:-1] ** p)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert t[0] == 0.8 * process.t_max
    if p == 1:
        np.testing.assert_allclose(
            times.power(VP(), 9, p=p, final="zero"), times.uniform(VP(), 9, final="zero"), atol=1e-15
        )


@pytest.mark.parametrize("p", [0.7, 1.0, 1.5])
def test_exponential_is_the_polyexponential_of_k_diffusion(p):
    """`ramp ** rho * (log(sigma_max) - log(sigma_min)) + log(sigma_min)`, `ramp` from 1 to 0, and a 0 at the end."""
    low, high = 0.03, 40.0
    expected = np.exp(np.linspace(1, 0, 9) ** p * (np.log(high) - np.log(low)) + np.log(low))
    for process in (EDM(), VP(), FlowMatching()):
        t_start, t_end = (float(at_log_snr(process, np.asarray(-2 * np.log(s)))) for s in (high, low))
        t = times.exponential(process, 9, p=p, t_start=t_start, t_end=t_end)
        assert t[-1] == 0
        np.testing.assert_allclose(process.sigma(t[:-1]) / process.alpha(t[:-1]), expected, rtol=1e-6)
    np.testing.assert_allclose(times.exponential(VP(), 9, p=1.0), times.log_snr(VP(), 9), rtol=1e-12)


@pytest.mark.parametrize(("n", "offset"), [(4, 0), (10, 1), (7, 1)])
def test_leading_is_that_of_diffusers(n, offset):
    """Their times count from 0: `(arange(n) * (T // n)).round()[::-1] + steps_offset`, in DDIMScheduler."""
    theirs = (np.arange(n) * (1000 // n)).round()[::-1] + offset
    np.testing.assert_array_equal(times.leading(DDPM(), n, offset=offset), [*(theirs + 1), 0])
    np.testing.assert_array_equal(times.leading(DDPM(), n - 1, offset=offset, final="stop"), theirs + 1)


def test_leading_without_its_last_time_is_that_of_multistep_solvers_of_diffusers():
    """`(arange(0, n + 1) * (T // (n + 1)))[::-1][:-1]` in DPMSolverMultistepScheduler."""
    theirs = (np.arange(0, 11) * (1000 // 11)).round()[::-1][:-1]
    np.testing.assert_array_equal(times.leading(DDPM(), 10, skip=1), [*(theirs + 1), 0])
    samplers.DDIM().plan(DDPM(), times.leading(DDPM(), 10, skip=1))


AYS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]


def test_interpolated_brings_the_published_list_to_the_published_times():
    """Sabour et al. 2024, Stable Diffusion 1.5: the levels, and the same as whole numbers of betas counted from 0."""
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0]
    t = times.interpolated(LATENT, AYS, 10, final="stop")
    assert np.abs(t - 1 - published).max() < 1
    zero = times.interpolated(LATENT, AYS, 10)
    np.testing.assert_array_equal(zero, [*t[:-1], 0.0])
    np.testing.assert_array_equal(times.interpolated(LATENT, AYS, 11, final="denoise"), [*t, 0.0])


@pytest.mark.parametrize("n", [5, 15, 20, 37])
def test_interpolated_is_linear_in_the_logarithm(n):
    t = times.interpolated(LATENT, AYS, n, final="stop")
    levels = np.exp(-0.5 * LATENT.log_snr(t))
    expected = np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, 11), np.log(AYS)))
    np.testing.assert_allclose(levels[1:-1], expected[1:-1], rtol=1e-9)
    np.testing.assert_allclose(levels, expected, rtol=0.01)  # 14.615 and 0.029 were rounded


def test_interpolated_with_t_start_is_the_rest_of_the_list():
    t_start = float(times.interpolated(LATENT, AYS, 10, final="stop")[4])
    grids = [times.interpolated(LATENT, AYS, n, t_start=start) for n, start in ((6, t_start), (10, None))]
    np.testing.assert_allclose(grids[0], grids[1][4:], rtol=1e-9)


def test_interpolated_between_two_levels_is_log_snr():
    ends = np.exp(-0.5 * VP().log_snr(np.array([1.0, 1e-3])))
    grids = [
        times.interpolated(VP(), ends, 9, final="stop"),
        times.interpolated(VP(), list(ends), 9, final="stop"),
    ]
    np.testing.assert_array_equal(*grids)
    np.testing.assert_allclose(grids[0], times.log_snr(VP(), 9, final="stop"), rtol=1e-9)


def test_denoise_is_stop_and_one_step_more():
    for grid, _ in {each for each in GRIDS if each[1] == "stop"}:
        stop = grid(VP(), 7, final="stop")
        np.testing.assert_array_equal(grid(VP(), 8, final="denoise")[:-1], stop)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: times.uniform(VP(), 0), "n must be at least 1, got 0"),
        (lambda: times.uniform(DDPM(num_steps=10), 11), "11 steps are too many.*10 discrete"),
        (lambda: times.quadratic(DDPM(), 200), "200 steps are too many.*log_snr"),
        (lambda: times.uniform(VP(), 2000), 't_min = 0.001.*"denoise"'),
        (lambda: times.quadratic(VP(), 40, final="zero"), 't = 0.000625, below t_min = 0.001.*"denoise"'),
        (lambda: times.cosine(VP(), 400, final="zero"), 'below t_min = 0.001.*"denoise"'),
        (lambda: times.uniform(VP(), 10, final="data"), "'zero', 'denoise', 'stop'.*'data'"),
        (lambda: times.log_snr(VP(), 10, final="zero"), "'denoise', 'stop'.*'zero'"),
        (lambda: times.interpolated(LATENT, AYS, 10, final="one"), "'zero', 'denoise', 'stop'.*'one'"),
        (lambda: times.log_snr(FlowMatching(), 10), "finite at t_max.*uniform.*t_start below 1"),
        (lambda: times.karras(VP(), 10, rho=0.0), "rho must be positive.*7"),
        (lambda: times.beta(VP(), 10, a=0.0), "a and b must be positive, got 0.0 and 0.6.*0.6"),
        (lambda: times.power(VP(), 10, p=0.0), "p must be positive, got 0.0: 1 is even in t"),
        (lambda: times.exponential(VP(), 10, p=-1.0), "p must be positive, got -1.0: 1 is log_snr"),
        (lambda: times.leading(VP(), 10), "discrete process, such as DDPM.*VP.*uniform"),
        (lambda: times.leading(DDPM(), 1001), "1001 steps with offset=0 and skip=0 do not fit into the 1000"),
        (lambda: times.leading(DDPM(), 10, offset=200), "offset=200 and skip=0 do not fit"),
        (lambda: times.leading(DDPM(), 10, skip=-1), "skip must be at least 0, got -1"),
        (lambda: times.leading(DDPM(), 10, final="zero"), "'denoise', 'stop'.*'zero'"),
        (lambda: times.uniform(VP(), 10, t_end=0.1), '"zero" ends at the data.*leave out t_end=0.1'),
        (
            lambda: times.karras(VP(), 10, t_start=0.2, t_end=0.3),
            r"t_end must lie in \[0.001, 0.2\), got 0.3",
        ),
        (lambda: times.log_snr(VP(), 10, t_end=1e-4), r"t_end must lie in \[0.001, 1\), got 0.0001"),
        (lambda: times.log_snr(VP(), 10, t_start=1.5), r"t_start must lie in \(0.001, 1\], got 1.5"),
        (lambda: times.uniform(DDPM(), 10, t_start=1.0), r"t_start must lie in \(1, 1000\], got 1"),
        (lambda: times.interpolated(LATENT, [*AYS, 0.0], 10), "without the 0"),
        (lambda: times.interpolated(LATENT, AYS[::-1], 10), "strictly decreasing"),
        (lambda: times.interpolated(LATENT, [14.6], 10), "at least 2"),
        (lambda: times.interpolated(LATENT, [*AYS, 0.01], 10), "0.02917 at t_min.*got 0.01"),
        (lambda: times.interpolated(LATENT, AYS[1:], 10), r"t_max, 14.61.*got 6.475.*t_start=851"),
        (lambda: times.interpolated(EDM(), AYS[:-1], 10), r"t_max, 80.*got 14.6.*t_start=14.615"),
        (
            lambda: times.interpolated(LATENT, AYS[2:], 10, t_start=900.0),
            r"\(0.029, 3.861\]; .* at t_start = 900",
        ),
        (lambda: times.interpolated(LATENT, AYS[:4], 10, t_start=100.0), r"at t_start = 100"),
    ],
)
def test_grid_rejects_bad_input(make, words):
    with pytest.raises(ValueError, match=words):
        make()
