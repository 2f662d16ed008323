"""Solvers by name, and the measured choice for a number of evaluations.

    plan = samplers.named.plan(process, "unipc", 12)     # a solver by its name, on the grid that suits it
    plan = samplers.named.plan(process, None, 8)         # what was measured to be best: `samplers.recommended`

`SOLVERS` is the one table that the library, the tests, the benchmarks and the command read. To add a solver, write its
class and a row here: the tests then measure the order that the row claims, and check all that is common to solvers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.process import DDPM as DDPMProcess
from gen_jax.diffusion.process import VP, Process, at_log_snr
from gen_jax.samplers import times
from gen_jax.samplers.exponential import DEIS, LMS, DPMSolverPP, SDEDPMSolverPP, UniPC
from gen_jax.samplers.langevin import AnnealedLangevin, PredictorCorrector
from gen_jax.samplers.multistep import Plan
from gen_jax.samplers.pseudo import IPNDM, PNDM
from gen_jax.samplers.solvers import DDIM, DDPM, Euler, EulerAncestral, Solver
from gen_jax.samplers.stages import DPMSolverPPSingle, Heun
from gen_jax.types import Count, SolverName

Grid = Callable[..., Float[np.ndarray, "nodes"]]
"""One of `samplers.times`: `(process, n, *, final, t_start) -> times`."""


class Named(NamedTuple):
    """A solver, the grid that suits it, and what is claimed of it, which the tests measure.

    `Named(Euler(), times.karras, order=1)` asks once a step. `Named(Heun(), times.karras, order=2, stages=2, extra=-1)`
    asks twice, but once in the last step, to the data. `Named(DDIM(1.0), times.uniform, enough=1600)` draws noise, so it
    has no order.
    """

    solver: Solver
    """With all its options: another order or variant is a row of its own."""
    grid: Grid = times.log_snr
    """On which `plan` puts it; the user chooses the number of evaluations alone."""
    order: int | None = None
    """Order of convergence to the probability-flow ODE: `n` times as many steps make the error `n^order` times smaller.
    None of a stochastic solver, whose samples do not follow the ODE."""
    even_order: int | None = None
    """The order on grids that are even in `sigma / alpha`, where it is higher than on others. So it is with
    coefficients that were derived for steps of equal length, as those of PNDM. None: the order is the same on all."""
    stages: int = 1
    """How often a step asks the denoiser: 2 of Heun's method, 3 of `DPMSolverPPSingle(3)`. A step of a multistep solver,
    which remembers answers, asks once whatever its order."""
    extra: int = 0
    """Evaluations of the whole besides `stages` of each step, on a grid that ends at the data:

        evaluations = stages * steps + extra

    -1 where the last step, to the data, asks once in place of twice (Heun); 1 where the first step asks once more (PNDM).
    """
    to_data: bool = True
    """Whether the last step, to `t = 0`, returns `x0_hat` itself, as is exact there. False where the solver extrapolates
    `eps_hat` in this step as in the others."""
    enough: int | None = None
    """Of a stochastic solver: so many steps that 100,000 samples do not show the rest of its bias; the tests take as
    many. None: it would need more than a test can take, or it is deterministic."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws noise."""
        return self.order is None

    @checks.checked
    def steps(self, nfe: Count) -> int:
        """The most steps that take at most `nfe` evaluations."""
        return (nfe - self.extra) // self.stages


