"""How data become noise: `x_t = alpha_t x_0 + sigma_t eps`, with data at `t = 0` and noise at `t = t_max`.

A process is a frozen dataclass that says `alpha(t)`, `sigma(t)` and between which times a network is trained.
Everything else (`log_snr`, `perturb`, `prior`, `times`) follows, and can be overridden where a better formula
is known. One of your own:

    @dataclass(frozen=True)
    class FlowMatching(Process):
        t_min: float = 1e-3
        t_max: float = 1.0

        def alpha(self, t):
            return 1 - t

        def sigma(self, t):
            return t

Three times matter. `t = 0` is the data: `alpha = 1`, `sigma = 0`, `log_snr = inf`. `t_min > 0` is the least
noise at which a network is trained, so the least at which a sampler may ask it. `t_max` is the prior.

Functions of time take jax arrays (in float32 or better, whatever comes in) and numpy arrays, and answer in
kind: numpy's float64 stays float64, which is how a sampler's coefficients are made.
"""

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import keys

if TYPE_CHECKING:
    Schedule: TypeAlias = Literal["linear", "cosine"]
else:  # a misspelt name is to meet our ValueError, not the type checker that the tests install
    Schedule = str

Times: TypeAlias = Shaped[Array | np.ndarray, "*t"] | np.number | float | int
"""A time or an array of times, jax's or numpy's."""

Values: TypeAlias = Float[Array | np.ndarray, "*t"] | np.floating
"""One value a time, in the library of the times."""


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
        schedule: "linear", `beta_t` from `beta_min` to `beta_max` in equal steps (Ho et al. 2020, Section 4),
            or "cosine", `alpha_t^2 = f(t) / f(0)` with `f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2)` and
            `beta_t <= 0.999` (Nichol & Dhariwal 2021, Eq. 17).
        beta_min: `beta_1` of the linear schedule.
        beta_max: `beta_T` of the linear schedule. The paper's 1e-4 and 0.02 are meant for 1000 steps.

    Raises:
        ValueError: `num_steps` below 1, an unknown schedule, betas outside (0, 1) or decreasing.
    """

    num_steps: int = 1000
    schedule: Schedule = "linear"
    beta_min: float = 1e-4
    beta_max: float = 0.02

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}.")
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f'schedule must be "linear" or "cosine", got {self.schedule!r}.')
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
        if self.schedule == "linear":
            return np.linspace(self.beta_min, self.beta_max, self.num_steps)
        t = np.arange(self.num_steps + 1) / self.num_steps
        f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)

    @functools.cached_property
    def _log_alphas(self) -> Float[np.ndarray, "{self.num_steps}+1"]:
        return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-self.betas))])

    def log_alpha(self, t: Times) -> Values:
        """`log alpha_t`, linear between integers; a `t` outside [0, T] counts as the nearer end."""
        xp, time = _float(t)
        time = xp.clip(time, 0, self.num_steps)
        below = xp.clip(xp.floor(time), 0, self.num_steps - 1)
        table, i = xp.asarray(self._log_alphas, dtype=time.dtype), below.astype(int)
        return (1 - (time - below)) * table[i] + (time - below) * table[i + 1]

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
    """The variance-preserving SDE `dx = -beta(t) x / 2 dt + sqrt(beta(t)) dw`, `beta(t)` linear on [0, 1].

    Its marginals are `log alpha_t = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2` and `sigma_t^2 = 1 -
    alpha_t^2` (Song et al. 2021, Eqs. 11 and 33): the limit of linear `DDPM` for many steps, on `t` in [0,
    1].

    Args:
        beta_min: `beta(0)`.
        beta_max: `beta(1)`.
        t_min: least time of training and of asking a network. With the default betas 1e-3 means `sigma =
            0.01`, as at `DDPM`'s `t = 1`.

    Raises:
        ValueError: `0 < beta_min <= beta_max` or `0 < t_min < 1` does not hold.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(
                f"betas must satisfy 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}."
            )
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie in (0, 1), got {self.t_min}; try 1e-3.")

    @property
    def t_max(self) -> float:
        """1."""
        return 1.0

    def log_alpha(self, t: Times) -> Values:
        """`log alpha_t = -1/2 int_0^t beta(s) ds`."""
        _, time = _float(t)
        return -0.25 * (self.beta_max - self.beta_min) * time**2 - 0.5 * self.beta_min * time

    def alpha(self, t: Times) -> Values:
        """`alpha_t = exp(log alpha_t)`."""
        return _alpha(self.log_alpha(t))

    def sigma(self, t: Times) -> Values:
        """`sigma_t = sqrt(1 - alpha_t^2)`."""
        return _sigma(self.log_alpha(t))

    def log_snr(self, t: Times) -> Values:
        """`log(alpha_t^2 / (1 - alpha_t^2))`."""
        return _log_snr(self.log_alpha(t))


def expand(values: Any, like: Shaped[Array, "..."]) -> Any:
    """`[B]` as `[B, 1, ...]` of the rank of `like`, to multiply `[B, H, W, C]`; a scalar stays one."""
    xp, values = _float(values)
    return values if values.ndim == 0 else xp.reshape(values, values.shape + (1,) * (like.ndim - values.ndim))


def _float(t: Any) -> tuple[ModuleType, Any]:
    """The array library of `t` (jax's where it has none), and `t` as its array in float32 or better."""
    xp = t.__array_namespace__() if hasattr(t, "__array_namespace__") else jnp
    t = xp.asarray(t)
    return xp, t.astype(xp.promote_types(t.dtype, xp.float32))


# Of a variance-preserving process, from log alpha: 1 - alpha^2 has no correct digit near the data.


def _alpha(log_alpha: Any) -> Any:
    return log_alpha.__array_namespace__().exp(log_alpha)


def _sigma(log_alpha: Any) -> Any:
    xp = log_alpha.__array_namespace__()
    return xp.sqrt(xp.abs(xp.expm1(2 * log_alpha)))


def _log_snr(log_alpha: Any) -> Any:
    xp = log_alpha.__array_namespace__()
    with np.errstate(divide="ignore"):  # inf at t = 0 is the right answer
        return -xp.log(xp.abs(xp.expm1(-2 * log_alpha)))
