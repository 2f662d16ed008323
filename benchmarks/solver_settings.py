"""All that `best_per_nfe` compares: our solvers and grids, and every scheduler of the peers at its settings.

A `Setting` makes the table of at most so many evaluations. Our solvers and k-diffusion's are tried on the same grids;
diffusers' make their own.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from pages import code
from peer_tables import Table, TooManyError, k_sampling, of_diffusers, of_k_diffusion, of_plan

from gen_jax import samplers
from gen_jax.diffusion.process import DDPM, at_log_snr
from gen_jax.samplers import named, times

PROCESS = DDPM()
Grid = Callable[[int], np.ndarray]


class Setting(NamedTuple):
    """A solver, and the table of it that asks at most `nfe` times, or None."""

    side: str
    solver: str
    grid: str
    table: Callable[[int], Table | None]
    elsewhere: Callable[[float, float], Iterator["Setting"]] | None = None
    """The same solver on grids that begin and end at given times."""
    ends: tuple[float, float] | None = None
    """Those times, of a grid that was made by `elsewhere`."""

    @property
    def family(self) -> str:
        """Its grid without the ends."""
        return self.grid.split(", t=")[0]

    def __str__(self) -> str:
        return f"{self.solver}, {self.grid}" if self.grid else self.solver


def at_most(make: Callable[[int], Table]) -> Callable[[int], Table | None]:
    """The table of most steps that asks at most `nfe` times."""

    @functools.cache
    def table(nfe: int) -> Table | None:
        for n in range(nfe, 0, -1):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = make(n)
            except (TooManyError, ValueError, IndexError, AssertionError, ZeroDivisionError, RuntimeError):
                continue  # more than is allowed, or fewer steps than the solver needs
            if found.nfe <= nfe and np.isfinite(found.rows).all():
                return found
        return None

    return table


Grid = Callable[[int], np.ndarray]


def ratio(t: Any) -> np.ndarray:
    """`sigma / alpha`."""
    return np.exp(-0.5 * np.asarray(PROCESS.log_snr(np.asarray(t, np.float64))))


def at_ratio(r: Any) -> np.ndarray:
    """The time of `sigma / alpha`."""
    return np.asarray(at_log_snr(PROCESS, -2 * np.log(np.asarray(r, np.float64))))


WITH_NOISE = [
    samplers.DDPM(),
    samplers.DDIM(0.5),
    *(samplers.SDEDPMSolverPP(order, eta) for order in (1, 2, 3) for eta in (0.3, 1.0)),
    samplers.Heun(churn=2.0),
]
OURS = {
    code(solver): solver
    for solver in [*(row.solver for row in named.SOLVERS.values() if row.order), *WITH_NOISE]
}
"""The deterministic solvers of the library, and stochastic ones at more settings than have names."""
RHOS = (1.5, 2.0, 3.0, 5.0, 7.0)


def library_grids() -> dict[str, Grid]:
    """`times.*`."""
    grids: dict[str, Grid] = {
        "uniform": lambda n: times.uniform(PROCESS, n),
        'uniform(final="denoise")': lambda n: times.uniform(PROCESS, n, final="denoise"),
        "quadratic": lambda n: times.quadratic(PROCESS, n),
        "log_snr": lambda n: times.log_snr(PROCESS, n),
        "cosine": lambda n: times.cosine(PROCESS, n),
        'cosine(final="denoise")': lambda n: times.cosine(PROCESS, n, final="denoise"),
    }
    for rho in RHOS:
        grids[f"karras(rho={rho:g})"] = functools.partial(times.karras, PROCESS, rho=rho)
    for a, b in ((0.6, 0.6), (0.6, 1.0), (0.4, 0.8)):
        grids[f"beta({a}, {b})"] = functools.partial(times.beta, PROCESS, a=a, b=b)
    return grids


def free_grids(start: float, least: float) -> dict[str, Grid]:
    """Families of grids that begin and end where asked."""
    ends = f"t={start:g}..{least:g}"

    def family(make: Callable[..., np.ndarray], **options: Any) -> Grid:
        return lambda n: make(PROCESS, n, final="denoise", t_start=start, t_end=least, **options)

    grids = {f"karras(rho={rho:g}), {ends}": family(times.karras, rho=rho) for rho in RHOS}
    grids |= {f"exponential({p:g}), {ends}": family(times.exponential, p=p) for p in (0.7, 1.0, 1.5)}
    grids |= {f"time^{p:g}, {ends}": family(times.power, p=p) for p in (0.35, 0.5, 0.7, 1.0)}
    return grids | {f"angle, {ends}": family(times.cosine)}


def grids_of_all() -> dict[str, Grid]:
    """What our solvers and k-diffusion's are tried on at first."""
    diffusers_grids: dict[str, Grid] = {
        "leading": lambda n: times.leading(PROCESS, n),
        "leading(n + 1)": lambda n: times.leading(PROCESS, n, skip=1),
    }
    return library_grids() | free_grids(1000.0, 1.0) | diffusers_grids


