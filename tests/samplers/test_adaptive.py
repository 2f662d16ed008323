"""The adaptive probability-flow ODE against closed forms and scipy, in both directions."""

import itertools
import subprocess
import sys
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.integrate import solve_ivp

from gen_jax import gmm, normal, samplers
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR, Schedule, SubVP, at_log_snr
from gen_jax.samplers import adaptive

MU, S = 0.7, 0.4  # the data are N(MU, S^2) in every dimension
KEY = jax.random.key(3)
PROCESSES = {
    "linear": DDPM(),
    "cosine": DDPM(schedule="cosine"),
    "zero-snr": DDPM(zero_terminal_snr=True),
    "vp": VP(),
    "vp-cosine": VP(schedule="cosine"),
    "sub-vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "log-snr": LogSNR(lambda t: 10 - 20 * t),
    "schedule": Schedule(alpha=lambda t: 1 - t**2, sigma=lambda t: t),
}
EVERY_KIND = ("linear", "zero-snr", "sub-vp", "edm", "flow")  # the others are like one of these
each_process = pytest.mark.parametrize(
    "process",
    [p if n in EVERY_KIND else pytest.param(p, marks=pytest.mark.slow) for n, p in PROCESSES.items()],
    ids=PROCESSES,
)
TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def gaussian(process):
    return oracle.gaussian(normal.Normal(jnp.asarray(MU), jnp.asarray(S)), process)


def gaussian_ode(process, x_t, t, s):
    """The ODE from t to s keeps the number of standard deviations from the mean."""
    alpha, sigma = (np.asarray(level(np.array([t, s]))) for level in (process.alpha, process.sigma))
    mean, std = alpha * MU, np.hypot(alpha * S, sigma)
    return mean[1] + std[1] / std[0] * (x_t - mean[0])


def mixture(process, dtype=jnp.float64):
    weights, means, variances = [0.3, 0.7], [[-1.0], [1.0]], [[0.09], [0.25]]
    return oracle.mixture(gmm.GMM(*(jnp.asarray(a, dtype) for a in (weights, means, variances))), process)


def follow(denoise, process, **options):
    return jax.jit(partial(adaptive.ode, denoise, process, **options))


