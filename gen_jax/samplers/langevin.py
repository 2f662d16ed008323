"""Langevin dynamics at a fixed time, alone or between the steps of another solver, as rows of the table.

With the score `(alpha_t x0_hat - x) / sigma_t^2`, a step of size `2 d sigma_t^2` towards `p_t` is (Song & Ermon 2019,
Eq. 4)

    x = (1 - d) x + d alpha_t x0_hat + sqrt(2 d) sigma_t z

so the size `d` has no unit, and means the same at every time of every process.
"""

from dataclasses import dataclass

import jax
import numpy as np

from gen_jax import checks
from gen_jax.diffusion.marginals import Marginals, marginals
from gen_jax.diffusion.process import Process
from gen_jax.samplers.multistep import Plan, table
from gen_jax.samplers.solvers import Solver, Times, ends


@checks.checked
@dataclass(frozen=True)
class AnnealedLangevin:
    """Annealed Langevin dynamics (Song & Ermon 2019, Algorithm 1): several steps at every time of the grid.

    `x / alpha` is kept from one time to the next. A last time of 0 is reached by `x_s = x0_hat` (Jolicoeur-Martineau et
    al. 2021, Section 3). The distribution of the samples is right in the limit of many small steps.

    Args:
        steps_per_level: `T`, evaluations at each time that is not 0.
        step_size: `d`; the paper's `epsilon / (2 sigma_L^2)`, 0.1 there.

    Raises:
        ValueError: `steps_per_level` below 1, or `step_size` outside (0, 1].
    """

    steps_per_level: int = 10
    step_size: float = 0.1

    def __post_init__(self) -> None:
        _check(self.steps_per_level, "steps_per_level", self.step_size, "step_size")

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, stochastic=True)
        if t.alpha[0] == 0:
            raise ValueError(
                f"AnnealedLangevin keeps x / alpha between times, and alpha is 0 at t = {t.time[0]:g}: begin the grid a "
                "little later, where there is some signal."
            )
        move, to_data = s.alpha / t.alpha, s.sigma[-1] == 0
        if to_data:
            move[-1] = 1.0
        else:
            t, move = marginals(process, np.append(t.time, s.time[-1])), np.append(move, 1.0)
        level = np.repeat(np.arange(len(t.time)), self.steps_per_level)
        x, h, noise = (v[level] for v in _langevin(t, self.step_size))
        move = np.where(np.diff(level, append=-1) != 0, move[level], 1.0)  # after the last step at a level
        asked, x, h, noise = t.time[level], x * move, h * move, noise * move
        if to_data:
            last = t.time[-1], 0.0, s.alpha[-1], 0.0
            asked, x, h, noise = map(np.append, (asked, x, h, noise), last)
        return table(marginals(process, asked), x, h[:, None], noise=noise)


@checks.checked
@dataclass(frozen=True)
class PredictorCorrector:
    """Predictor and corrector (Song et al. 2021, Algorithm 1): Langevin steps after each step of a solver.

    The paper's corrector takes `d = 2 (snr |z| / (sigma |score|))^2`. Here the ratio of the norms is replaced by its
    typical value 1, so `d = 2 snr^2`, and the corrector is a row of the table like all others.

    Args:
        predictor: a solver without memory: `DDPM`, `DDIM`, `DPMSolverPP(order=1)`.
        corrector_steps: `M`, the number of corrector steps after each step of the predictor, except one to `t = 0`.
        snr: `r`, the paper's signal-to-noise ratio of the corrector, 0.16 for VE and 0.01 to 0.05 for VP there.

    Raises:
        ValueError: `corrector_steps` below 1, `2 snr^2` outside (0, 1]; `plan`: a predictor with memory.
    """

    predictor: Solver
    corrector_steps: int = 1
    snr: float = 0.16

    def __post_init__(self) -> None:
        _check(self.corrector_steps, "corrector_steps", 2 * self.snr**2, "2 snr^2")

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        _, s = ends(process, times, stochastic=True)
        with jax.ensure_compile_time_eval():
            plan = jax.tree.map(np.asarray, self.predictor.plan(process, times))
        if plan.h.shape[1] > 1 or plan.num_steps != len(s.time):
            raise ValueError(
                f"The predictor must ask once a step and remember nothing, such as DDPM() or DDIM(); got "
                f"{self.predictor}, of which a corrector in between would confuse the memory."
            )
        zeros = np.zeros(plan.num_steps)
        predict = (
            plan.t,
            plan.x,
            plan.h[:, 0],
            zeros if plan.noise is None else plan.noise,
            plan.h_x,
            plan.h_x0,
        )
        correct = (s.time, *_langevin(s, 2 * self.snr**2), zeros, zeros + 1)
        both = np.stack([predict, *[correct] * self.corrector_steps]).transpose(
            1, 2, 0
        )  # [column, step, row]
        asked, x, h, noise, h_x, h_x0 = both.reshape(6, -1)
        if s.sigma[-1] == 0:
            keep = slice(0, len(x) - self.corrector_steps)
            asked, x, h, noise, h_x, h_x0 = (v[keep] for v in (asked, x, h, noise, h_x, h_x0))
        return table(marginals(process, asked), x, h[:, None], noise=noise, h_x=h_x, h_x0=h_x0)


def _langevin(t: Marginals, d: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights of `x`, `x0_hat` and `z` in one step at each time."""
    return np.full(len(t.time), 1 - d), d * t.alpha, np.sqrt(2 * d) * t.sigma


def _check(steps: int, steps_name: str, d: float, d_name: str) -> None:
    if steps < 1:
        raise ValueError(f"{steps_name} must be at least 1, got {steps}.")
    if not 0 < d <= 1:
        raise ValueError(f"{d_name} must lie in (0, 1], got {d:g}: larger steps do not converge.")
