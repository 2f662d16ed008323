"""Step 4: the Gaussian mixture, `p(x) = sum_k weights_k N(x; means_k, covs_k)`.

The shape of `covs` says which covariance structure a mixture has; a dimension of 1 is shared:

    full       [K, D, D]   a matrix for each component      diagonal    [K, D]   a variance for each dimension
    tied       [1, D, D]   one matrix for all components    spherical   [K, 1]   one variance for all dimensions

Every function takes all four. A mixture plus Gaussian noise is again a mixture (`diffuse`), so this step gives the exact
answers that steps 9 and 10 are tested against. "PRML" is Bishop 2006.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, Int, Key

from gen_jax import checks, keys, normal
from gen_jax.types import Size

Scalar: TypeAlias = Float[Array | np.ndarray, ""] | float

COVARIANCES = ("full", "tied", "diagonal", "spherical")
_LOG_2PI = float(np.log(2 * np.pi))
_PRECISION = jax.lax.Precision.HIGHEST
FAR = 1e15
"""Deviations from a mean whose squares are still finite in float32, summed over many dimensions as well."""


class GMM(NamedTuple):
    """A mixture of `K` Gaussians in `D` dimensions."""

    weights: Annotated[Float[Array, "K"], checks.Probabilities()]
    """Probabilities of the components, which sum to 1."""
    means: Float[Array, "K D"]
    covs: (
        Annotated[Float[Array, "#K D D"], checks.Covariance()]
        | Annotated[Float[Array, "K #D"], checks.Range(0, above=True)]
    )
    """Covariances `[K, D, D]` or `[1, D, D]`, or variances `[K, D]` or `[K, 1]`."""


class Whitening(NamedTuple):
    """The maps `z = L_k^-1 (x - mean_k)` to standard normal coordinates."""

    centre: Float[Array, "D"]
    """The mixture's mean, subtracted from `x` and the means first, so that a common offset loses no precision."""
    factor: Float[Array, "#K D D"] | Float[Array, "K #D"]
    """Lower triangular `L_k` of each covariance `L_k L_k^T`, or the standard deviations."""
    inverse: Float[Array, "#K D D"] | Float[Array, "K #D"]
    """`L_k^-1`, or one over each standard deviation."""
    shift: Float[Array, "K D"]
    """`L_k^-1 (mean_k - centre)`."""
    half_log_det: Float[Array, "#K"]


@checks.checked
def whitening(params: GMM) -> Whitening:
    """The maps of a mixture, by Cholesky factors and triangular solves."""
    covs, dims = params.covs, params.means.shape[1]
    centre = jnp.matmul(params.weights, params.means, precision=_PRECISION)
    means = params.means - centre[None]
    if covs.ndim == 2:
        std = jnp.sqrt(covs)
        half_log_det = jnp.log(std).sum(-1) * (dims // covs.shape[1])
        return Whitening(centre, std, 1 / std, means / std, half_log_det)
    factors = normal.cholesky(covs)
    inverse = solve_triangular(
        factors, jnp.broadcast_to(jnp.eye(dims, dtype=covs.dtype), covs.shape), lower=True
    )
    shift = jnp.matmul(inverse, means[:, :, None], precision=_PRECISION)[:, :, 0]
    half_log_det = jnp.log(jnp.diagonal(factors, axis1=-2, axis2=-1)).sum(-1)
    return Whitening(centre, factors, inverse, shift, half_log_det)


@checks.checked
def whitened(white: Whitening, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, "K D N"]:
    """`L_k^-1 (x_n - mean_k)`, with the rows on the last axis, where sums over the other axes are fast.

    The rounding error grows with the ratio of the mixture's extent to a component's, and not with its square.
    """
    x = jnp.asarray(x) - white.centre[None]
    components, dims = white.shift.shape
    if white.inverse.ndim == 2:
        return x.T[None] * white.inverse[:, :, None] - white.shift[:, :, None]
    inverse = jnp.broadcast_to(white.inverse, (components, dims, dims))
    affine = jnp.concatenate([inverse, -white.shift[:, :, None]], axis=2).reshape(-1, dims + 1)
    return jnp.matmul(affine, with_one(x).T, precision=_PRECISION).reshape(components, dims, len(x))


@checks.checked
def with_one(x: Float[Array, "N D"]) -> Float[Array, "N D+1"]:
    """`x` with a last column of ones, so that an affine map is one matrix product."""
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)


