"""Sampling as a table of coefficients: `Plan`, and the one step that follows a row of it (`sampling` follows them all).

Every multistep solver, of an ODE or of an SDE, is linear in the state `x`, in the denoiser's answers so far, and in
fresh noise `z`. So one step from `t_i` to `t_{i+1}` is

    h_i = p_i x + q_i denoise(x, t_i)              remembered: x0_hat (p = 0, q = 1), eps_hat, ...
    x   = a_i x + sum_j c_ij h_{i-j} + n_i z                 j = 0, 1, ...

and a solver is the table of `a, c, n, p, q`. It is made on the host in float64 (`solvers`). The loop recomputes nothing
and has no branches, and plans of equal shape share one compilation, whatever the solver. DDPM, DDIM and DPM-Solver++
remember `x0_hat`; DEIS, iPNDM and Adams remember `eps_hat` or `dx/dt`. A corrector (UniPC) uses `h_i` to improve the
`x` at which it was computed, `x + sum_j d_ij h_{i-j}`. It needs no second loop: put into the step it gives `c_ij + a_i
d_ij`.

The last `h` are kept in a ring of fixed size, in which `h_i` replaces the oldest. The columns of `c` are slots of the
ring, not ages, so the loop moves no memory.
"""

import functools
import math
from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, keys, rows
from gen_jax.diffusion.asking import ask
from gen_jax.diffusion.marginals import Marginals
from gen_jax.diffusion.prediction import Denoiser


class Plan(NamedTuple):
    """Coefficients of `n` steps, from a solver's `plan` or `table`: float32, or float64 with x64 enabled."""

    t: Float[Array, "n"]
    """Times at which the denoiser is asked."""
    x: Float[Array, "n"]
    """`a`, of the state."""
    h: Float[Array, "n k"]
    """`c`, of the last `k` values `h` including this step's, by slot of the ring: step `i` writes slot `i mod k`."""
    noise: Float[Array, "n"] | None
    """`n`, of fresh noise; None for a deterministic plan, which draws none."""
    h_x: Float[Array, "n"]
    """`p`, of the state in what is remembered."""
    h_x0: Float[Array, "n"]
    """`q`, of `x0_hat` in what is remembered."""
    levels: Float[Array, "n 2"] | None = None
    """`alpha` and `sigma` at `t`, by which a plan of another process than the denoiser's is found; None is not known."""

    @staticmethod
    def made_by() -> str:
        """How one comes by a plan."""
        return "solver.plan(process, times)"

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return self.t.shape[0]

    @property
    def nfe(self) -> int:
        """Number of function evaluations: how often the denoiser is called."""
        return self.num_steps


def table(
    t: Float[np.ndarray, "n"] | Marginals,
    x: Float[np.ndarray, "n"],
    h: Float[np.ndarray, "n order"],
    *,
    noise: Float[np.ndarray, "n"] | None = None,
    h_x: Float[np.ndarray, "n"] | None = None,
    h_x0: Float[np.ndarray, "n"] | None = None,
) -> Plan:
    """Plan from coefficients as papers write them: column `j` of `h` is the coefficient of `h_{i-j}`, newest first.

    Args:
        t: times at which the denoiser is asked; or the marginals there, so that the plan knows of what process it is.
        x: `a_i`, of the state.
        h: `c_i0, c_i1, ...`; as many columns as the solver's order. Entries for steps before the first must be 0.
        noise: `n_i`; None or all zeros is a deterministic plan.
        h_x: `p_i`, zeros by default.
        h_x0: `q_i`, ones by default: together, `x0_hat` is what is remembered.

    Raises:
        ValueError: a coefficient is not finite, or one reaches back before the first step.
    """
    levels = np.stack([t.alpha, t.sigma], axis=1) if isinstance(t, Marginals) else None
    time = t.time if isinstance(t, Marginals) else t
    n, order = h.shape
    steps, slots = np.arange(n), np.zeros((n, order))
    for age in range(order):
        slots[steps, (steps - age) % order] = h[:, age]
    if any(h[:age, age].any() for age in range(1, order)):
        raise ValueError("expected zeros in h[i, j] for j > i: no step before the first can be remembered.")
    columns = {
        "t": time,
        "x": x,
        "h": slots,
        "noise": noise if noise is not None and noise.any() else None,
        "h_x": np.zeros(n) if h_x is None else h_x,
        "h_x0": np.ones(n) if h_x0 is None else h_x0,
        "levels": levels,
    }
    for name, values in columns.items():
        if values is not None and not np.isfinite(values).all():
            i = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise ValueError(
                f"coefficients must be finite; got {name} = {values[i]} at step {i} of {n}, t = {time[i]:g}. Are "
                "alpha and sigma finite on the whole grid, with alpha > 0 but at its start and sigma > 0 but at its "
                "end? If there is noise, does time decrease?"
            )
    return Plan(**jax.tree.map(jnp.asarray, columns))


