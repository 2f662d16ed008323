"""Pseudo numerical methods: the coefficients of equal steps, also where steps are not equal.

A step from `t` to `s` is that of `DDIM`, with a combination of the last values in place of `eps_hat`:

    x_s = alpha_s / alpha_t x_t + alpha_s (sigma_s / alpha_s - sigma_t / alpha_t) sum_j w_j eps_hat_j

The weights `w_j` are those of Adams and Bashforth for steps of equal length in `sigma / alpha`. Where lengths change, the
error is of order 2, whatever the order of the weights. `LMS` and `DEIS` use the true lengths and keep their order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.marginals import Marginals, marginals
from gen_jax.diffusion.process import Process
from gen_jax.samplers.exponential import check_order, of_eps, ratios, weights
from gen_jax.samplers.multistep import Plan
from gen_jax.samplers.solvers import Point, Times, ends, points
from gen_jax.samplers.stages import Row, Stage, chain, tabulate
from gen_jax.types import Combined, Warmup


@checks.checked
@dataclass(frozen=True)
class IPNDM:
    """Improved pseudo numerical methods (Zhang & Chen 2023, Appendix): no warm-up, one evaluation a step.

    It converges with order 2 for every `order` above 1, also on equal steps, because the first steps are of lower order.

    Args:
        order: 1 to 4, of the weights. The first steps are of lower order, having fewer values.

    Raises:
        ValueError: another order.
    """

    order: int = 4

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=self.order)
        length = np.diff(ratios(t, s))[:, None]
        even = _even(np.where(t.alpha == 0, np.inf, np.arange(len(t.time))), self.order)
        return of_eps(t, s, np.multiply(length, even, where=even != 0, out=np.zeros_like(even)))


@checks.checked
@dataclass(frozen=True)
class PNDM:
    """Pseudo numerical methods (Liu et al. 2022, Algorithm 2), with a warm-up for the first steps.

    Of order 4 on grids that are even in `sigma / alpha`, of order 2 on others.

    Args:
        warmup: "runge-kutta": three steps of four evaluations each, two of them halfway in time (the paper's F-PNDM);
            9 evaluations more than steps. "heun": one step of two evaluations, then orders 2 and 3 (PLMS, as in Stable
            Diffusion); one evaluation more than steps.
        combined: "eps", the paper's, or "v": the answers `v = alpha eps - sigma x_0` of different times take their place,
            which diffusers does where the network predicts "v". The error is then of order 1.

    Raises:
        ValueError: another warm-up, or another answer.
    """

    warmup: Warmup = "heun"
    combined: Combined = "eps"

    def __post_init__(self) -> None:
        if self.warmup not in ("runge-kutta", "heun"):
            raise ValueError(f'warmup must be "runge-kutta" or "heun", got {self.warmup!r}.')
        if self.combined not in ("eps", "v"):
            raise ValueError(f'combined must be "eps" or "v", got {self.combined!r}.')

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=4)
        if self.warmup == "heun":
            twice = np.append([0, 0], np.arange(1, len(t.time)))
            asked = np.append(t.time[0], t.time[1:].repeat([2] + [1] * (len(t.time) - 2)))
            return self.between(process, asked, *(Marginals(*(v[twice] for v in end)) for end in (t, s)))
        self._check(t)
        even = _even(np.arange(len(t.time)), 4)
        rows: list[Row] = []
        past: list[int] = []  # rows that remember the answer at the start of a step
        for i, (start, end) in enumerate(zip(points(t), points(s), strict=True)):
            past.append(len(rows))
            if i < 3 and end.sigma > 0:
                rows += chain(self._runge_kutta(process, start, end), len(rows))
                continue
            x, h = self._transfer(start, end)
            rows.append(Row(start.time, x, {j: h * w for j, w in zip(past[::-1], even[i], strict=False)}))
        return self._tabulate(process, rows)

    @checks.checked
    def between(self, process: Process, asked: Float[np.ndarray, "n"], t: Marginals, s: Marginals) -> Plan:
        """The plan of the warm-up "heun" by its evaluations, whose steps need not begin where the step before ends.

        Evaluation 0 steps from `t[0]` to `s[0]`. Evaluation 1 takes the same step again from the same state, by its
        coefficients from `t[1]` to `s[1]`, with the mean of both answers. The others step from where they are.

        Args:
            process: the process.
            asked: times at which the denoiser is asked, one more than there are steps (1 where there is one step).
            t: where each of them begins.
            s: where it ends.

        Raises:
            ValueError: `combined` is "eps" and there is no signal at the start.
        """
        self._check(t)
        steps = [self._transfer(*pair) for pair in zip(points(t), points(s), strict=True)]
        even = _even(np.arange(len(steps)), 4)
        rows: list[Row] = []
        for i, (time, (x, h)) in enumerate(zip(np.asarray(asked).tolist(), steps, strict=True)):
            if i == 1:  # from the first state, of which the first row left x_0 x + h_0 answer
                again = x / steps[0][0]
                rows.append(Row(time, again, {0: h / 2 - again * steps[0][1], 1: h / 2}))
                continue
            past = [*range(i, 1, -1), 0] if i else [0]
            newest = zip(past, even[max(i - 1, 0)], strict=False)
            rows.append(Row(time, x, {j: h * w for j, w in newest}))
        return self._tabulate(process, rows)

    def _transfer(self, t: Point, s: Point) -> tuple[float, float]:
        """Weights of `x_t` and of the answer in a step of `DDIM`."""
        if self.combined == "eps":
            return s.alpha / t.alpha, s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)
        power = t.alpha**2 + t.sigma**2
        x, v = s.alpha * t.alpha + s.sigma * t.sigma, s.sigma * t.alpha - s.alpha * t.sigma
        return x / power, v / power

    def _runge_kutta(self, process: Process, t: Point, s: Point) -> list[Stage]:
        """The classical stages of order 4, each a step of `DDIM` from the start (Liu et al. 2022, Eq. 13)."""
        (middle,) = points(marginals(process, np.array([0.5 * (t.time + s.time)])))
        (to_middle, half), (to_end, whole) = self._transfer(t, middle), self._transfer(t, s)
        return [
            Stage(t.time, 1.0, []),
            Stage(middle.time, to_middle, [half]),
            Stage(middle.time, to_middle, [0.0, half]),
            Stage(s.time, to_end, [0.0, 0.0, whole]),
            Stage(s.time, to_end, [whole / 6, whole / 3, whole / 3, whole / 6]),
        ]

    def _tabulate(self, process: Process, rows: list[Row]) -> Plan:
        return tabulate(process, rows, self.combined)

    def _check(self, t: Marginals) -> None:
        if self.combined == "eps" and t.alpha[0] == 0:
            raise ValueError(
                f"PNDM divides by alpha, which is 0 at t = {t.time[0]:g}: begin the grid a little later, or take IPNDM."
            )


def _even(starts: np.ndarray, order: int) -> np.ndarray:
    """Weights of Adams and Bashforth for equal steps from 0, 1, ...; 0 for a step from inf, and later for its value."""
    nodes = np.append(starts, len(starts)).astype(float)
    return weights(nodes, order, lambda v, i: np.ones_like(v))
