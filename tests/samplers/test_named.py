"""The table of solvers, and what is recommended by number of evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import samplers
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, SubVP
from gen_jax.gmm import GMM
from gen_jax.samplers import named, times
from tests.marks import slow

LATENT = DDPM(schedule="scaled_linear", beta_min=0.00085, beta_max=0.012)
COSINE = DDPM(schedule="cosine")
PROCESSES = [DDPM(), VP(), COSINE, LATENT, SubVP(), VE(), EDM(), FlowMatching(), DDPM(zero_terminal_snr=True)]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)

COMMAND = {  # what `--solver` has always meant
    "ddpm": (samplers.DDPM(), times.uniform, lambda nfe: nfe),
    "ddim": (samplers.DDIM(), times.uniform, lambda nfe: nfe),
    "euler": (samplers.Euler(), times.karras, lambda nfe: nfe),
    "dpmpp": (samplers.DPMSolverPP(order=2), times.log_snr, lambda nfe: nfe),
    "dpmpp3": (samplers.DPMSolverPP(order=3), times.log_snr, lambda nfe: nfe),
    "sde_dpmpp": (samplers.SDEDPMSolverPP(order=2), times.log_snr, lambda nfe: nfe),
    "unipc": (samplers.UniPC(order=3), times.log_snr, lambda nfe: nfe),
    "deis": (samplers.DEIS(order=3), times.log_snr, lambda nfe: nfe),
    "lms": (samplers.LMS(order=4), times.log_snr, lambda nfe: nfe),
    "ipndm": (samplers.IPNDM(order=4), times.log_snr, lambda nfe: nfe),
    "pndm": (samplers.PNDM(), times.log_snr, lambda nfe: nfe - 1),
    "heun": (samplers.Heun(), times.karras, lambda nfe: (nfe + 1) // 2),
    "dpmpp_single": (samplers.DPMSolverPPSingle(order=2), times.log_snr, lambda nfe: (nfe + 1) // 2),
    "dpmpp3_single": (samplers.DPMSolverPPSingle(order=3), times.log_snr, lambda nfe: (nfe + 2) // 3),
}


def equal(plan, other):
    assert jax.tree.structure(plan) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, plan, other)


@pytest.mark.parametrize("name", COMMAND)
@pytest.mark.parametrize("process", [DDPM(), COSINE, VP()], ids=["linear", "cosine", "vp"])
def test_plan_of_a_name_is_its_solver_on_its_grid(name, process):
    solver, grid, steps = COMMAND[name]
    options = {"final": "denoise"} if isinstance(process, VP) else {}
    if grid is not times.uniform:
        first = np.clip(-10.2, process.log_snr(np.float64(process.t_max)), None)
        options["t_start"] = float(np.float64(process.t_max))
        if first == -10.2:
            options["t_start"] = named.first_time(process)
            assert abs(process.log_snr(np.float64(options["t_start"])) + 10.2) < 1e-9
    equal(named.plan(process, name, 13), solver.plan(process, grid(process, steps(13), **options)))


@pytest.mark.parametrize("name", named.names())
@pytest.mark.parametrize("nfe", [14, pytest.param(41, marks=pytest.mark.slow)])
def test_plan_takes_as_many_evaluations_as_whole_steps_allow(name, nfe):
    row = named.SOLVERS[name]
    assert nfe - row.stages < named.plan(DDPM(), name, nfe).nfe <= nfe
    assert (named.plan(DDPM(), name, nfe).noise is not None) == row.stochastic


def test_a_misspelt_name_is_answered_by_those_that_are_near():
    with pytest.raises(ValueError, match=r"one of ddpm, .*unipc.*got 'unipcc'. Did you mean unipc"):
        named.plan(DDPM(), "unipcc", 10)
    with pytest.raises(ValueError, match=r"got '\?'\.$"):
        named.find("?")


def test_rows_are_different_solvers():
    solvers = [row.solver for row in named.SOLVERS.values()]
    assert len(set(solvers)) == len(solvers)


# --- recommended ---

PAGE = {  # "Their times, of DDPM()" and the solvers, of RECOMMENDED.md
    5: (samplers.UniPC(3), [700.0, 456.0, 212.1, 86.6, 50.0, 0.0]),
    6: (samplers.DPMSolverPP(3), [700.0, 484.9, 318.2, 194.1, 106.7, 50.0, 0.0]),
    8: (samplers.IPNDM(3), [850.0, 691.6, 543.5, 406.6, 282.5, 172.9, 81.4, 15.0, 0.0]),
    10: (samplers.IPNDM(3), [850.0, 698.2, 561.4, 439.5, 332.4, 240.4, 163.2, 100.9, 53.5, 21.0, 0.0]),
}


@pytest.mark.parametrize("nfe", PAGE)
def test_recommended_is_what_the_page_says(nfe):
    solver, grid = samplers.recommended(DDPM(), nfe)
    assert solver == PAGE[nfe][0]
    np.testing.assert_allclose(grid, PAGE[nfe][1], atol=0.15)  # the page has levels of four digits
    equal(named.plan(DDPM(), None, nfe), solver.plan(DDPM(), grid))
    text = (named.__file__).replace("named.py", "RECOMMENDED.md")
    with open(text) as page:
        assert f"- {nfe}: `{PAGE[nfe][1]}`" in page.read()


@each_process
@pytest.mark.parametrize("nfe", [1, 2, 3, 10, 17, 100])
def test_recommended_takes_so_many_evaluations_on_every_process(process, nfe):
    solver, grid = samplers.recommended(process, nfe)
    assert solver.plan(process, grid).nfe == nfe
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == 0
    scale, prior = process.sigma(np.array([grid[0], process.t_max]))
    np.testing.assert_allclose(scale, prior, rtol=0.01)  # samples of the prior are where the grid begins


def test_recommended_has_the_same_noise_on_every_process():
    """But for the first time, which may be that of the prior."""
    ratio = lambda p: np.divide(*(f(samplers.recommended(p, 8)[1][1:-1]) for f in (p.sigma, p.alpha)))
    for process in (VP(), COSINE, SubVP(), VE(), EDM(), FlowMatching()):
        np.testing.assert_allclose(ratio(process), ratio(DDPM()), rtol=1e-6)


def test_recommended_keeps_to_the_noise_that_a_process_has():
    process = VP(t_min=0.1, beta_max=8.0)  # less noise at t_max, and more at t_min
    _, grid = samplers.recommended(process, 10)
    assert grid[0] == 1.0
    assert grid[-2] >= 0.1
    _, grid = samplers.recommended(EDM(sigma_max=20.0), 20)
    assert grid[0] == 20.0


def test_recommended_needs_an_evaluation():
    with pytest.raises(ValueError, match="nfe must be at least 1, got 0"):
        samplers.recommended(DDPM(), 0)


def mixture(process):
    weights, means = [0.2, 0.5, 0.3], [[-1.0, 0.5], [1.0, 0.8], [0.2, -1.2]]
    covs = [[[0.05, 0.02], [0.02, 0.1]], [[0.2, -0.05], [-0.05, 0.08]], [[0.03, 0.0], [0.0, 0.25]]]
    return oracle.mixture(GMM(*(jnp.asarray(a, jnp.float32) for a in (weights, means, covs))), process)


@pytest.mark.parametrize(
    "process", slow([DDPM(), COSINE, LATENT, EDM(), FlowMatching()], (COSINE, LATENT)), ids=str
)
@pytest.mark.parametrize("nfe", slow([5, 7, 10], but=[5]))
def test_recommended_is_nearer_to_the_exact_flow_than_plain_choices(process, nfe):
    """Root mean square distance from the end of the flow from the same noise, by 200 steps of order 4."""
    x_T = process.prior(jax.random.key(0), (512, 2))
    draw = jax.jit(lambda plan, x_T: samplers.sample(jax.random.key(1), mixture(process), plan, x_T))
    exact = draw(named.plan(process, "unipc", 200), x_T)
    error = {
        name: float(jnp.sqrt(jnp.square(draw(named.plan(process, name, nfe), x_T) - exact).mean()))
        for name in (None, "ddim", "dpmpp", "unipc", "heun")
    }
    assert min(error, key=error.get) is None, error
