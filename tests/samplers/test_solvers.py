"""Every solver against exact answers. Adding a solver adds one row to `gen_jax.samplers.named.SOLVERS`.

Orders of convergence are measured by `benchmarks/samplers_table.py`, which also writes them down.
"""

import functools
import importlib.util
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen_jax import samplers
from gen_jax.diffusion import prediction
from gen_jax.diffusion.process import DDPM, VP, Process
from gen_jax.samplers import multistep, named, solvers, times
from gen_jax.samplers.named import Named
from tests.marks import slow

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("samplers_table", ROOT / "benchmarks" / "samplers_table.py")
table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(table)

MU, S = 0.7, 0.4  # the data are N(MU, S^2) in every dimension
KEY = jax.random.key(3)


@dataclass(frozen=True)
class AdamsBashforth:
    """A solver of one's own: second order in sigma / alpha, with a memory of eps_hat, like LMS and iPNDM."""

    def plan(self, process, grid):
        t, s = solvers.ends(process, grid)
        if t.alpha[0] == 0:
            raise ValueError(f"alpha is 0 at t = {t.time[0]:g}: begin the grid a little later.")
        step = s.sigma / s.alpha - t.sigma / t.alpha
        extra = np.append(0.0, 0.5 * step[1:] / step[:-1])
        h = (s.alpha * step)[:, None] * np.stack([1 + extra, -extra], 1)
        return multistep.table(t.time, s.alpha / t.alpha, h, h_x=1 / t.sigma, h_x0=-t.alpha / t.sigma)


SOLVERS = {**named.SOLVERS, "own": Named(AdamsBashforth(), order=2, to_data=False)}
DETERMINISTIC = [name for name, row in named.SOLVERS.items() if row.order]
VARIANTS = {
    *(
        "ddpm_beta",
        "ddim_half",
        "ddim_one",
        "dpmpp1",
        "dpmpp_exact",
        "sde_dpmpp1",
        "sde_dpmpp_exact",
        "sde_dpmpp3",
    ),
    *("unipc1", "unipc2", "unipc1_bh1", "unipc1_bh2", "unipc2_bh2", "deis2", "deis4", "lms2", "lms3"),
    *("ipndm2", "ipndm3", "pndm_runge_kutta", "dpmpp_single"),
}
"""Another order or setting of a solver that is in the table under another name as well."""
each_solver = pytest.mark.parametrize("name", SOLVERS)
ALIKE = {"ddim", "euler", "euler_ancestral", "dpmpp3", "unipc_bh2", "deis", "lms", "pndm", "heun_churn"}
"""Another table of the same form as that of a solver that is in neither of the two sets."""
ODES, SDES = ([n for n, row in SOLVERS.items() if bool(row.order) is ode] for ode in (True, False))
each_kind = pytest.mark.parametrize("name", slow(SOLVERS, VARIANTS))
each_form = pytest.mark.parametrize("name", slow(SOLVERS, VARIANTS | ALIKE))
each_ode = pytest.mark.parametrize("name", slow(ODES, VARIANTS))
each_sde = pytest.mark.parametrize("name", SDES)
each_to_data = pytest.mark.parametrize("name", [n for n, row in SOLVERS.items() if row.to_data])
each_process = pytest.mark.parametrize("process", [DDPM(schedule="cosine"), VP()], ids=["cosine", "vp"])
mostly_cosine = pytest.mark.parametrize(
    "process", [DDPM(schedule="cosine"), pytest.param(VP(), marks=pytest.mark.slow)], ids=["cosine", "vp"]
)


# --- exact denoisers ---


def gaussian(process, mu=MU, s=S):
    """E[x_0 | x_t] of N(mu, s^2)."""

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return mu + alpha * s**2 / (alpha**2 * s**2 + sigma**2) * (x_t - alpha * mu)

    return denoise


