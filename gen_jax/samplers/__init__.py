"""Samplers: from noise to data with any denoiser, `denoise(x_t, t) -> x0_hat`.

    plan = samplers.DDIM().plan(proc, samplers.times.uniform(proc, 50))
    x_0 = samplers.sample(key, denoise, plan, proc.prior(key_prior, (64, 28, 28, 1)))

`times` says at which times the denoiser is asked, a solver turns them into a `Plan` (a table of
coefficients), and `sample` follows the plan in one `lax.scan`. Nothing here knows a network:
`diffusion.prediction.as_denoiser` makes a denoiser of one. `sample` is `init`, `step` n times, `finalize`;
they are public for those who write their own loop.
"""

from gen_jax.samplers import times
from gen_jax.samplers.exponential import DEIS, LMS, DPMSolverPP, SDEDPMSolverPP, UniPC
from gen_jax.samplers.langevin import AnnealedLangevin, PredictorCorrector
from gen_jax.samplers.multistep import Plan, State, finalize, init, sample, step
from gen_jax.samplers.pseudo import IPNDM, PNDM
from gen_jax.samplers.solvers import DDIM, DDPM, Euler, EulerAncestral, Solver
from gen_jax.samplers.stages import DPMSolverPPSingle, Heun

__all__ = [
    "DDIM",
    "DDPM",
    "DEIS",
    "IPNDM",
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
    "Solver",
    "State",
    "UniPC",
    "finalize",
    "init",
    "sample",
    "step",
    "times",
]
