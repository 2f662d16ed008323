"""Grids that are even in a function of time. Their common arguments are those of `samplers.times`."""

import numpy as np

from gen_jax import checks
from gen_jax.diffusion.process import DDPM, Process
from gen_jax.samplers.times.grid import TO_T_END, Grid, Nodes, check, made
from gen_jax.types import Count, Final, Size


@checks.checked
def uniform(
    process: Process,
    n: Count,
    *,
    final: Final = "zero",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Evenly spaced times, `t_max` first; for a discrete process rounded to the nearest integers.

    For `DDPM`, "zero" with `n = T` is Ho et al.'s `T, T - 1, ..., 0`, and with fewer steps what Lin et al.
    2024 (Table 2) call "trailing": `T, T - T/n, ..., T/n, 0`. "denoise" is their "linspace": `n` times from
    `T` to 1, then 0. For `VE` it is even in `log sigma`, for `EDM` in `sigma`, of which few steps are small.

    Raises:
        ValueError: as of all grids; or so many steps that times coincide (more than `T`) or fall below `t_min`.
    """
    return made(process, n, final, t_start, t_end, np.linspace, rounded=True)


@checks.checked
def quadratic(
    process: Process,
    n: Count,
    *,
    final: Final = "denoise",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Times evenly spaced in `sqrt(t)` (Song, Meng & Ermon 2021, DDIM, Appendix D.2); more of them near the data.

    For a discrete process rounded to the nearest integers. For `EDM`, `karras(rho=2)`.

    Raises:
        ValueError: as of `uniform`. Near the data integers coincide early: 1000 times hold about 60 steps.
    """
    return made(process, n, final, t_start, t_end, _even_power(0.5), rounded=True)


@checks.checked
def power(
    process: Process,
    n: Count,
    *,
    p: float = 0.5,
    final: Final = "denoise",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Times evenly spaced in a power of time, `t_i^p = t_start^p + i / m (t_end^p - t_start^p)`.

    1 is `uniform` and 1/2 `quadratic`, but times of a discrete process are not rounded: the network is asked between the
    integers that it was trained at. A smaller `p` takes more of the steps near the data (`samplers/RECOMMENDED.md`).

    Args:
        process: as of all grids, and so are `n`, `final`, `t_start` and `t_end`.
        n: number of steps.
        p: the power, positive.

    Raises:
        ValueError: `p <= 0`; as of all grids; or so many steps to 0 that times fall below `t_min`.
    """
    if not p > 0:
        raise ValueError(f"p must be positive, got {p}: 1 is even in t, less is denser near the data.")
    return made(process, n, final, t_start, t_end, _even_power(p))


def _even_power(p: float) -> Nodes:
    return lambda first, last, m: np.linspace(first**p, last**p, m) ** (1 / p)


@checks.checked
def beta(
    process: Process,
    n: Count,
    *,
    a: float = 0.6,
    b: float = 0.6,
    final: Final = "denoise",
    t_start: float | None = None,
    t_end: float | None = None,
) -> Grid:
    """Evenly spaced quantiles of a Beta(a, b) distribution of times, dense at both ends (Lee et al. 2024).

        t_i = t_end + (t_start - t_end) F^-1(1 - i / m)

    with `F` the distribution function of Beta(a, b). Beta(1, 1) is `uniform`. For a discrete process rounded to the
    nearest integers.

    Args:
        process: as of all grids, and so are `n`, `final`, `t_start` and `t_end`.
        n: number of steps.
        a: shape of the distribution near the data; the paper's value is 0.6, less is denser.
        b: the same near the noise.

    Raises:
        ValueError: `a` or `b` is not positive, and as of `uniform`.
    """
    if not (a > 0 and b > 0):
        raise ValueError(f"a and b must be positive, got {a} and {b}; the paper's values are 0.6.")
    from scipy.special import betaincinv  # takes a third of a second to import

    def nodes(first: float, last: float, m: int) -> np.ndarray:
        quantiles: np.ndarray = betaincinv(a, b, np.linspace(1.0, 0.0, m))
        return last + (first - last) * quantiles

    return made(process, n, final, t_start, t_end, nodes, rounded=True)


@checks.checked
def leading(
    process: Process, n: Count, *, offset: Size = 0, skip: Size = 0, final: Final = "denoise"
) -> Grid:
    """Every `k`-th time of a discrete process, counted from the first, and then 0 (Lin et al. 2024, Table 2).

        t = 1 + offset + k i,      i = n - 1 + skip, ..., skip,      k = T // (n + skip)

    The grid of diffusers' `timestep_spacing="leading"`. It leaves out the last times of the process, which are all noise,
    so it begins below `t_max`. Unlike the other grids it has no `t_start`.

    Args:
        process: a `DDPM`.
        n: number of steps.
        offset: diffusers' `steps_offset`; 1 for Stable Diffusion.
        skip: how many of the times nearest to the data are left out: 0, or 1 as diffusers' multistep solvers do.
        final: "denoise" ends at the data; "stop" takes one step fewer and ends at the last time that is asked.

    Raises:
        ValueError: the process is not discrete; `offset` or `skip` is negative; as of all grids; or a time above `T`.
    """
    check(n, final, TO_T_END)
    if not isinstance(process, DDPM):
        raise ValueError(
            f"leading needs a discrete process, such as DDPM(); got {process}. Take times.uniform."
        )
    asked = n if final == "denoise" else n + 1
    t = 1.0 + offset + process.num_steps // (asked + skip) * np.arange(skip, asked + skip)[::-1]
    if t[0] > process.num_steps or not (np.diff(t) < 0).all():
        raise ValueError(
            f"{n} steps with offset={offset} and skip={skip} do not fit into the {process.num_steps} times of the "
            "process: take fewer."
        )
    return np.append(t, 0.0) if final == "denoise" else t
