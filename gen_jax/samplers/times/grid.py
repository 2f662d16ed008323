"""What all grids share: where they begin and end, and what is rejected."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.process import Process
from gen_jax.types import Final

Grid: TypeAlias = Float[np.ndarray, "{n}+1"]
"""`n + 1` decreasing times in float64, the ends of `n` steps."""

Nodes: TypeAlias = Callable[[float, float, int], np.ndarray]
"""`(first, last, m) -> m` times from `first` down to `last`, to rounding."""

ALL: tuple[Final, ...] = ("zero", "denoise", "stop")
TO_T_END: tuple[Final, ...] = ("denoise", "stop")


def made(
    process: Process,
    n: int,
    final: Final,
    t_start: float | None,
    t_end: float | None,
    nodes: Nodes,
    choices: tuple[Final, ...] = ALL,
    *,
    rounded: bool = False,
) -> Grid:
    """The grid of `nodes` between its two ends, rounded to the times of a discrete process if so."""
    check(n, final, choices)
    first, last = ends(process, final, t_start, t_end)
    t = nodes(first, last, n + 1) if final == "zero" else ended(lambda m: nodes(first, last, m), n, final)
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


def ended(nodes: Callable[[int], np.ndarray], n: int, final: Final) -> Grid:
    """`n + 1` nodes, or `n` of them and then 0."""
    return np.append(nodes(n), 0.0) if final == "denoise" else nodes(n + 1)


def ends(process: Process, final: Final, t_start: float | None, t_end: float | None) -> tuple[float, float]:
    """The first and the last node."""
    first, last = start(process, t_start), 0.0 if final == "zero" else process.t_min
    if t_end is None:
        return first, last
    if final == "zero":
        raise ValueError(
            f'final="zero" ends at the data, t = 0: leave out t_end={t_end:g}, or take "denoise".'
        )
    if not process.t_min <= t_end < first:
        raise ValueError(
            f"t_end must lie in [{process.t_min:g}, {first:g}), got {t_end:g}: the last time at which the denoiser is "
            "asked."
        )
    return first, float(t_end)


def start(process: Process, t_start: float | None) -> float:
    """Where a grid begins."""
    if t_start is None:
        return process.t_max
    if not process.t_min < t_start <= process.t_max:
        raise ValueError(
            f"t_start must lie in ({process.t_min:g}, {process.t_max:g}], got {t_start:g}: a time of the process at "
            "which data keep what shall be kept of them."
        )
    return float(t_start)


def check(n: int, final: str, choices: tuple[str, ...]) -> None:
    """ValueError unless `n >= 1` and `final` is one of the choices."""
    checks.whole("n", n, "step")
    if final not in choices:
        raise ValueError(
            f"final must be one of {', '.join(map(repr, choices))} for this grid; got {final!r}."
            f"{checks.nearest(final, choices)}"
        )
