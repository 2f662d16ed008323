"""How data become noise: `x_t = alpha_t x_0 + sigma_t eps`, with data at `t = 0` and noise at `t = t_max`.

A process is a frozen dataclass that says `alpha(t)`, `sigma(t)` and between which times a network is trained.
Everything else (`log_snr`, `perturb`, `prior`, `times`) follows, and can be overridden where a better formula
is known. `Schedule(alpha, sigma)` is one of your own; to override more, subclass `Process`.

Three times matter. `t = 0` is the data: `alpha = 1`, `sigma = 0`, `log_snr = inf`. `t_min > 0` is the least
noise at which a network is trained, so the least at which a sampler may ask it. `t_max` is the prior.

    DDPM            t = 0, 1, ..., T        alpha^2 + sigma^2 = 1, from betas
    VP, LogSNR      t in [0, 1]             alpha^2 + sigma^2 = 1, from beta(t) or any log_snr(t)
    SubVP           t in [0, 1]             sigma = 1 - alpha^2
    VE              t in [0, 1]             alpha = 1, sigma geometric in t
    EDM             t in [0, 80]            alpha = 1, sigma = t
    FlowMatching    t in [0, 1]             alpha = 1 - t, sigma = t
    Schedule                                any two functions alpha, sigma

Functions of time take jax arrays (in float32 or better, whatever comes in) and numpy arrays, and answer in
kind: numpy's float64 stays float64, which is how a sampler's coefficients are made.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import keys
from gen_jax.types import Betas, Rate

Times: TypeAlias = Shaped[Array | np.ndarray, "*t"] | np.number | float | int
"""A time or an array of times, jax's or numpy's."""

Values: TypeAlias = Float[Array | np.ndarray, "*t"] | np.floating
"""One value a time, in the library of the times."""

Given = TypeVar("Given", bound=Values)
"""Values that are answered in kind."""


@runtime_checkable
class Process(Protocol):
    """A Gaussian noising process `q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`."""

    @property
    def t_min(self) -> float:
        """Least time at which a network is trained or asked; positive, as `t = 0` has no noise to predict."""
        ...

    @property
    def t_max(self) -> float:
        """Time of the prior."""
        ...

    def alpha(self, t: Times) -> Values:
        """Scale of the data at time `t`; 1 at `t = 0`."""
        ...

    def sigma(self, t: Times) -> Values:
        """Standard deviation of the noise at time `t`; 0 at `t = 0`."""
        ...

    def log_snr(self, t: Times) -> Values:
        """Log signal-to-noise ratio `log(alpha_t^2 / sigma_t^2)`, strictly decreasing; inf at `t = 0`."""
        xp, t = _float(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def times(self, u: Values) -> Values:
        """Training times for `u` in [0, 1): `t_min + (t_max - t_min) u`."""
        return self.t_min + (self.t_max - self.t_min) * u

    def snap(self, t: Times) -> Values:
        """Nearest time that occurs in training: `t` itself, unless time is discrete."""
        return _float(t)[1]

    def perturb(self, x_0: Float[Array, "*x"], t: Times, eps: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Noised data `x_t = alpha_t x_0 + sigma_t eps`, at one time (`t: []`) or one a row (`t: [B]`)."""
        return expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * eps

    def prior(
        self, key: Key[Array, ""], shape: tuple[int, ...], *, index: Int[Array, "n"] | None = None
    ) -> Float[Array, "n ..."]:
        """Draws `x_T ~ N(0, sigma_T^2 I)`, `[n, ...]`; row `i` depends on `key` and `index[i]` (or `i`).

        Give `samplers.sample` another key than this one.
        """
        return jnp.asarray(self.sigma(self.t_max)) * keys.normal(key, shape, index)