@checks.checked
def log_density(white: Whitening, z: Float[Array, "K D N"]) -> Float[Array, "K N"]:
    """Log-density of each component, from whitened rows."""
    return -(jnp.square(z).sum(1) + z.shape[1] * _LOG_2PI) / 2 - white.half_log_det[:, None]


@checks.checked
def component_log_prob(params: GMM, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, "N K"]:
    """`log N(x_n; mean_k, cov_k)` in nats."""
    white = whitening(params)
    return log_density(white, whitened(white, x)).T


@checks.checked
def log_joint(params: GMM, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, "N K"]:
    """`log weights_k + log N(x_n; mean_k, cov_k)`: the log-density of a point and its component."""
    return jnp.log(params.weights)[None] + component_log_prob(params, x)


@checks.checked
def log_prob(params: GMM, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, "N"]:
    """`log p(x_n)` in nats (PRML Eq. 9.7)."""
    return jax.nn.logsumexp(log_joint(params, x), axis=-1)


@checks.checked
def responsibilities(params: GMM, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, "N K"]:
    """`p(z = k | x_n)`, whose rows sum to 1 (PRML Eq. 9.13), however far out `x` is.

    Where `x` has no digits left to tell the means of one covariance apart, these share by their weights.
    """
    white = whitening(params)
    z = whitened(white, x)
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(z).max((0, 1)) / FAR, 1))  # of each row: 1 but far out
    half = jnp.square(z / unit[None, None]).sum(1) / 2
    half = jnp.where(params.weights[:, None] > 0, half, jnp.inf)
    further = unit[None] * (unit[None] * (half - jax.lax.stop_gradient(half.min(0))[None]))
    log_weights = jnp.log(params.weights)[:, None] - white.half_log_det[:, None]
    return jax.nn.softmax(log_weights - further, axis=0).T


@checks.checked
def sample(key: Key[Array, ""], params: GMM, n: Size) -> tuple[Float[Array, "n D"], Int[Array, "n"]]:
    """`n` draws `x` and the components `z` they came from; draw `i` depends on `key` and `i` only."""
    key_z, key_x = jax.random.split(key)
    logits = jnp.log(params.weights)
    z = jax.vmap(lambda k: jax.random.categorical(k, logits))(keys.per_example(key_z, n))
    eps = keys.normal(key_x, (n, params.means.shape[1]))
    if params.covs.ndim == 2:
        return params.means[z] + jnp.sqrt(params.covs)[z] * eps, z
    factors = normal.cholesky(params.covs)
    factors = jnp.broadcast_to(factors, (len(params.weights), *factors.shape[1:]))
    return params.means[z] + jnp.einsum("nij,nj->ni", factors[z], eps, precision=_PRECISION), z


@checks.checked
def diffuse(params: GMM, alpha: Scalar, sigma: Scalar) -> GMM:
    """The mixture of `x_t = alpha x_0 + sigma eps`: means `alpha mean_k`, covariances `alpha^2 cov_k + sigma^2 I`."""
    alpha, sigma = jnp.asarray(alpha, params.means.dtype), jnp.asarray(sigma, params.means.dtype)
    noise = jnp.square(sigma)
    if params.covs.ndim == 3:
        noise = noise * jnp.eye(params.means.shape[1], dtype=params.means.dtype)[None]
    return GMM(params.weights, alpha * params.means, jnp.square(alpha) * params.covs + noise)


@checks.checked
def marginal(params: GMM, dims: Sequence[int] | np.ndarray) -> GMM:
    """The mixture of some of the variables, in the order of `dims`."""
    kept = normal.check_dims(dims, params.means.shape[1])
    if params.covs.ndim == 3:
        covs = params.covs[:, kept][:, :, kept]
    else:
        covs = params.covs if params.covs.shape[1] == 1 else params.covs[:, kept]
    return GMM(params.weights, params.means[:, kept], covs)