SOLVERS: Mapping[str, Named] = {
    "ddpm": Named(DDPM(), times.uniform, enough=1600),
    "ddpm_beta": Named(DDPM("beta"), times.uniform, enough=1600),
    "ddim": Named(DDIM(), times.uniform, order=1),
    "ddim_half": Named(DDIM(0.5), times.uniform, enough=1600),
    "ddim_one": Named(DDIM(1.0), times.uniform, enough=1600),
    "euler": Named(Euler(), times.karras, order=1),
    "euler_ancestral": Named(EulerAncestral(), times.karras, enough=1600),
    "dpmpp1": Named(DPMSolverPP(1), order=1),
    "dpmpp": Named(DPMSolverPP(2), order=2),
    "dpmpp_exact": Named(DPMSolverPP(2, "exact"), order=2),
    "dpmpp3": Named(DPMSolverPP(3), order=3),
    "sde_dpmpp1": Named(SDEDPMSolverPP(1), enough=1600),
    "sde_dpmpp": Named(SDEDPMSolverPP(2), enough=200),
    "sde_dpmpp_exact": Named(SDEDPMSolverPP(2, 0.5, "exact"), enough=200),
    "sde_dpmpp3": Named(SDEDPMSolverPP(3), enough=200),
    "unipc1": Named(UniPC(1), order=2),
    "unipc2": Named(UniPC(2), order=3),
    "unipc": Named(UniPC(3), order=4),
    "unipc1_bh1": Named(UniPC(1, variant="bh1"), order=2),
    "unipc1_bh2": Named(UniPC(1, variant="bh2"), order=2),
    "unipc2_bh2": Named(UniPC(2, variant="bh2"), order=3),
    "unipc_bh2": Named(UniPC(3, variant="bh2"), order=4),
    "deis2": Named(DEIS(2), order=2),
    "deis": Named(DEIS(3), order=3),
    "deis4": Named(DEIS(4), order=4),
    "lms2": Named(LMS(2), order=2, to_data=False),
    "lms3": Named(LMS(3), order=3, to_data=False),
    "lms": Named(LMS(4), order=4, to_data=False),
    "ipndm2": Named(IPNDM(2), order=2, to_data=False),
    "ipndm3": Named(IPNDM(3), order=2, to_data=False),
    "ipndm": Named(IPNDM(4), order=2, to_data=False),
    "pndm": Named(PNDM(), order=2, even_order=4, extra=1, to_data=False),
    "pndm_runge_kutta": Named(PNDM("runge-kutta"), order=2, even_order=4, extra=9, to_data=False),
    "heun": Named(Heun(), times.karras, order=2, stages=2, extra=-1),
    "heun_churn": Named(Heun(churn=20.0), times.karras, stages=2, extra=-1, enough=200),
    "dpmpp_single": Named(DPMSolverPPSingle(2), order=2, stages=2, extra=-1),
    "dpmpp3_single": Named(DPMSolverPPSingle(3), order=3, stages=3, extra=-2),
    "langevin": Named(AnnealedLangevin(), stages=10, extra=1),
    "predictor_corrector": Named(
        PredictorCorrector(DDPM(), snr=0.05), times.uniform, stages=2, extra=-1, enough=1600
    ),
}

LEAST_LOG_SNR = -10.2
"""Where grids begin that are not even in time, if the prior lies below: pure noise, in which high orders go astray."""


def names() -> tuple[str, ...]:
    """All of `SOLVERS`."""
    return tuple(SOLVERS)


@checks.checked
def find(name: SolverName) -> Named:
    """The row of that name; a ValueError that lists similar names where there is none."""
    if not isinstance(name, str):
        raise ValueError(
            f"solver must be a name, such as 'ddim'; got {checks.came(name)}. A solver itself makes a plan, "
            "solver.plan(process, times), which samplers.sample and generate.sampler follow."
        )
    if name in SOLVERS:
        return SOLVERS[name]
    near = checks.nearest(name, SOLVERS, cutoff=0.4)
    raise ValueError(f"solver must be the name of one of {', '.join(SOLVERS)}; got {name!r}.{near}")


@checks.checked
def plan(process: Process, name: SolverName | None, nfe: Count, *, t_start: float | None = None) -> Plan:
    """The plan of a solver by its name, of `nfe` evaluations or the few less that whole steps leave.

    Args:
        process: the process.
        name: one of `names()`, on its own grid; None is `recommended`.
        nfe: number of evaluations of the denoiser.
        t_start: where the grid begins, by default in noise. A plan that begins later is for data with noise of that time
            (`editing.sdedit`); without a name it is that of "dpmpp", as what is best was measured from noise.

    Raises:
        ValueError: an unknown name, or too few evaluations for the solver.
    """
    if name is None and t_start is None:
        solver, grid = recommended(process, nfe)
        return solver.plan(process, grid)
    row = find("dpmpp" if name is None else name)
    if row.steps(nfe) < 1:
        raise ValueError(
            f"a step of {name} takes {row.stages + row.extra} evaluations, got nfe={nfe}: take more."
        )
    options: dict[str, object] = {"final": "denoise"} if isinstance(process, VP) else {}
    if t_start is not None:
        options["t_start"] = t_start
    elif row.grid is not times.uniform:
        options["t_start"] = first_time(process)
    return row.solver.plan(process, row.grid(process, row.steps(nfe), **options))


