"""The other way through a solver's table: from data to noise, and from the middle of the grid."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import samplers
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, SubVP
from gen_jax.samplers import solvers, times
from tests.marks import slow
from tests.samplers.test_solvers import (
    KEY,
    MU,
    ODES,
    SOLVERS,
    S,
    each_ode,
    each_sde,
    gaussian,
    gaussian_ode,
    run,
)

PROCESSES = [DDPM(), VP(schedule="cosine"), SubVP(), VE(), EDM()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)
X = np.linspace(-2.0, 2.0, 9)


def encoded(solver, process, grid):
    """The data `X` brought to noise, and back again."""
    there = run(gaussian, process)(solver.plan(process, grid[::-1]), jnp.asarray(X)[:, None])
    back = run(gaussian, process)(solver.plan(process, grid), there)
    return there[:, 0], back[:, 0]


FAST = ("ddim", "dpmpp3", "unipc", "dpmpp3_single")


def convergence(name, process, steps):
    """Observed order to noise, against the exact flow, and of there and back again, against X."""
    errors = []
    with jax.enable_x64(True):
        for n in steps:
            grid = times.log_snr(process, n, final="stop")
            there, back = encoded(SOLVERS[name].solver, process, grid)
            exact = gaussian_ode(process, X, grid[-1], grid[0])
            errors.append([np.abs(there - exact).max(), np.abs(back - X).max()])
    return np.log2(np.divide(*errors))


@each_ode
def test_encode_has_the_order_of_the_solver(name):
    """Before the first steps, of lower order, are felt, as those of `deis4` soon are; there and back, errors cancel."""
    claimed = SOLVERS[name].order
    forth, back = convergence(name, VP(), (40, 80) if claimed > 2 else (100, 200))
    assert forth > claimed - (0.6 if claimed == 4 else 0.15), forth
    if claimed < 3:
        assert back > claimed - 0.15, back


@pytest.mark.parametrize("name", slow(ODES, but=FAST))
def test_encode_in_the_limit_has_the_order_of_the_first_steps(name):
    """From noise, where x0_hat hardly moves, first steps of order 1 do no harm; from data they are felt, as h^2."""
    row = SOLVERS[name]
    one_step = row.order == 1 or row.stages > 1
    first = 3 if isinstance(row.solver, samplers.UniPC) else 2
    expected = row.order if one_step else min(row.order, first)
    steps = (40, 80) if isinstance(row.solver, samplers.DPMSolverPPSingle) else (400, 800)
    forth, back = convergence(name, VP(t_min=0.05), steps)
    assert abs(forth - expected) < 0.15, forth
    assert back > expected - 0.15, back


@each_process
@pytest.mark.parametrize("name", ["ddim", "lms", "unipc2", "heun"])
def test_encode_is_the_exact_flow_of_every_process(process, name):
    with jax.enable_x64(True):
        grid = times.log_snr(process, 320, final="stop")
        there, back = encoded(SOLVERS[name].solver, process, grid)
    exact = gaussian_ode(process, X, grid[-1], grid[0])
    atol = 0.1 if name == "ddim" else 2e-3
    np.testing.assert_allclose(there, exact, atol=atol * process.sigma(grid[0]))
    np.testing.assert_allclose(back, X, atol=2 * atol)


def test_encode_of_flow_matching_ends_before_the_data_are_forgotten():
    process = FlowMatching()
    with jax.enable_x64(True):
        grid = times.log_snr(process, 200, final="stop", t_start=0.99)
        there, back = encoded(samplers.DPMSolverPP(order=2), process, grid)
        np.testing.assert_allclose(there, gaussian_ode(process, X, 1e-3, 0.99), atol=2e-3)
        np.testing.assert_allclose(back, X, atol=5e-3)


def test_encoded_data_are_distributed_like_the_prior():
    process = VP()
    grid = times.log_snr(process, 40, final="stop")
    x_0 = MU + S * jax.random.normal(KEY, (4000, 1))
    x_T = run(gaussian, process)(samplers.DPMSolverPP().plan(process, grid[::-1]), x_0)
    assert abs(x_T.mean()) < 0.01 + 5 / 4000**0.5
    assert abs(x_T.std() - 1) < 0.01 + 5 * (0.5 / 4000) ** 0.5


@each_ode
def test_plan_from_data_to_noise_compiles_to_the_same_loop(name):
    grid = times.log_snr(VP(), 12, final="stop")
    plans = [SOLVERS[name].solver.plan(VP(), t) for t in (grid, grid[::-1])]
    assert plans[0].nfe == plans[1].nfe
    assert jax.tree.map(jnp.shape, plans[0]) == jax.tree.map(jnp.shape, plans[1])


@pytest.mark.parametrize("grid", [times.uniform, times.log_snr, times.karras, times.cosine, times.beta])
def test_sampling_from_t_start_is_the_flow_from_there(grid):
    """SDEdit without the noise: x_t at t_start goes where the exact flow takes it."""
    process, t_start = VP(), 0.4
    with jax.enable_x64(True):
        t = grid(process, 100, final="stop", t_start=t_start)
        plan = samplers.DPMSolverPP(order=3).plan(process, t)
        x_0 = run(gaussian, process)(plan, jnp.asarray(X)[:, None])[:, 0]
        np.testing.assert_allclose(x_0, gaussian_ode(process, X, t_start, process.t_min), atol=5e-3)


@pytest.mark.usefixtures("optimized")  # more to compute than to compile
@pytest.mark.parametrize(
    "solver", [samplers.DDPM(), pytest.param(samplers.DPMSolverPP(), marks=pytest.mark.slow)], ids=repr
)
def test_edited_data_keep_what_the_noise_left(solver):
    """SDEdit: from x_t = alpha x_0 + sigma eps the data's law again, correlated with x_0 as the posterior says."""
    process, n = VP(), 20_000
    keys = jax.random.split(jax.random.key(8), 3)
    x_0 = MU + S * jax.random.normal(keys[0], (n, 1))
    grid = times.log_snr(process, 200, t_start=0.2)
    x_t = process.perturb(x_0, grid[0], jax.random.normal(keys[1], (n, 1)))
    edited = jax.jit(partial(samplers.sample, keys[2], gaussian(process)))(solver.plan(process, grid), x_t)
    alpha, sigma = process.alpha(grid[0]), process.sigma(grid[0])
    kept = alpha**2 * S**2 / (alpha**2 * S**2 + sigma**2)
    # the SDE forgets twice, there and back; the ODE once
    expected = kept if solver == samplers.DDPM() else kept**0.5
    assert abs(edited.mean() - MU) < 0.02
    assert abs(edited.std() / S - 1) < 0.03
    assert abs(np.corrcoef(edited[:, 0], x_0[:, 0])[0, 1] - expected) < 0.03


