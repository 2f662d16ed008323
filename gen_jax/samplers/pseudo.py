"""Pseudo numerical methods: the coefficients of equal steps, also where steps are not equal.

A step from `t` to `s` is that of `DDIM`, with a combination of the last values in place of `eps_hat`:

    x_s = alpha_s / alpha_t x_t + alpha_s (sigma_s / alpha_s - sigma_t / alpha_t) sum_j w_j eps_hat_j

The weights `w_j` are those of Adams and Bashforth for steps of equal length in `sigma / alpha`. Where lengths change, the
error is of order 2, whatever the order of the weights. `LMS` and `DEIS` use the true lengths and keep their order.
"""

from dataclasses import dataclass

import numpy as np

from gen_jax.diffusion.marginals import Marginals, marginals
from gen_jax.diffusion.process import Process
from gen_jax.samplers.exponential import check_order, of_eps, ratios, weights
from gen_jax.samplers.multistep import Plan
from gen_jax.samplers.solvers import Point, Times, ends, points
from gen_jax.samplers.stages import Row, Stage, chain, tabulate
from gen_jax.types import Warmup


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

    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=self.order)
        length = np.diff(ratios(t, s))[:, None]
        even = _even(t, self.order)
        return of_eps(t, s, np.multiply(length, even, where=even != 0, out=np.zeros_like(even)))


@dataclass(frozen=True)
class PNDM:
    """Pseudo numerical methods (Liu et al. 2022, Algorithm 2), with a warm-up for the first steps.

    Of order 4 on grids that are even in `sigma / alpha`, of order 2 on others.

    Args:
        warmup: "runge-kutta": three steps of four evaluations each, two of them halfway in time (the paper's F-PNDM);
            9 evaluations more than steps. "heun": one step of two evaluations, then orders 2 and 3 (PLMS, as in Stable
            Diffusion); one evaluation more than steps.

    Raises:
        ValueError: another warm-up.
    """

    warmup: Warmup = "heun"

    def __post_init__(self) -> None:
        if self.warmup not in ("runge-kutta", "heun"):
            raise ValueError(f'warmup must be "runge-kutta" or "heun", got {self.warmup!r}.')

    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=4)
        if t.alpha[0] == 0:
            raise ValueError(
                f"PNDM divides by alpha, which is 0 at t = {t.time[0]:g}: begin the grid a little later, or take IPNDM."
            )
        even = _even(t, 4)
        rows: list[Row] = []
        past: list[int] = []  # rows that remember eps_hat at the start of a step
        for i, (start, end) in enumerate(zip(points(t), points(s), strict=True)):
            past.append(len(rows))
            if self.warmup == "runge-kutta" and i < 3 and end.sigma > 0:
                rows += chain(_runge_kutta(process, start, end), len(rows))
                continue
            whole = _transfer(start, end)
            if self.warmup == "heun" and i == 0 and end.sigma > 0:
                rows.append(Row(start.time, end.alpha / start.alpha, {0: whole}))
                rows.append(Row(end.time, 1.0, {0: -whole / 2, 1: whole / 2}))
                continue
            newest = zip(past[::-1], even[i], strict=False)
            rows.append(Row(start.time, end.alpha / start.alpha, {j: whole * w for j, w in newest}))
        return tabulate(rows, eps_of=process)


def _runge_kutta(process: Process, t: Point, s: Point) -> list[Stage]:
    """The classical stages of order 4, each a step of `DDIM` from the start (Liu et al. 2022, Eq. 13)."""
    (middle,) = points(marginals(process, np.array([0.5 * (t.time + s.time)])))
    half, whole = _transfer(t, middle), _transfer(t, s)
    to_middle, to_end = middle.alpha / t.alpha, s.alpha / t.alpha
    return [
        Stage(t.time, 1.0, []),
        Stage(middle.time, to_middle, [half]),
        Stage(middle.time, to_middle, [0.0, half]),
        Stage(s.time, to_end, [0.0, 0.0, whole]),
        Stage(s.time, to_end, [whole / 6, whole / 3, whole / 3, whole / 6]),
    ]


def _transfer(t: Point, s: Point) -> float:
    """Weight of `eps_hat` in a step of `DDIM`."""
    return s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)


def _even(t: Marginals, order: int) -> np.ndarray:
    """Weights of Adams and Bashforth for equal steps; 0 for a step from `alpha_t = 0`, and later for its value."""
    nodes = np.arange(len(t.time) + 1.0)
    nodes[:-1][t.alpha == 0] = np.inf
    return weights(nodes, order, lambda v, i: np.ones_like(v))