@checks.checked
def first_time(process: Process, least_log_snr: float = LEAST_LOG_SNR) -> float:
    """The last time with more than noise, where grids begin; `x_T` is as good there as at `t_max`.

    The prior of the cosine schedule has `log_snr = -20`, of which DPM-Solver leaves out about as much (Lu et al. 2022,
    Appendix D.4).
    """
    return float(at_log_snr(process, np.asarray(least_log_snr, np.float64)))


# --- what was measured ---


class Measured(NamedTuple):
    """A row of RECOMMENDED.md, "To take"."""

    nfe: int
    """The number of evaluations that it was measured for,"""
    most: int
    """and the highest for which it is taken."""
    solver: UniPC | DPMSolverPP | IPNDM
    grid: Grid
    t_start: float
    """In times of `DDPM()`, which stand for their `sigma / alpha`; so is `t_end`."""
    t_end: float


MEASURED = (
    Measured(5, 5, UniPC(3), functools.partial(times.exponential, p=1.5), 700.0, 50.0),
    Measured(6, 6, DPMSolverPP(3), functools.partial(times.power, p=0.35), 700.0, 50.0),
    Measured(8, 8, IPNDM(3), functools.partial(times.power, p=0.7), 850.0, 15.0),
    Measured(10, 17, IPNDM(3), functools.partial(times.power, p=0.5), 850.0, 21.0),
    Measured(20, 20, IPNDM(3), functools.partial(times.power, p=1.0), 1000.0, 15.0),
)
_OF = DDPMProcess()
"""The process that they were measured on."""


@checks.checked
def recommended(process: Process, nfe: Count) -> tuple[Solver, Float[np.ndarray, "nodes"]]:
    """The deterministic solver and the times that were measured to be best for `nfe` evaluations (RECOMMENDED.md).

        solver, grid = samplers.recommended(process, 8)
        x_0 = samplers.sample(key, denoise, solver.plan(process, grid), process.prior(key_prior, shape))

    Numbers that were not measured take the solver and the family of grids of one that was: fewer than 5 those of 5, 7
    those of 8, 9 to 17 those of 10, 18 and 19 those of 20. More than 20 take `UniPC(3)`, even in `log_snr`, whose order
    counts then.

    The times were found for `DDPM()`. Another process takes those with the same `sigma / alpha`, as far as it has them.
    Where `x_t` at the first of them has another scale than the prior, as for `EDM`, `VE` and `FlowMatching`, `t_max`
    takes its place, and the others stay.

    Args:
        process: the process.
        nfe: number of evaluations, which is the number of steps; an order above it is lowered to it.

    Raises:
        ValueError: `nfe < 1`.
    """
    row = next((row for row in MEASURED if nfe <= row.most), None)
    if row is None:
        return UniPC(3), times.log_snr(process, nfe, t_start=first_time(process))
    low, high = np.asarray(process.log_snr(np.array([process.t_max, process.t_min])), np.float64)
    ends = np.clip(_OF.log_snr(np.array([row.t_start, row.t_end])), low, high)
    t_start, t_end = np.asarray(at_log_snr(_OF, ends)).tolist()
    like = row.grid(_OF, nfe, t_start=t_start, t_end=t_end)
    grid = np.append(at_log_snr(process, np.asarray(_OF.log_snr(like[:-1]))), 0.0)
    scale, prior = np.asarray(process.sigma(np.array([grid[0], process.t_max])))
    if ends[0] == low or abs(scale - prior) > 0.01 * prior:
        grid[0] = process.t_max
    return dataclasses.replace(row.solver, order=min(row.solver.order, nfe)), grid
