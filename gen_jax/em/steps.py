"""The two halves of an iteration, and the sums over rows that connect them (`Statistics`)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Float

from gen_jax import checks, gmm, keys
from gen_jax._observed import as_float
from gen_jax.gmm import GMM
from gen_jax.types import Count

_PRECISION = jax.lax.Precision.HIGHEST
CHUNK = 2048
"""Rows that an E-step takes at a time, so that its arrays stay in the cache."""
Weights: TypeAlias = Annotated[Float[Array | np.ndarray, "N"], checks.Range(0)]
"""How often each row counts."""
Ridge: TypeAlias = Annotated[ArrayLike, checks.Range(0)]


class Statistics(NamedTuple):
    """The sufficient statistics for the M-step: sums over rows, of differences from `centre`, the means of the E-step."""

    centre: Float[Array, "K D"]
    mass: Annotated[Float[Array, "K"], checks.Range(0)]
    """`sum_n w_n r_nk`."""
    first: Float[Array, "K D"]
    """`sum_n w_n r_nk (x_n - centre_k)`."""
    second: Float[Array, "K D D"] | Float[Array, "K D"]
    """`sum_n w_n r_nk (x_n - centre_k)(x_n - centre_k)^T`, `[K, D, D]`, or its diagonal, `[K, D]`."""
    log_likelihood: Float[Array, ""]
    """`sum_n w_n log p(x_n)` in nats, under the parameters of the E-step."""
    weight: Annotated[Float[Array, ""], checks.Range(0)]
    """`sum_n w_n`, the sum of `mass`."""


@checks.checked
def e_step(
    params: GMM,
    x: Float[Array | np.ndarray, "N D"],
    weights: Weights | None = None,
    *,
    chunk_size: Count = CHUNK,
    axis_name: str | None = None,
) -> Statistics:
    """Expected sufficient statistics of `x`, `chunk_size` rows at a time, summed over the devices of `axis_name`.

    `weights` say how often each row counts, 1 by default. ValueError where there are no rows.
    """
    if not len(x):
        raise ValueError(f"x must have at least one row, got {checks.came(x)}.")
    weights = None if weights is None else as_float(jnp.asarray(weights))
    return _statistics(params, as_float(jnp.asarray(x)), weights, min(chunk_size, len(x)), axis_name)


@partial(jax.jit, static_argnums=(3, 4))
def _statistics(
    params: GMM, x: Float[Array, "N D"], weights: Float[Array, "N"] | None, chunk: int, axis_name: str | None
) -> Statistics:
    """`e_step` of chunks that are no longer than `x`."""
    size = len(x)
    (components, dims), matrices = params.means.shape, params.covs.ndim == 3
    white, log_weights = gmm.whitening(params), jnp.log(params.weights)[:, None]

    def add(i, sums):
        # the last chunk may overlap the one before: rows of both get weight 0 the second time
        start = jnp.minimum(i * chunk, size - chunk)
        fresh = (start + jnp.arange(chunk) >= i * chunk).astype(x.dtype)
        rows = jax.lax.dynamic_slice_in_dim(x, start, chunk)
        w = fresh if weights is None else fresh * jax.lax.dynamic_slice_in_dim(weights, start, chunk)
        z = gmm.whitened(white, rows)
        log_joint = log_weights + gmm.log_density(white, z)
        log_p = jax.nn.logsumexp(log_joint, axis=0)
        r = w[None] * jnp.exp(log_joint - log_p[None])
        zr = z * r[:, None]
        if matrices:  # sum_n r z (x - centre)^T, and beside it sum_n r z
            ones = gmm.with_one(rows - white.centre[None])
            cross = jnp.matmul(zr.reshape(-1, chunk), ones, precision=_PRECISION)
            first, second = cross[:, -1].reshape(components, dims), cross[:, :-1]
            second = second.reshape(components, dims, dims)
        else:
            first, second = zr.sum(2), (zr * z).sum(2)
        return jax.tree.map(jnp.add, sums, (r.sum(1), first, second, jnp.vdot(w, log_p), w.sum()))

    square = (components, dims, dims) if matrices else (components, dims)
    shapes = ((components,), (components, dims), square, (), ())
    start = tuple(jnp.zeros(shape, x.dtype) for shape in shapes)
    mass, first, second, log_likelihood, weight = jax.lax.fori_loop(0, -(-size // chunk), add, start)
    if matrices:  # back from whitened coordinates
        second = second - first[:, :, None] * (params.means - white.centre[None])[:, None]
        second = jnp.matmul(white.factor, second, precision=_PRECISION)
        second = (second + second.swapaxes(1, 2)) / 2
        first = jnp.matmul(white.factor, first[:, :, None], precision=_PRECISION)[:, :, 0]
    else:
        first, second = first * white.factor, second * jnp.square(white.factor)
    stats = mass, first, second, log_likelihood, weight
    return Statistics(params.means, *(stats if axis_name is None else jax.lax.psum(stats, axis_name)))


@checks.checked
def m_step(stats: Statistics, *, covariance: str = "full", regularization: Ridge = 1e-6) -> GMM:
    """The mixture that maximises the expected log-likelihood (PRML Eqs. 9.24 to 9.27).

    `covariance` is one of `gmm.COVARIANCES`; "full" and "tied" need statistics with matrices. `regularization` is added
    to variances, in the squared unit of `x`. ValueError for statistics of rows that all have weight 0.
    """
    _check_mass(stats)
    count = jnp.maximum(stats.mass, jnp.finfo(stats.mass.dtype).tiny)
    shift = stats.first / count[:, None]
    matrices = stats.second.ndim == 3
    if matrices and covariance in ("full", "tied"):
        scatter = stats.second - stats.first[:, :, None] * shift[:, None]
        scatter = (scatter + scatter.swapaxes(1, 2)) / 2
        ridge = regularization * jnp.eye(shift.shape[1], dtype=shift.dtype)[None]
        full = lambda: scatter / count[:, None, None] + ridge
        covs = full() if covariance == "full" else scatter.sum(0, keepdims=True) / stats.weight + ridge
    elif covariance in ("diagonal", "spherical"):
        squares = jnp.diagonal(stats.second, axis1=1, axis2=2) if matrices else stats.second
        covs = (squares - stats.first * shift) / count[:, None]
        covs = (covs if covariance == "diagonal" else covs.mean(1, keepdims=True)) + regularization
    else:
        check_covariance(covariance)
        raise ValueError(
            f"covariance={covariance!r} needs statistics of matrices, from a full or tied mixture."
        )
    return GMM(stats.mass / stats.weight, stats.centre + shift, covs)


@checks.checked
def recentre(stats: Statistics, centre: Float[Array, "K D"]) -> Statistics:
    """The same statistics, with differences from another centre."""
    move = stats.centre - centre
    cross = stats.first[:, :, None] * move[:, None]
    squares = stats.mass[:, None, None] * move[:, :, None] * move[:, None]
    change = cross + cross.swapaxes(1, 2) + squares
    if stats.second.ndim == 2:
        change = jnp.diagonal(change, axis1=1, axis2=2)
    return stats._replace(
        centre=centre, first=stats.first + stats.mass[:, None] * move, second=stats.second + change
    )


@checks.checked
def stepwise(
    stats: Statistics | None, batch: Statistics, rate: Annotated[ArrayLike, checks.Range(0, 1)]
) -> Statistics:
    """Running statistics of a stream, per row: `(1 - rate) stats + rate batch` (Cappe & Moulines 2009, Eq. 12).

    Both are first divided by their weight and recentred on the newer means. `rate = (k + 2)^-0.7` at step `k` decreases
    slowly enough to converge. With `stats=None` the result is the batch alone.
    """
    _check_mass(batch, "batch")
    if stats is not None:
        _check_mass(stats)
        if stats.second.ndim != batch.second.ndim:
            raise ValueError(
                f"stats and batch must be of one covariance, but stats.second is {checks.came(stats.second)} and "
                f"batch.second {checks.came(batch.second)}."
            )
    mean = lambda s: Statistics(s.centre, *(a / s.weight for a in s[1:]))
    if stats is None:
        return mean(batch)
    old, new = recentre(mean(stats), batch.centre), mean(batch)
    mixed = (jnp.asarray(1 - rate) * a + jnp.asarray(rate) * b for a, b in zip(old[1:], new[1:], strict=True))
    return Statistics(batch.centre, *mixed)


@checks.checked
def step(
    params: GMM,
    x: Float[Array | np.ndarray, "N D"],
    weights: Weights | None = None,
    *,
    regularization: Ridge = 1e-6,
    chunk_size: Count = CHUNK,
    axis_name: str | None = None,
) -> tuple[GMM, Float[Array, ""]]:
    """One iteration: the new mixture, of the same structure, and the mean log-likelihood in nats of the old one."""
    stats = e_step(params, x, weights, chunk_size=chunk_size, axis_name=axis_name)
    new = m_step(stats, covariance=gmm.structure(params), regularization=regularization)
    return new, stats.log_likelihood / stats.weight


@checks.checked
def compile_step(
    *,
    parallel: str = "jit",
    mesh: Mesh | None = None,
    regularization: Ridge = 1e-6,
    chunk_size: Count = CHUNK,
) -> Callable[..., tuple[GMM, Float[Array, ""]]]:
    """`step(params, x, weights)`, compiled, with rows split over the devices and parameters replicated.

    With `parallel="jit"` the rows are split over the axis `keys.AXIS` of `mesh` (default: all devices), with "pmap" over
    the local devices. If their number is not a multiple of the devices, rows of weight 0 are added.
    """
    if parallel not in ("jit", "pmap"):
        near = checks.nearest(parallel, ("jit", "pmap"))
        raise ValueError(f'parallel must be "jit" or "pmap", got {parallel!r}.{near}')
    one = partial(step, regularization=regularization, chunk_size=chunk_size, axis_name=keys.AXIS)
    if parallel == "pmap":
        devices = jax.local_device_count()
        mapped = jax.pmap(one, keys.AXIS, in_axes=(None, 0, 0), out_axes=None)
        shape = lambda a: a.reshape(devices, -1, *a.shape[1:])
    else:
        mesh = Mesh(np.array(jax.devices()), (keys.AXIS,)) if mesh is None else over_rows(mesh)
        devices, rows = mesh.shape[keys.AXIS], PartitionSpec(keys.AXIS)
        none = PartitionSpec()
        mapped = jax.jit(
            jax.shard_map(one, mesh=mesh, in_specs=(none, rows, rows), out_specs=none, check_vma=False)
        )
        shape = lambda a: a

    def compiled(params: GMM, x: ArrayLike, weights: ArrayLike | None = None):
        x, dims = as_float(jnp.asarray(x)), params.means.shape[-1]
        if x.ndim != 2 or x.shape[1] != dims or not len(x):
            raise ValueError(
                f"x must be numbers of shape [N, {dims}], at least one row, got {checks.came(x)}."
            )
        weights = jnp.ones(len(x), x.dtype) if weights is None else jnp.asarray(weights, x.dtype)
        checks.of_shape("weights", weights, (len(x),))
        x, weights = padded(x, weights, devices)
        return mapped(params, shape(x), shape(weights))

    return compiled


def over_rows(mesh: Mesh) -> Mesh:
    """The mesh with axes that the compiler lays out (`jax.make_mesh` has others); ValueError without an axis for rows."""
    if keys.AXIS not in mesh.axis_names:
        raise ValueError(
            f"mesh must have an axis {keys.AXIS!r}, over which rows are split; it has {mesh.axis_names}."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def padded(x: Array, weights: Array, parts: int) -> tuple[Array, Array]:
    """Rows and weights that divide into so many parts: some rows again, with weight 0."""
    missing = -len(x) % parts
    if not missing:
        return x, weights
    again = x[jnp.arange(missing) % len(x)]
    return jnp.concatenate([x, again]), jnp.pad(weights, (0, missing))


def _check_mass(stats: Statistics, name: str = "stats") -> None:
    """ValueError for known statistics without weight, or of components that do not share it."""
    if isinstance(stats.mass, jax.core.Tracer) or isinstance(stats.weight, jax.core.Tracer):
        return
    mass, weight = float(np.asarray(stats.mass, np.float64).sum()), float(stats.weight)
    if not weight > 0 or abs(mass - weight) > 1e-3 * weight:
        raise ValueError(
            f"{name}.mass must sum to {name}.weight, above 0, got {mass:g} and {weight:g}: take the statistics of e_step "
            "of rows whose weights are not all 0."
        )


def check_covariance(covariance: str) -> None:
    """Raise ValueError unless `covariance` is one of `gmm.COVARIANCES`."""
    if covariance not in gmm.COVARIANCES:
        choices = ", ".join(map(repr, gmm.COVARIANCES))
        near = checks.nearest(covariance, gmm.COVARIANCES)
        raise ValueError(f"covariance must be one of {choices}; got {covariance!r}.{near}")
