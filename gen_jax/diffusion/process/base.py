"""What every process is, and what is computed for any of them."""

import functools
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import keys

Times: TypeAlias = Shaped[Array | np.ndarray, "*t"] | np.number | float | int
"""A time or an array of times, of jax or numpy."""

Values: TypeAlias = Float[Array | np.ndarray, "*t"] | np.floating
"""One value for each time, in the library of the times."""

Given = TypeVar("Given", bound=Values)
"""Values whose library and dtype the result has too."""


@runtime_checkable
class Namespace(Protocol):
    """The functions of `numpy` and `jax.numpy` that formulas of processes are written in."""

    abs: Callable[..., Values]
    asarray: Callable[..., Array | np.ndarray]
    clip: Callable[..., Values]
    exp: Callable[..., Values]
    expm1: Callable[..., Values]
    floor: Callable[..., Values]
    full_like: Callable[..., Values]
    log: Callable[..., Values]
    log1p: Callable[..., Values]
    logaddexp: Callable[..., Values]
    minimum: Callable[..., Values]
    ones_like: Callable[..., Values]
    promote_types: Callable[..., np.dtype]
    round: Callable[..., Values]
    sin: Callable[..., Values]
    sqrt: Callable[..., Values]
    where: Callable[..., Values]


@runtime_checkable
class Process(Protocol):
    """A Gaussian noising process `q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)`."""

    @property
    def t_min(self) -> float:
        """Smallest time of training and sampling; positive, because at `t = 0` there is no noise to predict."""
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
        xp, t = as_float(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def times(self, u: Values) -> Values:
        """Training times for `u` in [0, 1): `t_min + (t_max - t_min) u`."""
        return self.t_min + (self.t_max - self.t_min) * u

    def snap(self, t: Times) -> Values:
        """Nearest time that occurs in training: `t` itself, unless time is discrete."""
        return as_float(t)[1]

    def perturb(self, x_0: Float[Array, "*x"], t: Times, eps: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Noised data `x_t = alpha_t x_0 + sigma_t eps`, at one time (`t: []`) or one per row (`t: [B]`)."""
        return expand(self.alpha(t), x_0) * x_0 + expand(self.sigma(t), x_0) * eps

    def prior(
        self, key: Key[Array, ""], shape: tuple[int, ...], *, index: Int[Array, "n"] | None = None
    ) -> Float[Array, "n ..."]:
        """Draws `x_T ~ N(0, sigma_T^2 I)`, `[n, ...]`; row `i` depends on `key` and `index[i]` (or `i`) only.

        Give `samplers.sample` a different key.
        """
        return jnp.asarray(self.sigma(self.t_max)) * keys.normal(key, shape, index)


def at_log_snr(process: Process, values: Given) -> Given:
    """Times in [t_min, t_max] at which `log_snr` has these values, by bisection.

    Where no time has a value, the result is the nearer end.
    """
    xp, target = as_float(values)
    ends = xp.full_like(target, process.t_min), xp.full_like(target, process.t_max)

    def halve(_: int | Array, ends: tuple[Values, Values]) -> tuple[Values, Values]:
        middle = 0.5 * (ends[0] + ends[1])
        noisier = xp.asarray(process.log_snr(middle)) < target
        return xp.where(noisier, ends[0], middle), xp.where(noisier, middle, ends[1])

    bits = 8 * target.dtype.itemsize  # each halving gives one bit of the answer
    if isinstance(target, Array):
        low, high = jax.lax.fori_loop(0, bits, halve, ends)
    else:
        low, high = functools.reduce(lambda ends, i: halve(i, ends), range(bits), ends)
    return cast(Given, 0.5 * (low + high))


def expand(values: Times, like: Shaped[Array, "..."]) -> Array:
    """`[B]` as `[B, 1, ...]` of the rank of `like`, to multiply `[B, H, W, C]`; a scalar stays a scalar."""
    wide = jnp.asarray(as_float(values)[1])
    return wide if wide.ndim == 0 else wide.reshape(wide.shape + (1,) * (like.ndim - wide.ndim))


def namespace(t: Times) -> Namespace:
    """The array library of `t`; for a Python number, jax's."""
    return cast(Namespace, np if isinstance(t, np.ndarray | np.generic) else jnp)


def as_float(t: Times) -> tuple[Namespace, Values]:
    """The array library of `t`, and `t` as an array of it, in float32 or better."""
    xp = namespace(t)
    array = xp.asarray(t)
    return xp, array.astype(xp.promote_types(array.dtype, np.float32))


def check_t_min(process: Process) -> None:
    """Raises a ValueError unless `0 < t_min < t_max`."""
    if not 0 < process.t_min < process.t_max:
        raise ValueError(f"t_min must lie in (0, {process.t_max:g}), got {process.t_min}; try 1e-3.")


# Of processes with alpha^2 + sigma^2 = 1, from log(alpha): near the data 1 - alpha^2 would have no correct digit.


def preserving_alpha(log_alpha: Values) -> Values:
    """`alpha`."""
    return namespace(log_alpha).exp(log_alpha)


def preserving_sigma(log_alpha: Values) -> Values:
    """`sqrt(1 - alpha^2)`."""
    xp = namespace(log_alpha)
    return xp.sqrt(xp.abs(xp.expm1(2 * log_alpha)))


def preserving_log_snr(log_alpha: Values) -> Values:
    """`log(alpha^2 / (1 - alpha^2))`, inf where `alpha = 1`."""
    xp = namespace(log_alpha)
    with np.errstate(divide="ignore"):
        return -xp.log(xp.abs(xp.expm1(-2 * log_alpha)))
