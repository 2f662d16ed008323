"""Sampling as a table of coefficients: `Plan`, and the one `lax.scan` that follows it.

Every multistep solver, of an ODE or of an SDE, is linear in what it knows: the state `x`, the denoiser's
answers so far, and fresh noise `z`. So one step from `t_i` to `t_{i+1}` is

    h_i = p_i x + q_i denoise(x, t_i)              what is remembered: x0_hat (p = 0, q = 1), eps_hat, ...
    x   = a_i x + b_i h_i + sum_j c_ij h_{i-j} + n_i z

and a solver is the table of `a, b, c, n, p, q`. It is made on the host in float64 (`solvers`), so nothing is
recomputed and nothing branches in the loop, and plans of equal shape share one compilation whatever the
solver. The rows of DDPM, DDIM and DPM-Solver++ have `p = 0`; those of DEIS, iPNDM and Adams remember
`eps_hat` or `dx/dt`. A corrector (UniPC) that uses `h_i` to improve the `x` it was computed at, `x + sum_j
d_ij h_{i-j}`, needs no second body: put into the next line it gives `b_i + a_i d_i0` and `c_ij + a_i d_ij`.

Past `h` are kept in a ring of fixed size: `h_i` replaces the oldest. The columns of `c` are slots of the
ring, not ages, so that the host does the bookkeeping and the loop moves no memory.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from gen_jax import keys
from gen_jax.diffusion.prediction import Denoiser, check_like

Trace: TypeAlias = Callable[[Any, Any], Any]
"""What to keep of a step: `(x_s, x0_hat) -> pytree`, with `x_s` the state after the step."""


class Plan(NamedTuple):
    """Coefficients of `n` steps, from a solver's `plan` or `table`: float32, or float64 with x64 enabled."""

    t: Float[Array, "n"]
    """Times at which the denoiser is asked."""
    x: Float[Array, "n"]
    """`a`, of the state."""
    h: Float[Array, "n"]
    """`b`, of what this step remembers."""
    past: Float[Array, "n k"]
    """`c`, of what the last `k` steps remember, by slot of the ring: step `i` writes to slot `i mod k`."""
    noise: Float[Array, "n"] | None
    """`n`, of fresh noise; None for a deterministic plan, which draws none."""
    h_x: Float[Array, "n"]
    """`p`, of the state in what is remembered."""
    h_x0: Float[Array, "n"]
    """`q`, of `x0_hat` in what is remembered."""

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return self.t.shape[0]

    @property
    def nfe(self) -> int:
        """Number of function evaluations: how often the denoiser is called."""
        return self.num_steps


def table(
    t: Float[np.ndarray, "n"],
    x: Float[np.ndarray, "n"],
    h: Float[np.ndarray, "n order"],
    *,
    noise: Float[np.ndarray, "n"] | None = None,
    h_x: Float[np.ndarray, "n"] | None = None,
    h_x0: Float[np.ndarray, "n"] | None = None,
) -> Plan:
    """Plan from coefficients as papers write them: column `j` of `h` is that of `h_{i-j}`, the newest first.

    Args:
        t: times at which the denoiser is asked.
        x: `a_i`, of the state.
        h: `b_i, c_i1, c_i2, ...`; as many columns as the solver's order. What reaches back before the first
            step must be 0.
        noise: `n_i`; None or all zeros is a deterministic plan.
        h_x: `p_i`, zeros by default.
        h_x0: `q_i`, ones by default: together, `x0_hat` is what is remembered.

    Raises:
        ValueError: a coefficient is not finite, or one reaches back before the first step.
    """
    n, order = h.shape
    steps, past = np.arange(n), np.zeros((n, order - 1))
    for age in range(1, order):
        past[steps, (steps - age) % (order - 1)] = h[:, age]
    if any(h[:age, age].any() for age in range(1, order)):
        raise ValueError("expected zeros in h[i, j] for j > i: no step before the first can be remembered.")
    columns = {
        "t": t,
        "x": x,
        "h": h[:, 0],
        "past": past,
        "noise": noise if noise is not None and noise.any() else None,
        "h_x": np.zeros(n) if h_x is None else h_x,
        "h_x0": np.ones(n) if h_x0 is None else h_x0,
    }
    for name, values in columns.items():
        if values is not None and not np.isfinite(values).all():
            raise ValueError(
                f"coefficients must be finite; got {name} = {values}. Are alpha and sigma finite on the "
                "whole grid, with alpha > 0 but at its start and sigma > 0 but at its end?"
            )
    return Plan(**jax.tree.map(jnp.asarray, columns))


class State(NamedTuple):
    """Where sampling stands between two steps, in float32 or better whatever the network runs in."""

    x: PyTree[Float[Array, "B ..."]]  # x_t at plan.t[step]
    past: PyTree[Float[Array, "k B ..."]]  # the ring of past h
    step: Int[Array, ""]  # number of steps taken


