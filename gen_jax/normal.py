"""Steps 1 to 3: the normal distribution, its fit by maximum likelihood, and the same in many dimensions.

    Normal               p(x) = exp(-(x - mean)^2 / (2 std^2)) / sqrt(2 pi std^2)
    MultivariateNormal   p(x) = exp(-(x - mean)^T cov^-1 (x - mean) / 2) / sqrt(det(2 pi cov))

Both are tuples of parameters. Every function here takes either:

    params = normal.fit(x)                 # x [N] -> Normal;  x [N, D] -> MultivariateNormal
    nats = normal.log_prob(params, x)      # [N]

All functions are pure and work under `jit`, `vmap` and `grad`. A covariance is used only through its Cholesky factor
`cov = L L^T`: `(x - mean)^T cov^-1 (x - mean) = |L^-1 (x - mean)|^2` and `log det cov = 2 sum log L_ii`. "PRML" is
Bishop 2006.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import log_ndtr, ndtr
from jaxtyping import Array, ArrayLike, Float, Key

from gen_jax import checks, keys
from gen_jax._observed import as_float, check_spread, checked_rows, moved
from gen_jax.types import Count, NotNegative, Size

_LOG_2PI = float(np.log(2 * np.pi))
_PRECISION = jax.lax.Precision.HIGHEST


class Normal(NamedTuple):
    """`N(mean, std^2)`: numbers, or arrays of one shape for several independent normals."""

    mean: Float[Array, "*n"]
    std: Annotated[Float[Array, "*n"], checks.Range(0, above=True)]
    """Standard deviation, positive, in the unit of `x`."""


class MultivariateNormal(NamedTuple):
    """`N(mean, cov)` in `D` dimensions."""

    mean: Float[Array, "D"]
    cov: Annotated[Float[Array, "D D"], checks.Covariance()]
    """Covariance, symmetric and positive definite."""


Params: TypeAlias = Normal | MultivariateNormal
P = TypeVar("P", Normal, MultivariateNormal)
End: TypeAlias = Annotated[ArrayLike, checks.Range(finite=False)]
Factor: TypeAlias = Annotated[Float[Array, "D D"], checks.Factor()]


@checks.checked
def log_prob(params: Params, x: ArrayLike) -> Float[Array, "..."]:
    """Log-density in nats, `[...]` for `x [...]` (Normal) or `x [..., D]` (MultivariateNormal; PRML Eq. 2.43)."""
    match params:
        case Normal(_, std):
            return -(jnp.square(_standard(params, x)) + _LOG_2PI) / 2 - jnp.log(std)
        case MultivariateNormal(mean, cov):
            if np.shape(x)[-1:] != mean.shape:
                raise ValueError(
                    f"x must be vectors [..., {len(mean)}], as params.mean is, got {checks.came(x)}."
                )
            factor = cholesky(cov)
            z = whiten(factor, jnp.asarray(x) - _as_row(mean, x))
            return -(jnp.square(z).sum(-1) + len(mean) * _LOG_2PI) / 2 - _half_log_det(factor)


@checks.checked
def cdf(params: Params, x: ArrayLike) -> Float[Array, "..."]:
    """`P(X <= x)`.

    Raises ValueError for a MultivariateNormal, whose cdf has no closed form.
    """
    if isinstance(params, MultivariateNormal):
        raise ValueError(
            "A MultivariateNormal has no closed-form cdf; take `marginal(params, i)` of one variable, or count samples."
        )
    return ndtr(_standard(params, x))


@checks.checked
def interval(params: Normal, low: End, high: End) -> Float[Array, "..."]:
    """`P(low < X <= high)`, accurate in both tails; the ends may be `-inf` and `inf`.

    In the upper tail it is `Phi(-a) - Phi(-b)`, a difference of small numbers and not of two numbers near 1.
    """
    checks.ordered("low", low, "high", high)
    a, b = _standard(params, low, "low"), _standard(params, high, "high")
    upper = a > 0
    return ndtr(jnp.where(upper, -a, b)) - ndtr(jnp.where(upper, -b, a))


@checks.checked
def log_cdf(params: Normal, x: ArrayLike) -> Float[Array, "..."]:
    """`log P(X <= x)`, finite far into the lower tail."""
    return log_ndtr(_standard(params, x))


@checks.checked
def sample(key: Key[Array, ""], params: Params, n: Size) -> Float[Array, "n ..."]:
    """`n` independent draws; draw `i` depends on `key` and `i` only."""
    z = keys.normal(key, (n, *jnp.shape(params.mean)))
    match params:
        case Normal(mean, std):
            return jnp.asarray(mean)[None] + jnp.asarray(std)[None] * z
        case MultivariateNormal(mean, cov):
            return mean[None] + jnp.matmul(z, cholesky(cov).T, precision=_PRECISION)


@checks.checked
def fit(
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    unbiased: bool = False,
    regularization: NotNegative = 0.0,
) -> Params:
    """Maximum likelihood: the weighted mean and covariance (PRML Eqs. 2.121, 2.122).

        mean = sum_n w_n x_n / W      cov = sum_n w_n (x_n - mean)(x_n - mean)^T / C      W = sum_n w_n

    with `C = W`, or with `unbiased=True` `C = W - sum_n w_n^2 / W` (`N - 1` if all weights are 1). The sums are of
    centred data, so a large offset loses no precision. Data of the host in float64, or in large integers, are centred
    there, before they become float32: of times in seconds since 1970 the deviation is right to all digits. The mean is
    then the nearest float32, which at 1.7e9 is a multiple of 128: take `x - x[0]` for densities.

    Args:
        x: `[N]` for a Normal, `[N, D]` for a MultivariateNormal.
        weights: `[N]`, not negative; 1 by default.
        unbiased: divide by `N - 1` instead of `N`.
        regularization: added to the variance, or to the covariance's diagonal, in the squared unit of `x`.

    Raises:
        ValueError: wrong shapes, values that are not finite (the message names the rows), weights that are negative or
            all zero, or data without a density: constant, or with linearly dependent columns (for example D >= N). Under
            `jit` the values cannot be checked, and the parameters become NaN.
    """
    if jnp.ndim(x) not in (1, 2) or jnp.size(x) == 0:
        raise ValueError(f"Expected x of shape [N] or [N, D] with at least one row, got {jnp.shape(x)}.")
    given, (x, w, offset) = x, checked_rows(x, weights)
    total = w.sum()
    count = total - jnp.square(w).sum() / total if unbiased else total
    shares = (w / total).reshape(-1, *[1] * (x.ndim - 1))
    start = x[:1]  # near the mean; the second pass removes the rest
    start = start + (shares * (x - start)).sum(0, keepdims=True)
    centred = x - start
    rest = (shares * centred).sum(0, keepdims=True)
    centred, mean = centred - rest, moved((start + rest)[0], offset)
    if x.ndim == 1:
        params: Params = Normal(mean, jnp.sqrt((w * centred**2).sum() / count + regularization))
    else:
        cov = jnp.matmul(centred.T * w[None], centred, precision=_PRECISION) / count
        params = MultivariateNormal(mean, cov + regularization * jnp.eye(x.shape[1], dtype=x.dtype))
    _check_density(params, x, given)
    return params


@checks.checked
def entropy(params: Params) -> Float[Array, "..."]:
    """`E[-log p(x)]` in nats: `(1 + log(2 pi)) D / 2 + log det(cov) / 2` (PRML Eq. 2.283)."""
    match params:
        case Normal(_, std):
            return jnp.log(std) + (1 + _LOG_2PI) / 2
        case MultivariateNormal(mean, cov):
            return _half_log_det(cholesky(cov)) + len(mean) * (1 + _LOG_2PI) / 2


@checks.checked
def kl(p: Params, q: Params) -> Float[Array, "..."]:
    """`E_p[log p(x) - log q(x)]` in nats, for two distributions of the same kind.

    2 kl = |L_q^-1 L_p|_F^2 + |L_q^-1 (mean_q - mean_p)|^2 - D + log det(cov_q) - log det(cov_p)
    """
    match p, q:
        case Normal(mean_p, std_p), Normal(mean_q, std_q):
            ratio = std_p / std_q
            return (jnp.square(ratio) + jnp.square((mean_q - mean_p) / std_q) - 1) / 2 - jnp.log(ratio)
        case MultivariateNormal(mean_p, cov_p), MultivariateNormal(mean_q, cov_q):
            factor_p, factor_q = cholesky(cov_p), cholesky(cov_q)
            spread = solve_triangular(factor_q, factor_p, lower=True)
            distance = whiten(factor_q, mean_q - mean_p)
            squares = jnp.square(spread).sum() + jnp.square(distance).sum() - len(mean_p)
            return squares / 2 + _half_log_det(factor_q) - _half_log_det(factor_p)
        case _:
            raise ValueError(f"kl compares two of a kind, got {type(p).__name__} and {type(q).__name__}.")


@checks.checked
def marginal(params: MultivariateNormal, dims: int | np.integer | Sequence[int]) -> Params:
    """The distribution of some of the variables: a Normal for one index, else a MultivariateNormal (PRML Eq. 2.98)."""
    if isinstance(dims, int | np.integer):
        (i,) = check_dims([int(dims)], len(params.mean))
        return Normal(params.mean[i], jnp.sqrt(params.cov[i, i]))
    kept = check_dims(dims, len(params.mean))
    return MultivariateNormal(params.mean[kept], params.cov[np.ix_(kept, kept)])


@checks.checked
def conditional(
    params: MultivariateNormal, dims: Sequence[int] | np.ndarray, values: ArrayLike
) -> MultivariateNormal:
    """The distribution of the other variables, in their order, given `x[dims] = values` (PRML Eqs. 2.81, 2.82).

    mean = mean_a + cov_ab cov_bb^-1 (values - mean_b)      cov = cov_aa - cov_ab cov_bb^-1 cov_ba
    """
    given = check_dims(dims, len(params.mean))
    free = np.setdiff1d(np.arange(len(params.mean)), given)
    if not len(free):
        raise ValueError(f"dims={dims} are all {len(params.mean)} variables; leave at least one free.")
    values = jnp.asarray(values, params.mean.dtype)
    if values.shape != given.shape:
        raise ValueError(f"Expected a value for each of the dims {dims}, got values of shape {values.shape}.")
    cov, cross = params.cov[np.ix_(free, free)], params.cov[np.ix_(given, free)]
    factor = cholesky(params.cov[np.ix_(given, given)])
    gain = cho_solve((factor, True), cross)
    explained = whiten_columns(factor, cross)
    mean = params.mean[free] + jnp.matmul(values - params.mean[given], gain, precision=_PRECISION)
    return MultivariateNormal(mean, cov - jnp.matmul(explained.T, explained, precision=_PRECISION))


@checks.checked
def affine(params: P, scale: ArrayLike, offset: ArrayLike = 0.0) -> P:
    """The distribution of `scale x + offset`; for a MultivariateNormal `scale` is a number or a matrix `[E, D]`."""
    scale, offset = jnp.asarray(scale, params.mean.dtype), jnp.asarray(offset, params.mean.dtype)
    match params:
        case Normal(mean, std):
            return Normal(scale * mean + offset, jnp.abs(scale) * std)
        case MultivariateNormal(mean, cov):
            matrix = scale * jnp.eye(len(mean), dtype=mean.dtype) if scale.ndim == 0 else scale
            if matrix.ndim != 2 or matrix.shape[1] != len(mean):
                raise ValueError(
                    f"scale must be a number or of shape [E, {len(mean)}], got {jnp.shape(scale)}."
                )
            apply = lambda a, b: jnp.matmul(a, b, precision=_PRECISION)
            moved = apply(matrix, mean)
            return MultivariateNormal(
                moved + jnp.broadcast_to(offset, moved.shape), apply(apply(matrix, cov), matrix.T)
            )


@checks.checked
def cholesky(cov: Annotated[Float[Array, "*K D D"], checks.Covariance()]) -> Float[Array, "*K D D"]:
    """Lower triangular `L` with `L L^T = cov`; under `jit`, NaN where `cov` is not positive definite."""
    return jnp.linalg.cholesky(as_float(cov))


@checks.checked
def whiten(factor: Factor, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """`L^-1 x` for each row `x`."""
    return whiten_columns(factor, x.reshape(-1, x.shape[-1]).T).T.reshape(x.shape)


@checks.checked
def whiten_columns(factor: Factor, x: Float[Array, "D N"]) -> Float[Array, "D N"]:
    """`L^-1 x`."""
    return solve_triangular(as_float(factor), as_float(x), lower=True)


@checks.checked
def check_dims(dims: Sequence[int] | np.ndarray, size: Count) -> np.ndarray:
    """Checked indices of variables, from 0 to `size - 1`."""
    if (given := np.asarray(dims)).dtype == bool:
        raise ValueError(f"dims must be indices, got a mask of {size} variables: take np.flatnonzero(mask).")
    index = np.atleast_1d(given.astype(int))
    if not len(index) or len(set(index % size)) < len(index) or not ((-size <= index) & (index < size)).all():
        raise ValueError(f"dims must be different indices of {size} variables, got {dims}.")
    return index % size


class Free(NamedTuple):
    """Unconstrained parameters of a Normal or a MultivariateNormal, for gradient descent."""

    mean: Float[Array, "..."]
    factor: Float[Array, "..."]
    """Log standard deviation, or the Cholesky factor with the logarithm of its diagonal."""


@checks.checked
def constrain(free: Free) -> Params:
    """`std = exp(factor)`; `cov = L L^T` with `diag(L) = exp(diag(factor))`, for a square `factor` of `mean`'s size."""
    if free.factor.shape == free.mean.shape:
        return Normal(free.mean, jnp.exp(free.factor))
    factor = constrain_factor(free.factor)
    return MultivariateNormal(free.mean, jnp.matmul(factor, factor.T, precision=_PRECISION))