def test_adaptive_is_imported_when_asked_for():
    code = (
        "import sys; from gen_jax import samplers; assert 'diffrax' not in sys.modules; "
        "samplers.adaptive.ode; assert 'diffrax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert samplers.adaptive is adaptive
    with pytest.raises(AttributeError, match=r"'gen_jax.samplers' has no attribute 'adaptiv'"):
        samplers.adaptiv  # noqa: B018


# --- exact answers ---


@each_process
def test_ode_follows_the_closed_form_of_normal_data(process):
    with jax.enable_x64(True):
        x_T = jnp.linspace(-2.0, 2.0, 6)[:, None] * process.sigma(process.t_max)
        got = follow(gaussian(process), process, final="stop", **TIGHT)(x_T)
        exact = gaussian_ode(process, x_T, process.t_max, process.t_min)
        np.testing.assert_allclose(got.x, exact, rtol=1e-6, atol=1e-7)
        assert got.success


@pytest.mark.parametrize(("process", "back"), [(DDPM(), False), (FlowMatching(), True)], ids=str)
def test_ode_agrees_with_scipy_on_a_mixture(process, back):
    """In another variable: with y = x / alpha and u = log(sigma / alpha), dy/du = y - x0_hat."""
    ends = np.array([process.t_min, 0.98 * process.t_max])[:: 1 if back else -1]
    alpha, sigma = process.alpha(ends), process.sigma(ends)

    def slope(u, y):
        r, mean, variance = np.exp(u), np.array([[-1.0], [1.0]]), np.array([[0.09], [0.25]])
        likely = np.array([[0.3], [0.7]]) * np.exp(-((y - mean) ** 2) / (2 * (variance + r**2)))
        likely /= np.sqrt(variance + r**2)
        each = mean + variance / (variance + r**2) * (y - mean)
        return y - (likely * each).sum(0) / likely.sum(0)

    start = np.linspace(-1.5, 1.5, 5) * np.hypot(alpha[0], sigma[0])
    u = np.log(sigma / alpha)
    y = solve_ivp(slope, u, start / alpha[0], rtol=1e-9, atol=1e-11, method="DOP853").y[:, -1]
    with jax.enable_x64(True):
        run = follow(mixture(process), process, t_start=ends[0], t_end=ends[1], **TIGHT)
        np.testing.assert_allclose(
            run(jnp.asarray(start)[:, None]).x[:, 0], alpha[1] * y, rtol=1e-6, atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("process", [DDPM(), FlowMatching()], ids=str)
def test_encoding_and_sampling_are_inverse(process):
    with jax.enable_x64(True):
        x_0 = jnp.linspace(-2.0, 2.0, 7)[:, None]
        options = {"final": "zero", **TIGHT}
        x_T = follow(mixture(process), process, t_start=0.0, t_end=process.t_max, **options)(x_0).x
        again = follow(mixture(process), process, **options)(x_T).x
        np.testing.assert_allclose(again, x_0, atol=1e-5)
        assert (np.diff(x_T[:, 0]) > 0).all()  # paths do not cross


def test_data_of_one_value_are_found_whatever_the_noise():
    process = FlowMatching()
    x_t = follow(lambda x, t: jnp.full_like(x, 0.25), process, final="stop")(process.prior(KEY, (4, 2))).x
    np.testing.assert_allclose(x_t, 0.25, atol=5 * process.sigma(process.t_min))


def test_single_precision_keeps_the_default_tolerance():
    process = EDM()
    x_T = process.prior(KEY, (50, 3))
    got = follow(gaussian(process), process, final="stop")(x_T)
    exact = gaussian_ode(process, np.float64(x_T), process.t_max, process.t_min)
    np.testing.assert_allclose(got.x, exact, atol=2e-4)


@pytest.mark.slow
def test_error_follows_the_tolerance():
    process, tolerances = EDM(), (1e-3, 1e-6, 1e-9)
    with jax.enable_x64(True):
        x_T = jnp.asarray(process.prior(KEY, (20, 1)), jnp.float64)
        exact = gaussian_ode(process, x_T, process.t_max, process.t_min)
        runs = [
            follow(gaussian(process), process, final="stop", rtol=tol, atol=tol)(x_T) for tol in tolerances
        ]
    for run, tol in zip(runs, tolerances, strict=True):
        assert np.abs(run.x - exact).max() < 30 * tol
    assert all(a.nfe < b.nfe for a, b in itertools.pairwise(runs))


@pytest.mark.slow
def test_kinks_of_a_discrete_process_cost_nothing():
    """DDPM and VP are the same path at other times, and their times are all that differs."""
    nfe = []
    for process in (DDPM(), VP()):
        x_T = process.prior(KEY, (20, 1))
        nfe.append(int(follow(mixture(process, jnp.float32), process)(x_T).nfe))
    assert abs(nfe[0] - nfe[1]) <= 0.1 * nfe[1]


@each_process
def test_at_log_snr_is_the_same_on_numpy_and_inside_jit(process):
    values = np.linspace(np.maximum(process.log_snr(np.float64(process.t_max)), -20), 8.0, 12)
    with jax.enable_x64(True):
        inside = jax.jit(partial(at_log_snr, process))(jnp.asarray(values))
    outside = at_log_snr(process, values)
    np.testing.assert_allclose(inside, outside, rtol=1e-9)
    reached = outside > process.t_min * 1.001
    assert reached.sum() > 8
    np.testing.assert_allclose(process.log_snr(outside)[reached], values[reached], rtol=1e-7, atol=1e-7)


# --- the end at the data ---


@pytest.mark.slow
def test_final_says_how_a_run_to_the_data_ends():
    process = VP()
    denoise, x_T = gaussian(process), process.prior(KEY, (5, 1))
    run = {final: follow(denoise, process, final=final)(x_T) for final in ("stop", "denoise", "zero")}
    x = run["stop"].x
    x0_hat = denoise(x, process.t_min)
    np.testing.assert_allclose(run["denoise"].x, x0_hat, rtol=1e-6)
    np.testing.assert_allclose(run["zero"].x, (x / process.alpha(process.t_min) + x0_hat) / 2, rtol=1e-6)
    assert run["denoise"].nfe == run["zero"].nfe == run["stop"].nfe + 1


@pytest.mark.slow
def test_the_step_to_the_data_errs_by_the_fourth_power_of_its_noise():
    errors = []
    with jax.enable_x64(True):
        for low in (0.1, 0.05):
            process = EDM(sigma_min=low, sigma_max=20.0)
            x_T = jnp.linspace(-30.0, 30.0, 5)[:, None]
            x_0 = follow(gaussian(process), process, final="zero", rtol=1e-11, atol=1e-11)(x_T).x
            errors.append(np.abs(x_0 - gaussian_ode(process, x_T, 20.0, 0.0)).max())
    assert abs(np.log2(errors[0] / errors[1]) - 4) < 0.2, errors


# --- what JAX can do with it ---


def test_states_may_be_any_pytree():
    process = FlowMatching()
    x_T = {"image": process.prior(KEY, (3, 4, 4, 1)), "points": [process.prior(KEY, (3, 5))]}
    denoise = lambda x_t, t: jax.tree.map(lambda x: gaussian(process)(x, t), x_t)
    x_0 = follow(denoise, process, final="stop")(x_T).x
    exact = jax.tree.map(lambda x: gaussian_ode(process, x, 1.0, process.t_min), x_T)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), x_0, exact)


def test_arithmetic_is_in_float32_or_better_and_the_dtype_is_kept():
    process = VP()

    def denoise(x_t, t):
        assert x_t.dtype == t.dtype == jnp.float32
        return gaussian(process)(x_t, t).astype(jnp.bfloat16)

    with jax.enable_x64(True):
        for dtype in (jnp.bfloat16, jnp.float32):
            assert (
                adaptive.ode(denoise, process, jnp.ones((2, 1), dtype), rtol=0.1, atol=0.1).x.dtype == dtype
            )


