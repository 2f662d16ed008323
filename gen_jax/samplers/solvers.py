"""Solvers: frozen dataclasses of options with one method, `plan(process, times)`, which writes the table.

To write a solver is to write its coefficients. `ends` gives `alpha`, `sigma` and `log_snr` at both ends `t > s` of every
step, in float64; `multistep.table` takes coefficients as papers write them. A name for it is a row of `named.SOLVERS`. A
step to the data, `s = 0`, has `sigma_s = 0` and an infinite `log_snr_s`: every row here is then exactly `x_s = x0_hat`,
without noise.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.diffusion.marginals import Marginals, marginals
from gen_jax.diffusion.process import Process
from gen_jax.samplers.multistep import Plan, table
from gen_jax.types import Variance

Times: TypeAlias = Float[Array | np.ndarray, "nodes"]


@runtime_checkable
class Solver(Protocol):
    """What makes a plan of a process and times."""

    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`."""
        ...


@checks.checked
@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling: `x_s ~ q(x_s | x_t, x_0 = x0_hat)`, for any two times (Ho et al. 2020, Eqs. 6-7).

        x_s = (alpha_t sigma_s^2) / (alpha_s sigma_t^2) x_t + alpha_s r x0_hat + n z
        r = 1 - SNR_t / SNR_s

    where `sigma_t^2 r` is the variance of `q(x_t | x_s)`, which is `beta_t` for neighbours.

    Args:
        variance: "posterior", `n^2 = sigma_s^2 r` (the paper's `beta_tilde_t`, right for data that are one
            point), or "beta", `n^2 = sigma_t^2 r` (the paper's `beta_t`, right for standard normal data).
            Neither adds noise in a step to `t = 0`.

    Raises:
        ValueError: an unknown variance.
    """

    variance: Variance = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in ("posterior", "beta"):
            raise ValueError(f'variance must be "posterior" or "beta", got {self.variance!r}.')

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, stochastic=True)
        r = -np.expm1(t.log_snr - s.log_snr)
        x = (t.alpha * s.sigma**2) / (s.alpha * t.sigma**2)
        scale = s.sigma if self.variance == "posterior" else np.where(s.sigma > 0, t.sigma, 0.0)
        return table(t, x, (s.alpha * r)[:, None], noise=scale * np.sqrt(r))


@checks.checked
@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021, Eqs. 12 and 16).

        x_s = alpha_s x0_hat + sqrt(sigma_s^2 - n^2) eps_hat + n z

    with `eps_hat = (x_t - alpha_t x0_hat) / sigma_t` and `n = eta sigma_s sqrt(1 - SNR_t / SNR_s)`.

    Args:
        eta: 0 is deterministic, the probability-flow ODE by Euler steps in `sigma / alpha`; 1 is
            `DDPM(variance="posterior")`.

    Raises:
        ValueError: `eta` outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}: 0 is deterministic, 1 is DDPM.")

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        return self.between(*ends(process, times, stochastic=self.eta > 0))

    @checks.checked
    def between(self, t: Marginals, s: Marginals) -> Plan:
        """Coefficients of steps from `t` to `s`, which need not begin where the step before ends."""
        r = -np.expm1(t.log_snr - s.log_snr) if self.eta else np.zeros_like(t.time)
        x = s.sigma * np.sqrt(1 - self.eta**2 * r) / t.sigma
        return table(t, x, (s.alpha - t.alpha * x)[:, None], noise=self.eta * s.sigma * np.sqrt(r))


@checks.checked
@dataclass(frozen=True)
class Euler:
    """Euler's method in `sigma / alpha` (Karras et al. 2022, Algorithm 1 without its second half).

    `DDIM(eta=0)` under its other name, of every process; for `FlowMatching` also Euler's method in `t`.
    """

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        return DDIM().plan(process, times)


@checks.checked
@dataclass(frozen=True)
class EulerAncestral:
    """Euler's method down to less noise than `s` has, and fresh noise up to it (k-diffusion's "Euler a").

    `DDIM(eta)` under its other name: `sigma_up^2 = eta^2 r_s^2 (r_t^2 - r_s^2) / r_t^2` with `r = sigma / alpha` is the
    variance of its noise.

    Args:
        eta: 0 is `Euler`, 1 the whole ancestral noise.

    Raises:
        ValueError: `eta` outside [0, 1].
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        DDIM(self.eta)  # the same condition

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        return DDIM(self.eta).plan(process, times)