def init(plan: Plan, x_T: PyTree[Shaped[Array | np.ndarray, "..."]]) -> State:
    """State before the first step of `plan`, at `x_T` (any pytree of floating arrays `[B, ...]`).

    Raises:
        ValueError: `x_T` has no array, one that is not floating, or arrays that differ in `B`.
    """
    leaves = jax.tree.leaves(x_T)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"x_T must be floating-point noise, from process.prior(key, shape); got {leaf.dtype}."
            )
    if len({leaf.shape[:1] for leaf in leaves} | {()}) != 2:
        raise ValueError(
            f"x_T must be arrays [B, ...] with one B; got the shapes {[leaf.shape for leaf in leaves]}."
        )
    x = jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), x_T)
    past = jax.tree.map(lambda leaf: jnp.zeros((plan.past.shape[1], *leaf.shape), leaf.dtype), x)
    return State(x, past, jnp.zeros((), int))


def step(
    key: Key[Array, ""],
    denoise: Denoiser,
    plan: Plan,
    state: State,
    *,
    index: Int[Array, "B"] | None = None,
) -> tuple[State, Any]:
    """One step of `plan`: asks the denoiser, returns the next state and `x0_hat`. Arguments as of `sample`.

    Taking more steps than the plan has is not detected: under jit the number of steps taken is not known.

    Raises:
        ValueError: the denoiser's output does not look like `x_t` (it says what it got).
    """
    row = jax.tree.map(lambda column: column[state.step], plan)
    x0_hat = denoise(state.x, row.t)
    check_like(x0_hat, state.x, "the denoiser")
    h = jax.tree.map(lambda x, x0: _combine((row.h_x, x), (row.h_x0, x0.astype(x.dtype))), state.x, x0_hat)

    def advance(x: Array, h: Array, past: Array) -> Array:
        return _combine((row.x, x), (row.h, h), *zip(row.past, past, strict=True))

    x_s = jax.tree.map(advance, state.x, h, state.past)
    if row.noise is not None:
        z = _noise(key, state.step, state.x, index)
        x_s = jax.tree.map(lambda x, z: x + row.noise.astype(x.dtype) * z, x_s, z)
    past = state.past
    if slots := plan.past.shape[1]:
        past = jax.tree.map(lambda ring, h: ring.at[state.step % slots].set(h), state.past, h)
    return State(x_s, past, state.step + 1), x0_hat


def finalize(state: State) -> PyTree[Float[Array, "B ..."]]:
    """What was sampled: the state's `x`, at the last time of the grid."""
    return state.x


def sample(
    key: Key[Array, ""],
    denoise: Denoiser,
    plan: Plan,
    x_T: PyTree[Shaped[Array | np.ndarray, "..."]],
    *,
    index: Int[Array, "B"] | None = None,
    trace: Trace | None = None,
) -> Any:
    """Follows `plan` from `x_T` to the last of its times, in one `lax.scan`: jit, vmap, differentiate it.

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

    Returns:
        `x_0`, like `x_T` in structure, shapes and dtype (arithmetic is in float32 or better in between); with
        `trace`, `(x_0, traced)` with a leading axis of `plan.num_steps` on every array of `traced`.

    Raises:
        ValueError: `x_T` is not floating or its arrays differ in `B`, or the denoiser's output does not look
            like `x_t`.
    """

    def body(state: State, _: None) -> tuple[State, Any]:
        state, x0_hat = step(key, denoise, plan, state, index=index)
        return state, None if trace is None else trace(state.x, x0_hat)

    state, traced = jax.lax.scan(body, init(plan, x_T), length=plan.num_steps)
    x_0 = jax.tree.map(lambda x, like: x.astype(like.dtype), finalize(state), x_T)
    return x_0 if trace is None else (x_0, traced)


def _combine(*terms: tuple[Array, Array]) -> Array:
    """Linear combination in the dtype of the arrays; written out, as a TPU takes dot products in bfloat16."""
    return functools.reduce(jnp.add, (coefficient.astype(x.dtype) * x for coefficient, x in terms))


def _noise(key: Key[Array, ""], k: Int[Array, ""], like: Any, index: Int[Array, "B"] | None) -> Any:
    """Standard normal draws like `like`, `[B, ...]`; row `i` comes from `fold_in(fold_in(key, i), k)`."""
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], like))
    batch = jax.tree.leaves(like)[0].shape[0]

    def draw(key: Key[Array, ""]) -> Any:
        return unravel(jax.random.normal(jax.random.fold_in(key, k), flat.shape, flat.dtype))

    return jax.vmap(draw)(keys.per_example(key, batch, index))
