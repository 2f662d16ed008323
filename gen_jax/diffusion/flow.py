"""The probability-flow ODE of any process, between two angles, solved by `diffrax` with steps that adapt.

Put signal and noise on the unit circle, with `n = sqrt(alpha^2 + sigma^2)`:

    cos(phi) = alpha / n,      sin(phi) = sigma / n,      z = x_t / n

In `y = x_t / alpha = z / cos(phi)` and `r = sigma / alpha = tan(phi)` the ODE is `dy/dr = eps_hat` (Karras et al. 2022,
Eq. 1). So for every process

    dz/dphi = cos(phi) eps_hat - sin(phi) x0_hat = (cos(phi) z - x0_hat) / sin(phi)

Both angles are finite, also where `alpha = 0`. The right side is as smooth as the denoiser, even where a discrete process
has kinks in `t`: the time comes from the angle (`process.at_log_snr`), and may lie between two integers.

`samplers.adaptive` samples and encodes with it, `diffusion.likelihood` integrates the trace of its derivative.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Shaped

from gen_jax import checks
from gen_jax.diffusion import asking
from gen_jax.diffusion.marginals import Marginals
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process, at_log_snr

Solver: TypeAlias = diffrax.AbstractSolver[Any]
"""Of any state; `solve` takes explicit Runge-Kutta methods."""

TSIT5: Solver = diffrax.Tsit5()
"""Order 5 with 6 evaluations a step (Tsitouras 2011)."""

CHECKPOINTED = diffrax.RecursiveCheckpointAdjoint()
"""Gradients of the steps themselves, in reverse mode, with memory that grows as their logarithm."""

_FIRST = 0.05
"""First step, as a part of the whole way."""


class PathPoint(NamedTuple):
    """One point of the path."""

    t: Float[Array, ""]
    cos: Float[Array, ""]
    sin: Float[Array, ""]
    norm: Float[Array, ""]  # n = sqrt(alpha^2 + sigma^2)


States = TypeVar("States", bound=PyTree)

RightSide: TypeAlias = Callable[[PathPoint, States], States]
"""`(point, state) -> d state / d phi`."""


@checks.checked
def slope(
    denoise: Denoiser, point: PathPoint, z: PyTree[Float[Array, "B ..."]]
) -> PyTree[Float[Array, "B ..."]]:
    """`dz/dphi = (cos(phi) z - x0_hat) / sin(phi)`."""
    x0_hat = ask(denoise, scaled(point.norm, z), point.t)
    return jax.tree.map(lambda z, x0: (z - x0) / point.sin.astype(z.dtype), scaled(point.cos, z), x0_hat)


@checks.checked
def half_step(
    denoise: Denoiser, process: Process, y: PyTree[Float[Array, "B ..."]]
) -> PyTree[Float[Array, "B ..."]]:
    """`r eps_hat / 2 = (y - x0_hat) / 2` at `t_min`: from data to `y = x_t / alpha`, if the score stays the same."""
    x0_hat = ask(denoise, scaled(jnp.asarray(process.alpha(process.t_min)), y), process.t_min)
    return jax.tree.map(lambda y, x0: (y - x0) / 2, y, x0_hat)


@checks.checked
def solve(
    slope: RightSide[States],
    process: Process,
    path: Marginals,
    state: States,
    *,
    rtol: float,
    atol: float,
    solver: Solver,
    max_steps: int | None,
    adjoint: diffrax.AbstractAdjoint,
) -> tuple[States, Int[Array, ""], Bool[Array, ""]]:
    """Integrates `slope` over `phi`, from the first to the last time of `path`.

    Returns:
        The state there (NaN without success), the number of evaluations, and whether it succeeded.

    Raises:
        ValueError: tolerances that are not positive, or a solver that is not an explicit Runge-Kutta method.
    """
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be positive, got {rtol} and {atol}; 1e-5 is usual.")
    tableau = solver.tableau if isinstance(solver, diffrax.AbstractERK) else None
    if not isinstance(tableau, diffrax.ButcherTableau):
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
        dtmin=16 * float(np.finfo(dtype).eps),  # else a denoiser that is NaN costs max_steps
        force_dtmin=False,
    )
    phi = jnp.asarray(np.arctan2(path.sigma, path.alpha), dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda phi, state, _: slope(_point(process, jnp.asarray(phi)), state)),
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
    return end, _evaluations(tableau, solution.stats["num_steps"]), success


@checks.checked
def ask(denoise: Denoiser, x_t: PyTree[Float[Array, "B ..."]], t: ArrayLike) -> PyTree[Float[Array, "B ..."]]:
    """`x0_hat`, in the dtype of `x_t`; ValueError if it does not look like `x_t`."""
    x0_hat = asking.ask(denoise, x_t, jnp.asarray(t, jax.tree.leaves(x_t)[0].dtype))
    return jax.tree.map(lambda x0, x: x0.astype(x.dtype), x0_hat, x_t)


@checks.checked
def widen(x: PyTree[Shaped[Array | np.ndarray, "..."]]) -> PyTree[Float[Array, "B ..."]]:
    """All arrays in the widest of their dtypes, float32 at least; ValueError as of `samplers.adaptive.ode`."""
    leaves = jax.tree.leaves(x)
    checks.floating("x", x)
    if any(0 in leaf.shape for leaf in leaves):
        raise ValueError(
            f"x must have at least one number, got the shapes {[leaf.shape for leaf in leaves]}."
        )
    if len({leaf.shape[:1] for leaf in leaves} | {()}) != 2:
        raise ValueError(
            f"x must be arrays [B, ...] with one B; got the shapes {[leaf.shape for leaf in leaves]}."
        )
    dtype = jnp.result_type(jnp.float32, *leaves)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), x)


@checks.checked
def scaled(factor: ArrayLike, x: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """`factor x`, in the dtype of `x`."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, x)


@checks.checked
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


def _point(process: Process, phi: Float[Array, ""]) -> PathPoint:
    phi = jax.lax.stop_gradient(phi)  # times are numbers, and bisection has no derivative
    cos = jnp.maximum(jnp.cos(phi), 0)  # in float32 pi / 2 lies above pi / 2
    t = at_log_snr(process, 2 * (jnp.log(cos) - jnp.log(jnp.sin(phi))))
    alpha, sigma = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))  # those that the denoiser has
    norm = jnp.hypot(alpha, sigma)
    return PathPoint(t, alpha / norm, sigma / norm, norm)


def _worst(errors: PyTree[Array]) -> Array:
    """The root mean square over an array of an example, and of these the greatest."""
    each = [
        jnp.square(e).mean(tuple(range(1, e.ndim))) for e in jax.tree.leaves(jax.lax.stop_gradient(errors))
    ]
    return jnp.sqrt(jnp.stack(each).max())


def _evaluations(tableau: diffrax.ButcherTableau, steps: Int[Array, ""]) -> Int[Array, ""]:
    """The stages of every step; in some methods the last stage is the first one of the next step."""
    stages = tableau.num_stages
    return jnp.asarray((steps > 0) + (stages - 1) * steps if tableau.fsal else stages * steps)
