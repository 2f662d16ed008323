"""What every process is, and what is computed for any of them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeAlias, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, keys, programs

Times: TypeAlias = Shaped[Array | np.ndarray, "*t"] | np.number | float | int
"""A time or an array of times, of jax or numpy."""


@dataclass(frozen=True)
class _OfProcess(checks.Range):
    """From 0 to the last time of the process whose method is called, or that an object has."""

    least: float | int = 0
    on_host: bool = True

    def of(self, owner: object) -> checks.Range:
        """With the process at hand."""
        t_max = getattr(getattr(owner, "process", owner), "t_max", np.inf)
        return _up_to(t_max) if isinstance(t_max, float | int) else self


class _UpTo(checks.Range):
    """As `_OfProcess`; a time may have been rounded to float32."""

    @property
    def words(self) -> str:
        """What it says."""
        return f"in [0, {self.most:g}], the times of the process: 0 is the data"


@functools.lru_cache
def _up_to(t_max: float) -> _UpTo:
    return _UpTo(0, t_max * (1 + 1e-6), on_host=True)


Time: TypeAlias = Annotated[Times, _OfProcess()]
"""`Times` of the process whose method is called, from 0 to `t_max`."""

_HOST = checks.Range(on_host=True)
_Numbers: TypeAlias = Annotated[Float[Array | np.ndarray, "..."], _HOST]
Values: TypeAlias = Float[Array | np.ndarray, "*t"] | np.floating
"""One value for each time, in the library of the times."""
Shares: TypeAlias = Annotated[Values, checks.Range(0, 1, on_host=True)]
"""Numbers from 0 to 1, of which a process makes times."""

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
    zeros_like: Callable[..., Values]


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

    def alpha(self, t: Time) -> Values:
        """Scale of the data at time `t`; 1 at `t = 0`."""
        ...

    def sigma(self, t: Time) -> Values:
        """Standard deviation of the noise at time `t`; 0 at `t = 0`."""
        ...

    @checks.checked
    def log_snr(self, t: Time) -> Values:
        """Log signal-to-noise ratio `log(alpha_t^2 / sigma_t^2)`, strictly decreasing; inf at `t = 0`."""
        xp, t = as_float(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def times(self, u: Shares) -> Values:
        """Training times for `u` in [0, 1): `t_min + (t_max - t_min) u`."""
        return self.t_min + (self.t_max - self.t_min) * u

    def snap(self, t: Times) -> Values:
        """Nearest time that occurs in training: `t` itself, unless time is discrete."""
        return as_float(t)[1]

    @checks.checked
    def perturb(
        self,
        x_0: PyTree[_Numbers],
        t: Time,
        eps: PyTree[_Numbers],
    ) -> PyTree[Float[Array, "..."]]:
        """Noised data `x_t = alpha_t x_0 + sigma_t eps`, at one time (`t: []`) or one per row (`t: [B]`).

        `x_0` is an array or a pytree of arrays, and `eps` is like it.
        """
        check_same("eps", eps, "x_0", x_0)
        for x in jax.tree.leaves(x_0):
            _check_rows("t", np.shape(t), "x_0", np.shape(x))
        alpha_t, sigma_t = self.alpha(t), self.sigma(t)
        return jax.tree.map(lambda x, z: expand(alpha_t, x) * x + expand(sigma_t, x) * z, x_0, eps)

    @checks.checked
    def prior(
        self, key: Key[Array, ""], shape: PyTree, *, index: Int[Array | np.ndarray, "n"] | None = None
    ) -> PyTree[Float[Array, "n ..."]]:
        """Draws `x_T ~ N(0, sigma_T^2 I)`, `[n, ...]`; row `i` depends on `key` and `index[i]` (or `i`) only.

        `shape` is that of an array, or a pytree of shapes: `{"image": (64, 28, 28, 1), "pose": (64, 3)}`. Give
        `samplers.sample` a different key.
        """
        shapes, tree = jax.tree.flatten(shape, is_leaf=_is_shape)
        sizes = [_sizes(each, index) for each in shapes or [shape]]
        split = [key] if _is_shape(shape) else jax.random.split(key, len(sizes))
        sigma_T = jnp.asarray(self.sigma(self.t_max))
        draws = [sigma_T * keys.normal(k, each, index) for k, each in zip(split, sizes, strict=True)]
        return jax.tree.unflatten(tree, draws)


@checks.checked
def at_log_snr(process: Process, values: Annotated[Given, checks.Range(finite=False)]) -> Given:
    """Times in [t_min, t_max] at which `log_snr` has these values, by bisection.

    Where no time has a value, the result is the nearer end.
    """
    _, target = as_float(values)
    if isinstance(target, Array):
        return cast(Given, programs.run(_bisection, process, (), target))
    return cast(Given, _bisection(process)(target))


def _bisection(process: Process) -> Callable[[Values], Values]:
    """`log_snr -> t`."""

    def bisect(target: Values) -> Values:
        xp = namespace(target)
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
        middle: Values = 0.5 * (low + high)
        return middle

    return bisect


@checks.checked
def expand(values: Annotated[Times, _HOST], like: Shaped[Array | np.ndarray, "..."]) -> Array:
    """`[B]` as `[B, 1, ...]` of the rank of `like`, to multiply `[B, H, W, C]`; a scalar stays a scalar.

    ValueError where `like` does not begin with the axes of `values`; an axis may be 1 in either.
    """
    wide = jnp.asarray(as_float(values)[1])
    if wide.ndim == 0:
        return wide
    _check_rows("values", wide.shape, "like", np.shape(like))
    return wide.reshape(wide.shape + (1,) * (like.ndim - wide.ndim))


def _check_rows(name: str, rows: tuple[int, ...], other: str, shape: tuple[int, ...]) -> None:
    """ValueError unless an array of `shape` begins with the axes `rows`, up to axes of 1 in one of the two."""
    pairs = list(zip(rows, shape, strict=False))
    if len(rows) > len(shape) or not (
        all(n in (1, m) for n, m in pairs) or all(m in (1, n) for n, m in pairs)
    ):
        raise ValueError(
            f"{name} must be one number, or one for each of the rows of {other}, which has the shape {shape}; got the "
            f"shape {rows}."
        )


def check_same(name: str, tree: PyTree, other: str, like: PyTree) -> None:
    """ValueError unless two trees of arrays have the same structure and shapes."""
    got, want = (str(jax.tree.structure(t)) for t in (tree, like))
    if got != want:
        raise ValueError(f"{name} must be a pytree like {other}, {want}; got {got}.")
    for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
        if np.shape(leaf) != np.shape(wanted):
            raise ValueError(
                f"{name} must have the shape of {other}, {np.shape(wanted)}; got {np.shape(leaf)}."
            )


def _is_shape(value: PyTree) -> bool:
    return isinstance(value, tuple | list) and all(np.ndim(n) == 0 and not isinstance(n, dict) for n in value)


def _sizes(shape: PyTree, index: Int[Array | np.ndarray, "n"] | None) -> tuple[int, ...]:
    """The sizes of an array of samples, which `index` numbers."""
    if not _is_shape(shape) or not len(shape):
        raise ValueError(
            f"shape must be that of an array [n, ...], or a pytree of these; got {checks.came(shape)}."
        )
    sizes = tuple(checks.whole("shape", n, "number", least=0) for n in shape)
    if index is not None and np.shape(index)[0] != sizes[0]:
        raise ValueError(f"index must have one number for each of {sizes[0]} samples, got {np.shape(index)}.")
    return sizes


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
        raise ValueError(
            f"t_min must lie in (0, {process.t_max:g}), where t_max is, got {process.t_min:g}; try 1e-3."
        )


# Of processes with alpha^2 + sigma^2 = 1, from log(alpha): near the data 1 - alpha^2 would have no correct digit.


def preserving_alpha(log_alpha: Values) -> Values:
    """`alpha`."""
    return namespace(log_alpha).exp(log_alpha)


def preserving_sigma(log_alpha: Values) -> Values:
    """`sqrt(1 - alpha^2)`."""
    xp = namespace(log_alpha)
    return xp.sqrt(0 - xp.expm1(2 * log_alpha))


def preserving_log_snr(log_alpha: Values) -> Values:
    """`log(alpha^2 / (1 - alpha^2))`, inf where `alpha = 1`."""
    xp = namespace(log_alpha)
    with np.errstate(divide="ignore", over="ignore"):
        return -xp.log(0 + xp.expm1(-2 * log_alpha))
