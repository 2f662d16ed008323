"""The density of data under the probability-flow ODE, by the instantaneous change of variables.

The ODE of `diffusion.flow`, `dz/dphi = f(z)` with `z = x_t / n`, is a one-to-one map between noise and data. Along
its path (Chen et al. 2018, Eq. 8; Song et al. 2021, Eq. 39)

    d log p(z) / dphi = -tr(df/dz),      log p_t(x_t) = log p(z) - D log n

so the log-density of data is that of the noise at the end of the path, plus the integral of the trace. The trace is a
sum of `D` derivatives, or is estimated by `v^T (df/dz) v` with random signs `v` (Hutchinson; Grathwohl et al. 2019,
Eq. 8). The same `v` is used on the whole path, so the integral is an unbiased estimate. The spread over several `v`
gives its error.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, keys, programs, rows
from gen_jax.diffusion import matching
from gen_jax.diffusion.flow import (
    CHECKPOINTED,
    TSIT5,
    Solver,
    check_time,
    half_step,
    slope,
    solve,
    widen,
)
from gen_jax.diffusion.marginals import marginals
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.types import Count, Positive

EXACT_DIMS = 64
"""Largest number of dimensions for which the trace is exact by default."""

NUM_PROBES = 8
"""Default number of probes for an estimated trace."""


Data: TypeAlias = Annotated[Shaped[Array | np.ndarray, "B ..."], checks.Range()]


class Density(NamedTuple):
    """What `ode` returns."""

    log_prob: Float[Array, "B"]
    """`log p_t(x)` in nats; NaN where `success` is False."""
    std_error: Float[Array, "B"]
    """Standard error of `log_prob` from the probes: 0 for an exact trace, inf (unknown) for a single probe."""
    x_T: PyTree[Float[Array, "B ..."]]
    """The state at `t_max`; NaN where `success` is False."""
    nfe: Int[Array, ""]
    """Number of evaluations of the denoiser, each with one derivative per probe or dimension."""
    success: Bool[Array, ""]
    """As in `samplers.adaptive.Solution`."""


@checks.checked
def ode(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    x: PyTree[Data],
    *,
    t: float | int = 0.0,
    num_probes: Count | None = None,
    index: Int[Array | np.ndarray, "B"] | None = None,
    log_prior: Callable[[PyTree], Float[Array, "B"]] | None = None,
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    solver: Solver = TSIT5,
    max_steps: Count | None = 4096,
    adjoint: diffrax.AbstractAdjoint = CHECKPOINTED,
) -> Density:
    """`log p_t(x)` of samples of the probability-flow ODE, run from the prior to `t`.

        log p_t(x) = log p_T(x_T) + D log(n_T / n_t) + int_{phi_t}^{phi_T} tr(df/dz) dphi

    (Song et al. 2021, Eq. 39, in the variables above.) The denoiser is not evaluated below `t_min`; the score is
    assumed constant there. From `t = 0` the first step is `y = x + r eps_hat / 2` and adds `tr(d eps_hat / dx) r /
    2`, with an error of `O(r^4)`, where `r = sigma / alpha` at `t_min`. This holds for data whose spread is much
    larger than `r` in every direction. Other data, such as bytes, have a density only at `t >= t_min`.

    The network must treat examples independently: no batch statistics. The step size is common to the batch, as in
    `samplers.adaptive.ode`.

    Args:
        key: for the probes, those of example `i` from `fold_in(key, i)`; not used by an exact trace.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`, differentiable.
        process: as in `adaptive.ode`.
        x: data, any pytree of floating arrays `[B, ...]`, `D` numbers an example; at `t > 0`, noised data.
        t: the time of `x`, 0 or in [t_min, t_max]; not traced.
        num_probes: number of random sign vectors for the trace. None means the exact trace if `D <= 64`, else 8.
        index: numbers `i` of the examples, as in `samplers.sample`.
        log_prior: `x_T -> [B]` in nats; by default that of `process.prior`, `N(0, sigma_T^2 I)`.
        rtol: relative tolerance of a step, for `z` and for the nats of every probe.
        atol: absolute tolerance of a step, for `z` and for nats.
        solver: as in `adaptive.ode`.
        max_steps: as in `adaptive.ode`.
        adjoint: as in `adaptive.ode`.

    Returns:
        `Density(log_prob, std_error, x_T, nfe, success)`, in float32 or better. `std_error` does not include the error of
        the solver, nor the difference between the prior and the law of `x_T`. With `alpha_T > 0` that difference is often
        larger, especially for data with a mean far from 0.

    Raises:
        ValueError: as in `adaptive.ode`, or `num_probes` is below 1.
    """
    check_time(process, t, "t")
    matching.check(denoise, process)
    options = process, t, num_probes, log_prior, rtol, atol, solver, max_steps, adjoint
    return programs.run(_follower, denoise, options, key, widen(x), index)


def _follower(denoise: Denoiser, *options: Any) -> Callable[..., Density]:
    """`(key, x, index) -> Density`."""
    return lambda key, x, index: _follow(key, denoise, x, index, *options)


def _follow(
    key: Key[Array, ""],
    denoise: Denoiser,
    z: PyTree[Float[Array, "B ..."]],
    index: Int[Array | np.ndarray, "B"] | None,
    process: Process,
    t: float | int,
    num_probes: int | None,
    log_prior: Callable[[PyTree], Float[Array, "B"]] | None,
    rtol: float,
    atol: float,
    solver: Solver,
    max_steps: int | None,
    adjoint: diffrax.AbstractAdjoint,
) -> Density:
    """`ode`, of data in float32 or better."""
    start = check_time(process, t, "t")
    dims = sum(leaf[0].size for leaf in jax.tree.leaves(z))
    exact = num_probes is None and dims <= EXACT_DIMS
    num_probes = NUM_PROBES if num_probes is None else num_probes
    tangents = _axes(z) if exact else _probes(key, z, num_probes, index)

    def with_trace(f: Callable[[PyTree], PyTree], z: PyTree) -> tuple[PyTree, Float[Array, "B K"]]:
        value, push = jax.linearize(f, z)
        each = jax.vmap(lambda v: _dot(v, push(v)))(tangents)
        return value, (each.sum(0, keepdims=True) if exact else each).T

    path = marginals(process, np.array([max(start, process.t_min), process.t_max]))
    norm = np.hypot(path.alpha, path.sigma)
    if start == 0:
        step, trace = with_trace(lambda y: half_step(denoise, process, y), z)
        z, scale = jax.tree.map(jnp.add, z, step), path.alpha[0] / norm[0]
    else:
        trace = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: with_trace(lambda z: z, z)[1]))
        scale = 1 / norm[0]
    (z, trace), nfe, success = solve(
        lambda level, state: with_trace(lambda z: slope(denoise, level, z), state[0]),
        process,
        path,
        (jax.tree.map(lambda z: jnp.asarray(scale, z.dtype) * z, z), trace),
        rtol=rtol,
        atol=atol,
        solver=solver,
        max_steps=max_steps,
        adjoint=adjoint,
    )
    x_T = jax.tree.map(lambda z: jnp.asarray(norm[1], z.dtype) * z, z)
    prior = _log_normal(x_T, float(path.sigma[1])) if log_prior is None else log_prior(x_T)
    log_prob = prior + trace.mean(1) + dims * float(np.log(scale * norm[1]))
    return Density(log_prob, _standard_error(trace, exact), x_T, nfe + (start == 0), success)


@checks.checked
def ode_log_prob(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    x: PyTree[Data],
    **options: Any,
) -> Float[Array, "B"]:
    """`ode(...).log_prob`, `[B]` nats: the same arguments and errors; NaN where the solver failed."""
    return ode(key, denoise, process, x, **options).log_prob


def _axes(like: PyTree) -> PyTree:
    """The `D` unit vectors of an example, for every example: `[D, B, ...]`."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], like))
    each = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
    return jax.tree.map(lambda v, leaf: jnp.broadcast_to(v[:, None], (flat.size, *leaf.shape)), each, like)


def _probes(
    key: Key[Array, ""], like: PyTree, num_probes: int, index: Int[Array | np.ndarray, "B"] | None
) -> PyTree:
    """Random signs `[K, B, ...]`, those of example `i` from `fold_in(key, i)`."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], like))
    batch = jax.tree.leaves(like)[0].shape[0]

    def draw(key: Key[Array, ""]) -> PyTree:
        return jax.vmap(unravel)(jax.random.rademacher(key, (num_probes, flat.size), flat.dtype))

    return jax.vmap(draw, out_axes=1)(keys.per_example(key, batch, index))


def _dot(a: PyTree, b: PyTree) -> Float[Array, "B"]:
    """Inner product, example by example."""
    products = jax.tree.map(lambda a, b: rows.flat(a * b).sum(1), a, b)
    return jnp.stack(jax.tree.leaves(products)).sum(0)


def _log_normal(x: PyTree, std: float) -> Float[Array, "B"]:
    """`log N(x; 0, std^2 I)`."""
    dims: int = sum(leaf[0].size for leaf in jax.tree.leaves(x))
    scaled = jax.tree.map(lambda x: x / std, x)
    return -_dot(scaled, scaled) / 2 - dims * float(np.log(std) + np.log(2 * np.pi) / 2)


def _standard_error(trace: Float[Array, "B K"], exact: bool) -> Float[Array, "B"]:
    """Standard error of the mean over the `K` columns."""
    batch, num_probes = trace.shape
    if exact or num_probes == 1:
        return jnp.full(batch, 0 if exact else jnp.inf, trace.dtype)
    return trace.std(1, ddof=1) / math.sqrt(num_probes)
