"""Grids that are even in a function of the noise. Their common arguments are those of `samplers.times`.

Times of a discrete process are not rounded: the network is asked between the integers that it was trained at, as
DPM-Solver does (Lu et al. 2022, DPM-Solver, Section 3.4).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.diffusion.process import Process, at_log_snr
from gen_jax.samplers.times.grid import ALL, TO_T_END, Grid, check, ended, made, start
from gen_jax.types import Count, Final


@checks.checked
def log_snr(
    process: Process,
    n: Count,
    *,
    final: Final = "denoise",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Times evenly spaced in `log_snr` between `t_start` and `t_end` (Lu et al. 2022, DPM-Solver, Section 3.4).

    Raises:
        ValueError: as of all grids; "zero"; or `log_snr` is not finite where the grid begins.
    """

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        low, high = _log_snr_range(process, first, last)
        return np.asarray(at_log_snr(process, np.linspace(low, high, m)))

    return made(process, n, final, t_start, t_end, nodes, TO_T_END)


@checks.checked
def exponential(
    process: Process,
    n: Count,
    *,
    p: float = 1.0,
    final: Final = "denoise",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Times whose `log(sigma / alpha)` falls as the power `p` of what is left of the way.

        log r_i = log r_end + (log r_start - log r_end) (1 - i / m)^p,      r = sigma / alpha

    `get_sigmas_polyexponential` of k-diffusion, with its `rho` as `p`. 1 is `log_snr`; a larger `p` takes more of the
    steps near the data.

    Args:
        process: as of all grids, and so are `n`, `final`, `t_start` and `t_end`.
        n: number of steps.
        p: the power, positive.

    Raises:
        ValueError: `p <= 0`, and as of `log_snr`.
    """
    if not p > 0:
        raise ValueError(f"p must be positive, got {p}: 1 is log_snr, more is denser near the data.")

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        low, high = _log_snr_range(process, first, last)
        return np.asarray(at_log_snr(process, high + (low - high) * np.linspace(1, 0, m) ** p))

    return made(process, n, final, t_start, t_end, nodes, TO_T_END)


@checks.checked
def karras(
    process: Process,
    n: Count,
    *,
    rho: float = 7.0,
    final: Final = "denoise",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Times evenly spaced in `(sigma_t / alpha_t)^(1 / rho)`, `t_start` to `t_end` (Karras et al. 2022, Eq. 5).

    Larger `rho` spends more of the steps near the data. "denoise" is the paper's grid, which appends `sigma =
    0`.

    Args:
        process: as of all grids, and so are `n`, `final`, `t_start` and `t_end`.
        n: number of steps.
        rho: the paper's `rho`.

    Raises:
        ValueError: `rho <= 0`, and as of `log_snr`.
    """
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}; the paper's value is 7.")

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        high, low = (np.exp(-0.5 * end / rho) for end in _log_snr_range(process, first, last))
        return np.asarray(at_log_snr(process, -2 * rho * np.log(np.linspace(high, low, m))))

    return made(process, n, final, t_start, t_end, nodes, TO_T_END)


