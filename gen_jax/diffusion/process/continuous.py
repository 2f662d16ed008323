"""Stochastic differential equations and flows."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array

from gen_jax import checks
from gen_jax.diffusion.process.base import (
    Process,
    Shares,
    Time,
    Values,
    as_float,
    check_t_min,
    namespace,
    preserving_alpha,
    preserving_log_snr,
    preserving_sigma,
)
from gen_jax.types import Rate


@checks.checked
@dataclass(frozen=True)
class VP(Process):
    """The variance-preserving SDE `dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw` on [0, 1].

        log alpha_t = -1/2 int_0^t beta(s) ds,      sigma_t^2 = 1 - alpha_t^2

    Args:
        schedule: "linear", `beta(t) = beta_min + t (beta_max - beta_min)`, the limit of linear `DDPM` with many
            steps (Song et al. 2021, Eqs. 11 and 33), or "cosine", `alpha_t = cos(u_t) / cos(u_0)` with
            `u_t = pi / 2 (t + 0.008) / 1.008`, up to `t_max = 0.9946` (Lu et al. 2022, DPM-Solver, Appendix D.4).
        beta_min: `beta(0)` of the linear schedule.
        beta_max: `beta(1)` of the linear schedule.
        t_min: smallest time of training and sampling. With the default betas, 1e-3 means `sigma = 0.01`, as at
            `t = 1` of `DDPM`.

    Raises:
        ValueError: an unknown schedule, or `0 < beta_min <= beta_max` or `0 < t_min < t_max` does not hold.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    schedule: Rate = "linear"

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f'schedule must be "linear" or "cosine", got {self.schedule!r}.')
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"betas must satisfy 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}."
            )
        check_t_min(self)

    @property
    def t_max(self) -> float:
        """1, or 0.9946 with the cosine schedule, whose `alpha` is 0 at 1."""
        return 1.0 if self.schedule == "linear" else 0.9946

    @checks.checked
    def log_alpha(self, t: Time) -> Values:
        """`log alpha_t = -1/2 int_0^t beta(s) ds`."""
        xp, time = as_float(t)
        if self.schedule == "linear":
            return -0.25 * (self.beta_max - self.beta_min) * time**2 - 0.5 * self.beta_min * time
        u_0, turn = 0.5 * np.pi * 0.008 / 1.008, 0.5 * np.pi / 1.008
        # cos(u) / cos(u_0) - 1, without subtracting two numbers near 1
        below = -2 * xp.sin(u_0 + turn * time / 2) * xp.sin(turn * time / 2) / float(np.cos(u_0))
        return xp.log1p(below)

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """`alpha_t = exp(log alpha_t)`."""
        return preserving_alpha(self.log_alpha(t))

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`sigma_t = sqrt(1 - alpha_t^2)`."""
        return preserving_sigma(self.log_alpha(t))

    @checks.checked
    def log_snr(self, t: Time) -> Values:
        """`log(alpha_t^2 / (1 - alpha_t^2))`."""
        return preserving_log_snr(self.log_alpha(t))


@checks.checked
@dataclass(frozen=True)
class SubVP(Process):
    """The sub-variance-preserving SDE (Song et al. 2021, Eqs. 28 and 29): `alpha` as in linear `VP`, and less noise.

        sigma_t = 1 - alpha_t^2

    Args:
        beta_min: `beta(0)`.
        beta_max: `beta(1)`.
        t_min: smallest time of training and sampling.

    Raises:
        ValueError: `0 < beta_min <= beta_max` or `0 < t_min < 1` does not hold.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        VP(self.beta_min, self.beta_max, self.t_min)  # the same conditions

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    @checks.checked
    def log_alpha(self, t: Time) -> Values:
        """`log alpha_t = -1/2 int_0^t beta(s) ds`."""
        return VP(self.beta_min, self.beta_max, self.t_min).log_alpha(t)

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """`alpha_t = exp(log alpha_t)`."""
        return preserving_alpha(self.log_alpha(t))

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`sigma_t = 1 - alpha_t^2`."""
        log_alpha = self.log_alpha(t)
        return -namespace(log_alpha).expm1(2 * log_alpha)


@checks.checked
@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding SDE (Song et al. 2021, Eqs. 30 and 31), on `t` in [0, 1].

        alpha_t = 1,      sigma_t = sigma_min (sigma_max / sigma_min)^t for t > 0,      sigma_0 = 0

    Args:
        sigma_min: noise just above `t = 0`, in the unit of the data.
        sigma_max: noise at `t = 1`; about the largest distance between two examples (Song & Ermon 2020).
        t_min: smallest time of training and sampling.

    Raises:
        ValueError: `0 < sigma_min < sigma_max` or `0 < t_min < 1` does not hold.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        check_t_min(self)

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """1."""
        xp, time = as_float(t)
        return xp.ones_like(time)

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`sigma_min (sigma_max / sigma_min)^t`, and 0 at `t = 0`."""
        xp, time = as_float(t)
        low, high = float(np.log(self.sigma_min)), float(np.log(self.sigma_max))
        return xp.where(time > 0, xp.exp(low + time * (high - low)), 0)

    @checks.checked
    def log_snr(self, t: Time) -> Values:
        """`-2 log sigma_t`."""
        xp, time = as_float(t)
        low, high = float(np.log(self.sigma_min)), float(np.log(self.sigma_max))
        return xp.where(time > 0, -2 * (low + time * (high - low)), np.inf)


