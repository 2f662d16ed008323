"""Inpainting by putting the known pixels in while sampling: replacement, and RePaint, which goes back to fit them.

At every time of the grid the known part of the state is replaced by `alpha_t x_0 + sigma_t eps`, fresh each time, and
the solver takes its step. What is unknown then was made without the pixels that come: it fits the noisy known ones of
each time, not `x_0`, and the error does not vanish with the number of steps (Trippe et al. 2023). RePaint
takes each step several times, with the noise of the forward process in between: Langevin dynamics at that level, by which
the two parts come to fit. At small noise the level's known pixels are `x_0`, so in the limit of many repetitions samples
are exact, as long as the dynamics at small noise can still reach everything. Each repetition repeats the error of the
solver's step, too: many of them want a finer grid.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from gen_jax import keys, samplers
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.inverse.operators import check_mask
from gen_jax.samplers import Plan


def replacement(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    plan: Plan,
    x_T: PyTree[Shaped[Array | np.ndarray, "..."]],
    x_0: Any,
    mask: Any,
    *,
    index: Int[Array, "B"] | None = None,
) -> Any:
    """Follows `plan` with the known pixels put in at every time: `repaint` with `resample=1`.

        x_t = mask (alpha_t x_0 + sigma_t eps) + (1 - mask) x_t

    Quick and rough; for what it gets wrong see the top of the file. Arguments, result and errors are those of `repaint`.

    Source: Song et al. 2021, Appendix I.2; Lugmayr et al. 2022, Eq. 8.
    """
    return repaint(key, denoise, process, plan, x_T, x_0, mask, resample=1, index=index)


def repaint(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    plan: Plan,
    x_T: PyTree[Shaped[Array | np.ndarray, "..."]],
    x_0: Any,
    mask: Any,
    *,
    resample: int = 10,
    jump: int = 1,
    index: Int[Array, "B"] | None = None,
) -> Any:
    """Inpainting by RePaint: every `jump` steps of the plan are taken `resample` times.

        x_t = mask (alpha_t x_0 + sigma_t eps) + (1 - mask) x_t          at each time, then a step of the plan to s
        x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z          from s back to t

    Jumps go back from each `jump`-th time, counted from the last at which the denoiser is asked, as in the authors'
    code; the last step is taken once. It asks the denoiser `n + (resample - 1) jump floor((n - 1) / jump)` times, in one
    `lax.scan`. To compute with other images or masks of the same shape, jit it as a function of them.

    Args:
        key: of all noise; not the one that drew `x_T`. Sample `i` depends on it and on `i`, not on the batch.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        process: the one that the plan was made for.
        plan: of a solver that asks once a step and remembers nothing: `DDPM()`, `DDIM(eta)`, `EulerAncestral()`,
            `DPMSolverPP(order=1)`, `SDEDPMSolverPP(order=1)`, `PredictorCorrector`. Not `AnnealedLangevin` unless
            `resample` is 1: it leaves a level with the noise of that level, to which each jump back would add.
        x_T: the start, `process.prior(key, shape)`, any pytree of arrays `[B, ...]`.
        x_0: the known pixels, of the shape of `x_T`, or `[1, ...]` for all; what is not known of it is never used.
        mask: bool, True where known, of the rank of `x_T`: `[1, H, W, 1]` is one mask for every image and channel.
        resample: how often, `U` of the paper's Algorithm 1; 1 is `replacement`, the paper's experiments take 10.
        jump: how many steps at a time, the paper's `j`; 10 of 250 steps in its experiments.
        index: numbers `i` of the samples, `0..B-1` by default.

    Returns:
        `x_0`, like `x_T` in structure, shape and dtype, with the known pixels exactly as given.

    Raises:
        ValueError: a plan that remembers, runs from data to noise or is not of this process; `resample` below 1, `jump`
            outside [1, number of steps]; a mask that is not bool or does not fit, or `x_0` that does not.

    Source: Lugmayr et al. 2022, Algorithm 1 and Appendix B.
    """
    _check(process, plan, resample, jump)
    start = samplers.init(plan, x_T)
    mask, x_0 = _known(mask, x_0, start.x)
    visits, levels = _visits(plan.num_steps, resample, jump), _levels(process, plan)

    def put(x: Any, known: Any) -> Any:
        return jax.tree.map(jnp.where, mask, known, x)

    def body(x: Any, visit: tuple[Visits, Any]) -> tuple[Any, None]:
        (row, source), number = visit
        renoise, known, step = jax.random.split(jax.random.fold_in(key, number), 3)
        if resample > 1:
            keep, add = _up(levels, source, row)
            x = _scaled(keep, x, add, _normal(renoise, x, index))
        alpha, sigma, _ = (level[row] for level in levels)
        x = put(x, _scaled(alpha, x_0, sigma, _normal(known, x, index)))
        state, _ = samplers.step(step, denoise, plan, start._replace(x=x, step=row), index=index)
        return state.x, None

    x, _ = jax.lax.scan(body, start.x, (visits, jnp.arange(len(visits.row))))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), put(x, x_0), x_T)


class Visits(NamedTuple):
    """Which row of the plan each evaluation follows, and at which it stood before: another one is a jump back."""

    row: Int[Array, "k"]
    source: Int[Array, "k"]


def _visits(n: int, resample: int, jump: int) -> Visits:
    """The order in which `n` rows are taken."""
    rows, sources = list(range((n - 1) % jump)), list(range((n - 1) % jump))
    for first in range((n - 1) % jump, n - 1, jump):
        here = list(range(first, first + jump))
        rows += here * resample
        sources += here + [first + jump, *here[1:]] * (resample - 1)
    return Visits(jnp.array([*rows, n - 1]), jnp.array([*sources, n - 1]))


def _levels(process: Process, plan: Plan) -> tuple[Array, Array, Array]:
    """`alpha`, `sigma` and `log_snr` at the times that are asked."""
    return tuple(jnp.asarray(f(plan.t)) for f in (process.alpha, process.sigma, process.log_snr))  # type: ignore[return-value]


def _up(levels: tuple[Array, Array, Array], s: Array, t: Array) -> tuple[Array, Array]:
    """`alpha_t / alpha_s` and the deviation of the noise from row `s` up to row `t`; 1 and 0 where they are the same."""
    alpha, sigma, log_snr = levels
    stay = s == t
    ratio = jnp.where(
        stay, 0, log_snr[t] - log_snr[s]
    )  # not of the difference of two variances, nearly the same
    return (
        jnp.where(stay, 1, alpha[t] / jnp.where(stay, 1, alpha[s])),
        sigma[t] * jnp.sqrt(-jnp.expm1(jnp.minimum(ratio, 0))),
    )


def _scaled(a: Array, x: Any, b: Array, z: Any) -> Any:
    """`a x + b z`, in the dtype of `z`."""
    return jax.tree.map(lambda x, z: a.astype(z.dtype) * x + b.astype(z.dtype) * z, x, z)


def _normal(key: Key[Array, ""], like: Any, index: Int[Array, "B"] | None) -> Any:
    leaves, tree = jax.tree.flatten(like)
    split = jax.random.split(key, len(leaves))
    draws = [keys.normal(k, x.shape, index).astype(x.dtype) for k, x in zip(split, leaves, strict=True)]
    return jax.tree.unflatten(tree, draws)


def _known(mask: Any, x_0: Any, like: Any) -> tuple[PyTree[Bool[Array, "..."]], PyTree[Float[Array, "..."]]]:
    """Both as arrays, checked against the state."""
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
    return jax.tree.map(check_mask, mask, like), jax.tree.map(lambda a, x: jnp.asarray(a, x.dtype), x_0, like)


def _check(process: Process, plan: Plan, resample: int, jump: int) -> None:
    if plan.h.shape[1] > 1:
        raise ValueError(
            f"plan must be of a solver that asks once a step and remembers nothing, as DDPM(), DDIM() or "
            f"DPMSolverPP(order=1); got one that remembers {plan.h.shape[1]} answers, which known pixels put in between "
            "would contradict."
        )
    if resample < 1 or not 1 <= jump <= plan.num_steps:
        raise ValueError(
            f"resample must be at least 1 and jump in [1, {plan.num_steps}], its steps; got {resample} and {jump}."
        )
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
