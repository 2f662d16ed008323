"""Solvers that ask the denoiser more than once a step: explicit Runge-Kutta methods, as rows of the same table.

A stage is a point at which the denoiser is asked. It is linear in the state at the start of the step and in the step's
answers so far, `X_k = A_k x + sum_j B_kj h_j`. Solve this for `x`, and each stage follows from the one before:

    X_{k+1} = A_{k+1} / A_k X_k + sum_j (B_{k+1,j} - A_{k+1} / A_k B_kj) h_j

This is a row of the table. So the loop is the one of all solvers, `plan.nfe` is the number of rows, and 10 evaluations
cost the same in 10 steps or in 5.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gen_jax import checks
from gen_jax.diffusion.marginals import marginals
from gen_jax.diffusion.process import Process, at_log_snr
from gen_jax.samplers.exponential import eps_columns, ratios, v_columns
from gen_jax.samplers.multistep import Plan, table
from gen_jax.samplers.solvers import Point, Times, ends, points


class Stage(NamedTuple):
    """`X_k = x_weight x + sum_j h_weights_j h_j`, for which the denoiser is asked at `time`."""

    time: float
    x_weight: float
    h_weights: Sequence[float]
    """Of the answers of this step, the first one first."""


class Row(NamedTuple):
    """`x = x_weight x + sum_j h_weights[j] h_j`, after the denoiser was asked at `time`."""

    time: float
    x_weight: float
    h_weights: dict[int, float]
    """By the number `j` of the row at which `h_j` was remembered."""
    by_x0: bool = False
    """Whether this row remembers `x0_hat` where others remember `eps_hat`."""


def chain(step: Sequence[Stage], first: int = 0) -> list[Row]:
    """The rows of one step, from its start (`x_weight = 1`, no `h`) to its end; the first row has the number `first`."""
    rows = []
    for here, there in itertools.pairwise(step):
        a = there.x_weight / here.x_weight
        h = np.array(there.h_weights, float)
        h[: len(here.h_weights)] -= a * np.asarray(here.h_weights)
        rows.append(Row(here.time, a, {first + j: weight for j, weight in enumerate(h)}))
    return rows


def denoised(t: Point, s: Point, number: int) -> Row:
    """The step by `x0_hat` alone, `x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0_hat`.

    For steps from `alpha_t = 0`, where `eps_hat` tells nothing, and for steps to the data, where it is not needed.
    """
    x = s.sigma / t.sigma
    return Row(t.time, x, {number: s.alpha - t.alpha * x}, by_x0=True)


def tabulate(
    process: Process, rows: Sequence[Row], of: str = "x0", *, noise: np.ndarray | None = None
) -> Plan:
    """The plan of these rows, which remember `x0_hat`; of "eps", `eps_hat`, but for those `by_x0`; of "v", `v_hat`."""
    h = np.zeros((len(rows), 1 + max(i - j for i, row in enumerate(rows) for j in row.h_weights)))
    for i, row in enumerate(rows):
        for j, weight in row.h_weights.items():
            h[i, i - j] = weight
    time, x = np.array([row.time for row in rows]), np.array([row.x_weight for row in rows])
    t, columns = marginals(process, time), {}
    if of == "eps":
        columns = eps_columns(t, np.array([row.by_x0 for row in rows]))
    if of == "v":
        columns = v_columns(t)
    return table(t, x, h, noise=noise, **columns)


@checks.checked
@dataclass(frozen=True)
class Heun:
    """Heun's method in `sigma / alpha`, with two evaluations a step and optional noise (Karras et al. 2022, Algorithm 2).

    In `y = x / alpha` and `r = sigma / alpha`, from `r_t` to `r_s`, with `d = eps_hat`:

        y' = y + (r_s - r_t) d(y, r_t),      y_s = y + (r_s - r_t) / 2 (d(y, r_t) + d(y', r_s))

    A step to `t = 0` is Euler's, `x_s = x0_hat`. With `churn`, fresh noise first raises every `r_t` in [churn_min,
    churn_max] to `(1 + gamma) r_t`, but not above that of the first time.

    Args:
        churn: `S_churn`, shared among the steps: `gamma = min(churn / num_steps, sqrt(2) - 1)`.
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

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, stochastic=self.churn > 0)
        start = ratios(t, s)[:-1]
        gamma = np.full(len(start), min(self.churn / len(start), np.sqrt(2) - 1))
        gamma[(start < self.churn_min) | (start > self.churn_max)] = 0
        gamma[0] = 0
        raised = np.where(gamma > 0, np.minimum((1 + gamma) * start, start[0]), start)
        asked = np.where(raised > start, at_log_snr(process, -2 * np.log(raised)), t.time)
        t = marginals(process, asked)
        fresh = np.zeros(len(start))
        fresh[1:] = self.churn_noise * t.alpha[1:] * np.sqrt(raised[1:] ** 2 - start[1:] ** 2)
        rows: list[Row] = []
        noise: list[float] = []
        ends_in = np.append(t.alpha[1:], s.alpha[-1])  # alpha where the next step starts, after the churn
        for here, there, alpha, z in zip(points(t), points(s), ends_in, np.append(fresh[1:], 0), strict=True):
            step = self._step(here, there, alpha, len(rows))
            rows += step
            noise += [0.0] * (len(step) - 1) + [z]
        return tabulate(process, rows, "eps", noise=np.array(noise))

    def _step(self, t: Point, s: Point, alpha: float, number: int) -> list[Row]:
        """From `t` to the noise of `s`, with the data scaled by `alpha` at the end."""
        if t.alpha == 0 or s.sigma == 0:
            return [denoised(t, s._replace(sigma=s.sigma * alpha / s.alpha, alpha=alpha), number)]
        length = s.sigma / s.alpha - t.sigma / t.alpha
        start, euler = Stage(t.time, 1.0, []), Stage(s.time, s.alpha / t.alpha, [s.alpha * length])
        both = Stage(s.time, alpha / t.alpha, [alpha * length / 2, alpha * length / 2])
        return chain([start, euler, both], number)


