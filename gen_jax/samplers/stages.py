"""Solvers that ask the denoiser more than once a step: explicit Runge-Kutta methods, as rows of the same table.

A stage is where the denoiser is asked next, and every stage is linear in the state at the start of the step and in
the answers of the step so far, `X_k = A_k x + sum_j B_kj h_j`. The state at the start is linear in the stage at hand,
so each stage follows from the one before:

    X_{k+1} = A_{k+1} / A_k X_k + sum_j (B_{k+1,j} - A_{k+1} / A_k B_kj) h_j

which is a row. So `plan.nfe` counts rows, the loop is the one of `multistep`, and a plan of 10 evaluations costs as
much whether they are 10 steps or 5.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gen_jax.diffusion.process import Process, at_log_snr
from gen_jax.samplers.multistep import Plan, table
from gen_jax.samplers.solvers import Times, ends, levels


class Stage(NamedTuple):
    """`X_k = x_weight x + sum_j h_weights_j h_j`, for which the denoiser is asked at `time`."""

    time: float
    x_weight: float
    h_weights: Sequence[float]
    """Of the answers of this step, the first one first."""


def chain(steps: Sequence[Sequence[Stage]], noise: Sequence[float] | None = None, **remembers) -> Plan:
    """The plan of steps that are each a list of stages, from the start (`x_weight = 1`, no `h`) to the end.

    `noise`, one a step, is added after the last stage; `remembers` says what `h` is, as of `multistep.table`, a
    function of the times of the rows.
    """
    rows = []
    for step, deviation in zip(steps, [0.0] * len(steps) if noise is None else noise, strict=True):
        for k, (here, there) in enumerate(itertools.pairwise(step)):
            a = there.x_weight / here.x_weight
            h = np.array(there.h_weights, float)
            h[: len(here.h_weights)] -= a * np.asarray(here.h_weights)
            rows.append((here.time, a, h[::-1], deviation if k == len(step) - 2 else 0.0))
    width = max(len(h) for _, _, h, _ in rows)
    t = np.array([row[0] for row in rows])
    return table(
        t,
        np.array([row[1] for row in rows]),
        np.stack([np.pad(h, (0, width - len(h))) for _, _, h, _ in rows]),
        noise=np.array([row[3] for row in rows]),
        **{name: column(t) for name, column in remembers.items()},
    )


@dataclass(frozen=True)
class Heun:
    """Heun's method in `sigma / alpha`, two evaluations a step, with noise on request (Karras et al. 2022, Algorithm 2).

    In `y = x / alpha` and `r = sigma / alpha`, from `r_t` to `r_s`, with `d = eps_hat`:

        y' = y + (r_s - r_t) d(y, r_t),      y_s = y + (r_s - r_t) / 2 (d(y, r_t) + d(y', r_s))

    A step to `t = 0` is Euler's, `x_s = x0_hat`. With `churn`, `r_t` is first raised to `(1 + gamma) r_t` by fresh
    noise, wherever it lies in [churn_min, churn_max], but not above the first time's.

    Args:
        churn: `S_churn`, of which each step takes its share: `gamma = min(churn / num_steps, sqrt(2) - 1)`.
        churn_min: `S_tmin`, in units of `sigma / alpha`.
        churn_max: `S_tmax`.
        churn_noise: `S_noise`, deviation of the fresh noise.

    Raises:
        ValueError: a negative option.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if min(self.churn, self.churn_min, self.churn_max, self.churn_noise) < 0:
            raise ValueError(f"churn, churn_min, churn_max and churn_noise must not be negative, got {self}.")

    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, stochastic=self.churn > 0)
        start, end = t.sigma / t.alpha, s.sigma / s.alpha
        gamma = np.full(len(start), min(self.churn / len(start), np.sqrt(2) - 1))
        gamma[(start < self.churn_min) | (start > self.churn_max)] = 0
        gamma[0] = 0
        raised = np.where(gamma > 0, np.minimum((1 + gamma) * start, start[0]), start)
        asked = np.where(raised > start, at_log_snr(process, -2 * np.log(raised)), t.time)
        alpha = levels(process, np.append(asked, s.time[-1])).alpha
        steps, noise = [], self.churn_noise * alpha[1:-1] * np.sqrt(raised[1:] ** 2 - start[1:] ** 2)
        for i, dr in enumerate(end - raised):
            begin = Stage(asked[i], 1.0, [])
            euler = Stage(s.time[i], s.alpha[i] / alpha[i], [s.alpha[i] * dr])
            half = alpha[i + 1] * dr / 2
            steps.append([begin, euler])
            if end[i] > 0:
                steps[-1].append(Stage(s.time[i], alpha[i + 1] / alpha[i], [half, half]))
        return chain(steps, [*noise, 0.0], **_eps(process))


@dataclass(frozen=True)
class DPMSolverPPSingle:
    """DPM-Solver++, single-step: `order` evaluations a step (Lu et al. 2022b, Algorithm 1; Lu et al. 2022, Algorithm 2).

    The step is divided evenly in `l = log_snr / 2`. A step to `t = 0` is of order 1 and asks once.

    Args:
        order: 2, the midpoint rule, or 3.

    Raises:
        ValueError: another order.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order must be 2 or 3, got {self.order!r}.")

    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times)
        steps = []
        for i, (start, end) in enumerate(zip(0.5 * t.log_snr, 0.5 * s.log_snr, strict=True)):
            first = Stage(t.time[i], 1.0, [])
            if not np.isfinite([start, end]).all():
                steps.append([first, Stage(s.time[i], s.sigma[i] / t.sigma[i], [s.alpha[i]])])
                continue
            length = end - start
            inner = start + length * np.arange(1, self.order) / self.order
            at = levels(process, np.asarray(at_log_snr(process, 2 * inner)))
            whole = lambda r, length=length: -np.expm1(-r * length)  # int e^(u - r h) du from 0 to r h
            slope = lambda r, length=length: (
                1 + np.expm1(-r * length) / (r * length)
            )  # the same of u, over r h
            stages = [
                first,
                Stage(at.time[0], at.sigma[0] / t.sigma[i], [at.alpha[0] * whole(1 / self.order)]),
            ]
            if self.order == 2:
                last = [0.0, s.alpha[i] * whole(1)]
            else:
                c, d = at.alpha[1] * whole(2 / 3), at.alpha[1] * 2 * slope(2 / 3)
                stages.append(Stage(at.time[1], at.sigma[1] / t.sigma[i], [c - d, d]))
                c, d = s.alpha[i] * whole(1), s.alpha[i] * 1.5 * slope(1)
                last = [c - d, 0.0, d]
            steps.append([*stages, Stage(s.time[i], s.sigma[i] / t.sigma[i], last)])
        return chain(steps)


def _eps(process: Process) -> dict:
    """`h = eps_hat`."""
    return {
        "h_x": lambda t: 1 / levels(process, t).sigma,
        "h_x0": lambda t: -levels(process, t).alpha / levels(process, t).sigma,
    }