@dataclass(frozen=True)
class DDPM(Process):
    """The discrete process of Ho et al. 2020, on `t = 0, 1, ..., T`.

        alpha_t^2 = alpha_bar_t = prod_{s <= t} (1 - beta_s),      sigma_t^2 = 1 - alpha_bar_t

    `t = 0` is the data and `t = 1..T` are the book's and the paper's steps (code that counts its array of
    betas from 0 calls them 0..T-1). Between two integers `log alpha` is interpolated linearly (Lu et al.
    2022, DPM-Solver, Appendix D), so that a sampler may stop anywhere.

    Args:
        num_steps: `T`.
        schedule: "linear", `beta_t` from `beta_min` to `beta_max` in equal steps (Ho et al. 2020, Section 4);
            "scaled_linear", the same of `sqrt(beta_t)` (Rombach et al. 2022, whose betas are 0.00085 and 0.012);
            or "cosine", `alpha_t^2 = f(t) / f(0)` with `f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2)` and
            `beta_t <= 0.999` (Nichol & Dhariwal 2021, Eq. 17).
        beta_min: `beta_1` of the linear schedule.
        beta_max: `beta_T` of the linear schedules. The paper's 1e-4 and 0.02 are meant for 1000 steps.
        zero_terminal_snr: shift and scale `alpha` so that `alpha_T = 0` and `alpha_1` stays (Lin et al. 2024,
            Algorithm 1): the last time is pure noise, about which "eps" and "score" say nothing.

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
        """1: the first step with noise in it."""
        return 1.0

    @property
    def t_max(self) -> float:
        """`T`."""
        return float(self.num_steps)

    @functools.cached_property
    def betas(self) -> Float[np.ndarray, "{self.num_steps}"]:
        """`beta_1, ..., beta_T` in float64: `betas[t - 1]` is the variance of `q(x_t | x_{t-1})`."""
        return -np.expm1(2 * np.diff(self._log_alphas))

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

        With `zero_terminal_snr` it is `alpha_t` that is linear from `T - 1` to `T`.
        """
        xp, time = _float(t)
        time = xp.clip(time, 0, self.num_steps)
        below = xp.clip(xp.floor(time), 0, self.num_steps - 1)
        nodes, rest, i = self._log_alphas, time - below, below.astype(int)
        if not self.zero_terminal_snr:
            table = xp.asarray(nodes, dtype=time.dtype)
            return (1 - rest) * table[i] + rest * table[i + 1]
        table, last = xp.asarray(nodes[:-1], dtype=time.dtype), self.num_steps - 1
        inside = (1 - rest) * table[i] + rest * table[xp.minimum(i + 1, last)]
        with np.errstate(divide="ignore"):  # at T
            to_zero = xp.log1p(-xp.where(i == last, rest, 0)) + table[last]
        return xp.where(i == last, to_zero, inside)

    def alpha(self, t: Times) -> Values:
        """`alpha_t = sqrt(alpha_bar_t)`."""
        return _alpha(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        """`sigma_t = sqrt(1 - alpha_bar_t)`."""
        return _sigma(self.log_alpha(t))

    def log_snr(self, t: Times) -> Values:
        """`log(alpha_bar_t / (1 - alpha_bar_t))`."""
        return _log_snr(self.log_alpha(t))

    def times(self, u: Values) -> Values:
        """Training times for `u` in [0, 1): the integers `1 + floor(T u)`, as floats."""
        xp, u = _float(u)
        return xp.minimum(1 + xp.floor(self.num_steps * u), self.t_max)  # u just below 1 may round to T + 1

    def snap(self, t: Times) -> Values:
        """Nearest integer, as a float."""
        xp, t = _float(t)
        return xp.round(t)


@dataclass(frozen=True)
class VP(Process):
    """The variance-preserving SDE `dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw` on [0, 1].

        log alpha_t = -1/2 int_0^t beta(s) ds,      sigma_t^2 = 1 - alpha_t^2

    Args:
        schedule: "linear", `beta(t) = beta_min + t (beta_max - beta_min)`, the limit of linear `DDPM` for many
            steps (Song et al. 2021, Eqs. 11 and 33), or "cosine", `alpha_t = cos(u_t) / cos(u_0)` with
            `u_t = pi / 2 (t + 0.008) / 1.008`, up to `t_max = 0.9946` (Lu et al. 2022, DPM-Solver, Appendix D.4).
        beta_min: `beta(0)` of the linear schedule.
        beta_max: `beta(1)` of the linear schedule.
        t_min: least time of training and of asking a network. With the default betas 1e-3 means `sigma =
            0.01`, as at `DDPM`'s `t = 1`.

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
        _check_t_min(self)

    @property
    def t_max(self) -> float:
        """1, or 0.9946 of the cosine schedule, which has no signal left at 1."""
        return 1.0 if self.schedule == "linear" else 0.9946

    def log_alpha(self, t: Times) -> Values:
        """`log alpha_t = -1/2 int_0^t beta(s) ds`."""
        xp, time = _float(t)
        if self.schedule == "linear":
            return -0.25 * (self.beta_max - self.beta_min) * time**2 - 0.5 * self.beta_min * time
        u_0, turn = 0.5 * np.pi * 0.008 / 1.008, 0.5 * np.pi / 1.008
        # cos(u) / cos(u_0) - 1, without the difference of two numbers near 1
        below = -2 * xp.sin(u_0 + turn * time / 2) * xp.sin(turn * time / 2) / float(np.cos(u_0))
        return xp.log1p(below)

    def alpha(self, t: Times) -> Values:
        """`alpha_t = exp(log alpha_t)`."""
        return _alpha(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        """`sigma_t = sqrt(1 - alpha_t^2)`."""
        return _sigma(self.log_alpha(t))

    def log_snr(self, t: Times) -> Values:
        """`log(alpha_t^2 / (1 - alpha_t^2))`."""
        return _log_snr(self.log_alpha(t))


@dataclass(frozen=True)
class LogSNR(Process):
    """The variance-preserving process of any log signal-to-noise ratio (Kingma et al. 2021, Section 3.2).

        alpha_t^2 = sigmoid(log_snr_t),      sigma_t^2 = sigmoid(-log_snr_t)

    Args:
        schedule: `log_snr`, strictly decreasing in `t`, in operations that numpy and jax arrays both have;
            `lambda t: 10 - 20 * t`, say. At `t = 0` it counts as infinite.
        t_min: least time of training and of asking a network.
        t_max: time of the prior.

    Raises:
        ValueError: `0 < t_min < t_max` does not hold.
    """

    schedule: Callable[[Any], Any]
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_t_min(self)

    def log_snr(self, t: Times) -> Values:
        """`schedule(t)`, and infinite at `t = 0`."""
        xp, time = _float(t)
        safe = xp.where(time > 0, time, self.t_min)
        return xp.where(time > 0, self.schedule(safe), np.inf)

    def alpha(self, t: Times) -> Values:
        """`sqrt(sigmoid(log_snr_t))`."""
        log_snr = self.log_snr(t)
        return _xp(log_snr).exp(-0.5 * _xp(log_snr).logaddexp(0, -log_snr))

    def sigma(self, t: Times) -> Values:
        """`sqrt(sigmoid(-log_snr_t))`."""
        log_snr = self.log_snr(t)
        return _xp(log_snr).exp(-0.5 * _xp(log_snr).logaddexp(0, log_snr))


@dataclass(frozen=True)
class SubVP(Process):
    """The sub-variance-preserving SDE (Song et al. 2021, Eqs. 28 and 29): `alpha` of linear `VP`, less noise.

        sigma_t = 1 - alpha_t^2

    Args:
        beta_min: `beta(0)`.
        beta_max: `beta(1)`.
        t_min: least time of training and of asking a network.

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

    def log_alpha(self, t: Times) -> Values:
        """`log alpha_t = -1/2 int_0^t beta(s) ds`."""
        return VP(self.beta_min, self.beta_max, self.t_min).log_alpha(t)

    def alpha(self, t: Times) -> Values:
        """`alpha_t = exp(log alpha_t)`."""
        return _alpha(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        """`sigma_t = 1 - alpha_t^2`."""
        log_alpha = self.log_alpha(t)
        return -_xp(log_alpha).expm1(2 * log_alpha)


@dataclass(frozen=True)
class VE(Process):
    """The variance-exploding SDE (Song et al. 2021, Eqs. 30 and 31), on `t` in [0, 1].

        alpha_t = 1,      sigma_t = sigma_min (sigma_max / sigma_min)^t for t > 0,      sigma_0 = 0

    Args:
        sigma_min: least noise, just above `t = 0`, in the unit of the data.
        sigma_max: noise at `t = 1`; as large as the greatest distance between two examples (Song & Ermon 2020).
        t_min: least time of training and of asking a network.

    Raises:
        ValueError: `0 < sigma_min < sigma_max` or `0 < t_min < 1` does not hold.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        _check_t_min(self)

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    def alpha(self, t: Times) -> Values:
        """1."""
        xp, time = _float(t)
        return xp.ones_like(time)

    def sigma(self, t: Times) -> Values:
        """`sigma_min (sigma_max / sigma_min)^t`, and 0 at `t = 0`."""
        xp, time = _float(t)
        low, high = float(np.log(self.sigma_min)), float(np.log(self.sigma_max))
        return xp.where(time > 0, xp.exp(low + time * (high - low)), 0)

    def log_snr(self, t: Times) -> Values:
        """`-2 log sigma_t`."""
        xp, time = _float(t)
        low, high = float(np.log(self.sigma_min)), float(np.log(self.sigma_max))
        return xp.where(time > 0, -2 * (low + time * (high - low)), np.inf)


@dataclass(frozen=True)
class EDM(Process):
    """Time is the noise: `alpha_t = 1`, `sigma_t = t` (Karras et al. 2022, Table 1).

    Networks are trained at `log sigma ~ N(log_mean, log_std^2)`, kept within [sigma_min, sigma_max], usually in the
    form of `prediction.edm_preconditioned`.

    Args:
        sigma_min: least noise at which the network is asked.
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

    def alpha(self, t: Times) -> Values:
        """1."""
        xp, time = _float(t)
        return xp.ones_like(time)

    def sigma(self, t: Times) -> Values:
        """`t`."""
        return _float(t)[1]

    def times(self, u: Values) -> Values:
        """Training times for `u` in [0, 1): quantiles of the log-normal distribution of `sigma`."""
        xp, u = _float(u)
        if xp is np:
            from scipy.special import ndtri  # takes a third of a second to import
        else:
            ndtri = jax.scipy.special.ndtri
        z = ndtri(u)
        return xp.clip(xp.exp(self.log_mean + self.log_std * z), self.sigma_min, self.sigma_max)


@dataclass(frozen=True)
class FlowMatching(Process):
    """Straight lines from data to noise, `x_t = (1 - t) x_0 + t eps` (Lipman et al. 2023; Liu et al. 2023).

    Networks predict "velocity", `eps - x_0`. At `t = 1` there is no data left and `log_snr` is minus infinity:
    solvers take their first step from there by what the network says alone.

    Args:
        t_min: least time of training and of asking a network.

    Raises:
        ValueError: `0 < t_min < 1` does not hold.
    """

    t_min: float = 1e-3

    def __post_init__(self) -> None:
        _check_t_min(self)

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    def alpha(self, t: Times) -> Values:
        """`1 - t`."""
        return 1 - _float(t)[1]

    def sigma(self, t: Times) -> Values:
        """`t`."""
        return _float(t)[1]


@dataclass(frozen=True)
class Schedule(Process):
    """A process by its two functions of time, in operations that numpy and jax arrays both have.

        Schedule(alpha=lambda t: 1 - t**2, sigma=lambda t: t)

    Args:
        alpha: scale of the data; 1 at `t = 0`.
        sigma: standard deviation of the noise; 0 at `t = 0`. `alpha / sigma` must strictly decrease.
        t_min: least time of training and of asking a network.
        t_max: time of the prior.

    Raises:
        ValueError: `0 < t_min < t_max` does not hold, or the signal-to-noise ratio does not strictly decrease.
    """

    alpha: Callable[[Any], Any]  # type: ignore[assignment]  # a field in the place of a method
    sigma: Callable[[Any], Any]  # type: ignore[assignment]
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        _check_t_min(self)
        t = np.linspace(self.t_min, self.t_max, 100)
        with np.errstate(divide="ignore"):
            ratio = np.asarray(self.alpha(t)) / np.asarray(self.sigma(t))
        if not (np.diff(ratio) < 0).all():
            raise ValueError(
                f"alpha / sigma must strictly decrease from t_min to t_max; got {ratio[:3]}, ..., {ratio[-3:]}."
            )


def at_log_snr(process: Process, values: Given) -> Given:
    """Times in [t_min, t_max] at which `log_snr` has these values (the nearer end where none has): bisection."""
    xp, values = _float(values)
    ends = xp.full_like(values, process.t_min), xp.full_like(values, process.t_max)

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        middle = 0.5 * (ends[0] + ends[1])
        noisier = xp.asarray(process.log_snr(middle)) < values
        return xp.where(noisier, ends[0], middle), xp.where(noisier, middle, ends[1])

    bits = xp.finfo(values.dtype).bits  # one a bit of the answer
    if xp is np:
        low, high = functools.reduce(lambda ends, i: halve(i, ends), range(bits), ends)
    else:
        low, high = jax.lax.fori_loop(0, bits, halve, ends)
    return 0.5 * (low + high)


def expand(values: Any, like: Shaped[Array, "..."]) -> Any:
    """`[B]` as `[B, 1, ...]` of the rank of `like`, to multiply `[B, H, W, C]`; a scalar stays one."""
    xp, values = _float(values)
    return values if values.ndim == 0 else xp.reshape(values, values.shape + (1,) * (like.ndim - values.ndim))


def _float(t: Any) -> tuple[ModuleType, Any]:
    """The array library of `t` (jax's where it has none), and `t` as its array in float32 or better."""
    xp = t.__array_namespace__() if hasattr(t, "__array_namespace__") else jnp
    t = xp.asarray(t)
    return xp, t.astype(xp.promote_types(t.dtype, xp.float32))


def _xp(values: Any) -> Any:
    """The array library of what `_float` made."""
    return values.__array_namespace__()


def _check_t_min(process: Process) -> None:
    if not 0 < process.t_min < process.t_max:
        raise ValueError(f"t_min must lie in (0, {process.t_max:g}), got {process.t_min}; try 1e-3.")


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigmas must satisfy 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")


# Of a variance-preserving process, from log alpha: 1 - alpha^2 has no correct digit near the data.


def _alpha(log_alpha: Any) -> Any:
    return _xp(log_alpha).exp(log_alpha)


def _sigma(log_alpha: Any) -> Any:
    xp = _xp(log_alpha)
    return xp.sqrt(xp.abs(xp.expm1(2 * log_alpha)))


def _log_snr(log_alpha: Any) -> Any:
    xp = _xp(log_alpha)
    with np.errstate(divide="ignore"):  # inf at t = 0 is the right answer
        return -xp.log(xp.abs(xp.expm1(-2 * log_alpha)))
