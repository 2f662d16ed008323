"""Diffusion in discrete steps."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.process.base import (
    Namespace,
    Process,
    Shares,
    Time,
    Times,
    Values,
    as_float,
    preserving_alpha,
    preserving_log_snr,
)
from gen_jax.types import Betas

MOST_STEPS = 10**6
"""Of a process, whose tables have an entry for each."""
LARGE_ALPHA = 0.2
"""From which on `alpha_T` is worth a warning: `x_T` then holds so much of the data, and the prior is pure noise."""


@checks.checked
@dataclass(frozen=True, init=False)
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
        betas: `beta_1, ..., beta_T` of one's own, in place of a schedule; `T` is their number. They are kept as the field
            `own_betas`.
        own_betas: the same, as descriptions of models have them.

    A `UserWarning` says where `alpha_T` is above 0.2, as with few steps and betas that are meant for many.

    Raises:
        ValueError: `num_steps` below 1 or above a million, an unknown schedule, betas outside (0, 1), or decreasing ones
            of a schedule.
    """

    num_steps: int = 1000
    schedule: Betas = "linear"
    beta_min: float = 1e-4
    beta_max: float = 0.02
    zero_terminal_snr: bool = False
    own_betas: tuple[float, ...] | None = None

    def __init__(
        self,
        num_steps: int | None = None,
        schedule: Betas = "linear",
        beta_min: float = 1e-4,
        beta_max: float = 0.02,
        zero_terminal_snr: bool = False,
        own_betas: tuple[float, ...] | None = None,
        *,
        betas: Sequence[float] | Float[np.ndarray, "T"] | None = None,
    ) -> None:
        own = own_betas if betas is None else tuple(map(float, betas))
        default = 1000 if own is None else len(own)
        steps = checks.whole("num_steps", default if num_steps is None else num_steps, "step")
        fields = (steps, schedule, beta_min, beta_max, zero_terminal_snr, own)
        for name, value in zip(self.__dataclass_fields__, fields, strict=True):
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        checks.choice("schedule", self.schedule, ("linear", "scaled_linear", "cosine"))
        if self.num_steps > MOST_STEPS:
            raise ValueError(
                f"num_steps must be at most {MOST_STEPS:,}, got {self.num_steps:,}: VP is the limit of many steps."
            )
        if self.zero_terminal_snr and self.num_steps < 2:
            raise ValueError("zero_terminal_snr needs num_steps of at least 2.")
        if self.own_betas is not None:
            if len(self.own_betas) != self.num_steps or not all(0 < beta < 1 for beta in self.own_betas):
                ends = f"{min(self.own_betas, default=0):g} to {max(self.own_betas, default=0):g}"
                raise ValueError(
                    f"betas must be num_steps = {self.num_steps} numbers in (0, 1), beta_1 to beta_T; got "
                    f"{len(self.own_betas)}, from {ends}."
                )
        elif not 0 < self.beta_min <= self.beta_max < 1:
            raise ValueError(
                f"betas must satisfy 0 < beta_min <= beta_max < 1, got {self.beta_min} and {self.beta_max}."
            )
        alpha_T = float(np.exp(self._log_alphas[-1]))
        if alpha_T > LARGE_ALPHA:
            advice = (
                "betas that grow more"
                if self.own_betas
                else f"beta_max={min(20 / self.num_steps, 0.999):.2g}"
            )
            warnings.warn(
                f"x_T of this DDPM holds alpha_T = {alpha_T:.2f} of the data, where samples begin with pure noise: its "
                f"betas are too small for {self.num_steps} steps. Take {advice}, the cosine schedule, more steps, or "
                "zero_terminal_snr=True.",
                stacklevel=4,
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
    def _log_alphas(self) -> Float[np.ndarray, "nodes"]:
        if self.own_betas is not None:
            betas = np.array(self.own_betas)
        elif self.schedule == "cosine":
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

    @checks.checked
    def log_alpha(self, t: Time) -> Values:
        """`log alpha_t`, linear between integers; under `jit` a `t` outside [0, T] counts as the nearer end.

        With `zero_terminal_snr`, `alpha_t` itself is linear from `T - 1` to `T`.
        """
        xp, line, rest = self._parts(t)
        with np.errstate(divide="ignore"):  # at T
            return line + xp.log1p(-rest)

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """`alpha_t = sqrt(alpha_bar_t)`."""
        _, line, rest = self._parts(t)
        return preserving_alpha(line) * (1 - rest)

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`sigma_t = sqrt(1 - alpha_bar_t)`."""
        xp, line, rest = self._parts(t)
        return xp.sqrt(0 - xp.expm1(2 * line) + xp.exp(2 * line) * rest * (2 - rest))

    def _parts(self, t: Times) -> tuple[Namespace, Values, Values]:
        """`(xp, l, r)` of `alpha_t = exp(l) (1 - r)`; `r` is not 0 on the way to `alpha_T = 0` alone."""
        xp, time = as_float(t)
        time = xp.where(
            time < 0, 0, xp.where(time > self.num_steps, self.num_steps, time)
        )  # clip: half the slope
        below = xp.clip(xp.floor(time), 0, self.num_steps - 1)
        nodes, rest, i = self._log_alphas, time - below, xp.asarray(below.astype(int))
        if not self.zero_terminal_snr:
            table = xp.asarray(nodes, dtype=time.dtype)
            return xp, (1 - rest) * table[i] + rest * table[i + 1], xp.zeros_like(rest)
        table, last = xp.asarray(nodes[:-1], dtype=time.dtype), self.num_steps - 1
        line = (1 - rest) * table[i] + rest * table[xp.asarray(xp.minimum(i + 1, last))]
        return xp, line, xp.where(i == last, rest, 0)

    @checks.checked
    def log_snr(self, t: Time) -> Values:
        """`log(alpha_bar_t / (1 - alpha_bar_t))`."""
        return preserving_log_snr(self.log_alpha(t))

    @checks.checked
    def times(self, u: Shares) -> Values:
        """Training times for `u` in [0, 1): the integers `1 + floor(T u)`, as floats."""
        xp, u = as_float(u)
        return xp.minimum(1 + xp.floor(self.num_steps * u), self.t_max)  # a u just below 1 may round to T + 1

    @checks.checked
    def snap(self, t: Time) -> Values:
        """Nearest integer, as a float."""
        xp, t = as_float(t)
        return xp.round(t)