@checks.checked
def unconstrain(params: Params) -> Free:
    """The inverse of `constrain`."""
    match params:
        case Normal(mean, std):
            return Free(mean, jnp.log(std))
        case MultivariateNormal(mean, cov):
            return Free(mean, unconstrain_factor(cholesky(cov)))


@checks.checked
def constrain_factor(free: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Lower triangular with the diagonal `exp(diag(free))`; entries above the diagonal are ignored."""
    return jnp.tril(free, -1) + jnp.diag(jnp.exp(jnp.diagonal(free)))


@checks.checked
def unconstrain_factor(factor: Factor) -> Float[Array, "D D"]:
    """The inverse of `constrain_factor`."""
    return jnp.tril(factor, -1) + jnp.diag(jnp.log(jnp.diagonal(factor)))


def _check_density(params: Params, x: Array, given: ArrayLike) -> None:
    """Raise ValueError if the fit has no density."""
    if isinstance(x, jax.core.Tracer):
        return
    advice = "There is no density to fit; drop constant or dependent columns, or set regularization > 0."
    variance = np.square(params.std)[None] if isinstance(params, Normal) else np.diagonal(params.cov)
    flat = np.flatnonzero(~(variance > 0))
    if len(flat):
        check_spread(np.asarray(given))
        where = "x is constant" if x.ndim == 1 else f"columns {flat.tolist()} of x are constant"
        raise ValueError(f"{where} over {len(x)} rows. {advice}")
    if isinstance(params, MultivariateNormal):
        scale = np.sqrt(variance)
        correlation = np.float64(params.cov) / np.outer(scale, scale)
        least = np.linalg.eigvalsh(correlation)[0]
        if not least > len(variance) * jnp.finfo(x.dtype).eps:
            what = f"the covariance of {x.shape[0]} rows and {x.shape[1]} columns is singular: its correlation matrix"
            raise ValueError(f"{what} has an eigenvalue of {least:.1e}. {advice}")


def _standard(params: Normal, x: ArrayLike, name: str = "x") -> Array:
    """`(x - mean) / std`, for an `x` and parameters of shapes that fit."""
    try:
        np.broadcast_shapes(jnp.shape(x), jnp.shape(params.mean))
    except ValueError:
        raise ValueError(
            f"{name} has the shape {jnp.shape(x)} and params {jnp.shape(params.mean)}: their last axes must be equal."
        ) from None
    return (jnp.asarray(x) - params.mean) / params.std


def _as_row(mean: Array, x: ArrayLike) -> Array:
    return mean.reshape(*[1] * (jnp.ndim(x) - 1), -1)


def _half_log_det(factor: Float[Array, "*K D D"]) -> Float[Array, "*K"]:
    return jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
