"""Processes by functions of your own."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from gen_jax import checks
from gen_jax.diffusion.process.base import Process, Time, Times, Values, as_float, check_t_min, namespace


@checks.checked
@dataclass(frozen=True)
class LogSNR(Process):
    """The variance-preserving process of any log signal-to-noise ratio (Kingma et al. 2021, Section 3.2).

        alpha_t^2 = sigmoid(log_snr_t),      sigma_t^2 = sigmoid(-log_snr_t)

    Args:
        schedule: `log_snr`, strictly decreasing in `t`, such as `lambda t: 10 - 20 * t`. It uses operations that
            numpy and jax arrays both have. At `t = 0` its value counts as infinite.
        t_min: smallest time of training and sampling.
        t_max: time of the prior.

    Raises:
        ValueError: `0 < t_min < t_max` does not hold, or `log_snr` does not decrease (checked unless it has traced
            parameters).
    """

    schedule: Callable[[Times], Values]
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_t_min(self)
        with jax.ensure_compile_time_eval():
            values = self.schedule(np.linspace(self.t_min, self.t_max, 100))
        if isinstance(values, jax.core.Tracer):
            return
        values = np.asarray(values, np.float64)
        first, last = values[[0, -1]]
        if not ((np.diff(values) <= 0).all() and last < first):  # what is learned may be flat in float32
            advice = ": return minus that" if last > first else ""
            raise ValueError(
                f"schedule must be a log_snr that strictly decreases from t_min to t_max; got {first:g} at "
                f"{self.t_min:g}, and {last:g} at {self.t_max:g}{advice}."
            )

    @checks.checked
    def log_snr(self, t: Time) -> Values:
        """`schedule(t)`, and infinite at `t = 0`."""
        xp, time = as_float(t)
        safe = xp.where(time > 0, time, self.t_min)
        return xp.where(time > 0, self.schedule(safe), np.inf)

    @checks.checked
    def alpha(self, t: Time) -> Values:
        """`sqrt(sigmoid(log_snr_t))`."""
        log_snr = self.log_snr(t)
        xp = namespace(log_snr)
        return xp.exp(-0.5 * xp.logaddexp(0, -log_snr))

    @checks.checked
    def sigma(self, t: Time) -> Values:
        """`sqrt(sigmoid(-log_snr_t))`."""
        log_snr = self.log_snr(t)
        xp = namespace(log_snr)
        return xp.exp(-0.5 * xp.logaddexp(0, log_snr))


@checks.checked
@dataclass(frozen=True)
class Schedule(Process):
    """A process defined by its two functions of time, in operations that numpy and jax arrays both have.

        Schedule(alpha=lambda t: 1 - t**2, sigma=lambda t: t)

    Args:
        alpha: scale of the data; 1 at `t = 0`.
        sigma: standard deviation of the noise; 0 at `t = 0`. `alpha / sigma` must strictly decrease.
        t_min: smallest time of training and sampling.
        t_max: time of the prior.

    Raises:
        ValueError: `0 < t_min < t_max` does not hold, or the signal-to-noise ratio does not strictly decrease.
    """

    alpha: Callable[[Times], Values]  # type: ignore[assignment]  # a field in the place of a method
    sigma: Callable[[Times], Values]  # type: ignore[assignment]
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        check_t_min(self)
        t = np.linspace(self.t_min, self.t_max, 100)
        with np.errstate(divide="ignore"):
            ratio = np.asarray(self.alpha(t)) / np.asarray(self.sigma(t))
        if not (np.diff(ratio) < 0).all():
            raise ValueError(
                f"alpha / sigma must strictly decrease from t_min to t_max; got {ratio[:3]}, ..., {ratio[-3:]}."
            )