def ours() -> Iterator[Setting]:
    """Our solvers on our grids."""
    for (name, solver), (where, grid) in itertools.product(OURS.items(), grids_of_all().items()):
        yield our_setting(name, solver, where, grid)


def our_setting(
    name: str, solver: Any, where: str, grid: Grid, given: tuple[float, float] | None = None
) -> Setting:
    """One solver of ours on one grid."""

    def make(n: int) -> Table:
        with jax.enable_x64(True):
            return of_plan(solver.plan(PROCESS, grid(n)), PROCESS)

    def elsewhere(start: float, least: float) -> Iterator[Setting]:
        for where, grid in free_grids(start, least).items():
            yield our_setting(name, solver, where, grid, (start, least))

    return Setting("ours", name, where, at_most(make), elsewhere, given)


K_DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("euler", {}),
    "euler(s_churn=2)": ("euler", {"s_churn": 2.0}),
    "euler_ancestral": ("euler_ancestral", {}),
    "euler_ancestral(eta=0.5)": ("euler_ancestral", {"eta": 0.5}),
    "heun": ("heun", {}),
    "heun(s_churn=2)": ("heun", {"s_churn": 2.0}),
    "dpm_2": ("dpm_2", {}),
    "dpm_2_ancestral": ("dpm_2_ancestral", {}),
    "dpm_2_ancestral(eta=0.3)": ("dpm_2_ancestral", {"eta": 0.3}),
    **{f"lms({k})": ("lms", {"order": k}) for k in (2, 3, 4)},
    "dpm_fast": ("dpm_fast", {}),
    **{
        f"{name}(eta={eta:g})": (name, {"eta": eta})
        for name in ("dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
        for eta in (0.0, 0.3, 1.0)
    },
    "dpmpp_2m_sde(heun, eta=0)": ("dpmpp_2m_sde", {"eta": 0.0, "solver_type": "heun"}),
    "dpmpp_2m_sde(heun, eta=1)": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2m": ("dpmpp_2m", {}),
}


def k_diffusion() -> Iterator[Setting]:
    """All `sample_*` of a fixed number of steps, on `get_sigmas_vp` and all grids of ours.

    `get_sigmas_karras`, `_exponential` and `_polyexponential` are `karras` and `exponential` here.
    """
    vp = lambda n: k_sampling().get_sigmas_vp(n)
    for name in K_DIFFUSION:
        yield k_setting(name, "get_sigmas_vp", vp)
        for where, grid in grids_of_all().items():
            yield k_setting(name, where, lambda n, grid=grid: sigmas_of(grid(n)))


def sigmas_of(grid: np.ndarray) -> torch.Tensor:
    """`sigma / alpha`, the last of them 0."""
    return torch.tensor(np.append(ratio(grid[:-1]), 0.0))


def k_setting(
    name: str,
    where: str,
    sigmas: Callable[[int], torch.Tensor],
    given: tuple[float, float] | None = None,
) -> Setting:
    """One function of k-diffusion on one grid."""
    sampler, options = K_DIFFUSION[name]

    def elsewhere(start: float, least: float) -> Iterator[Setting]:
        for where, grid in free_grids(start, least).items():
            yield k_setting(name, where, lambda n, grid=grid: sigmas_of(grid(n)), (start, least))

    make = lambda n: of_k_diffusion(sampler, options, sigmas(n))
    return Setting("k-diffusion", f"sample_{name}", where, at_most(make), elsewhere, given)


def choices(**options: tuple[Any, ...]) -> list[dict[str, Any]]:
    """All combinations."""
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