Index: TypeAlias = Int[Array | np.ndarray, "B"]
"""Numbers of the samples of a batch, by which their noise is drawn."""

Noise: TypeAlias = Annotated[Shaped[Array | np.ndarray, "..."], checks.Range()]
"""An array of a state, finite; `check_state` says what is wrong with its dtype."""


class State(NamedTuple):
    """Where sampling stands between two steps, in float32 or better whatever the network runs in.

    A pytree of arrays: the carry of a loop. In a loop of your own, `state._replace(x=...)` changes `x` between two steps
    (to put known pixels in, say). The remembered values stay those of the old `x`.
    """

    x: PyTree[Float[Array, "B ..."]]
    """`x_t` at `plan.t[step]`. After the last step it is at the last time of the grid, at which nothing is asked."""
    past: PyTree[Float[Array, "slots B d"]]
    """The ring of the last `k` steps' `h`, flat and wide (`gen_jax.rows`), zeros before the first step; empty where one
    step needs no other."""
    step: Int[Array, ""]
    """Number of steps taken: the row of the plan that comes next."""


@checks.checked
def init(plan: Plan, x_T: PyTree[Noise]) -> State:
    """State before the first step of `plan`, at `x_T`.

    Args:
        plan: from a solver.
        x_T: the start, any pytree of floating arrays `[B, ...]`. Arrays of less precision become float32.

    Raises:
        ValueError: `x_T` has no array, one that is not floating, or arrays that differ in `B`.
    """
    check_state("x_T", x_T)
    x = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), x_T)
    slots = plan.h.shape[1]
    ring = lambda leaf: jnp.zeros((slots if slots > 1 else 0, *_wide(leaf).shape), leaf.dtype)
    return State(x, jax.tree.map(ring, x), jnp.zeros((), int))


def check_index(index: Index | None, x: PyTree, name: str = "x_T") -> None:
    """ValueError unless there is one number for each sample."""
    if index is None:
        return
    batch = jnp.shape(jax.tree.leaves(x)[0])[:1]
    if jnp.shape(index) != batch:
        raise ValueError(
            f"index must have one number for each sample of {name}, {batch}; got {jnp.shape(index)}."
        )


def check_state(name: str, x: PyTree) -> None:
    """ValueError unless `x` are floating-point arrays `[B, ...]`, with one `B`."""
    leaves = jax.tree.leaves(x)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if any(
        getattr(getattr(leaf, "dtype", None), "kind", "") != "f" for leaf in leaves
    ):  # or one of its own kind
        checks.floating(name, x)
    if len({shape[:1] for shape in shapes} | {()}) != 2:
        raise ValueError(f"{name} must be arrays [B, ...] with one B; got the shapes {shapes}.")


