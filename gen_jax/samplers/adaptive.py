"""The probability-flow ODE with adaptive steps: as accurate as asked, whatever that costs.

The fixed steps of `samplers.sample` cost a known number of evaluations, and far fewer for pictures that look alike. Take
this where the answer must be exact: as the reference that solvers are measured by, or to encode data. The equation and
its variables are those of `diffusion.flow`.
"""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from gen_jax import checks, programs
from gen_jax.diffusion import flow, matching
from gen_jax.diffusion.flow import CHECKPOINTED, TSIT5
from gen_jax.diffusion.marginals import marginals
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.samplers.multistep import Noise, check_state
from gen_jax.types import Count, Final, Positive


class Solution(NamedTuple):
    """What `ode` returns."""

    x: PyTree[Float[Array, "B ..."]]
    """State at `t_end`; NaN where `success` is False."""
    nfe: Int[Array, ""]
    """Number of function evaluations: how often the denoiser was asked."""
    success: Bool[Array, ""]
    """False where `max_steps` did not suffice, or no step was small enough (a denoiser that is NaN, say)."""


@checks.checked
def ode(
    denoise: Denoiser,
    process: Process,
    x: PyTree[Noise],
    *,
    t_start: float | int | None = None,
    t_end: float | int = 0.0,
    final: Final = "denoise",
    rtol: Positive = 1e-5,
    atol: Positive = 1e-5,
    solver: flow.Solver = TSIT5,
    max_steps: Count | None = 4096,
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
    check_state("x", x)
    matching.check(denoise, process)
    options = process, t_start, t_end, final, rtol, atol, solver, max_steps, adjoint
    return programs.run(_follower, denoise, options, x)


def _follower(
    denoise: Denoiser,
    process: Process,
    t_start: float | int | None,
    t_end: float | int,
    final: Final,
    rtol: float,
    atol: float,
    solver: flow.Solver,
    max_steps: int | None,
    adjoint: diffrax.AbstractAdjoint,
) -> Callable[[PyTree], Solution]:
    """`x -> Solution`."""

    def follow(x: PyTree) -> Solution:
        start = flow.check_time(process, process.t_max if t_start is None else t_start, "t_start")
        end = flow.check_time(process, t_end, "t_end")
        if start == end:
            raise ValueError(f"t_start and t_end must differ, got {start:g} for both.")
        if final not in ("denoise", "zero", "stop"):
            raise ValueError(
                f'final must be "denoise", "zero" or "stop", got {final!r}.'
                f"{checks.nearest(final, ('denoise', 'zero', 'stop'))}"
            )
        path = marginals(process, np.maximum([start, end], process.t_min))
        norm = np.hypot(path.alpha, path.sigma)
        z, scale, crossed = flow.widen(x), 1 / norm[0], 0
        if start == 0:
            z, scale, crossed = (
                jax.tree.map(jnp.add, z, flow.half_step(denoise, process, z)),
                path.alpha[0] / norm[0],
                1,
            )
        z, nfe, success = flow.solve(
            lambda point, z: flow.slope(denoise, point, z),
            process,
            path,
            flow.scaled(scale, z),
            rtol=rtol,
            atol=atol,
            solver=solver,
            max_steps=max_steps,
            adjoint=adjoint,
        )
        x_t = flow.scaled(norm[1], z)
        if end == 0 and final != "stop":
            crossed, y = 1, flow.scaled(1 / path.alpha[1], x_t)
            x_t = flow.ask(denoise, x_t, path.time[1])
            if final == "zero":
                x_t = jax.tree.map(lambda y, x0_hat: (y + x0_hat) / 2, y, x_t)  # the inverse of half_step
        x_s = jax.tree.map(lambda x, like: x.astype(like.dtype), x_t, x)
        return Solution(x_s, nfe + crossed, success)

    return follow