def gaussian_ode(process, x_t, t, s):
    """The probability-flow ODE from t to s keeps the number of standard deviations from the mean."""
    alpha, sigma = process.alpha(np.array([t, s])), process.sigma(np.array([t, s]))
    mean, std = alpha * MU, np.hypot(alpha * S, sigma)
    return mean[1] + std[1] / std[0] * (x_t - mean[0])


def mixture_x0(x_t, alpha, sigma):
    """E[x_0 | x_t] of 0.3 N(-1, 0.3^2) + 0.7 N(1, 0.5^2), for numpy and jax."""
    xp = x_t.__array_namespace__()
    mean, std, log_weight, estimate = (-1.0, 1.0), (0.3, 0.5), [], []
    for m, s, w in zip(mean, std, (0.3, 0.7), strict=True):
        variance = alpha**2 * s**2 + sigma**2
        log_weight.append(np.log(w) - 0.5 * xp.log(variance) - 0.5 * (x_t - alpha * m) ** 2 / variance)
        estimate.append(m + alpha * s**2 / variance * (x_t - alpha * m))
    second = 1 / (1 + xp.exp(log_weight[0] - log_weight[1]))
    return (1 - second) * estimate[0] + second * estimate[1]


def mixture(process):
    return lambda x_t, t: mixture_x0(x_t, process.alpha(t), process.sigma(t))


@functools.cache
def run(make, process, trace=None):
    """`(plan, x_T) -> x_0` with this oracle, compiled once for all plans of a shape."""
    return jax.jit(partial(samplers.sample, KEY, make(process), trace=trace))


def plan_of(name, process, grid):
    """The solver's plan in a shape that all share, and so a compilation: zeros where it has no noise and no memory."""
    plan = table.padded(SOLVERS[name].solver.plan(process, grid))
    return plan if plan.noise is not None else plan._replace(noise=jnp.zeros_like(plan.t))


def constant(process):
    """Data of one value."""
    return lambda x_t, t: jnp.full_like(x_t, 0.25)


def both(x, x0_hat):
    return x, x0_hat


# --- deterministic solvers: order of convergence ---

order = functools.cache(table.order)
even_only = [name for name in DETERMINISTIC if named.SOLVERS[name].even_order]


@pytest.mark.parametrize(
    ("process", "name"),
    slow([("DDPM", name) for name in DETERMINISTIC], [("DDPM", name) for name in VARIANTS])
    + [("FlowMatching", name) for name in ("dpmpp", "heun", "unipc")],
)
def test_solver_has_the_order_it_claims(name, process):
    for _, claimed, grid in table.claims(name):
        assert abs(order(name, process, grid=grid) - claimed) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("process", table.PROCESSES)
def test_solver_has_the_order_it_claims_under_every_prediction(name, process):
    for predicts in prediction.PREDICTIONS:
        for _, claimed, grid in table.claims(name):
            assert abs(table.order(name, process, predicts, grid=grid) - claimed) < 0.15, predicts


@pytest.mark.parametrize("name", slow([n for n in DETERMINISTIC if n not in even_only], VARIANTS))
def test_solver_has_its_order_on_an_uneven_grid(name):
    got = table.order(name, "DDPM", grid=partial(table.graded, rho=7.0))
    assert abs(got - named.SOLVERS[name].order) < 0.15


def test_order_is_that_of_a_solver_of_ones_own(monkeypatch):
    """The measurement tells a solver that claims too much."""
    monkeypatch.setitem(table.SOLVERS, "own", Named(AdamsBashforth(), order=3))
    assert abs(table.order("own", "DDPM") - 2) < 0.15


