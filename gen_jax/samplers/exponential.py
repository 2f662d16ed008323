"""Solvers of high order, by one rule: integrate the polynomial through what the denoiser has said.

In `y = x / alpha` and `r = sigma / alpha` every process has the same probability-flow ODE, `dy/dr = eps_hat`, and in
the half log signal-to-noise ratio `l = -log r` it reads, in two ways (Lu et al. 2022, DPM-Solver, Eq. 3.4; Lu et al.
2022b, Eq. 9),

    x_s = alpha_s / alpha_t x_t + alpha_s int_{r_t}^{r_s} eps_hat dr
    x_s = sigma_s / sigma_t x_t + alpha_s int_{l_t}^{l_s} e^(l - l_s) x0_hat dl

A multistep solver replaces `eps_hat` or `x0_hat` by the polynomial through its last values, and integrates that exactly
(`weights`). Solvers differ in which of the two they replace, and in the variable of the polynomial:

    LMS     eps_hat, in r       DPMSolverPP      x0_hat, in l
    DEIS    eps_hat, in l       SDEDPMSolverPP   x0_hat, in l, of the SDE
                                UniPC            x0_hat, in l, corrected through the value at the new time

A step to `t = 0`, where `l` is infinite, is `x_s = x0_hat`. Where the first time is pure noise, `l` is minus infinity
there, and polynomials leave that time out.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.marginals import Marginals
from gen_jax.diffusion.process import Process
from gen_jax.samplers.multistep import Plan, table
from gen_jax.samplers.solvers import Times, ends
from gen_jax.types import Slope, Variant

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def weights(
    nodes: Float[np.ndarray, "m"],
    order: int,
    kernel: Callable[[np.ndarray, int], np.ndarray],
    *,
    ahead: int = 0,
) -> Float[np.ndarray, "m-1 order"]:
    """`w_ij = int_{u_i}^{u_{i+1}} kernel(v, i) L_ij(v) dv`, with `L_ij` the Lagrange polynomials of the newest nodes.

    Args:
        nodes: `u_0, ..., u_n`, one for each time; infinite ones are left out of the polynomials.
        order: how many nodes a polynomial goes through; the first ones go through fewer.
        kernel: `(v, i) -> k(v)`, by Gauss and Legendre's rule of 48 points.
        ahead: 0: the nodes are `u_i, u_{i-1}, ...` (Adams and Bashforth); 1: they begin with `u_{i+1}` (Moulton).

    Returns:
        Column `j` is the weight of the value at `u_{i + ahead - j}`; 0 where a step has an infinite end.
    """
    out = np.zeros((len(nodes) - 1, order))
    for i, (start, end) in enumerate(itertools.pairwise(nodes)):
        if not np.isfinite([start, end]).all():
            continue
        past = nodes[i + ahead :: -1][:order] if i + ahead >= 0 else nodes[:0]
        past = past[np.isfinite(past)]
        v = (start + end + (end - start) * _NODES) / 2
        for j, u in enumerate(past):
            others = np.delete(past, j)
            basis = np.prod((v[:, None] - others) / (u - others), axis=1)
            out[i, j] = (end - start) / 2 * np.sum(_WEIGHTS * kernel(v, i) * basis)
    return out


@checks.checked
@dataclass(frozen=True)
class LMS:
    """Linear multistep (Adams and Bashforth) in `sigma / alpha`, as in Karras et al.'s notation `LMS`.

    Order 1 is `DDIM`. A step to `t = 0` extrapolates `eps_hat` like any other.

    Args:
        order: 1 to 4. The first steps are of lower order, having fewer values.

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
        return of_eps(t, s, weights(ratios(t, s), self.order, lambda v, i: np.ones_like(v)))


@checks.checked
@dataclass(frozen=True)
class DEIS:
    """Diffusion exponential integrator sampler, with polynomials in `log(sigma / alpha)` (Zhang & Chen 2023, Eq. 14).

    Order 1 is `DDIM`. A step to `t = 0` is `x_s = x0_hat`.

    Args:
        order: 1 to 4, the paper's `r + 1`. The first steps are of lower order, having fewer values.

    Raises:
        ValueError: another order.
    """

    order: int = 3

    def __post_init__(self) -> None:
        check_order(self.order, 4)

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=self.order)
        return of_eps(t, s, weights(_half(t, s), self.order, lambda v, i: -np.exp(-v)), denoise=True)


