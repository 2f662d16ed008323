"""Editing: pictures changed by sampling from their noised selves, brought to noise and back, and mixed there.

    edited = editing.sdedit(key, denoise, proc, plan, x_0)                     # plan of a grid that begins at t_start
    x_T = editing.encode(denoise, proc, solver, grid, x_0)                     # grid of final="stop"
    x_0 = editing.decode(denoise, proc, solver, grid, editing.interpolate(x_T[:1], x_T[1:2], 0.5))

Nothing here samples by itself: these are the calls of `samplers.sample` that are easily got wrong.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from gen_jax import keys, samplers
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process, expand
from gen_jax.samplers import Plan, Solver


def sdedit(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    plan: Plan,
    x_0: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    index: Int[Array, "B"] | None = None,
) -> Any:
    """SDEdit: noises data to the first time of the plan and samples from there.

        x_t = alpha_t x_0 + sigma_t eps,      t = plan.t[0]

    More noise keeps less: strokes become pictures about half of the way, at `t_max` nothing is kept. The condition (a
    label, a text, a measurement) is the denoiser's.

        plan = samplers.DDPM().plan(proc, samplers.times.log_snr(proc, 50, t_start=0.5))

    Args:
        key: of all noise. Sample `i` depends on it and on `i`, not on the batch.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        process: the one that the plan was made for.
        plan: of any solver, on a grid that begins at `t_start`.
        x_0: what is to be edited, any pytree of floating arrays `[B, ...]`.
        index: numbers `i` of the samples, `0..B-1` by default.

    Returns:
        The edited data, like `x_0`.

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
    x_0 = samplers.init(plan, x_0).x  # checked, in float32 or better
    noise, rest = jax.random.split(key)
    leaves, tree = jax.tree.flatten(x_0)
    split = jax.random.split(noise, len(leaves))
    eps = [keys.normal(k, x.shape, index).astype(x.dtype) for k, x in zip(split, leaves, strict=True)]
    x_t = jax.tree.map(lambda x, z: process.perturb(x, plan.t[0], z), x_0, jax.tree.unflatten(tree, eps))
    return samplers.sample(rest, denoise, plan, x_t, index=index)


def encode(denoise: Denoiser, process: Process, solver: Solver, grid: Any, x_0: Any) -> Any:
    """Brings data to noise by a deterministic solver along the reversed grid (DDIM inversion).

    `decode` with the same arguments brings them back, to an error of the solver's order; `grid` is the one for sampling:

        grid = samplers.times.log_snr(proc, 50, final="stop")

    Data count as `x_t` at `t_min`, the end of the grid, since the denoiser is asked there first. Of data that follow the
    model's law, the result follows that of `x_t` at the first time, the prior. Guidance makes the flow stiff, and the way
    back inexact: encode without it, or take more steps.

    Args:
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        process: what the grid is of.
        solver: a deterministic one: `DDIM()`, `DPMSolverPP()`, `Heun()`, ...
        grid: decreasing times, of `final="stop"`; the first one is where data go, with `alpha > 0`.
        x_0: the data, any pytree of floating arrays `[B, ...]`.

    Raises:
        ValueError: a solver that adds noise; a grid that does not decrease, ends at 0, or is not of the process.

    Source: Song, Meng & Ermon 2021, Section 4.3 and Eq. 14.
    """
    grid = _checked(process, grid)
    return samplers.sample(jax.random.key(0), denoise, _deterministic(solver, process, grid[::-1]), x_0)


def decode(denoise: Denoiser, process: Process, solver: Solver, grid: Any, x_T: Any) -> Any:
    """Brings what `encode` made back to data, along the same grid: `samplers.sample` of a plan without noise.

    Arguments and errors are those of `encode`.
    """
    grid = _checked(process, grid)
    return samplers.sample(jax.random.key(0), denoise, _deterministic(solver, process, grid), x_T)


def interpolate(
    x_a: PyTree[Float[Array, "B ..."]],
    x_b: PyTree[Float[Array, "B ..."]],
    weight: float | Float[Array, "..."],
) -> PyTree[Float[Array, "B ..."]]:
    """Spherical interpolation of noise, an example at a time: from `x_a` at weight 0 to `x_b` at 1.

        x = (sin((1 - w) theta) x_a + sin(w theta) x_b) / sin(theta),      cos(theta) = <x_a, x_b> / |x_a| |x_b|

    Noise of many dimensions lies near a sphere of radius `sqrt(d) sigma`, and the arc stays on it: where `|x_a| = |x_b|`
    the norm is kept exactly. The straight line would run through its inside, where no noise is: halfway, half of the
    variance is gone.

    Args:
        x_a: pytree of arrays `[B, ...]`; one angle an example, over all of them.
        x_b: the same. Of exactly opposite points the arc is not defined.
        weight: a number, or `[B]`, one an example.

    Raises:
        ValueError: the two differ in shape, or `weight` is neither.

    Source: Shoemake 1985; Song, Meng & Ermon 2021, Appendix D.5.
    """
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(x)] for x in (x_a, x_b)]
    if shapes[0] != shapes[1] or str(jax.tree.structure(x_a)) != str(jax.tree.structure(x_b)):
        raise ValueError(f"x_a and x_b must be alike, got the shapes {shapes[0]} and {shapes[1]}.")
    weight = jnp.asarray(weight)
    if weight.shape not in ((), shapes[0][0][:1]):
        raise ValueError(
            f"weight must be a number or one an example, {shapes[0][0][:1]}; got {weight.shape}."
        )
    unit_a, unit_b = (jax.tree.map(lambda leaf: leaf / expand(_norm(x), leaf), x) for x in (x_a, x_b))
    # of the half angle: arccos of the product has no correct digit where the two are close
    apart, together = (_norm(jax.tree.map(f, unit_a, unit_b)) for f in (jnp.subtract, jnp.add))
    theta = 2 * jnp.arctan2(apart, together)
    share = lambda w: w * jnp.sinc(w * theta / jnp.pi) / jnp.sinc(theta / jnp.pi)
    a, b = share(1 - weight), share(weight)
    return jax.tree.map(lambda x, y: expand(a, x) * x + expand(b, y) * y, x_a, x_b)


def _norm(x: Any) -> Float[Array, "B"]:
    squares = [jnp.square(leaf).reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(x)]
    square = sum(squares[1:], squares[0])
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)  # a gradient at 0, too


def _checked(process: Process, grid: Any) -> np.ndarray:
    grid = np.asarray(grid, np.float64)
    if (
        grid.ndim != 1
        or len(grid) < 2
        or not (np.diff(grid) < 0).all()
        or grid[-1] < process.t_min * (1 - 1e-6)
    ):
        raise ValueError(
            f"grid must be at least 2 decreasing times down to t_min = {process.t_min:g}, not to 0, as the denoiser is "
            f'asked at both ends: samplers.times.log_snr(process, 50, final="stop"); got {grid}.'
        )
    return grid


def _deterministic(solver: Solver, process: Process, grid: np.ndarray) -> Plan:
    plan = solver.plan(process, grid)
    if plan.noise is not None:
        raise ValueError(
            f"solver must be deterministic, as the noise of {solver} cannot be taken away again: DDIM(), DPMSolverPP()."
        )
    return plan