def page(title):
    """The table under a title of the README of samplers: a dictionary of rows, which are dictionaries."""
    text = (ROOT / "gen_jax" / "samplers" / "README.md").read_text().split(title)[1]
    lines = re.match(r"[^|]*((?:\|.*\n)+)", text)[1].splitlines()
    head, _, *body = ([cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines)
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def test_readme_has_every_solver_and_what_it_claims():
    orders = page("## Order of convergence")
    claims = {name: table.claims(name) or [(name, None, None)] for name in named.SOLVERS}
    assert list(orders) == [said for each in claims.values() for said, _, _ in each]
    for name in DETERMINISTIC:
        for said, claimed, _ in claims[name]:
            assert orders[said]["claims"] == str(claimed)


@pytest.mark.parametrize("name", slow(DETERMINISTIC, but=("ddim", "dpmpp3", "unipc", "heun")))
def test_readme_has_orders_as_measured_here(name):
    orders = page("## Order of convergence")
    for said, claimed, grid in table.claims(name):
        for process in ("DDPM", "FlowMatching"):
            low, *high = orders[said][process].split(" to ")
            got = order(name, process, grid=grid)
            assert float(low) - 0.02 <= got <= float((high or [low])[0]) + 0.02, (said, process)
        for process in table.PROCESSES:
            assert abs(float(orders[said][process].split(" to ")[-1]) - claimed) < 0.15, (said, process)


@pytest.mark.parametrize("process", slow(table.GRIDS, but=("EDM",)))
def test_readme_has_errors_as_measured_here(process):
    errors = page(f"### `{process}`")
    assert list(errors) == list(named.SOLVERS)
    for name in ("ddim", "dpmpp", "unipc", "sde_dpmpp"):
        np.testing.assert_allclose(
            float(errors[name]["10"]), table.distance(name, process, 10), rtol=0.02, atol=2e-4
        )


# --- stochastic solvers: moments ---


def ho_coefficients(process, variance):
    """Ho et al. 2020, Eqs. 6-7, from beta_t and alpha_bar_t: `(x_t, x_0, std)` for t = T..1."""
    beta = np.concatenate([[0.0], process.betas])
    bar = np.concatenate([[1.0], np.cumprod(1 - process.betas)])
    rows = []
    for t in range(process.num_steps, 0, -1):
        of_x0 = np.sqrt(bar[t - 1]) * beta[t] / (1 - bar[t])
        of_xt = np.sqrt(1 - beta[t]) * (1 - bar[t - 1]) / (1 - bar[t])
        var = beta[t] if variance == "beta" else (1 - bar[t - 1]) / (1 - bar[t]) * beta[t]
        rows.append((of_xt, of_x0, np.sqrt(var) if t > 1 else 0.0))
    return np.array(rows).T


@pytest.mark.parametrize("process", [DDPM(), DDPM(schedule="cosine"), DDPM(num_steps=10)], ids=str)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_ddpm_has_the_coefficients_of_ho_et_al(process, variance):
    of_xt, of_x0, std = ho_coefficients(process, variance)
    with jax.enable_x64(True):
        plan = samplers.DDPM(variance).plan(process, times.uniform(process, process.num_steps))
        np.testing.assert_allclose(plan.x, of_xt, rtol=1e-8, atol=1e-14)
        np.testing.assert_allclose(plan.h[:, 0], of_x0, rtol=1e-8)
        np.testing.assert_allclose(plan.noise, std, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("variance", slow(["posterior", "beta"], but=("posterior",)))
def test_ddpm_has_the_moments_of_ho_et_al_after_every_step(variance):
    process, n = DDPM(num_steps=40, beta_max=0.3), 20_000
    plan = samplers.DDPM(variance).plan(process, times.uniform(process, 40))

    @jax.jit
    def moments(key, x_T):
        return samplers.sample(
            key, gaussian(process), plan, x_T, trace=lambda x, x0_hat: (x.mean(), x.var())
        )[1]

    means, variances = moments(KEY, process.prior(jax.random.key(5), (n, 1)))
    mean, var = 0.0, 1.0
    bar = np.concatenate([[1.0], np.cumprod(1 - process.betas)])
    for k, (of_xt, of_x0, std) in enumerate(ho_coefficients(process, variance).T):
        a = np.sqrt(bar[40 - k])
        gain = a * S**2 / (a**2 * S**2 + 1 - a**2)
        mean = of_xt * mean + of_x0 * (MU + gain * (mean - a * MU))
        var = (of_xt + of_x0 * gain) ** 2 * var + std**2
        assert abs(means[k] - mean) < 5 * np.sqrt(var / n)
        assert abs(variances[k] - var) < 5 * var * np.sqrt(2 / n)


@pytest.mark.usefixtures("optimized")  # more to compute than to compile
@pytest.mark.parametrize(
    "name", slow(SDES, VARIANTS | {"langevin"})
)  # in CI its law: tests/samplers/test_stochastic.py
@mostly_cosine
def test_stochastic_solver_gives_the_data(name, process):
    """With many steps all of them sample N(MU, S^2)."""
    n = 4000
    plan = plan_of(name, process, times.uniform(process, 250))
    x = run(gaussian, process)(plan, process.prior(jax.random.key(4), (n, 1)))
    bias = 0.02  # of 250 steps; the rest is sampling error
    assert abs(x.mean() - MU) < bias + 5 * S / n**0.5
    assert abs(x.std() / S - 1) < bias + 5 * (0.5 / n) ** 0.5


# --- identities ---


@each_process
def test_ddim_with_eta_one_is_ddpm(process):
    grid = times.uniform(process, 20)
    ddim, ddpm = samplers.DDIM(eta=1.0).plan(process, grid), samplers.DDPM().plan(process, grid)
    with jax.enable_x64(True):
        exact = [s.plan(process, grid) for s in (samplers.DDIM(eta=1.0), samplers.DDPM())]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-14), *exact)
    x_T = process.prior(jax.random.key(4), (16, 3))
    x_0 = [run(mixture, process)(plan, x_T) for plan in (ddim, ddpm)]
    np.testing.assert_allclose(*x_0, rtol=1e-5, atol=1e-5)


