"""The whole fit: initial parameters, iterations on the device until convergence, restarts in parallel."""

import enum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from gen_jax import checks, keys
from gen_jax._observed import checked_rows, moved
from gen_jax.em.steps import CHUNK, Statistics, check_covariance, e_step, m_step, over_rows, padded
from gen_jax.gmm import GMM
from gen_jax.types import Count, NotNegative

_EMPTY = 1e-2
"""A component with less mass than this fraction of a row's average weight is empty, and is reseeded."""


class Status(enum.StrEnum):
    """How a fit ended."""

    CONVERGED = "converged"
    MAX_ITERATIONS = "max_iterations"
    NOT_FINITE = "not_finite"


_CONVERGED, _MAX_ITERATIONS, _NOT_FINITE = range(3)
"""Its values on the device."""


class Fit(NamedTuple):
    """The result of `fit`; with several restarts, the best one."""

    params: GMM
    log_likelihood: Float[Array, "I"]
    """Mean log-likelihood in nats at the start of each iteration (under `jit` padded with the last value)."""
    num_iters: Int[Array, ""]
    status: Status | Int[Array, ""]
    """Why it ended (under `jit` the index of the `Status`)."""
    num_reseeded: Int[Array, ""]
    """Number of times that an empty component was reseeded."""


@checks.checked
def fit(
    key: Key[Array, ""],
    x: ArrayLike,
    num_components: Count,
    *,
    covariance: str = "full",
    init: str | GMM = "kmeans++",
    num_restarts: Count = 1,
    max_iters: Count = 200,
    tol: NotNegative = 1e-4,
    regularization: NotNegative = 1e-6,
    weights: ArrayLike | None = None,
    chunk_size: Count = CHUNK,
    mesh: Mesh | None = None,
) -> Fit:
    """Fit a mixture to the rows of `x` by expectation maximisation.

    It ends when the mean log-likelihood changes by less than `tol` in an iteration, after `max_iters`, or when it is not
    finite (the parameters are then the last finite ones). A component with a mass below a hundredth of a row is moved to
    a random row and counted in `num_reseeded`.

    Args:
        key: of the initial parameters and of reseeding; restart `i` has `fold_in(key, i)`.
        x: data `[N, D]` of any numbers; computed in float64 in JAX's x64 mode, else in float32. Data of the host in
            float64 are centred there first, so that variances do not suffer from a large offset, as in `normal.fit`.
        num_components: `K`, at most the number of distinct rows.
        covariance: "full", "tied", "diagonal" or "spherical".
        init: "kmeans++" (rows far from each other; Arthur & Vassilvitskii 2007), "random" (any rows), or a mixture.
        num_restarts: number of runs from different initial parameters; the best finite one is returned.
        max_iters: maximal number of iterations.
        tol: minimal change of the mean log-likelihood, in nats per row.
        regularization: added to variances in every M-step, in the squared unit of `x`; prevents the collapse of
            components on a single point or a plane.
        weights: `[N]`, not negative, how often each row counts; 1 by default.
        chunk_size: number of rows processed at a time.
        mesh: split the rows over the devices of its axis `keys.AXIS`.

    Raises:
        ValueError: data not of shape `[N, D]`, rows that are not finite (the message names them), fewer distinct rows
            than components, weights that are negative or all zero, or unknown options.
    """
    if jnp.ndim(x) != 2 or jnp.size(x) == 0:
        advice = " For one variable give x[:, None]." if jnp.ndim(x) == 1 else ""
        raise ValueError(f"Expected x of shape [N, D] with at least one row, got {jnp.shape(x)}.{advice}")
    x, w, offset = checked_rows(x, weights)
    check_covariance(covariance)
    if isinstance(init, GMM):
        _check_init(init, num_components, x.shape[1], covariance)
        start = init.means if offset is None else np.asarray(init.means, np.float64) - offset
        init = GMM(*(jnp.asarray(a, x.dtype) for a in (init.weights, start, init.covs)))
    elif init not in ("kmeans++", "random"):
        near = checks.nearest(init, ("kmeans++", "random"))
        raise ValueError(f'init must be "kmeans++", "random" or a GMM, got {init!r}.{near}')
    _check_distinct(x, w, num_components)
    if mesh is not None:
        mesh = over_rows(mesh)
        x, w = padded(x, w, mesh.shape[keys.AXIS])
        x, w = jax.device_put((x, w), NamedSharding(mesh, PartitionSpec(keys.AXIS)))
    start, how = (init, None) if isinstance(init, GMM) else (None, init)
    found = _fit(
        key,
        x,
        w,
        start,
        tol,
        regularization,
        num_components=num_components,
        covariance=covariance,
        num_restarts=num_restarts,
        max_iters=max_iters,
        chunk_size=chunk_size,
        mesh=mesh,
        how=how,
    )
    found = found._replace(params=found.params._replace(means=moved(found.params.means, offset)))
    if isinstance(found.num_iters, jax.core.Tracer):
        return found
    return found._replace(
        log_likelihood=found.log_likelihood[: int(found.num_iters)], status=list(Status)[int(found.status)]
    )