@checks.checked
def cosine(
    process: Process,
    n: Count,
    *,
    final: Final = "zero",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Times evenly spaced in the angle `phi_t = arctan(sigma_t / alpha_t)`, of any process.

    They have the noise that `alpha = cos(pi u / 2), sigma = sin(pi u / 2)`, the cosine schedule, has at even `u`
    (Salimans & Ho 2022, Section 2 and Appendix D). Angles are finite at both ends, so the grid may begin where
    `alpha = 0`. With "denoise" and "stop" the last step to `t_min` is long, too long for a high order: take many steps.

    Raises:
        ValueError: as of all grids; or so many steps that one falls below `t_min`.
    """

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        ends = np.array([first, last, process.t_min])
        high, low, least = np.arctan2(process.sigma(ends), process.alpha(ends))
        inner = np.linspace(high, low, m)[1:-1]
        t = at_log_snr(process, -2 * np.log(np.tan(inner)))  # t_min where it would lie below
        t = np.where(inner < least * (1 - 1e-6), process.t_min * inner / least, t)
        return np.concatenate([[first], t, [last]])[:m]

    return made(process, n, final, t_start, t_end, nodes)


@checks.checked
def interpolated(
    process: Process,
    sigmas: Sequence[float] | Float[Array | np.ndarray, "k"],
    n: Count,
    *,
    final: Final = "zero",
    t_start: float | None = None,
) -> Grid:
    """A list of noise levels `sigma_t / alpha_t` brought to `n` steps, linearly in their logarithm.

    How the authors of Align Your Steps advise to bring their optimised lists, of 10 steps, to other numbers (Sabour et
    al. 2024, its how-to page). With `n = k - 1`, "stop" has the levels as they are, as their code does, "zero" has 0 in
    place of the last, and "denoise" adds it to `n` levels.

    Args:
        process: the process whose times they become.
        sigmas: `k >= 2` strictly decreasing ratios `sigma_t / alpha_t`, from that of `t_max` on (to 1%, as lists are
            rounded).
        n: number of steps.
        final: how the grid ends.
        t_start: where it begins, at or after the first of `sigmas`.

    Raises:
        ValueError: `n < 1`, an unknown `final`, `sigmas` that do not decrease or are not those of the process, or
            `t_start` outside (t_min, t_max] or noisier than `sigmas`.
    """
    check(n, final, ALL)
    begin, sigmas = start(process, t_start), np.asarray(sigmas, np.float64)
    _check_sigmas(process, sigmas, begin, t_start is not None)
    index, logs = np.arange(len(sigmas)), np.log(sigmas)
    first = 0.0
    if t_start is not None:
        first = float(np.interp(0.5 * float(process.log_snr(np.float64(begin))), -logs, index))

    def nodes(m: int) -> np.ndarray:
        here = np.interp(np.linspace(first, len(sigmas) - 1, m), index, logs)
        return np.append(begin, at_log_snr(process, -2 * here[1:]))

    return np.append(nodes(n + 1)[:-1], 0.0) if final == "zero" else ended(nodes, n, final)


def _log_snr_range(process: Process, first: float, last: float) -> tuple[float, float]:
    low, high = np.asarray(process.log_snr(np.array([first, last])), np.float64)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            f"log_snr must be finite at t_max and t_min, got {low} and {high}: take times.uniform or times.cosine "
            f"instead, or a t_start below {process.t_max:g}."
        )
    return float(low), float(high)


def _check_sigmas(process: Process, sigmas: np.ndarray, begin: float, editing: bool) -> None:
    if sigmas.ndim != 1 or len(sigmas) < 2 or not ((np.diff(sigmas) < 0).all() and sigmas[-1] > 0):
        raise ValueError(
            "sigmas must be at least 2 positive, strictly decreasing values of sigma / alpha, without the 0 at the "
            f"end that final stands for; got {sigmas}."
        )
    with np.errstate(over="ignore"):
        high, least = np.exp(-0.5 * np.asarray(process.log_snr(np.array([begin, process.t_min]))))
    if sigmas[-1] < 0.99 * least:
        raise ValueError(
            f"sigmas must not fall below sigma / alpha = {least:.4g} at t_min, the least noise that a network has "
            f"seen; got {sigmas[-1]:.4g}: leave out what lies below, or take a process with a smaller t_min."
        )
    if editing and not (sigmas[-1] < high and 0.99 * high <= sigmas[0]):
        raise ValueError(
            f"t_start must have a ratio among those given, in ({sigmas[-1]:.4g}, {sigmas[0]:.4g}]; sigma / alpha is "
            f"{high:.4g} at t_start = {begin:g}."
        )
    if not editing and not 0.99 * high <= sigmas[0] <= 1.01 * high:
        time = float(at_log_snr(process, np.asarray(-2 * np.log(sigmas[0]))))
        raise ValueError(
            f"sigmas must begin with sigma / alpha of t_max, {high:.4g}, where the prior is; got {sigmas[0]:.4g}. "
            f"Begin with t_start={time:.6g}, at data with noise, or take the process that the list is of."
        )