@each_process
def test_ddim_is_euler_in_its_own_variable(process):
    grid = times.uniform(process, 20)
    alpha, ratio = process.alpha(grid), process.sigma(grid) / process.alpha(grid)
    x_T = np.linspace(-2, 2, 7)
    path, y = [], x_T / alpha[0]
    for i in range(20):
        x0_hat = mixture_x0(alpha[i] * y, alpha[i], process.sigma(grid[i]))
        y = y + (ratio[i + 1] - ratio[i]) * (y - x0_hat) / ratio[i]
        path.append(alpha[i + 1] * y)
    with jax.enable_x64(True):
        plan = samplers.DDIM().plan(process, grid)
        _, (traced, _) = run(mixture, process, both)(plan, jnp.asarray(x_T)[:, None])
        np.testing.assert_allclose(traced[..., 0], path, rtol=1e-9, atol=1e-9)


@each_process
def test_dpm_solver_of_order_one_is_ddim(process):
    grid = times.karras(process, 12)
    with jax.enable_x64(True):
        plans = [s.plan(process, grid) for s in (samplers.DPMSolverPP(order=1), samplers.DDIM())]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-14), *plans)


@each_to_data
@mostly_cosine
def test_last_step_to_the_data_is_the_denoised_estimate(name, process):
    plan = plan_of(name, process, times.log_snr(process, 9))
    x_0, (x, x0_hat) = run(mixture, process, both)(plan, process.prior(KEY, (5, 2)))
    np.testing.assert_array_equal(x_0, x0_hat[-1])
    np.testing.assert_array_equal(x_0, x[-1])
    assert np.abs(x[-2] - x0_hat[-1]).max() > 0


@each_kind
@mostly_cosine
def test_data_of_one_value_are_sampled_exactly(name, process):
    with jax.enable_x64(True):  # eps_hat at log_snr = -20 has lost them in float32
        plan = plan_of(name, process, times.log_snr(process, 6))
        x_0 = run(constant, process)(plan, jnp.asarray(process.prior(KEY, (4, 2)), jnp.float64))
    np.testing.assert_allclose(x_0, 0.25, atol=1e-5)


# --- differentiation ---


@jax.jit
def x_0_and_shift(plan, x_T, shift):
    return samplers.sample(KEY, lambda x, t: mixture(VP())(x, t) + shift, plan, x_T)


