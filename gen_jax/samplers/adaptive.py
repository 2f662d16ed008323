"""The probability-flow ODE with adaptive steps, by `diffrax`: as accurate as asked, whatever that costs.

Put signal and noise on the unit circle, with `n = sqrt(alpha^2 + sigma^2)`:

    cos(phi) = alpha / n,      sin(phi) = sigma / n,      z = x_t / n

In `y = x_t / alpha = z / cos(phi)` and `r = sigma / alpha = tan(phi)` the ODE is `dy/dr = eps_hat` (Karras et al. 2022,
Eq. 1), and so for every process

    dz/dphi = cos(phi) eps_hat - sin(phi) x0_hat = (cos(phi) z - x0_hat) / sin(phi)

between two finite angles, also where `alpha = 0`, and as smooth as the denoiser even where a discrete process has kinks
in `t`. `t` comes from the angle (`process.at_log_snr`), so a network with discrete times is asked between them.

The fixed steps of `samplers.sample` cost a known number of evaluations, and far fewer for pictures that look alike. This
is for what must be exact: a reference to measure solvers by, encodings, likelihoods (`diffusion.likelihood.ode`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from gen_jax.diffusion.prediction import Denoiser, check_like
from gen_jax.diffusion.process import Process, at_log_snr
from gen_jax.samplers.solvers import Ends, levels
from gen_jax.types import Final

TSIT5 = diffrax.Tsit5()
"""Order 5 with 6 evaluations a step (Tsitouras 2011)."""

CHECKPOINTED = diffrax.RecursiveCheckpointAdjoint()
"""Gradients of the steps themselves, in reverse mode, with memory that grows as their logarithm."""


_FIRST = 0.05
"""First step, of the whole way."""


class Solution(NamedTuple):
    """What `ode` returns."""

    x: PyTree[Float[Array, "B ..."]]
    """State at `t_end`; NaN where `success` is False."""
    nfe: Int[Array, ""]
    """Number of function evaluations: how often the denoiser was asked."""
    success: Bool[Array, ""]
    """False where `max_steps` did not suffice, or no step was small enough (a denoiser that is NaN, say)."""


class Level(NamedTuple):
    """One point of the path."""

    t: Float[Array, ""]
    cos: Float[Array, ""]
    sin: Float[Array, ""]
    norm: Float[Array, ""]  # n = sqrt(alpha^2 + sigma^2)


Slope: TypeAlias = Callable[[Level, Any], Any]
"""`(level, state) -> d state / d phi`."""


def ode(
    denoise: Denoiser,
    process: Process,
    x: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    t_start: float | int | None = None,
    t_end: float | int = 0.0,
    final: Final = "denoise",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: diffrax.AbstractSolver = TSIT5,
    max_steps: int | None = 4096,
    adjoint: diffrax.AbstractAdjoint = CHECKPOINTED,
) -> Solution:
    """Follows the probability-flow ODE from `t_start` to `t_end`, to data or back: jit, vmap, differentiate it.

        x_0 = ode(denoise, process, process.prior(key, shape)).x
        x_T = ode(denoise, process, x_0, t_start=0.0, t_end=process.t_max).x      # encode

    (Song et al. 2021, Eq. 13.) The denoiser is never asked below `t_min`. Between there and the data, `eps_hat` is taken
    to be proportional to `r = sigma / alpha`, that is, the score to stay as it is at `t_min`; a run that starts at 0, or
    ends there by `final="zero"`, crosses by `x_0 = y - r eps_hat / 2` with an error of `O(r^4)`.

    The step is one for the whole batch, and the example that errs most decides it: every one keeps to the tolerance, but
    an example depends on the batch within it. Where that matters, `vmap` over examples, which then wait for the slowest.

    Args:
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`, with parameters, labels and guidance bound.
        process: any with `log_snr` strictly decreasing; `alpha` may be 0 at `t_max`.
        x: state at `t_start`, any pytree of floating arrays `[B, ...]`.
        t_start: 0 or in [t_min, t_max], a number known when traced; None is `t_max`.
        t_end: likewise, and not `t_start`.
        final: how a run to `t_end = 0` ends: "denoise", at `t_min` and then `x_0 = x0_hat`, as solvers do; "zero", with
            the step above, which encoding inverts; "stop", at `t_min`, with its noise. Others end at `t_end`.
        rtol: tolerance of a step in `z`, relative to `|z|`; a step is taken when the root mean square of
            `error / (atol + rtol |z|)` is at most 1 in every array of every example.
        atol: tolerance of a step in `z`, whose data and noise are both of the order of 1.
        solver: an explicit Runge-Kutta method of diffrax with an error estimate: `Tsit5`, `Dopri8`, `Bosh3`.
        max_steps: most steps, accepted or not; None is as many as it takes.
        adjoint: diffrax's way to differentiate. For `jax.jvp`, `diffrax.ForwardMode()`.

    Returns:
        `Solution(x, nfe, success)`, with `x` like the given one in structure, shapes and dtype (arithmetic is in float32
        or better). Failing is not raised, so that it works on several devices: `x` is NaN and `success` is False.

    Raises:
        ValueError: `x` is not floating or its arrays differ in `B`, times as above, an unknown `final`, tolerances not
            positive, a solver of another kind, or the denoiser's output does not look like `x_t`.
    """
    start = check_time(process, process.t_max if t_start is None else t_start, "t_start")
    end = check_time(process, t_end, "t_end")
    if start == end:
        raise ValueError(f"t_start and t_end must differ, got {start:g} for both.")
    if final not in ("denoise", "zero", "stop"):
        raise ValueError(f'final must be "denoise", "zero" or "stop", got {final!r}.')
    path = levels(process, np.maximum([start, end], process.t_min))
    norm = np.hypot(path.alpha, path.sigma)
    z, scale, crossed = widen(x), 1 / norm[0], 0
    if start == 0:
        z, scale, crossed = (
            jax.tree.map(jnp.add, z, half_step(denoise, process, z)),
            path.alpha[0] / norm[0],
            1,
        )
    z, nfe, success = solve(
        lambda level, z: slope(denoise, level, z),
        process,
        path,
        jax.tree.map(lambda z: _times(scale, z), z),
        rtol=rtol,
        atol=atol,
        solver=solver,
        max_steps=max_steps,
        adjoint=adjoint,
    )
    x_t = jax.tree.map(lambda z: _times(norm[1], z), z)
    if end == 0 and final != "stop":
        crossed, y = 1, jax.tree.map(lambda x: _times(1 / path.alpha[1], x), x_t)
        x_t = ask(denoise, x_t, path.time[1])
        if final == "zero":
            x_t = jax.tree.map(lambda y, x0_hat: (y + x0_hat) / 2, y, x_t)  # the inverse of half_step
    x_s = jax.tree.map(lambda x, like: x.astype(like.dtype), x_t, x)
    return Solution(x_s, nfe + crossed, success)


def slope(denoise: Denoiser, level: Level, z: Any) -> Any:
    """`dz/dphi = (cos(phi) z - x0_hat) / sin(phi)`."""
    x0_hat = ask(denoise, jax.tree.map(lambda z: _times(level.norm, z), z), level.t)
    return jax.tree.map(lambda z, x0: (_times(level.cos, z) - x0) / level.sin.astype(z.dtype), z, x0_hat)


def half_step(denoise: Denoiser, process: Process, y: Any) -> Any:
    """`r eps_hat / 2 = (y - x0_hat) / 2` at `t_min`: from data to `y = x_t / alpha`, if the score stays the same."""
    x0_hat = ask(denoise, jax.tree.map(lambda y: _times(process.alpha(process.t_min), y), y), process.t_min)
    return jax.tree.map(lambda y, x0: (y - x0) / 2, y, x0_hat)


def solve(
    slope: Slope,
    process: Process,
    path: Ends,
    state: Any,
    *,
    rtol: float,
    atol: float,
    solver: diffrax.AbstractSolver,
    max_steps: int | None,
    adjoint: diffrax.AbstractAdjoint,
) -> tuple[Any, Int[Array, ""], Bool[Array, ""]]:
    """Integrates `slope` over `phi`, from the first to the last of `path`: the state there, evaluations, and success."""
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}; 1e-5 is usual.")
    if not isinstance(solver, diffrax.AbstractERK):
        raise ValueError(
            f"solver must be an explicit Runge-Kutta method of diffrax, such as diffrax.Tsit5(); got {solver!r}."
        )
    dtype = jax.tree.leaves(state)[0].dtype
    controller = diffrax.PIDController(
        rtol=rtol,
        atol=atol,
        norm=_worst,
        pcoeff=0.3,  # the default rejects many steps where data are narrow
        icoeff=0.3,
        dtmin=16 * float(jnp.finfo(dtype).eps),  # else a denoiser that is NaN costs max_steps
        force_dtmin=False,
    )
    phi = jnp.asarray(np.arctan2(path.sigma, path.alpha), dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda phi, state, _: slope(_level(process, jnp.asarray(phi)), state)),
        solver,
        phi[0],
        phi[1],
        _FIRST * (phi[1] - phi[0]),  # a choice of diffrax's own would cost evaluations
        state,
        stepsize_controller=controller,
        max_steps=max_steps,
        adjoint=adjoint,
        throw=False,
    )
    success = jnp.asarray(solution.result == diffrax.RESULTS.successful)
    end = jax.tree.map(lambda leaf: jnp.where(success, leaf[-1], jnp.nan), solution.ys)
    return end, _evaluations(solver, solution.stats["num_steps"]), success


def ask(denoise: Denoiser, x_t: Any, t: Any) -> Any:
    """`x0_hat`, in the dtype of `x_t`; ValueError if it does not look like `x_t`."""
    x0_hat = denoise(x_t, jnp.asarray(t, jax.tree.leaves(x_t)[0].dtype))
    check_like(x0_hat, x_t, "the denoiser")
    return jax.tree.map(lambda x0, x: x0.astype(x.dtype), x0_hat, x_t)


def widen(x: Any) -> Any:
    """All arrays in the widest of their dtypes, float32 at least; ValueError as of `ode`."""
    leaves = jax.tree.leaves(x)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"x must be floating-point; got {leaf.dtype}. For bytes: x / 127.5 - 1.")
    if len({leaf.shape[:1] for leaf in leaves} | {()}) != 2:
        raise ValueError(
            f"x must be arrays [B, ...] with one B; got the shapes {[leaf.shape for leaf in leaves]}."
        )
    dtype = jnp.result_type(jnp.float32, *leaves)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), x)


def check_time(process: Process, t: float | int, name: str) -> float:
    """`t` as a float, if it is 0 or in [t_min, t_max]; else a ValueError."""
    slack = 1e-6  # a time may have been float32
    inside = process.t_min * (1 - slack) <= t <= process.t_max * (1 + slack)
    if not (t == 0 or inside):
        raise ValueError(
            f"{name} must be 0 (the data) or lie in [{process.t_min:g}, {process.t_max:g}], got {t}: "
            "below t_min the denoiser is not asked."
        )
    return float(np.clip(t, process.t_min, process.t_max)) if inside else 0.0


def _level(process: Process, phi: Array) -> Level:
    phi = jax.lax.stop_gradient(phi)  # times are numbers, and bisection has no derivative
    cos = jnp.maximum(jnp.cos(phi), 0)  # in float32 pi / 2 lies above pi / 2
    t = at_log_snr(process, 2 * (jnp.log(cos) - jnp.log(jnp.sin(phi))))
    alpha, sigma = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))  # those that the denoiser has
    norm = jnp.hypot(alpha, sigma)
    return Level(t, alpha / norm, sigma / norm, norm)


def _worst(errors: Any) -> Array:
    """The root mean square over an array of an example, and of these the greatest."""
    each = [
        jnp.square(e).mean(tuple(range(1, e.ndim))) for e in jax.tree.leaves(jax.lax.stop_gradient(errors))
    ]
    return jnp.sqrt(jnp.stack(each).max())


def _evaluations(solver: diffrax.AbstractERK, steps: Any) -> Int[Array, ""]:
    """The stages of every step, of which the first may be the last of the step before."""
    tableau: Any = solver.tableau
    stages = tableau.num_stages
    return jnp.asarray((steps > 0) + (stages - 1) * steps if tableau.fsal else stages * steps)


def _times(factor: Any, x: Array) -> Array:
    return jnp.asarray(factor, x.dtype) * x
