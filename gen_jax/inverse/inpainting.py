"""Inpainting by inserting the known pixels while sampling: replacement, and RePaint, which repeats each step.

At every time of the grid the known part of the state is replaced by `alpha_t x_0 + sigma_t eps` with new noise, and
the solver takes a step. The unknown part so depends on the noisy known pixels of each time, not on `x_0`, and the
error does not vanish with many steps (Trippe et al. 2023). RePaint repeats each step, with forward noise in between.
This is Langevin dynamics at that noise level, which makes the two parts consistent. At small noise the known pixels
are those of `x_0`, so with many repetitions samples are exact, provided that the dynamics mix at small noise. Each
repetition also repeats the error of the solver's step, so many repetitions need a finer grid.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, keys, programs, samplers
from gen_jax.diffusion import matching
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.inverse.operators import check_mask
from gen_jax.samplers import Plan, State
from gen_jax.samplers.multistep import Index, Noise, check_index
from gen_jax.types import Count


@checks.checked
def replacement(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    plan: Plan,
    x_T: PyTree[Noise],
    x_0: PyTree[Shaped[Array | np.ndarray, "..."]],
    mask: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    index: Index | None = None,
) -> PyTree[Shaped[Array, "..."]]:
    """Inpainting by replacement: inserts the known pixels at every time. It is `repaint` with `resample=1`.

        x_t = mask (alpha_t x_0 + sigma_t eps) + (1 - mask) x_t

    Fast but biased, see the top of the file. Arguments, result and errors are those of `repaint`.

    Source: Song et al. 2021, Appendix I.2; Lugmayr et al. 2022, Eq. 8.
    """
    return repaint(key, denoise, process, plan, x_T, x_0, mask, resample=1, index=index)


@checks.checked
def repaint(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    plan: Plan,
    x_T: PyTree[Noise],
    x_0: PyTree[Shaped[Array | np.ndarray, "..."]],
    mask: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    resample: Count = 10,
    jump: Count = 1,
    index: Index | None = None,
) -> PyTree[Shaped[Array, "..."]]:
    """Inpainting by RePaint: every `jump` steps of the plan are taken `resample` times.

        x_t = mask (alpha_t x_0 + sigma_t eps) + (1 - mask) x_t          at each time, then a step of the plan to s
        x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z          from s back to t

    Jumps go back from each `jump`-th time, counted from the last time at which the denoiser is evaluated, as in the
    authors' code; the last step is taken once. In all there are `n + (resample - 1) jump floor((n - 1) / jump)`
    evaluations, in one `lax.scan`. Outside `jit`, other images and masks of the same shape compile nothing.

    Args:
        key: for all noise; a different one from that of `x_T`. Sample `i` depends on it and on `i`, not on the batch.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        process: the process of the plan.
        plan: of a one-step solver with one evaluation per step: `DDPM()`, `DDIM(eta)`, `EulerAncestral()`,
            `DPMSolverPP(order=1)`, `SDEDPMSolverPP(order=1)`, `PredictorCorrector`. `AnnealedLangevin` only with
            `resample=1`: after its step the noise is still that of the step's beginning, and each jump back would add
            more.
        x_T: the start, `process.prior(key, shape)`, any pytree of arrays `[B, ...]`.
        x_0: the known pixels, of the shape of `x_T`, or `[1, ...]` for all. Its unknown pixels are not used.
        mask: bool, True where known, of the rank of `x_T`: `[1, H, W, 1]` is one mask for every image and channel.
        resample: number of times each step is taken, `U` in the paper's Algorithm 1; 10 in its experiments.
        jump: number of steps of a jump, the paper's `j`; 10 of 250 steps in its experiments.
        index: numbers `i` of the samples, `0..B-1` by default.

    Returns:
        `x_0`, like `x_T` in structure, shape and dtype, with the known pixels exactly as given.

    Raises:
        ValueError: the plan is of a multistep solver, runs from data to noise or is of another process; `resample` is
            below 1 or `jump` outside [1, number of steps]; the mask is not bool; or the shape of the mask or of `x_0`
            does not fit.

    Source: Lugmayr et al. 2022, Algorithm 1 and Appendix B.
    """
    _check(process, plan, jump)
    matching.check(denoise, process)
    matching.check_plan(plan.t, plan.levels, denoise, process)
    start = samplers.init(plan, x_T)
    check_index(index, start.x)
    mask, x_0 = _known(mask, x_0, start.x)
    visits = _visits(plan.num_steps, resample, jump)
    x = programs.run(_painter, denoise, (process, resample > 1), key, plan, start, x_0, mask, index, visits)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), x, x_T)


def _painter(denoise: Denoiser, process: Process, again: bool) -> Callable[..., PyTree]:
    """`(key, plan, start, x_0, mask, index, visits) -> x`, with jumps back if `again`."""

    def paint(
        key: Key[Array, ""],
        plan: Plan,
        start: State,
        x_0: PyTree,
        mask: PyTree,
        index: Index | None,
        visits: Visits,
    ) -> PyTree:
        levels = _levels(process, plan)

        def insert(x: PyTree, known: PyTree) -> PyTree:
            return jax.tree.map(jnp.where, mask, known, x)

        def body(x: PyTree, visit: tuple[Visits, Array]) -> tuple[PyTree, None]:
            (row, source), number = visit
            renoise, known, step = jax.random.split(jax.random.fold_in(key, number), 3)
            if again:
                keep, add = _up(levels, source, row)
                x = _scaled(keep, x, add, _normal(renoise, x, index))
            alpha, sigma, _ = (level[row] for level in levels)
            x = insert(x, _scaled(alpha, x_0, sigma, _normal(known, x, index)))
            state, _ = samplers.step(step, denoise, plan, start._replace(x=x, step=row), index=index)
            return state.x, None

        x, _ = jax.lax.scan(body, start.x, (visits, jnp.arange(len(visits.row))))
        return insert(x, x_0)

    return paint


class Visits(NamedTuple):
    """The row of the plan for each evaluation, and the row of the state before it. If they differ, it is a jump back."""

    row: Int[Array, "k"]
    source: Int[Array, "k"]


def _visits(n: int, resample: int, jump: int) -> Visits:
    """The order of the rows of a plan with `n` steps."""
    rows, sources = list(range((n - 1) % jump)), list(range((n - 1) % jump))
    for first in range((n - 1) % jump, n - 1, jump):
        here = list(range(first, first + jump))
        rows += here * resample
        sources += here + [first + jump, *here[1:]] * (resample - 1)
    return Visits(jnp.array([*rows, n - 1]), jnp.array([*sources, n - 1]))


def _levels(process: Process, plan: Plan) -> tuple[Array, Array, Array]:
    """`alpha`, `sigma` and `log_snr` at the times of evaluation."""
    return (
        jnp.asarray(process.alpha(plan.t)),
        jnp.asarray(process.sigma(plan.t)),
        jnp.asarray(process.log_snr(plan.t)),
    )


def _up(levels: tuple[Array, Array, Array], s: Array, t: Array) -> tuple[Array, Array]:
    """`alpha_t / alpha_s` and the standard deviation of the noise from row `s` to row `t`; 1 and 0 if `s = t`."""
    alpha, sigma, log_snr = levels
    stay = s == t
    # from log SNR, because the difference of two nearly equal variances would cancel
    ratio = jnp.where(stay, 0, log_snr[t] - log_snr[s])
    return (
        jnp.where(stay, 1, alpha[t] / jnp.where(stay, 1, alpha[s])),
        sigma[t] * jnp.sqrt(-jnp.expm1(jnp.minimum(ratio, 0))),
    )


def _scaled(a: Array, x: PyTree, b: Array, z: PyTree) -> PyTree:
    """`a x + b z`, in the dtype of `z`."""
    return jax.tree.map(lambda x, z: a.astype(z.dtype) * x + b.astype(z.dtype) * z, x, z)


def _normal(key: Key[Array, ""], like: PyTree, index: Index | None) -> PyTree:
    leaves, tree = jax.tree.flatten(like)
    split = jax.random.split(key, len(leaves))
    draws = [keys.normal(k, x.shape, index).astype(x.dtype) for k, x in zip(split, leaves, strict=True)]
    return jax.tree.unflatten(tree, draws)


def _known(
    mask: PyTree, x_0: PyTree, like: PyTree
) -> tuple[PyTree[Bool[Array, "..."]], PyTree[Float[Array, "..."]]]:
    """Mask and known pixels as arrays, 0 where unknown; a ValueError unless they fit the state and are finite."""
    for name, tree in (("x_0", x_0), ("mask", mask)):
        got, want = str(jax.tree.structure(tree)), str(jax.tree.structure(like))
        if got != want:
            raise ValueError(f"{name} must be a pytree like x_T, {want}; got {got}.")
    for known, x in zip(jax.tree.leaves(x_0), jax.tree.leaves(like), strict=True):
        shape, dtype = jnp.shape(known), jnp.result_type(known)
        if shape not in (x.shape, (1, *x.shape[1:])) or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"x_0 must be floating-point data of the shape of x_T, {x.shape}, or {(1, *x.shape[1:])} for all "
                f"examples alike; got {dtype} of shape {shape}. Images as bytes: x / 127.5 - 1."
            )
    mask = jax.tree.map(check_mask, mask, like)
    used = jax.tree.map(lambda m, a, x: jnp.where(m, jnp.asarray(a, x.dtype), 0), mask, x_0, like)
    for leaf in jax.tree.leaves(used):
        checks.within("x_0, where the mask is True,", leaf)
    return mask, used


def _check(process: Process, plan: Plan, jump: int) -> None:
    if plan.h.shape[1] > 1:
        raise ValueError(
            "plan must be of a one-step solver, such as DDPM(), DDIM() or DPMSolverPP(order=1), because known pixels are "
            f"inserted between its steps; got one that uses {plan.h.shape[1]} evaluations."
        )
    if jump > plan.num_steps:
        raise ValueError(f"jump must be in [1, {plan.num_steps}], the steps of the plan; got {jump}.")
    if isinstance(plan.t, jax.core.Tracer):
        return
    t = np.asarray(plan.t, np.float64)
    if (np.diff(t) > 0).any():
        raise ValueError(
            f"plan must run from noise to data, got times {t[0]:g}, ..., {t[-1]:g}: do not reverse the grid."
        )
    if t[0] > process.t_max * (1 + 1e-6) or t[-1] < process.t_min * (1 - 1e-6):
        raise ValueError(
            f"plan must be made for this process, with times in [{process.t_min:g}, {process.t_max:g}]; got {t[0]:g}, "
            f"..., {t[-1]:g}."
        )