class _State(NamedTuple):
    """What an iteration hands to the next."""

    params: GMM
    trace: Float[Array, "I"]
    previous: Float[Array, ""]
    iteration: Int[Array, ""]
    status: Int[Array, ""]
    num_reseeded: Int[Array, ""]


@partial(
    jax.jit,
    static_argnames=(
        "num_components",
        "covariance",
        "num_restarts",
        "max_iters",
        "chunk_size",
        "mesh",
        "how",
    ),
)
def _fit(
    key,
    x,
    w,
    start,
    tol,
    regularization,
    *,
    num_components,
    covariance,
    num_restarts,
    max_iters,
    chunk_size,
    mesh,
    how,
) -> Fit:
    """Every restart side by side, and the best of them."""
    statistics = partial(e_step, chunk_size=chunk_size)
    if mesh is not None:
        rows = PartitionSpec(keys.AXIS)
        statistics = jax.shard_map(
            partial(statistics, axis_name=keys.AXIS),
            mesh=mesh,
            in_specs=(PartitionSpec(), rows, rows),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
    maximise = partial(m_step, covariance=covariance, regularization=regularization)
    cumulative = jnp.cumsum(w)  # to draw rows by

    def iterate(key: Key[Array, ""], s: _State) -> _State:
        stats = statistics(s.params, x, w)
        new = maximise(stats)
        empty = stats.mass * len(x) < _EMPTY * stats.weight
        new = _reseed(jax.random.fold_in(key, s.iteration), new, stats, empty, x, cumulative)
        mean = stats.log_likelihood / stats.weight
        finite = jnp.isfinite(mean) & jnp.stack([jnp.isfinite(a).all() for a in new]).all()
        converged = (jnp.abs(mean - s.previous) < tol) & ~empty.any()
        status = jnp.where(converged, _CONVERGED, _MAX_ITERATIONS)
        return _State(
            jax.tree.map(partial(jnp.where, finite), new, s.params),
            jnp.where(
                jnp.arange(max_iters) < s.iteration, s.trace, mean
            ),  # and beyond, for what is never reached
            mean,
            s.iteration + 1,
            jnp.where(finite, status, _NOT_FINITE).astype(jnp.int32),
            s.num_reseeded + empty.sum(dtype=jnp.int32),
        )

    def run(key: Key[Array, ""]) -> _State:
        key_init, key_seed = jax.random.split(key)
        params = start
        if params is None:
            params = _initial(key_init, x, w, how, num_components, covariance)
        zero, none = jnp.zeros((), jnp.int32), jnp.asarray(-jnp.inf, x.dtype)
        state = _State(params, jnp.zeros(max_iters, x.dtype), none, zero, zero + _MAX_ITERATIONS, zero)
        go_on = lambda s: (s.iteration < max_iters) & (s.status == _MAX_ITERATIONS)
        return jax.lax.while_loop(go_on, partial(iterate, key_seed), state)

    runs = jax.vmap(run)(jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_restarts)))
    good = runs.status != _NOT_FINITE
    best = jax.tree.map(lambda a: a[jnp.argmax(jnp.where(good, runs.previous, -jnp.inf))], runs)
    return Fit(best.params, best.trace, best.iteration, best.status, best.num_reseeded)


