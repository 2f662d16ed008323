"""Time grids: when a sampler asks the denoiser. `n` steps are `n + 1` strictly decreasing times, in float64.

    uniform         even in t                                      rounded for a discrete process
    quadratic       even in sqrt(t)                                rounded
    beta            quantiles of a beta distribution, in t         rounded
    log_snr         even in log_snr_t
    karras          even in (sigma_t / alpha_t)^(1 / rho)
    cosine          even in the angle arctan(sigma_t / alpha_t)
    interpolated    through a list of levels sigma_t / alpha_t, such as a published one

The denoiser is asked at all of them but the last, and never below `process.t_min`, the least noise a network
has seen. How the grid ends is therefore a decision of its own, `final`:

    "zero"      the grid runs evenly to the data at t = 0; its last time but one is wherever that puts it
    "denoise"   the grid runs to t_min in n - 1 steps, and one last step goes from there to t = 0
    "stop"      the grid ends at t_min: samples keep its noise (sigma about 0.01), solvers their order

A step to `t = 0` returns the denoiser's `x0_hat` as it is, whatever the solver. A grid begins at `t_max`, the prior,
or at `t_start`, from data with the noise of that time, to edit them (SDEdit; Meng et al. 2022, Algorithm 1):

    grid = times.log_snr(process, 20, t_start=0.5)
    x_t = process.perturb(x_0, grid[0], eps)
    x_0 = samplers.sample(key, denoise, solver.plan(process, grid), x_t)

A grid of your own is any decreasing array: `solver.plan` checks it. A grid of `final="stop"` may be reversed, to run
from data to noise (`samplers`).
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Array, Float

from gen_jax.diffusion.process import Process, at_log_snr
from gen_jax.types import Final

Grid: TypeAlias = Float[np.ndarray, "{n}+1"]

Nodes: TypeAlias = Callable[[float, float, int], np.ndarray]
"""`(first, last, m) -> m` times from `first` down to `last`, to rounding."""

_ALL: tuple[Final, ...] = ("zero", "denoise", "stop")
_TO_T_MIN: tuple[Final, ...] = ("denoise", "stop")


def uniform(process: Process, n: int, *, final: Final = "zero", t_start: float | None = None) -> Grid:
    """Evenly spaced times, `t_max` first; for a discrete process rounded to the nearest integers.

    For `DDPM`, "zero" with `n = T` is Ho et al.'s `T, T - 1, ..., 0`, and with fewer steps what Lin et al.
    2024 (Table 2) call "trailing": `T, T - T/n, ..., T/n, 0`. "denoise" is their "linspace": `n` times from
    `T` to 1, then 0. For `VE` it is even in `log sigma`, for `EDM` in `sigma`, of which few steps are small.

    Args:
        process: the process.
        n: number of steps.
        final: how the grid ends, see the top of the file.
        t_start: where it begins; `t_max` by default.

    Raises:
        ValueError: `n < 1`, an unknown `final`, `t_start` outside (t_min, t_max], or so many steps that times
            coincide (more than `T`) or fall below `t_min`.
    """
    return _made(process, n, final, t_start, np.linspace, rounded=True)


def quadratic(process: Process, n: int, *, final: Final = "denoise", t_start: float | None = None) -> Grid:
    """Times evenly spaced in `sqrt(t)` (Song, Meng & Ermon 2021, DDIM, Appendix D.2); more of them near the data.

    For a discrete process rounded to the nearest integers. For `EDM`, `karras(rho=2)`.

    Args:
        process: the process.
        n: number of steps.
        final: how the grid ends, see the top of the file.
        t_start: where it begins; `t_max` by default.

    Raises:
        ValueError: as of `uniform`. Near the data integers coincide early: 1000 times hold about 60 steps.
    """
    nodes = lambda first, last, m: np.linspace(first**0.5, last**0.5, m) ** 2
    return _made(process, n, final, t_start, nodes, rounded=True)


def beta(
    process: Process,
    n: int,
    *,
    a: float = 0.6,
    b: float = 0.6,
    final: Final = "denoise",
    t_start: float | None = None,
) -> Grid:
    """Evenly spaced quantiles of a Beta(a, b) distribution of times, dense at both ends (Lee et al. 2024).

        t_i = t_end + (t_max - t_end) F^-1(1 - i / m)

    with `F` the distribution function of Beta(a, b). Beta(1, 1) is `uniform`. For a discrete process rounded to the
    nearest integers.

    Args:
        process: the process.
        n: number of steps.
        a: shape of the distribution near the data; the paper's value is 0.6, less is denser.
        b: the same near the noise.
        final: how the grid ends, see the top of the file.
        t_start: where it begins; `t_max` by default.

    Raises:
        ValueError: `a` or `b` is not positive, and as of `uniform`.
    """
    if not (a > 0 and b > 0):
        raise ValueError(f"a and b must be positive, got {a} and {b}; the paper's values are 0.6.")
    from scipy.special import betaincinv  # takes a third of a second to import

    quantiles = lambda m: betaincinv(a, b, np.linspace(1.0, 0.0, m))
    nodes = lambda first, last, m: last + (first - last) * quantiles(m)
    return _made(process, n, final, t_start, nodes, rounded=True)


def log_snr(process: Process, n: int, *, final: Final = "denoise", t_start: float | None = None) -> Grid:
    """Times evenly spaced in `log_snr` between `t_max` and `t_min` (Lu et al. 2022, DPM-Solver, Section 3.4).

    Times of a discrete process are not rounded: the network is asked between the integers that it was trained
    at, as DPM-Solver does.

    Args:
        process: the process.
        n: number of steps.
        final: how the grid ends, see the top of the file.
        t_start: where it begins; `t_max` by default.

    Raises:
        ValueError: `n < 1`, an unknown `final` or "zero" (`log_snr` is infinite at `t = 0`), `t_start` outside
            (t_min, t_max], or `log_snr` is not finite where the grid begins.
    """

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        low, high = _log_snr_range(process, first, last)
        return np.asarray(at_log_snr(process, np.linspace(low, high, m)))

    return _made(process, n, final, t_start, nodes, _TO_T_MIN)


def karras(
    process: Process, n: int, *, rho: float = 7.0, final: Final = "denoise", t_start: float | None = None
) -> Grid:
    """Times evenly spaced in `(sigma_t / alpha_t)^(1 / rho)`, `t_max` to `t_min` (Karras et al. 2022, Eq. 5).

    Larger `rho` spends more of the steps near the data. "denoise" is the paper's grid, which appends `sigma =
    0`.

    Args:
        process: the process.
        n: number of steps.
        rho: the paper's `rho`.
        final: how the grid ends, see the top of the file.
        t_start: where it begins; `t_max` by default.

    Raises:
        ValueError: `rho <= 0`, and as of `log_snr`.
    """
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}; the paper's value is 7.")

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        high, low = (np.exp(-0.5 * end / rho) for end in _log_snr_range(process, first, last))
        return np.asarray(at_log_snr(process, -2 * rho * np.log(np.linspace(high, low, m))))

    return _made(process, n, final, t_start, nodes, _TO_T_MIN)


def cosine(process: Process, n: int, *, final: Final = "zero", t_start: float | None = None) -> Grid:
    """Times evenly spaced in the angle `phi_t = arctan(sigma_t / alpha_t)`, of any process.

    They have the noise that `alpha = cos(pi u / 2), sigma = sin(pi u / 2)`, the cosine schedule, has at even `u`
    (Salimans & Ho 2022, Section 2 and Appendix D). Angles are finite at both ends, so the grid may begin where
    `alpha = 0`. Times of a discrete process are not rounded.

    Args:
        process: the process.
        n: number of steps.
        final: how the grid ends, see the top of the file. Few steps even in the angle jump to `t_min` from far above, a
            step too long for high orders: with "denoise" and "stop" take many.
        t_start: where it begins; `t_max` by default.

    Raises:
        ValueError: `n < 1`, an unknown `final`, `t_start` outside (t_min, t_max], or so many steps that one falls
            below `t_min`.
    """

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        ends = np.array([first, last, process.t_min])
        start, end, least = np.arctan2(process.sigma(ends), process.alpha(ends))
        inner = np.linspace(start, end, m)[1:-1]
        t = at_log_snr(process, -2 * np.log(np.tan(inner)))  # t_min where it would lie below
        t = np.where(inner < least * (1 - 1e-6), process.t_min * inner / least, t)
        return np.concatenate([[first], t, [last]])[:m]

    return _made(process, n, final, t_start, nodes)


def interpolated(
    process: Process,
    levels: Sequence[float] | Float[Array | np.ndarray, "k"],
    n: int,
    *,
    final: Final = "zero",
    t_start: float | None = None,
) -> Grid:
    """A list of noise levels `sigma_t / alpha_t` brought to `n` steps, linearly in their logarithm.

    How the authors of Align Your Steps advise to bring their optimised lists, of 10 steps, to other numbers (Sabour et
    al. 2024, its how-to page). With `n = k - 1`, "stop" has the levels as they are, as their code does, "zero" has 0 in
    place of the last, and "denoise" adds it to `n` levels. Times of a discrete process are not rounded.

    Args:
        process: the process whose times they become.
        levels: `k >= 2` strictly decreasing levels, from that of `t_max` on (to 1%, as lists are rounded).
        n: number of steps.
        final: how the grid ends.
        t_start: where it begins, at or after the first of `levels`.

    Raises:
        ValueError: `n < 1`, an unknown `final`, `levels` that do not decrease or are not those of the process, or
            `t_start` outside (t_min, t_max] or noisier than `levels`.
    """
    _check(n, final, _ALL)
    start, levels = _start(process, t_start), np.asarray(levels, np.float64)
    _check_levels(process, levels, start, t_start is not None)
    index, log_levels = np.arange(len(levels)), np.log(levels)
    first = 0.0
    if t_start is not None:
        first = np.interp(0.5 * float(process.log_snr(np.float64(start))), -log_levels, index)

    def nodes(m: int) -> np.ndarray:
        here = np.interp(np.linspace(first, len(levels) - 1, m), index, log_levels)
        return np.append(start, at_log_snr(process, -2 * here[1:]))

    return np.append(nodes(n + 1)[:-1], 0.0) if final == "zero" else _ended(nodes, n, final)


def _made(
    process: Process,
    n: int,
    final: Final,
    t_start: float | None,
    nodes: Nodes,
    choices: tuple[Final, ...] = _ALL,
    *,
    rounded: bool = False,
) -> Grid:
    """The grid of `nodes` between its two ends, rounded to the times of a discrete process if so."""
    _check(n, final, choices)
    first = _start(process, t_start)
    last = 0.0 if final == "zero" else process.t_min
    t = nodes(first, last, n + 1) if final == "zero" else _ended(lambda m: nodes(first, last, m), n, final)
    t[0] = first
    if rounded:
        t = np.array(process.snap(t), np.float64)
    if t[-2] < process.t_min * (1 - 1e-6):
        raise ValueError(
            f"{n} even steps to t = 0 ask the denoiser at t = {t[-2]:.3g}, below t_min = {process.t_min:g}: "
            'take fewer steps, final="denoise" or "stop", or a process with a smaller t_min.'
        )
    if not (np.diff(t) < 0).all():
        raise ValueError(
            f"{n} steps are too many for a process with {first:g} discrete times, on which this grid has to stand: "
            "take fewer, or times.log_snr, which is not rounded."
        )
    return t


def _ended(nodes: Callable[[int], np.ndarray], n: int, final: Final) -> Grid:
    """`n + 1` nodes, or `n` of them and then 0."""
    return np.append(nodes(n), 0.0) if final == "denoise" else nodes(n + 1)


def _log_snr_range(process: Process, first: float, last: float) -> tuple[float, float]:
    low, high = np.asarray(process.log_snr(np.array([first, last])), np.float64)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            f"log_snr must be finite at t_max and t_min, got {low} and {high}: take times.uniform or times.cosine "
            f"instead, or a t_start below {process.t_max:g}."
        )
    return float(low), float(high)


def _start(process: Process, t_start: float | None) -> float:
    if t_start is None:
        return process.t_max
    if not process.t_min < t_start <= process.t_max:
        raise ValueError(
            f"t_start must lie in ({process.t_min:g}, {process.t_max:g}], got {t_start:g}: a time of the process at "
            "which data keep what shall be kept of them."
        )
    return float(t_start)


def _check(n: int, final: str, choices: tuple[str, ...]) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1 step, got {n}.")
    if final not in choices:
        raise ValueError(
            f"final must be one of {', '.join(map(repr, choices))} for this grid; got {final!r}."
        )


def _check_levels(process: Process, levels: np.ndarray, start: float, editing: bool) -> None:
    if levels.ndim != 1 or len(levels) < 2 or not ((np.diff(levels) < 0).all() and levels[-1] > 0):
        raise ValueError(
            "levels must be at least 2 positive, strictly decreasing values of sigma / alpha, without the 0 at the "
            f"end that final stands for; got {levels}."
        )
    with np.errstate(over="ignore"):
        high, least = np.exp(-0.5 * np.asarray(process.log_snr(np.array([start, process.t_min]))))
    if levels[-1] < 0.99 * least:
        raise ValueError(
            f"levels must not fall below sigma / alpha = {least:.4g} at t_min, the least noise that a network has "
            f"seen; got {levels[-1]:.4g}: leave out what lies below, or take a process with a smaller t_min."
        )
    if editing and not (levels[-1] < high and 0.99 * high <= levels[0]):
        raise ValueError(
            f"t_start must have a level among those given, in ({levels[-1]:.4g}, {levels[0]:.4g}]; sigma / alpha is "
            f"{high:.4g} at t_start = {start:g}."
        )
    if not editing and not 0.99 * high <= levels[0] <= 1.01 * high:
        time = float(at_log_snr(process, np.asarray(-2 * np.log(levels[0]))))
        raise ValueError(
            f"levels must begin with sigma / alpha of t_max, {high:.4g}, where the prior is; got {levels[0]:.4g}. "
            f"Begin with t_start={time:.6g}, at data with noise, or take the process that the levels are of."
        )