def _check_past(state: State, slots: int) -> None:
    """ValueError unless as much is remembered as by `init`, of numbers like those of `x`."""
    kept = slots if slots > 1 else 0
    for x, ring in zip(jax.tree.leaves(state.x), jax.tree.leaves(state.past), strict=True):
        want = (kept, len(x), rows.width(math.prod(x.shape[1:])))
        if ring.shape != want:
            raise ValueError(
                "state and plan must belong together, by init(plan, x_T): with this plan state.past must have the shape "
                f"{want}, got {ring.shape}."
            )


@checks.checked_in_loops
def step(
    key: Key[Array, ""],
    denoise: Denoiser,
    plan: Plan,
    state: State,
    *,
    index: Index | None = None,
) -> tuple[State, PyTree[Float[Array, "B ..."]]]:
    """One step of `plan`: asks the denoiser once, at `plan.t[state.step]`, and applies that row of the table.

    The whole plan is an argument and the state holds the number of the row, so one compilation serves every step. More
    steps than the plan has are not detected, as the number of steps taken is not known under jit.

    Args:
        key: of the noise, the same in every step: the number of the step is folded in here.
        denoise: `(x_t [B, ...], t []) -> x0_hat [B, ...]`.
        plan: from a solver.
        state: from `init`, or from the step before.
        index: numbers of the samples, as of `sample`.

    Returns:
        The next state, and the denoiser's `x0_hat`.

    Raises:
        ValueError: the denoiser's output does not look like `x_t`.
    """
    check_index(index, state.x)
    past, slots = state.past, plan.h.shape[1]
    _check_past(state, slots)
    row = jax.tree.map(lambda column: column[state.step], plan)
    x0_hat = ask(denoise, state.x, row.t)
    x = jax.tree.map(_wide, state.x)
    h = jax.tree.map(lambda x, x0: _combine((row.h_x, x), (row.h_x0, _wide(x0).astype(x.dtype))), x, x0_hat)
    if slots > 1:  # written before it is read, so that it can be in place
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=state.step % slots, axis=0)
        past = jax.tree.map(put, past, h)

    def advance(x: Array, h: Array, past: Array) -> Array:
        return _combine((row.x, x), *zip(row.h, past if slots > 1 else [h], strict=True))

    x_s = jax.tree.map(advance, x, h, past)
    if row.noise is not None:
        z = jax.tree.map(_wide, noise(key, state.step, state.x, index))
        x_s = jax.tree.map(lambda x, z: x + row.noise.astype(x.dtype) * z, x_s, z)
    x_s = jax.tree.map(
        lambda x, like: like_shape(rows.narrow(x, rows.flat(like).shape[1]), like), x_s, state.x
    )
    return State(x_s, past, state.step + 1), x0_hat


@checks.checked_in_loops
def finalize(state: State) -> PyTree[Float[Array, "B ..."]]:
    """The sample: the state's `x`, at the last time of the grid, in float32 or better."""
    return state.x


def like_shape(x: Array, like: Array) -> Array:
    """The inverse of `rows.flat`."""
    return x.reshape(like.shape)


def _combine(*terms: tuple[Array, Array]) -> Array:
    """Linear combination in the dtype of the arrays; written out, because a TPU computes dot products in bfloat16."""
    return functools.reduce(jnp.add, (coefficient.astype(x.dtype) * x for coefficient, x in terms))


def _wide(x: Array) -> Array:
    return rows.widen(rows.flat(x))


def noise(
    key: Key[Array, ""],
    k: Int[Array, ""],
    like: PyTree[Float[Array, "B ..."]],
    index: Index | None,
) -> PyTree[Float[Array, "B ..."]]:
    """Standard normal draws of step `k`, like `like`; row `i` comes from `fold_in(fold_in(key, i), k)`."""
    batch = jax.tree.leaves(like)[0].shape[0]
    if not batch:
        return like
    one, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], like))

    def draw(key: Key[Array, ""]) -> Array:
        return jax.random.normal(jax.random.fold_in(key, k), (rows.width(one.size),), one.dtype)

    draws = jax.vmap(draw)(keys.per_example(key, batch, index))
    return jax.vmap(unravel)(rows.narrow(draws, one.size))