@pytest.mark.slow
def test_vmap_gives_every_example_its_own_steps():
    process = VP()
    run = follow(mixture(process, jnp.float32), process)
    x_T = process.prior(KEY, (4, 1))
    each = jax.vmap(run)(x_T[:, None])
    alone = [run(x[None]) for x in x_T]
    np.testing.assert_allclose(each.x[:, 0], np.concatenate([s.x for s in alone]), atol=1e-6)
    np.testing.assert_array_equal(each.nfe, [s.nfe for s in alone])


@pytest.mark.slow
def test_every_example_keeps_to_the_tolerance_in_any_company():
    """One example that is hard, among many that are easy, would hide in the mean of the batch."""
    process = EDM()
    hard, tol = 1.0, 1e-4
    with jax.enable_x64(True):
        exact = mixture(process)
        denoise = lambda x, t: (
            jnp.where(x[:, 1:] == hard, exact(x[:, :1], t), 0.0) * jnp.array([[1.0, 0]])
            + (
                x * jnp.array([[0.0, 1.0]])  # the second number stays as it is
            )
        )
        x_T = jnp.zeros((400, 2)).at[7].set(jnp.array([33.0, hard]))
        options = {"final": "stop", "rtol": tol, "atol": tol}
        among = follow(denoise, process, **options)(x_T)
        alone = follow(denoise, process, **options)(x_T[7:8])
        np.testing.assert_allclose(among.x[7], alone.x[0], atol=1e-12)


@pytest.mark.slow
def test_ode_is_differentiable():
    process = VP()
    with jax.enable_x64(True):

        @jax.jit
        def end(x_T, shift):
            denoise = lambda x, t: mixture(process)(x, t) + shift
            return adaptive.ode(denoise, process, x_T, **TIGHT).x

        args = jnp.linspace(-1.0, 1.0, 3)[:, None], jnp.asarray(0.1)
        check_grads(end, args, order=1, modes=["rev"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_forward_mode_is_an_option_of_diffrax():
    process = EDM()
    run = follow(gaussian(process), process, final="stop", adjoint=diffrax.ForwardMode())
    x_T = jnp.array([[3.0], [-40.0]])
    _, moved = jax.jvp(lambda x: run(x).x, (x_T,), (jnp.ones_like(x_T),))
    exact = np.hypot(S, process.sigma_min) / np.hypot(S, process.sigma_max)
    np.testing.assert_allclose(moved, np.full((2, 1), exact), rtol=1e-3)


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Heun()], ids=str)
def test_nfe_counts_the_calls(solver):
    process, calls = VP(), []

    def denoise(x_t, t):
        jax.debug.callback(calls.append, t)
        return gaussian(process)(x_t, t)

    tol = {"rtol": 1e-3, "atol": 1e-3}
    run = follow(denoise, process, solver=solver, **tol)
    nfe = run(process.prior(KEY, (3, 1))).nfe
    jax.effects_barrier()
    assert nfe == len(calls)
    assert min(calls) >= process.t_min * (1 - 1e-6)
    assert max(calls) <= process.t_max


# --- failure ---


def test_too_few_steps_are_not_silent():
    process = VP()
    with jax.debug_nans(False):
        got = follow(mixture(process, jnp.float32), process, max_steps=3)(process.prior(KEY, (3, 1)))
        assert not got.success
        assert np.isnan(got.x).all()


def test_a_denoiser_that_is_nan_fails_soon():
    process = VP()
    with jax.debug_nans(False):
        denoise = lambda x, t: jnp.where(t < 0.5, jnp.nan, x)
        got = follow(denoise, process)(process.prior(KEY, (3, 1)))
        assert not got.success
        assert np.isnan(got.x).all()
        assert got.nfe < 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": jnp.ones((2, 3), jnp.int32)}, "floating-point.*; got int32"),
        ({"x": {}}, r"\[B, ...\] with one B"),
        ({"x": [jnp.ones((2, 3)), jnp.ones((3, 3))]}, r"one B; got the shapes \[\(2, 3\), \(3, 3\)\]"),
        ({"t_start": 1.5}, r"t_start must be 0 .* \[0.001, 1\], got 1.5"),
        ({"t_end": 1e-4}, r"t_end must be 0 .*below t_min"),
        ({"t_end": float("nan")}, "got nan"),
        ({"t_end": 1}, "must differ, got 1"),
        ({"final": "half"}, '"denoise", "zero" or "stop", got .half'),
        ({"rtol": 0.0}, "rtol must be above 0, got 0"),
        ({"solver": diffrax.Kvaerno5()}, "explicit Runge-Kutta.*Kvaerno5"),
        ({"solver": diffrax.Euler()}, "explicit Runge-Kutta.*Euler"),
        ({"denoise": lambda x, t: x[:, :1]}, r"the denoiser must return the shape of x_t, \(2, 3\)"),
    ],
)
def test_ode_rejects_bad_input(change, words):
    args = {"denoise": lambda x, t: x, "process": VP(), "x": jnp.ones((2, 3)), **change}
    with pytest.raises(ValueError, match=words):
        adaptive.ode(**args)