@each_form
def test_sample_is_differentiable(name):
    with jax.enable_x64(True):
        plan = plan_of(name, VP(), times.log_snr(VP(), 20))
        args = jnp.linspace(-1.0, 1.0, 3)[:, None], jnp.asarray(0.1)
        check_grads(partial(x_0_and_shift, plan), args, order=1, modes=["fwd", "rev"], rtol=1e-5)


@jax.jit
def in_one_batch(plan, x_T):
    return samplers.sample(KEY, mixture(VP()), plan, x_T)


@jax.jit
def one_by_one(plan, x_T):
    one = lambda x, i: samplers.sample(KEY, mixture(VP()), plan, x[None], index=i[None])[0]
    return jax.vmap(one)(x_T, jnp.arange(len(x_T)))


@each_form
def test_sample_under_vmap_is_the_batch(name):
    plan, x_T = plan_of(name, VP(), times.log_snr(VP(), 12)), jnp.linspace(-1.0, 1.0, 4)[:, None]
    np.testing.assert_allclose(one_by_one(plan, x_T), in_one_batch(plan, x_T), rtol=1e-4, atol=1e-5)


def test_gradient_of_a_linear_denoiser_is_the_product_of_its_steps():
    process = VP()
    grid = times.uniform(process, 15)
    plan = samplers.DDIM().plan(process, grid)
    gradient = jax.grad(lambda x: samplers.sample(KEY, gaussian(process), plan, x).sum())(jnp.zeros((1, 1)))
    alpha, sigma = process.alpha(grid), process.sigma(grid)
    gain = alpha * S**2 / (alpha**2 * S**2 + sigma**2)
    step = sigma[1:] / sigma[:-1] + (alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1]) * gain[:-1]
    np.testing.assert_allclose(gradient, step.prod(), rtol=1e-4)


# --- precision, networks, processes ---


@each_ode
def test_float32_sample_is_close_to_float64(name):
    process = DDPM()
    grid, x_T = times.uniform(process, 100), process.prior(KEY, (6, 2))
    sample = run(mixture, process)
    low = sample(plan_of(name, process, grid), x_T)
    with jax.enable_x64(True):
        high = sample(plan_of(name, process, grid), jnp.asarray(x_T, jnp.float64))
    np.testing.assert_allclose(low, high, atol=2e-4)


@pytest.mark.parametrize("predicts", prediction.PREDICTIONS)
def test_sample_is_the_same_whatever_the_network_predicts(predicts):
    process = DDPM()
    plan = samplers.DPMSolverPP(order=2).plan(process, times.log_snr(process, 10))
    x_T = process.prior(KEY, (6, 2))

    def apply(x, t):
        alpha, sigma = process.alpha(t[0]), process.sigma(t[0])
        return prediction.from_x0(mixture_x0(x, alpha, sigma), x, alpha, sigma, predicts=predicts)

    denoise = prediction.as_denoiser(apply, process, predicts=predicts)
    expected = run(mixture, process)(plan, x_T)
    np.testing.assert_allclose(samplers.sample(KEY, denoise, plan, x_T), expected, atol=2e-4)


class Flow(Process):
    """alpha(t_max) = 0, written in jax.numpy, with log_snr left to the base class."""

    t_min, t_max = 1e-3, 1.0

    def alpha(self, t):
        return jnp.subtract(1, t)

    def sigma(self, t):
        return jnp.asarray(t)


FLOW = Flow()
NEED_SIGNAL = (samplers.AnnealedLangevin, samplers.PNDM, AdamsBashforth)  # they divide by alpha


@pytest.mark.usefixtures("optimized")
@each_form
def test_solver_takes_a_process_of_ones_own(name):
    grid = times.uniform(FLOW, 200)
    if isinstance(SOLVERS[name].solver, NEED_SIGNAL):
        with pytest.raises(ValueError, match=r"alpha.* 0 at t = 1: begin the grid a little later"):
            SOLVERS[name].solver.plan(FLOW, grid)
        return
    plan = plan_of(name, FLOW, grid)
    x_T = FLOW.prior(KEY, (4000, 1))
    x_0 = run(gaussian, FLOW)(plan, x_T)
    assert abs(x_0.mean() - MU) < 0.02 + 5 * S / 4000**0.5
    assert abs(x_0.std() / S - 1) < 0.03 + 5 * (0.5 / 4000) ** 0.5