@checks.checked
@dataclass(frozen=True)
class DPMSolverPP:
    """DPM-Solver++, multistep and deterministic (Lu et al. 2022b, Algorithm 2).

        x_s = sigma_s / sigma_t x_t + alpha_s int e^(l - l_s) x0_hat dl,      l = log_snr / 2

    Order 1 is `DDIM`. The first steps are of lower order, having fewer values. A step to `t = 0` is of order 1.

    Args:
        order: 1, 2 or 3.
        variant: how order 2 integrates: "midpoint", `x0_hat` extrapolated to the middle of the step (the paper's
            Algorithm 2), or "exact". Order 3 is always exact; diffusers and k-diffusion halve the coefficient of the
            second difference, which makes their solver one of order 2.

    Raises:
        ValueError: another order or variant.
    """

    order: int = 2
    variant: Variant = "midpoint"

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        _check_variant(self.variant, "exact", "midpoint")

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=self.order)
        return table(t, s.sigma / t.sigma, _of_x0(t, s, self.order, _slope(self)))


@checks.checked
@dataclass(frozen=True)
class SDEDPMSolverPP:
    """SDE-DPM-Solver++, multistep (Lu et al. 2022b, Section 3.4; `eta` as in k-diffusion).

        x_s = sigma_s / sigma_t e^(-eta h) x_t + alpha_s int (1 + eta) e^((1 + eta)(l - l_s)) x0_hat dl
              + sigma_s sqrt(1 - e^(-2 eta h)) z,      h = l_s - l_t

    Args:
        order: 1, 2 or 3 of the deterministic part; order 1 with `eta = 1` is `DDPM(variance="posterior")`.
        eta: 0 is `DPMSolverPP`, 1 the reverse SDE of the paper.
        variant: how order 2 integrates, "midpoint" or "exact", as of `DPMSolverPP`.

    Raises:
        ValueError: another order or variant, or `eta` negative.
    """

    order: int = 2
    eta: float = 1.0
    variant: Variant = "midpoint"

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        _check_variant(self.variant, "exact", "midpoint")
        if not self.eta >= 0:
            raise ValueError(
                f"eta must not be negative, got {self.eta}: 0 is deterministic, 1 is the paper's."
            )

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, stochastic=self.eta > 0, order=self.order)
        length = 0.5 * (s.log_snr - t.log_snr)
        noise = s.sigma * np.sqrt(-np.expm1(-2 * self.eta * length)) if self.eta else np.zeros_like(length)
        x = s.sigma / t.sigma * (np.exp(-self.eta * length) if self.eta else 1.0)
        return table(t, x, _of_x0(t, s, self.order, _slope(self), self.eta), noise=noise)


@checks.checked
@dataclass(frozen=True)
class UniPC:
    """The unified predictor and corrector in `x0_hat` (Zhao et al. 2023, Algorithms 5 and 6).

    The predictor is `DPMSolverPP`. When the denoiser has answered at the new time, the step is taken again with a
    polynomial through that answer, too. This raises the order by one and costs no evaluation.

    Solved exactly, the paper's linear systems do not depend on its `B(h)`. Where the polynomial goes through two values
    they are one equation, whose solution the authors replace by `1/2`. That keeps the order, and the result then depends
    on `B(h)`.

    Args:
        order: 1, 2 or 3 of the predictor.
        corrector: False leaves `DPMSolverPP(order, "exact")`.
        variant: "exact"; or the authors' `1/2` with "bh1", `B(h) = h`, or with "bh2", `B(h) = e^h - 1`, the default of
            theirs and of diffusers.

    Raises:
        ValueError: another order or variant.
    """

    order: int = 3
    corrector: bool = True
    variant: Slope = "exact"

    def __post_init__(self) -> None:
        check_order(self.order, 3)
        _check_variant(self.variant, "exact", "bh1", "bh2")

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, order=self.order)
        x, h = s.sigma / t.sigma, _of_x0(t, s, self.order, self.variant)
        if not self.corrector:
            return table(t, x, h)
        corrected = _of_x0(t, s, self.order + 1, self.variant, ahead=1)
        # x_i was predicted; what it should have been is x_i + sum_j d_ij h_{i-j}
        d = np.zeros_like(corrected)
        d[1:] = corrected[:-1]
        d[1:, 1:] -= h[:-1]
        return table(t, x, np.pad(h, ((0, 0), (0, 1))) + x[:, None] * d)