@checks.checked
@dataclass(frozen=True)
class EDM(Process):
    """Time is the noise: `alpha_t = 1`, `sigma_t = t` (Karras et al. 2022, Table 1).

    Networks are trained at `log sigma ~ N(log_mean, log_std^2)`, clipped to [sigma_min, sigma_max], usually with
    `prediction.edm_preconditioned`.

    Args:
        sigma_min: smallest noise of training and sampling.
        sigma_max: noise of the prior.
        log_mean: `P_mean` of training times.
        log_std: `P_std` of training times.

    Raises:
        ValueError: `0 < sigma_min < sigma_max` or `log_std > 0` does not hold.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_mean: float = -1.2
    log_std: float = 1.2

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        if not self.log_std > 0:
            raise ValueError(f"log_std must be positive, got {self.log_std}; the paper's value is 1.2.")

    @property
    def t_min(self) -> float:
        """`sigma_min`."""
        return self.sigma_min

    @property
    def t_max(self) -> float:
        """`sigma_max`."""
        return self.sigma_max

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """1."""
        xp, time = as_float(t)
        return xp.ones_like(time)

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`t`."""
        return as_float(t)[1]

    @checks.checked
    def times(self, u: Shares) -> Values:
        """Training times for `u` in [0, 1): quantiles of the log-normal distribution of `sigma`."""
        xp, u = as_float(u)
        if isinstance(u, Array):
            z = jax.scipy.special.ndtri(u)
        else:
            from scipy.special import ndtri  # takes a third of a second to import

            z = ndtri(u)
        return xp.clip(xp.exp(self.log_mean + self.log_std * z), self.sigma_min, self.sigma_max)


@checks.checked
@dataclass(frozen=True)
class FlowMatching(Process):
    """Straight lines from data to noise, `x_t = (1 - t) x_0 + t eps` (Lipman et al. 2023; Liu et al. 2023).

    Networks predict "velocity", `eps - x_0`. At `t = 1` no data are left and `log_snr` is minus infinity, so the first
    step of a solver uses the network's prediction alone.

    Args:
        t_min: smallest time of training and sampling.

    Raises:
        ValueError: `0 < t_min < 1` does not hold.
    """

    t_min: float = 1e-3

    def __post_init__(self) -> None:
        check_t_min(self)

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """`1 - t`."""
        return 1 - as_float(t)[1]

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`t`."""
        return as_float(t)[1]


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigmas must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