@checks.checked
def conditional(params: GMM, dims: Sequence[int] | np.ndarray, values: ArrayLike) -> GMM:
    """The mixture of the other variables, in their order, given `x[dims] = values`.

    Each component is conditioned as a Gaussian (`normal.conditional`); its new weight is its responsibility for them.
    """
    given = normal.check_dims(dims, params.means.shape[1])
    free = np.setdiff1d(np.arange(params.means.shape[1]), given)
    if not len(free):
        raise ValueError(f"dims must leave one of {len(given)} variables free, got {dims}.")
    values = jnp.asarray(values, params.means.dtype)
    if values.shape != given.shape:
        raise ValueError(
            f"values must have one number for each of the dims {dims}, got {checks.came(values)}."
        )
    weights = responsibilities(marginal(params, dims), values.reshape(1, -1))[0]
    if params.covs.ndim == 2:
        return marginal(params, free)._replace(weights=weights)
    covs = jnp.broadcast_to(params.covs, (len(params.weights), *params.covs.shape[1:]))
    each = jax.vmap(
        lambda mean, cov: normal.conditional(normal.MultivariateNormal(mean, cov), given, values)
    )(params.means, covs)
    return GMM(weights, each.mean, each.cov[: len(params.covs)])  # tied covariances stay tied


@checks.checked
def structure(params: GMM) -> str:
    """The covariance structure, from the shape of `covs`; the more general one for one dimension or component."""
    if params.covs.ndim == 3:
        return "full" if len(params.covs) == len(params.weights) else "tied"
    return "diagonal" if params.covs.shape[1] == params.means.shape[1] else "spherical"


@checks.checked
def num_parameters(params: GMM) -> int:
    """Number of free parameters of a mixture with this structure."""
    components, dims = params.means.shape
    matrix = dims * (dims + 1) // 2
    each = {
        "full": components * matrix,
        "tied": matrix,
        "diagonal": components * dims,
        "spherical": components,
    }
    return components - 1 + components * dims + each[structure(params)]


def _check_rows(x: Array | np.ndarray) -> None:
    if not len(x):
        raise ValueError(f"x must have at least one row, got {checks.came(x)}.")


@checks.checked
def bic(params: GMM, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, ""]:
    """Bayesian information criterion `num_parameters log N - 2 log p(x)`, in nats; lower is better (Schwarz 1978)."""
    _check_rows(x)
    return num_parameters(params) * np.log(len(x)) - 2 * log_prob(params, x).sum()


@checks.checked
def aic(params: GMM, x: Float[Array | np.ndarray, "N D"]) -> Float[Array, ""]:
    """Akaike information criterion `2 num_parameters - 2 log p(x)`, in nats; lower is better (Akaike 1974)."""
    _check_rows(x)
    return 2 * num_parameters(params) - 2 * log_prob(params, x).sum()


class Free(NamedTuple):
    """Unconstrained parameters of a mixture, for gradient descent (`constrain`)."""

    logits: Float[Array, "K"]
    means: Float[Array, "K D"]
    factors: Float[Array, "..."]
    """Cholesky factors with the logarithm of their diagonals, or log standard deviations."""


@checks.checked
def constrain(free: Free) -> GMM:
    """`weights = softmax(logits)`, `covs = L L^T` with `diag(L) = exp(diag(factors))`."""
    if free.factors.ndim == 2:
        covs = jnp.exp(2 * free.factors)
    else:
        factors = jax.vmap(normal.constrain_factor)(free.factors)
        covs = jnp.einsum("kij,klj->kil", factors, factors, precision=_PRECISION)
    return GMM(jax.nn.softmax(free.logits), free.means, covs)


@checks.checked
def unconstrain(params: GMM) -> Free:
    """The inverse of `constrain`."""
    if params.covs.ndim == 2:
        factors = jnp.log(params.covs) / 2
    else:
        factors = jax.vmap(normal.unconstrain_factor)(normal.cholesky(params.covs))
    return Free(jnp.log(params.weights), params.means, factors)