SPACINGS = [
    *choices(timestep_spacing=("linspace", "leading", "trailing")),
    {"timestep_spacing": "leading", "steps_offset": 1},
]
CURVES = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
FINALS = choices(final_sigmas_type=("zero", "sigma_min"))
LU = [{"use_lu_lambdas": True}]
MULTISTEP = [
    *choices(algorithm_type=("dpmsolver++",), solver_order=(2, 3), solver_type=("midpoint", "heun")),
    *choices(algorithm_type=("dpmsolver",), solver_order=(2, 3), final_sigmas_type=("sigma_min",)),
    *choices(algorithm_type=("sde-dpmsolver++",), solver_order=(2, 3), solver_type=("midpoint", "heun")),
    *choices(algorithm_type=("sde-dpmsolver",), solver_order=(2,), final_sigmas_type=("sigma_min",)),
]
ENDINGS = [{}, {"lower_order_final": False}, {"euler_at_final": True}]
UNIPC = [
    *choices(solver_order=(1, 2, 3), solver_type=("bh1", "bh2")),
    *choices(solver_order=(1, 2, 3), predict_x0=(False,)),
]
GRIDS = SPACINGS + [s | c for s in SPACINGS[::2] for c in CURVES[1:]]
EDM = choices(
    sigma_min=(0.01, 0.1), sigma_max=(157.4, 25.0), sigma_schedule=("karras",), rho=(3.0, 5.0, 7.0)
) + choices(sigma_min=(0.01, 0.1), sigma_max=(157.4, 25.0), sigma_schedule=("exponential",))
SHIFTS = choices(shift=(0.5, 1.0, 2.0, 3.0, 5.0))
DIFFUSERS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "DDPM": (
        [s | v for s in SPACINGS for v in choices(variance_type=("fixed_small", "fixed_large"))],
        [{}],
    ),
    "DDIM": (
        [s | v for s in SPACINGS for v in choices(set_alpha_to_one=(True, False))],
        choices(eta=(0.0, 0.5, 1.0)),
    ),
    "PNDM": ([s | v for s in SPACINGS for v in choices(skip_prk_steps=(True, False))], [{}]),
    "LCM": ([{}], [{}]),
    "TCD": ([{}], choices(eta=(0.0, 0.3, 1.0))),
    "DPMSolverMultistep": (
        [m | g | e for m in MULTISTEP for g in GRIDS + LU for e in ENDINGS[: 3 if m in MULTISTEP[:4] else 1]],
        [{}],
    ),
    "DPMSolverSinglestep": (
        [
            m | g
            for m in choices(
                solver_order=(2, 3),
                solver_type=("midpoint", "heun"),
                algorithm_type=("dpmsolver++",),
                lower_order_final=(True, False),
            )
            for g in CURVES
        ],
        [{}],
    ),
    "DEISMultistep": ([o | g for o in choices(solver_order=(1, 2, 3)) for g in GRIDS], [{}]),
    "UniPCMultistep": ([u | g | f for u in UNIPC for g in GRIDS for f in FINALS], [{}]),
    "SASolver": ([g | t for g in GRIDS for t in [{}, {"tau_func": lambda t: 0}]], [{}]),
    "EulerDiscrete": ([g | f for g in GRIDS for f in FINALS], [{}]),
    "EulerAncestralDiscrete": (SPACINGS, [{}]),
    "HeunDiscrete": (GRIDS, [{}]),
    "KDPM2Discrete": (GRIDS, [{}]),
    "KDPM2AncestralDiscrete": (GRIDS, [{}]),
    "LMSDiscrete": (GRIDS, choices(order=(2, 3, 4))),
    "IPNDM": ([{}], [{}]),
    "DPMSolverSDE": (GRIDS, [{}]),
    "EDMEuler": (EDM, [{}]),
    "EDMDPMSolverMultistep": (
        [e | o for e in EDM for o in choices(solver_order=(2, 3), solver_type=("midpoint", "heun"))],
        [{}],
    ),
    "CosineDPMSolverMultistep": (
        choices(
            sigma_min=(0.01, 0.03, 0.1), sigma_max=(157.4, 25.0), sigma_schedule=("karras", "exponential")
        ),
        [{}],
    ),
    "FlowMatchEulerDiscrete": ([s | c for s in SHIFTS for c in CURVES], [{}]),
    "FlowMatchHeunDiscrete": (SHIFTS, [{}]),
    "FlowMatchLCM": (SHIFTS, [{}]),
}
"""By class, options of the scheduler and arguments of its `step`."""


def of_class(name: str) -> Iterator[Setting]:
    """A scheduler of diffusers at all its settings."""
    for options, call in itertools.product(*DIFFUSERS[name]):
        said = ", ".join(f"{k}={'0' if callable(v) else v}" for k, v in (options | call).items())
        make = functools.partial(of_diffusers, f"{name}Scheduler", options, call)
        yield Setting("diffusers", f"{name}Scheduler", said, at_most(make))
