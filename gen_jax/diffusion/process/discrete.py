"""Diffusion in discrete steps."""

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gen_jax.diffusion.process.base import (
    Process,
    Times,
    Values,
    as_float,
    preserving_alpha,
    preserving_log_snr,
    preserving_sigma,
)
from gen_jax.types import Betas


@dataclass(frozen=True)
class DDPM(Process):
    """The discrete process of Ho et al. 2020, on `t = 0, 1, ..., T`.

        alpha_t^2 = alpha_bar_t = prod_{s <= t} (1 - beta_s),      sigma_t^2 = 1 - alpha_bar_t

    `t = 0` is the data; `t = 1..T` are the steps of the paper and the book. (Code whose array of betas begins at 0
    counts them 0..T-1.) Between two integers `log alpha` is interpolated linearly, so that a sampler may use any time
    (Lu et al. 2022, DPM-Solver, Appendix D).

    Args:
        num_steps: `T`.
        schedule: "linear", `beta_t` from `beta_min` to `beta_max` in equal steps (Ho et al. 2020, Section 4);
            "scaled_linear", `sqrt(beta_t)` in equal steps (Rombach et al. 2022, with betas 0.00085 and 0.012);
            or "cosine", `alpha_t^2 = f(t) / f(0)` with `f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2)` and
            `beta_t <= 0.999` (Nichol & Dhariwal 2021, Eq. 17).
        beta_min: `beta_1` of the linear schedules.
        beta_max: `beta_T` of the linear schedules. The paper's 1e-4 and 0.02 are meant for 1000 steps.
        zero_terminal_snr: shifts and scales `alpha` so that `alpha_T = 0` and `alpha_1` does not change (Lin et al.
            2024, Algorithm 1). The last time is then pure noise, where "eps" and "score" do not determine `x_0`.

    Raises:
        ValueError: `num_steps` below 1, an unknown schedule, betas outside (0, 1) or decreasing.
    """

    num_steps: int = 1000
    schedule: Betas = "linear"
    beta_min: float = 1e-4
    beta_max: float = 0.02
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}.")
        if self.schedule not in ("linear", "scaled_linear", "cosine"):
            raise ValueError(
                f'schedule must be "linear", "scaled_linear" or "cosine", got {self.schedule!r}.'
            )
        if self.zero_terminal_snr and self.num_steps < 2:
            raise ValueError("zero_terminal_snr needs num_steps of at least 2.")
        if not 0 < self.beta_min <= self.beta_max < 1:
            raise ValueError(
                f"betas must satisfy 0 < beta_min <= beta_max < 1, got {self.beta_min} and {self.beta_max}."
            )

    @property
    def t_min(self) -> float:
        """1, the first step with noise."""
        return 1.0

    @property
    def t_max(self) -> float:
        """`T`."""
        return float(self.num_steps)

    @functools.cached_property
    def betas(self) -> Float[np.ndarray, "{self.num_steps}"]:
        """`beta_1, ..., beta_T` in float64: `betas[t - 1]` is the variance of `q(x_t | x_{t-1})`."""
        betas: np.ndarray = -np.expm1(2 * np.diff(self._log_alphas))
        return betas

    @functools.cached_property
    def _log_alphas(self) -> Float[np.ndarray, "{self.num_steps}+1"]:
        if self.schedule == "cosine":
            t = np.arange(self.num_steps + 1) / self.num_steps
            f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
            betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
        else:
            power = 2 if self.schedule == "scaled_linear" else 1
            ends = self.beta_min ** (1 / power), self.beta_max ** (1 / power)
            betas = np.linspace(*ends, self.num_steps) ** power
        log_alphas = np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-betas))])
        if self.zero_terminal_snr:
            alphas = np.exp(log_alphas[1:])
            with np.errstate(divide="ignore"):
                log_alphas[1:] = np.log((alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1])))
        return log_alphas

    def log_alpha(self, t: Times) -> Values:
        """`log alpha_t`, linear between integers; a `t` outside [0, T] counts as the nearer end.

        With `zero_terminal_snr`, `alpha_t` itself is linear from `T - 1` to `T`.
        """
        xp, time = as_float(t)
        time = xp.clip(time, 0, self.num_steps)
        below = xp.clip(xp.floor(time), 0, self.num_steps - 1)
        nodes, rest, i = self._log_alphas, time - below, xp.asarray(below.astype(int))
        if not self.zero_terminal_snr:
            table = xp.asarray(nodes, dtype=time.dtype)
            return (1 - rest) * table[i] + rest * table[i + 1]
        table, last = xp.asarray(nodes[:-1], dtype=time.dtype), self.num_steps - 1
        inside = (1 - rest) * table[i] + rest * table[xp.asarray(xp.minimum(i + 1, last))]
        with np.errstate(divide="ignore"):  # at T
            to_zero = xp.log1p(-xp.where(i == last, rest, 0)) + table[last]
        return xp.where(i == last, to_zero, inside)

    def alpha(self, t: Times) -> Values:
        """`alpha_t = sqrt(alpha_bar_t)`."""
        return preserving_alpha(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        """`sigma_t = sqrt(1 - alpha_bar_t)`."""
        return preserving_sigma(self.log_alpha(t))

    def log_snr(self, t: Times) -> Values:
        """`log(alpha_bar_t / (1 - alpha_bar_t))`."""
        return preserving_log_snr(self.log_alpha(t))

    def times(self, u: Values) -> Values:
        """Training times for `u` in [0, 1): the integers `1 + floor(T u)`, as floats."""
        xp, u = as_float(u)
        return xp.minimum(1 + xp.floor(self.num_steps * u), self.t_max)  # a u just below 1 may round to T + 1

    def snap(self, t: Times) -> Values:
        """Nearest integer, as a float."""
        xp, t = as_float(t)
        return xp.round(t)