def test_coefficients_are_made_in_float64_even_from_a_jax_process_inside_jit():
    @jax.jit
    def inside(x):
        t, _ = solvers.ends(Flow(), np.array([0.3, 0.1]))
        assert t.alpha.dtype == np.float64
        np.testing.assert_allclose(t.alpha, [0.7], rtol=1e-15)
        return x

    inside(1.0)


# --- what is rejected ---


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ([1.0, 0.5, 0.5, 0.0], "strictly decrease; got 0.5 and then 0.5 at step 1"),
        ([0.0, 0.5, 1.0], "strictly decrease"),
        ([1.0, np.nan, 0.0], "times must .*nan"),
        ([1.5, 0.5, 0.0], r"lie in \[0.001, 1\].*got 1.5"),
        ([1.0, 0.0005, 0.0], r"lie in \[0.001, 1\].*0.0005"),
        ([1.0, 0.5, -0.1], r"may be 0 .*-0.1"),
        ([1.0], r"at least 2 times.*\(1,\)"),
    ],
)
@each_solver
def test_plan_rejects_bad_times(name, grid, words):
    with pytest.raises(ValueError, match=words):
        SOLVERS[name].solver.plan(VP(), np.array(grid))


def test_plan_accepts_times_in_float32():
    grid = jnp.asarray(times.log_snr(VP(), 10, final="stop"), jnp.float32)
    assert samplers.DDIM().plan(VP(), grid).nfe == 10


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: samplers.DDPM(variance="fixedlarge"), '"posterior" or "beta".*fixedlarge'),
        (lambda: samplers.DDIM(eta=1.5), r"\[0, 1\], got 1.5"),
        (lambda: samplers.DPMSolverPP(order=4), "1, 2 or 3, got 4"),
        (lambda: samplers.DPMSolverPP(variant="heun"), '"exact" or "midpoint", got .heun'),
        (lambda: samplers.SDEDPMSolverPP(eta=-1.0), "not be negative, got -1"),
        (lambda: samplers.LMS(order=5), "1, 2, 3 or 4, got 5"),
        (lambda: samplers.IPNDM(order=0), "got 0"),
        (lambda: samplers.DEIS(order=9), "got 9"),
        (lambda: samplers.UniPC(order=4), "1, 2 or 3, got 4"),
        (lambda: samplers.UniPC(variant="bh3"), '"exact", "bh1" or "bh2", got .bh3'),
        (lambda: samplers.DPMSolverPPSingle(order=1), "2 or 3, got 1"),
        (lambda: samplers.Heun(churn=-1.0), "must not be negative"),
        (lambda: samplers.PNDM(warmup="none"), '"runge-kutta" or "heun", got .none'),
        (lambda: samplers.EulerAncestral(eta=2.0), r"\[0, 1\], got 2"),
        (lambda: samplers.AnnealedLangevin(steps_per_level=0), "at least 1, got 0"),
        (lambda: samplers.AnnealedLangevin(step_size=1.5), r"\(0, 1\], got 1.5"),
        (lambda: samplers.AnnealedLangevin().plan(FLOW, np.array([1.0, 0.5])), "alpha is 0 at t = 1"),
        (lambda: samplers.PNDM().plan(FLOW, np.linspace(1.0, 0.0, 9)), "alpha, which is 0 at t = 1"),
        (lambda: samplers.PredictorCorrector(samplers.UniPC()).plan(VP(), np.linspace(1.0, 0.5, 9)), "UniPC"),
        (
            lambda: samplers.UniPC(3).plan(VP(), np.array([1.0, 0.5, 0.1])),
            "order 3 needs at least 3 steps, got 2",
        ),
    ],
)
def test_solver_rejects_bad_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()
