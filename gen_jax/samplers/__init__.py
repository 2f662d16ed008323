"""Samplers: from noise to data with any denoiser, `denoise(x_t, t) -> x0_hat`.

    plan = samplers.DDIM().plan(proc, samplers.times.uniform(proc, 50))
    x_0 = samplers.sample(key, denoise, plan, proc.prior(key_prior, (64, 28, 28, 1)))

`times` says at which times the denoiser is asked, a solver turns them into a `Plan` (a table of
coefficients), and `sample` follows the plan in one `lax.scan`. Nothing here knows a network:
`diffusion.prediction.as_denoiser` makes a denoiser of one. `recommended(proc, 8)` is the solver and
the times that were measured to be best for 8 evaluations; `named` has all solvers by name.

**Encoding.** A deterministic solver also runs from data to noise, along a reversed grid (DDIM inversion; Song, Meng &
Ermon 2021, Section 5.4). The denoiser is asked at its first time, so that must be `t_min`, not 0; data are taken for
`x_t` there:

    grid = samplers.times.log_snr(proc, 50, final="stop")
    x_T = samplers.sample(key, denoise, samplers.DPMSolverPP().plan(proc, grid[::-1]), x_0)
    x_0 = samplers.sample(key, denoise, samplers.DPMSolverPP().plan(proc, grid), x_T)

`gen_jax.editing` has these two, and edits by them.

**A loop of your own.** `sample` is `init`, one `step` for each step of the plan, and `finalize`. Between two steps you
may change the state. Here the left half of every picture is known, and put in with the noise of the time (Lugmayr et al.
2022, Eq. 8):

    step = jax.jit(functools.partial(samplers.step, key, denoise))
    state = samplers.init(plan, x_T)
    for i in range(plan.num_steps):
        known = proc.perturb(x_0, plan.t[i], eps)
        state = state._replace(x=state.x.at[:, :, :14].set(known[:, :, :14]))
        state, x0_hat = step(plan, state)
    inpainted = samplers.finalize(state)

(`gen_jax.inverse.replacement` is this loop, `repaint` the better one.)

**Adaptive steps.** `samplers.adaptive.ode` follows the probability-flow ODE to a tolerance. It is imported when it is
first used, because importing `diffrax` takes half a second.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from gen_jax.samplers import learned, named, schedule, times
from gen_jax.samplers.exponential import DEIS, LMS, DPMSolverPP, SDEDPMSolverPP, UniPC
from gen_jax.samplers.langevin import AnnealedLangevin, PredictorCorrector
from gen_jax.samplers.multistep import Plan, State, finalize, init, step
from gen_jax.samplers.named import recommended
from gen_jax.samplers.pseudo import IPNDM, PNDM
from gen_jax.samplers.sampling import sample
from gen_jax.samplers.schedule import Schedule
from gen_jax.samplers.solvers import DDIM, DDPM, LCM, Euler, EulerAncestral, Solver
from gen_jax.samplers.stages import DPMSolverPPSingle, Heun

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
    "LCM",
    "LMS",
    "PNDM",
    "AnnealedLangevin",
    "DPMSolverPP",
    "DPMSolverPPSingle",
    "Euler",
    "EulerAncestral",
    "Heun",
    "Plan",
    "PredictorCorrector",
    "SDEDPMSolverPP",
    "Schedule",
    "Solver",
    "State",
    "UniPC",
    "adaptive",
    "finalize",
    "init",
    "learned",
    "named",
    "recommended",
    "sample",
    "schedule",
    "step",
    "times",
]

if TYPE_CHECKING:
    from gen_jax.samplers import adaptive
else:

    def __getattr__(name: str) -> ModuleType:
        """`adaptive`, imported now; AttributeError for what does not exist."""
        if name == "adaptive":
            return importlib.import_module("gen_jax.samplers.adaptive")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
