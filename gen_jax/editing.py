"""Editing: pictures are changed by adding noise and sampling, encoded as noise and decoded, and interpolated as noise.

    edited = editing.sdedit(key, denoise, proc, plan, x_0)                     # a plan on a grid that begins at t_start
    x_T = editing.encode(denoise, proc, solver, grid, x_0)                     # a grid with final="stop"
    x_0 = editing.decode(denoise, proc, solver, grid, editing.interpolate(x_T[:1], x_T[1:2], 0.5))

All sampling is by `samplers.sample`; these functions call it with the right noise, plan and grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from gen_jax import checks, keys, samplers
from gen_jax.diffusion import matching
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process, expand
from gen_jax.rows import flat
from gen_jax.samplers import Plan, Solver
from gen_jax.samplers.multistep import Index, Noise, check_index, check_state


@checks.checked
def sdedit(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    plan: Plan,
    x_0: PyTree[Noise],
    *,
    index: Index | None = None,
) -> PyTree[Float[Array, "..."]]:
    """SDEdit: adds noise to data, to the first time of the plan, and samples from there.

        x_t = alpha_t x_0 + sigma_t eps,      t = plan.t[0]

    More noise keeps less of the data: strokes become pictures from about half the noise, and at `t_max` nothing is
    kept. A condition (a label, a text, a measurement) is bound in the denoiser.

        plan = samplers.DDPM().plan(proc, samplers.times.log_snr(proc, 50, t_start=0.5))

    Args:
        key: for all noise. Sample `i` depends on it and on `i`, not on the batch.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        process: the process of the plan.
        plan: of any solver, on a grid that begins at `t_start`.
        x_0: the data to edit, any pytree of floating arrays `[B, ...]`.
        index: numbers `i` of the samples, `0..B-1` by default.

    Returns:
        The edited data, with the structure and shapes of `x_0`.

    Raises:
        ValueError: `x_0` is not floating, or the plan begins outside [t_min, t_max] or runs from data to noise.

    Source: Meng et al. 2022, Algorithm 1.
    """
    if not isinstance(plan.t, jax.core.Tracer):
        first, last = np.asarray(plan.t)[[0, -1]]
        if not process.t_min * (1 - 1e-6) <= first <= process.t_max * (1 + 1e-6) or last > first:
            raise ValueError(
                f"plan must run from a time in [{process.t_min:g}, {process.t_max:g}] of this process down to the data; "
                f"got {first:g}, ..., {last:g}: a grid of samplers.times with t_start."
            )
    matching.check_plan(plan.t, plan.levels, denoise, process)
    check_state("x_0", x_0)
    check_index(index, x_0, "x_0")
    x_0 = samplers.init(plan, x_0).x  # float32 or better
    noise, rest = jax.random.split(key)
    leaves, tree = jax.tree.flatten(x_0)
    split = jax.random.split(noise, len(leaves))
    eps = [keys.normal(k, x.shape, index).astype(x.dtype) for k, x in zip(split, leaves, strict=True)]
    x_t = process.perturb(x_0, plan.t[0], jax.tree.unflatten(tree, eps))
    return samplers.sample(rest, denoise, plan, x_t, index=index)


@checks.checked
def encode(
    denoise: Denoiser,
    process: Process,
    solver: Solver,
    grid: Float[Array | np.ndarray, "nodes"],
    x_0: PyTree[Noise],
) -> PyTree[Float[Array, "..."]]:
    """Maps data to noise with a deterministic solver on the reversed grid (DDIM inversion).

    `decode` with the same arguments inverts it, up to the error of the solver. `grid` is a grid for sampling:

        grid = samplers.times.log_snr(proc, 50, final="stop")

    Data are taken as `x_t` at `t_min`, the end of the grid, where the denoiser is evaluated first. For data from the
    model's distribution, the result has the distribution of `x_t` at the first time, the prior. Guidance makes the
    flow stiff and the inversion inexact: encode without it, or take more steps.

    Args:
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        process: the process of the grid.
        solver: a deterministic solver: `DDIM()`, `DPMSolverPP()`, `Heun()`, ...
        grid: decreasing times, with `final="stop"`; the result is the state at the first time, which needs `alpha > 0`.
        x_0: the data, any pytree of floating arrays `[B, ...]`.

    Raises:
        ValueError: the solver adds noise; or the grid does not decrease, ends at 0, or is of another process.

    Source: Song, Meng & Ermon 2021, Section 4.3 and Eq. 14.
    """
    grid = _checked(process, grid)
    matching.check(denoise, process)
    check_state("x_0", x_0)
    return samplers.sample(jax.random.key(0), denoise, _deterministic(solver, process, grid[::-1]), x_0)


@checks.checked
def decode(
    denoise: Denoiser,
    process: Process,
    solver: Solver,
    grid: Float[Array | np.ndarray, "nodes"],
    x_T: PyTree[Noise],
) -> PyTree[Float[Array, "..."]]:
    """Maps noise from `encode` to data, on the same grid: `samplers.sample` with a deterministic solver.

    Arguments and errors are those of `encode`.
    """
    grid = _checked(process, grid)
    matching.check(denoise, process)
    return samplers.sample(jax.random.key(0), denoise, _deterministic(solver, process, grid), x_T)


@checks.checked
def interpolate(
    x_a: PyTree[Float[Array | np.ndarray, "B ..."]],
    x_b: PyTree[Float[Array | np.ndarray, "B ..."]],
    weight: float | Float[Array | np.ndarray, "..."],
) -> PyTree[Float[Array, "B ..."]]:
    """Spherical interpolation of noise, example by example: `x_a` at weight 0, `x_b` at weight 1.

        x = (sin((1 - w) theta) x_a + sin(w theta) x_b) / sin(theta),      cos(theta) = <x_a, x_b> / |x_a| |x_b|

    Noise in many dimensions lies near a sphere of radius `sqrt(d) sigma`. The arc stays on the sphere: if `|x_a| = |x_b|`
    the norm is constant. Halfway on a straight line, noise would have half the variance.

    Args:
        x_a: pytree of arrays `[B, ...]`; each example has one angle, over all arrays.
        x_b: the same. For exactly opposite points the arc is not defined.
        weight: a number, or `[B]`, one per example.

    Raises:
        ValueError: the two differ in shape, or `weight` has another shape.

    Source: Shoemake 1985; Song, Meng & Ermon 2021, Appendix D.5.
    """
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(x)] for x in (x_a, x_b)]
    if shapes[0] != shapes[1] or str(jax.tree.structure(x_a)) != str(jax.tree.structure(x_b)):
        raise ValueError(
            f"x_a and x_b must have the same structure and shapes, got {shapes[0]} and {shapes[1]}."
        )
    weight = jnp.asarray(weight)
    if weight.shape not in ((), shapes[0][0][:1]):
        raise ValueError(
            f"weight must be a number or one per example, {shapes[0][0][:1]}; got {weight.shape}."
        )
    unit_a, unit_b = (jax.tree.map(lambda leaf: leaf / expand(_norm(x), leaf), x) for x in (x_a, x_b))
    # by the half angle, because arccos of the product has no correct digit where the two are close
    apart, together = (_norm(jax.tree.map(f, unit_a, unit_b)) for f in (jnp.subtract, jnp.add))
    theta = 2 * jnp.arctan2(apart, together)
    a, b = (w * jnp.sinc(w * theta / jnp.pi) / jnp.sinc(theta / jnp.pi) for w in (1 - weight, weight))
    return jax.tree.map(lambda x, y: expand(a, x) * x + expand(b, y) * y, x_a, x_b)


def _norm(x: PyTree) -> Float[Array, "B"]:
    squares = [flat(jnp.square(a)).sum(1) for a in jax.tree.leaves(x)]
    square = sum(squares[1:], squares[0])
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # differentiable at 0, too


def _checked(process: Process, grid: Float[Array | np.ndarray, "nodes"]) -> np.ndarray:
    grid = np.asarray(grid, np.float64)
    decreasing = grid.ndim == 1 and len(grid) >= 2 and bool((np.diff(grid) < 0).all())
    if not decreasing or grid[-1] < process.t_min * (1 - 1e-6):
        raise ValueError(
            f"grid must be at least 2 decreasing times down to t_min = {process.t_min:g}, not to 0, as the denoiser is "
            f'evaluated at both ends: samplers.times.log_snr(process, 50, final="stop"); got {grid}.'
        )
    return grid


def _deterministic(solver: Solver, process: Process, grid: np.ndarray) -> Plan:
    plan = solver.plan(process, grid)
    if plan.noise is not None:
        raise ValueError(
            "solver must be deterministic, such as DDIM() or DPMSolverPP(), because noise cannot be inverted; "
            f"got {solver}."
        )
    return plan