# --- what is rejected ---


@each_sde
@pytest.mark.filterwarnings("error")
def test_stochastic_solver_cannot_run_backwards(name):
    for n in (1, 8):
        grid = times.log_snr(VP(), n, final="stop")[::-1]
        with pytest.raises(
            ValueError, match=r"strictly decrease for a solver that adds noise.*got 0.001, ..., 1.*DDIM"
        ):
            SOLVERS[name].solver.plan(VP(), grid)


@each_ode
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("process", "grid", "words"),
    [
        (VP(), [0.0, 0.5, 1.0], r'lie in \[0.001, 1\].*got 0, ..., 1. .*"stop"'),
        (VP(), [0.01, 0.5, 1.5], r"got 0.01, ..., 1.5"),
        (VP(), [0.01, 0.7, 0.5, 1.0], "strictly increase; got 0.7 and then 0.5 at step 1"),
        (VP(), [0.01, np.nan, 0.5, 1.0], "times must .*nan"),
        (VP(), [0.9, 0.1, 0.5], "strictly decrease; got 0.1 and then 0.5 at step 1"),
        (FlowMatching(), [0.01, 0.5, 0.7, 0.9, 1.0], "alpha = 0 .*last time, t = 1.*earlier"),
    ],
)
def test_plan_rejects_bad_times_to_encode(name, process, grid, words):
    with pytest.raises(ValueError, match=words):
        SOLVERS[name].solver.plan(process, np.array(grid))


def test_ends_rejects_an_order_above_the_number_of_steps():
    grid = times.log_snr(VP(), 3)
    assert len(solvers.ends(VP(), grid, order=3)[0].time) == 3
    with pytest.raises(
        ValueError, match="order 4 needs at least 4 steps, got 3: take more steps, or a lower"
    ):
        solvers.ends(VP(), grid, order=4)