def _of_x0(
    t: Marginals, s: Marginals, order: int, slope: Slope, eta: float = 0.0, *, ahead: int = 0
) -> Float[np.ndarray, "n order"]:
    """`alpha_s int (1 + eta) e^((1 + eta)(l - l_s)) x0_hat dl` as weights of the newest values of `x0_hat`.

    `slope` says how a line is integrated, where only two values are known: exactly, or as `B(h) / 2` times its rise in
    the step.
    """
    nodes, rate = _half(t, s), 1 + eta
    length = np.diff(nodes)
    whole = -s.alpha * np.expm1(-rate * length)
    kernel = lambda v, i: rate * np.exp(rate * (v - nodes[i + 1]))
    w: np.ndarray = s.alpha[:, None] * weights(nodes, order, kernel, ahead=ahead)
    endless = ~np.isfinite(length)
    w[endless, ahead] = whole[endless]
    for i in () if slope == "exact" else np.flatnonzero(~endless):
        known = nodes[i + ahead :: -1][:order]
        if np.isfinite(known).sum() == 2:
            b = whole[i] if slope == "bh2" else s.alpha[i] * rate * length[i]
            rise = b / 2 * length[i] / (known[0] - known[1])
            w[i] = 0
            w[i, ahead] = whole[i]
            w[i, :2] += rise, -rise
    return w


def of_eps(t: Marginals, s: Marginals, w: Float[np.ndarray, "n order"], *, denoise: bool = False) -> Plan:
    """The plan of `x_s = alpha_s / alpha_t x_t + alpha_s sum_j w_ij eps_hat_{i-j}`.

    Where `alpha_t = 0`, `eps_hat` is `x_t` and tells nothing about the data. Such a step is `x_s = sigma_s / sigma_t x_t
    + alpha_s x0_hat`; `w` must be 0 in its row, and for its value in later rows. With `denoise`, a step to the data is
    made in the same way.
    """
    by_x0 = (t.alpha == 0) | (denoise & (s.sigma == 0))
    with np.errstate(divide="ignore"):
        x = np.where(by_x0, s.sigma / t.sigma, s.alpha / t.alpha)
    h = s.alpha[:, None] * np.where(by_x0[:, None], np.eye(1, w.shape[1]), w)
    return table(t, x, h, **eps_columns(t, by_x0))


def eps_columns(t: Marginals, by_x0: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of `multistep.table` by which `h = eps_hat`, and `x0_hat` in the rows `by_x0`."""
    return {"h_x": np.where(by_x0, 0, 1 / t.sigma), "h_x0": np.where(by_x0, 1, -t.alpha / t.sigma)}


def v_columns(t: Marginals) -> dict[str, np.ndarray]:
    """Columns of `multistep.table` by which `h = v_hat = alpha_t eps_hat - sigma_t x0_hat`."""
    return {"h_x": t.alpha / t.sigma, "h_x0": -(t.alpha**2 + t.sigma**2) / t.sigma}


def ratios(t: Marginals, s: Marginals) -> np.ndarray:
    """`sigma / alpha` at all times, infinite where there is no signal."""
    with np.errstate(divide="ignore"):
        return _joined(t.sigma / t.alpha, s.sigma / s.alpha)


def _half(t: Marginals, s: Marginals) -> np.ndarray:
    return _joined(0.5 * t.log_snr, 0.5 * s.log_snr)


def _joined(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return np.append(start, end[-1])


def check_order(order: int, highest: int) -> None:
    """Raises a ValueError unless `order` is one of 1, ..., `highest`."""
    if order not in range(1, highest + 1):
        choices = ", ".join(map(str, range(1, highest))) + f" or {highest}"
        raise ValueError(f"order must be {choices}, got {order!r}.")


def _check_variant(variant: str, *choices: str) -> None:
    if variant not in choices:
        names = ", ".join(f'"{name}"' for name in choices[:-1]) + f' or "{choices[-1]}"'
        raise ValueError(f"variant must be {names}, got {variant!r}.")


def _slope(solver: DPMSolverPP | SDEDPMSolverPP) -> Slope:
    """How a line is integrated: by its value in the middle ("midpoint", the same as "bh2"), or exactly, as by order 3."""
    return "bh2" if solver.variant == "midpoint" and solver.order == 2 else "exact"
