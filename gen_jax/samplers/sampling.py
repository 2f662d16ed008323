"""Following a plan: the one `lax.scan` of all solvers."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Key, PyTree

from gen_jax import checks, programs
from gen_jax.diffusion import matching
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.rows import flat
from gen_jax.samplers.multistep import (
    Index,
    Noise,
    Plan,
    State,
    check_index,
    check_state,
    finalize,
    init,
    like_shape,
    step,
)

Trace: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""What to keep of a step: `(x_s, x0_hat) -> pytree`, with `x_s` the state after the step."""

OnStep: TypeAlias = Callable[[Int[Array, ""], PyTree], None]
"""What is done with the number of a step and `x0_hat`, by callbacks of JAX."""


@checks.checked
def sample(
    key: Key[Array, ""],
    denoise: Denoiser,
    plan: Plan,
    x_T: PyTree[Noise],
    *,
    index: Index | None = None,
    trace: Trace | None = None,
    checkpoint: bool = False,
    check_finite: bool = False,
    on_step: OnStep | None = None,
) -> PyTree:
    """Follows `plan` from `x_T` to the last of its times, in one `lax.scan`: jit, vmap, differentiate it.

    Outside `jit`, a second call with the same denoiser and equal shapes compiles nothing (`gen_jax.programs`).

    Args:
        key: of the noise; not the one that drew `x_T`. Sample `i` gets at step `k` the noise of
            `fold_in(fold_in(key, i), k)`, so it depends neither on the batch nor on the number of devices. A
            deterministic plan ignores it.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`, with parameters, labels and guidance bound.
        plan: from a solver: `DDIM().plan(process, times.uniform(process, 50))`.
        x_T: the start, `process.prior(key, shape)`: any pytree of floating arrays `[B, ...]`.
        index: numbers `i` of the samples, `0..B-1` by default (counted over all devices): samples 64..127 by
            themselves are `index=jnp.arange(64, 128)`.
        trace: `(x_s, x0_hat) -> pytree`, what to keep of every step; `lambda x, x0_hat: x[:8]` keeps the path
            of eight samples.
        checkpoint: for `jax.grad` in memory that grows with the square root of the number of steps, at the cost of one
            more evaluation a step. About `sqrt(n)` states are kept; the steps between two of them are taken again (Chen
            et al. 2016, Section 4.1). What the denoiser's gradient needs is held for `sqrt(n)` steps at once, or for one
            step if the denoiser is wrapped in `jax.checkpoint`.
        check_finite: for debugging: raises an error when the denoiser returns NaN or inf, which names the step and the
            time, and whether `x_t` was finite.
        on_step: `(step, x0_hat)`, called with tracers in the loop, to hand them to the host by `jax.debug.callback`.

    Returns:
        `x_0`, like `x_T` in structure, shapes and dtype (arithmetic is in float32 or better in between); with
        `trace`, `(x_0, traced)` with a leading axis of `plan.num_steps` on every array of `traced`.

    Raises:
        ValueError: `x_T` is not floating or its arrays differ in `B`, the plan is known to be of another process than the
            denoiser (`diffusion.matching`), or the denoiser's output does not look like `x_t`.
        FloatingPointError: with `check_finite`. Inside jit it is a `jax.errors.JaxRuntimeError` with this message,
            raised when the result is computed; JAX repeats it at `jax.effects_barrier` and at the end of the program.
    """
    check_state("x_T", x_T)
    check_index(index, x_T)
    matching.check_plan(plan.t, plan.levels, denoise)
    options = (trace, checkpoint, check_finite, on_step)
    draws = None if plan.noise is None else key  # JAX calls programs of keys more slowly
    x_0, traced, bad = programs.run(_follower, denoise, options, draws, plan, x_T, index)
    if bad is not None:
        jax.debug.callback(_raise_if_not_finite, plan.t, *bad)
    return x_0 if trace is None else (x_0, traced)


def _follower(
    denoise: Denoiser, trace: Trace | None, checkpoint: bool, check_finite: bool, on_step: OnStep | None
) -> Callable[..., tuple[PyTree, PyTree, tuple[Array, Array] | None]]:
    """`(key, plan, x_T, index) -> (x_0, traced, how many samples were not finite at each step)`."""

    def follow(
        key: Key[Array, ""] | None, plan: Plan, x_T: PyTree, index: Int[Array, "B"] | None
    ) -> tuple[PyTree, PyTree, tuple[Array, Array] | None]:
        start, key = init(plan, x_T), jax.random.key(0) if key is None else key

        def shaped(state: State) -> State:
            return state._replace(x=jax.tree.map(like_shape, state.x, start.x))

        def flattened(state: State) -> State:
            return state._replace(x=jax.tree.map(flat, state.x))

        def body(carry: State, _: None) -> tuple[State, PyTree]:
            state = shaped(carry)
            next_state, x0_hat = step(key, denoise, plan, state, index=index)
            if on_step is not None:
                on_step(state.step, x0_hat)
            bad = (_not_finite(state.x), _not_finite(x0_hat)) if check_finite else None
            return flattened(next_state), (None if trace is None else trace(next_state.x, x0_hat), bad)

        scan = _checkpointed if checkpoint else jax.lax.scan
        state, (traced, bad) = scan(body, flattened(start), length=plan.num_steps)
        x_0 = jax.tree.map(lambda x, like: x.astype(like.dtype), finalize(shaped(state)), x_T)
        return x_0, traced, bad

    return follow


def _checkpointed(
    body: Callable[[State, None], tuple[State, PyTree]], state: State, *, length: int
) -> tuple[State, PyTree]:
    """`lax.scan` in segments of about `sqrt(length)` steps. For gradients, each keeps only its start."""

    def segment(steps: int) -> Callable[[State, None], tuple[State, PyTree]]:
        return jax.checkpoint(lambda state, _: jax.lax.scan(body, state, length=steps))

    each = math.isqrt(length)
    state, out = jax.lax.scan(segment(each), state, length=length // each)
    out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
    if rest := length % each:
        state, last = segment(rest)(state, None)
        out = jax.tree.map(lambda *parts: jnp.concatenate(parts), out, last)
    return state, out


def _not_finite(x: PyTree[Array]) -> Int[Array, ""]:
    """How many of the samples have a number that is not finite."""
    rows = [~flat(jnp.isfinite(x)).all(1) for x in jax.tree.leaves(x)]
    return functools.reduce(jnp.logical_or, rows).sum()


def _raise_if_not_finite(t: ArrayLike, of_x: ArrayLike, of_x0: ArrayLike) -> None:
    """Names the first of the steps `[n]` at which samples were not finite, given how many."""
    t, of_x, of_x0 = np.asarray(t), np.asarray(of_x), np.asarray(of_x0)
    bad = np.flatnonzero(of_x + of_x0)
    if not len(bad):
        return
    i, where = bad[0], f"at step {bad[0]} of {len(t)}, t = {t[bad[0]]:g}"
    if of_x[i]:
        cause = "x_T was given so" if i == 0 else "x0_hat was finite, but too large, at the step before"
        raise FloatingPointError(f"x_t was NaN or inf in {of_x[i]} samples {where}: {cause}.")
    raise FloatingPointError(
        f"the denoiser returned NaN or inf in {of_x0[i]} samples {where}, where x_t was still finite."
    )