@checks.checked
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

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times)
        length, parts = 0.5 * (s.log_snr - t.log_snr), np.arange(1, self.order) / self.order
        inner = t.log_snr[:, None] + 2 * np.where(np.isfinite(length), length, 0.0)[:, None] * parts
        inside = points(marginals(process, np.asarray(at_log_snr(process, inner.ravel()))))
        rows: list[Row] = []
        for i, (start, end) in enumerate(zip(points(t), points(s), strict=True)):
            k = i * len(parts)
            rows += self._step(start, inside[k : k + len(parts)], end, len(rows))
        return tabulate(process, rows)

    def _step(self, t: Point, inside: list[Point], s: Point, number: int) -> list[Row]:
        """The rows of one step, of stages `X_k = sigma_k / sigma_t x + ...`."""
        first, length = Stage(t.time, 1.0, []), 0.5 * (s.log_snr - t.log_snr)
        if not np.isfinite(length):
            return [denoised(t, s, number)]

        def whole(part: float | int) -> float:
            """`int_0^a e^(u - a) du`, `a = part * length`."""
            return float(-np.expm1(-part * length))

        def slope(part: float | int) -> float:
            """`int_0^a (u / a) e^(u - a) du`."""
            return 1 - whole(part) / (part * length)

        def stage(at: Point, *x0_weights: float) -> Stage:
            return Stage(at.time, at.sigma / t.sigma, [at.alpha * weight for weight in x0_weights])

        second = stage(inside[0], whole(1 / self.order))
        if self.order == 2:
            return chain([first, second, stage(s, 0.0, whole(1.0))], number)
        third = stage(inside[1], whole(2 / 3) - 2 * slope(2 / 3), 2 * slope(2 / 3))
        last = stage(s, whole(1.0) - 1.5 * slope(1.0), 0.0, 1.5 * slope(1.0))
        return chain([first, second, third, last], number)