@checks.checked
@dataclass(frozen=True)
class LCM:
    """Multistep sampling of a network that was distilled to say the end of the flow (Luo et al. 2023, LCM, Algorithm 3).

        x_s = alpha_s f(x_t) + sigma_s z
        f(x_t) = c_skip x_t + c_out x0_hat,     c_skip = 1 / (r^2 + 1),     c_out = r / sqrt(r^2 + 1)

    with `r = 2 scale (t / t_min - 1)`, so that `f` is the identity at `t_min` (Song et al. 2023, Eq. 5, data of
    deviation 1/2). The network is asked at `t` and says `x0_hat` of noise and data alike: with a denoiser, which says
    their mean, samples come out smooth, and more so with more steps.

    Args:
        scale: `timestep_scaling` of diffusers.

    Raises:
        ValueError: a scale that is not positive.
    """

    scale: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be positive, got {self.scale}.")

    @checks.checked
    def plan(self, process: Process, times: Times) -> Plan:
        """Coefficients of the steps from `times[0]` to `times[-1]`; ValueError as in `ends`."""
        t, s = ends(process, times, stochastic=True)
        r = 2 * self.scale * (t.time / process.t_min - 1)
        out = s.alpha * r / np.sqrt(r**2 + 1)
        return table(t, s.alpha / (r**2 + 1), out[:, None], noise=s.sigma)


class Point(NamedTuple):
    """One time, and what the process says there."""

    time: float
    alpha: float
    sigma: float
    log_snr: float


def points(ends: Marginals) -> list[Point]:
    """The times one by one."""
    return [Point(*row) for row in zip(*(column.tolist() for column in ends), strict=True)]


def ends(
    process: Process, times: Times, *, stochastic: bool = False, order: int = 1
) -> tuple[Marginals, Marginals]:
    """Both ends of every step between `times`, where it starts (`t`) and where it ends (`s`).

    Times decrease, from noise to data. For a deterministic solver they may increase: the same formulas encode data.

    Args:
        process: the process.
        times: `n + 1` times.
        stochastic: whether the solver adds noise; a step that increases time cannot remove it again.
        order: the least number of steps that the solver needs.

    Raises:
        ValueError: `times` are not `n + 1 >= 2` numbers that strictly decrease (or increase, and the solver is not
            stochastic); one that is asked lies outside [t_min, t_max]; the last one is negative, or has no data left
            (`alpha = 0`) when they increase; or `n < order`.
    """
    times = np.asarray(times, np.float64)
    _check(process, times, stochastic)
    if len(times) <= order:
        raise ValueError(
            f"a solver of order {order} needs at least {order} steps, got {len(times) - 1}: take more steps, or a "
            "lower order."
        )
    grid = marginals(process, times)
    if times[-1] > times[0] and not grid.alpha[-1] > 0:
        raise ValueError(
            f"data cannot be encoded where alpha = 0, which forgets them; got alpha = {grid.alpha[-1]:g} at the last "
            f"time, t = {times[-1]:g}. End the grid a little earlier."
        )
    return Marginals(*(v[:-1] for v in grid)), Marginals(*(v[1:] for v in grid))


def _check(process: Process, times: np.ndarray, stochastic: bool) -> None:
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times must be a vector of at least 2 times (1 step), got the shape {times.shape}.")
    encode = times[-1] > times[0]
    if stochastic and encode:
        raise ValueError(
            "times must strictly decrease for a solver that adds noise, which no step back can take away; got "
            f"{times[0]:g}, ..., {times[-1]:g}. Encode with a deterministic solver: DDIM(), DPMSolverPP(), ..."
        )
    right = np.diff(times) > 0 if encode else np.diff(times) < 0
    if not right.all():
        i, way = int(np.argmin(right)), "increase" if encode else "decrease"
        raise ValueError(
            f"times must strictly {way}; got {times[i]:g} and then {times[i + 1]:g} at step {i}."
        )
    slack = 1e-6  # a grid may have been float32
    low, high = process.t_min * (1 - slack), process.t_max * (1 + slack)
    if encode and (times[0] < low or times[-1] > high):
        raise ValueError(
            f"times that increase, which encode data, must lie in [{process.t_min:g}, {process.t_max:g}], where the "
            f"denoiser is asked at each of them; got {times[0]:g}, ..., {times[-1]:g}. Only times that strictly decrease "
            'may end at 0: reverse a grid of final="stop".'
        )
    if not encode and (times[0] > high or times[-2] < low or times[-1] < 0):
        raise ValueError(
            f"times must lie in [{process.t_min:g}, {process.t_max:g}], but for the last one, which may be 0 "
            f"(the data); got {times[0]:g}, ..., {times[-2]:g}, {times[-1]:g}."
        )
