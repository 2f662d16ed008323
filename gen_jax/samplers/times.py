"""Time grids: when a sampler asks the denoiser. `n` steps are `n + 1` strictly decreasing times, in float64.

The denoiser is asked at all of them but the last, and never below `process.t_min`, the least noise a network
has seen. How the grid ends is therefore a decision of its own, `final`:

    "zero"      the grid runs evenly to the data at t = 0; its last time but one is wherever that puts it
    "denoise"   the grid runs to t_min in n - 1 steps, and one last step goes from there to t = 0
    "stop"      the grid ends at t_min: samples keep its noise (sigma about 0.01), solvers their order

A step to `t = 0` returns the denoiser's `x0_hat` as it is, whatever the solver. A grid of your own is any
decreasing array: `solver.plan` checks it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from gen_jax.diffusion.process import Process, at_log_snr

if TYPE_CHECKING:
    Final: TypeAlias = Literal["zero", "denoise", "stop"]
else:  # a misspelt name is to meet our ValueError, not the type checker that the tests install
    Final = str

Grid: TypeAlias = Float[np.ndarray, "{n}+1"]


def uniform(process: Process, n: int, *, final: Final = "zero") -> Grid:
    """Evenly spaced times, `t_max` first; for a discrete process rounded to the nearest integers.

    For `DDPM`, "zero" with `n = T` is Ho et al.'s `T, T - 1, ..., 0`, and with fewer steps what Lin et al.
    2024 (Table 2) call "trailing": `T, T - T/n, ..., T/n, 0`. "denoise" is their "linspace": `n` times from
    `T` to 1, then 0.

    Raises:
        ValueError: `n < 1`, an unknown `final`, or so many steps that times coincide (more than `T`) or fall
            below `t_min`.
    """
    _check(n, final, ("zero", "denoise", "stop"))
    t = _ended(lambda m: np.linspace(process.t_max, process.t_min, m), n, final)
    if final == "zero":
        t = np.linspace(process.t_max, 0.0, n + 1)
    t = np.asarray(process.snap(t), np.float64)
    if not (np.diff(t) < 0).all():
        raise ValueError(f"{n} steps are too many for a process with {process.t_max:g} discrete times.")
    if final == "zero" and t[-2] < process.t_min * (1 - 1e-6):
        raise ValueError(
            f"{n} even steps to t = 0 ask the denoiser at t = {t[-2]:.3g}, below t_min = {process.t_min:g}: "
            'take fewer steps, final="denoise" or "stop", or a process with a smaller t_min.'
        )
    return t


def log_snr(process: Process, n: int, *, final: Final = "denoise") -> Grid:
    """Times evenly spaced in `log_snr` between `t_max` and `t_min` (Lu et al. 2022, DPM-Solver, Section 3.4).

    Times of a discrete process are not rounded: the network is asked between the integers that it was trained
    at, as DPM-Solver does.

    Raises:
        ValueError: `n < 1`, an unknown `final` or "zero" (`log_snr` is infinite at `t = 0`), or
            `log_snr(t_max)` is not finite.
    """
    _check(n, final, ("denoise", "stop"))
    low, high = _log_snr_range(process)
    return _ended(lambda m: _between(process, np.linspace(low, high, m)), n, final)


def karras(process: Process, n: int, *, rho: float = 7.0, final: Final = "denoise") -> Grid:
    """Times evenly spaced in `(sigma_t / alpha_t)^(1 / rho)`, `t_max` to `t_min` (Karras et al. 2022, Eq. 5).

    Larger `rho` spends more of the steps near the data. "denoise" is the paper's grid, which appends `sigma =
    0`.

    Raises:
        ValueError: `n < 1`, `rho <= 0`, an unknown `final` or "zero", or `log_snr(t_max)` is not finite.
    """
    _check(n, final, ("denoise", "stop"))
    if not rho > 0:
        raise ValueError(f"rho must be positive, got {rho}; the paper's value is 7.")
    first, last = (np.exp(-0.5 * end / rho) for end in _log_snr_range(process))
    return _ended(lambda m: _between(process, -2 * rho * np.log(np.linspace(first, last, m))), n, final)


def _ended(nodes: Callable[[int], np.ndarray], n: int, final: Final) -> Grid:
    """`n + 1` nodes, or `n` of them and then 0."""
    return np.append(nodes(n), 0.0) if final == "denoise" else nodes(n + 1)


def _log_snr_range(process: Process) -> tuple[float, float]:
    low, high = np.asarray(process.log_snr(np.array([process.t_max, process.t_min])), np.float64)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(
            f"log_snr must be finite at t_max and t_min, got {low} and {high}: take times.uniform instead."
        )
    return low, high


def _between(process: Process, values: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """Times from exactly `t_max` on."""
    return np.append(process.t_max, at_log_snr(process, values[1:]))


def _check(n: int, final: str, choices: tuple[str, ...]) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1 step, got {n}.")
    if final not in choices:
        raise ValueError(
            f"final must be one of {', '.join(map(repr, choices))} for this grid; got {final!r}."
        )