def _initial(key: Key[Array, ""], x: Array, w: Array, how: str, num_components: int, covariance: str) -> GMM:
    """Spherical components of one size, centred on rows far from each other ("kmeans++") or on random rows."""
    distance = lambda row: jnp.square(x - x[row][None]).sum(-1)

    def choose(k, carry):
        rows, nearest = carry
        chance = w * nearest if how == "kmeans++" else jnp.where(nearest > 0, w, 0)
        row = jax.random.categorical(jax.random.fold_in(key, k), jnp.log(chance))
        return rows.at[k].set(row), jnp.minimum(nearest, distance(row))

    first = jax.random.categorical(jax.random.fold_in(key, 0), jnp.log(w))
    rows = jnp.zeros(num_components, first.dtype).at[0].set(first)
    rows, nearest = jax.lax.fori_loop(1, num_components, choose, (rows, distance(first)))
    components, dims = num_components, x.shape[1]
    variance = jnp.vdot(w, nearest) / w.sum() / dims
    variance = jnp.where(variance > 0, variance, 1)  # every row is a centre
    weights = jnp.full(components, 1 / components, x.dtype)
    eye = jnp.eye(dims, dtype=x.dtype) if covariance in ("full", "tied") else jnp.ones((), x.dtype)
    return GMM(weights, x[rows], jnp.broadcast_to(variance * eye, _cov_shape(covariance, components, dims)))


def _reseed(
    key: Key[Array, ""], params: GMM, stats: Statistics, empty: Bool[Array, "K"], x: Array, cumulative: Array
) -> GMM:
    """Move empty components to random rows, with an average weight and covariance."""
    components = len(params.weights)
    height = cumulative[-1] * jax.random.uniform(key, (components,), x.dtype)
    rows = jnp.searchsorted(cumulative, height, side="right")
    weights = jnp.where(empty, 1 / components, params.weights)
    covs = params.covs
    if len(covs) == components:
        shares = jnp.where(empty, 0, stats.mass) / stats.weight
        pooled = jnp.tensordot(shares, jnp.where(_like(empty, covs), 0, covs), 1)
        covs = jnp.where(_like(empty, covs), pooled[None], covs)
    return GMM(weights / weights.sum(), jnp.where(empty[:, None], x[rows], params.means), covs)


def _like(flags: Array, array: Array) -> Array:
    return flags.reshape(-1, *[1] * (array.ndim - 1))


def _check_init(init: GMM, num_components: int, dims: int, covariance: str) -> None:
    """Raise ValueError if the given initial mixture has the wrong shapes."""
    expected = (num_components,), (num_components, dims), _cov_shape(covariance, num_components, dims)
    got = tuple(jnp.shape(a) for a in init)
    if got != expected:
        raise ValueError(
            f"init must have weights, means and covs of shapes {expected} for {num_components} {covariance} "
            f"components in {dims} dimensions, got {got}."
        )


def _cov_shape(covariance: str, components: int, dims: int) -> tuple[int, ...]:
    return {
        "full": (components, dims, dims),
        "tied": (1, dims, dims),
        "diagonal": (components, dims),
        "spherical": (components, 1),
    }[covariance]


def _check_distinct(x: Array, w: Array, num_components: int) -> None:
    """Raise ValueError if there are fewer distinct rows than components."""
    if isinstance(x, jax.core.Tracer) or isinstance(w, jax.core.Tracer):
        return
    for size in (10 * num_components, len(x)):  # the first rows are nearly always enough
        head = np.asarray(x[:size])[np.asarray(w[:size] > 0)]
        distinct = len(np.unique(head, axis=0)) if len(head) else 0
        if distinct >= num_components:
            return
    raise ValueError(
        f"num_components={num_components} components need as many distinct rows with a positive weight, x has {distinct}."
    )
