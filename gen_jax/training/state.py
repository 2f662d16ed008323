"""What training carries from step to step, and the one step that every family of models trains with."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax.training.skip import SkipState

Metrics = dict[str, Float[Array, "..."]]
"""Named float32 scalars of one step, or `[K]` vectors for the `K` steps of one call."""

Loss = Callable[..., tuple[Float[Array, ""], Metrics]]
"""`loss(params, key, batch) -> (scalar, metrics)`, both means over the examples of `batch`.

One whose terms change as training goes on is `loss(params, key, batch, step)`, see `make_step(step_in_loss=True)`.
"""


class TrainState(NamedTuple):
    """Everything that a run has learned or counted; what a checkpoint holds."""

    step: Int[Array, ""]
    """Steps done so far, int32."""
    params: PyTree
    opt_state: PyTree
    ema_params: PyTree
    """Moving average of `params`, to sample with; None where there is none."""
    key: Key[Array, ""]
    """The seed. It never changes: step `k` draws from `fold_in(key, k)`."""

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        key: Key[Array, ""],
        *,
        ema: bool = True,
    ) -> "TrainState":
        """The state before the first step, with the average at the initial parameters (`ema=False`: without one)."""
        average = jax.tree.map(jnp.copy, params) if ema else None
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, key)


@runtime_checkable
class Step(Protocol):
    """`(state, batch) -> (state, metrics)`, pure."""

    def __call__(
        self,
        state: TrainState,
        batch: Any,
        *,
        axis_name: str | None = None,
        gather: Callable[[PyTree], PyTree] = lambda params: params,
    ) -> tuple[TrainState, Metrics]:
        """Gradients and metrics are averaged over `axis_name`, where one is bound; the loss is of `gather(params)`.

        `gather` is the identity, said where to compute it: under FSDP it makes whole what is split over devices, once
        the parameters and once their gradient. Only there it is given.
        """


def make_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None = 0.9999,
    step_in_loss: bool = False,
    microbatches: int = 1,
) -> Step:
    """One step of stochastic gradient descent, as a pure function that knows nothing of devices.

        g_k         = d/dparams loss(params_k, fold_in(key, k), batch_k)
        params_k+1  = params_k + optimizer(g_k)
        ema_k+1     = d_k ema_k + (1 - d_k) params_k+1,   d_k = min(ema_decay, (1 + k) / (10 + k))

    The average warms up so that the initial parameters are forgotten early (TensorFlow's
    ExponentialMovingAverage with `num_updates`). `ema_decay=None` is for a state without one,
    `TrainState.create(..., ema=False)`. Under gradient accumulation the average moves at every micro-step. With
    `step_in_loss` the loss is told the step `k`, int32, as its fourth argument: a term may then be warmed up.

    With `microbatches = n` the gradient is the mean of those of `n` parts of the batch, taken one after the other, each
    as large as all: the activations of one part are in memory at a time, on a CPU in its cache. Part `p` has the rows
    `p, p + n, p + 2n, ...` and draws from `fold_in(fold_in(key, k), p)`.

    The metrics are those of the loss with `loss` and `grad_norm` (global norm, before any clipping), float32
    scalars; with `skip_exploding` also `skipped`, 1 where the step was not taken. Raises ValueError when `ema_decay`
    is outside [0, 1), the state has an average and there is no decay or the other way round, the loss reports a
    metric under one of these names, or the rows do not divide into `microbatches`.
    """
    if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
        raise ValueError(f"ema_decay must lie in [0, 1) or be None (no average), got {ema_decay}")
    if microbatches < 1:
        raise ValueError(f"microbatches must be at least 1 (the whole batch at once), got {microbatches}")

    def step(
        state: TrainState,
        batch: Any,
        *,
        axis_name: str | None = None,
        gather: Callable[[PyTree], PyTree] = lambda params: params,
    ) -> tuple[TrainState, Metrics]:
        if (ema_decay is None) != (state.ema_params is None):
            raise ValueError(
                f"ema_decay is {ema_decay}, so the state must have {'no' if ema_decay is None else 'an'} average: "
                f"TrainState.create(..., ema={ema_decay is not None})"
            )
        key = jax.random.fold_in(state.key, state.step)
        step_k = (state.step,) if step_in_loss else ()
        whole, differentiate = gather(state.params), jax.value_and_grad(loss, has_aux=True)
        if microbatches == 1:
            (value, metrics), grads = differentiate(whole, key, batch, *step_k)
        else:
            part = lambda key_p, rows: differentiate(whole, key_p, rows, *step_k)
            (value, metrics), grads = mean_over_parts(part, key, batch, microbatches)
        grads = gather(grads)
        if taken := {"loss", "grad_norm", "skipped"} & set(metrics):
            raise ValueError(f"the loss reports {sorted(taken)}, which make_step adds itself; rename them")
        if axis_name is not None:
            value, metrics, grads = jax.lax.pmean((value, metrics, grads), axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = (
            None if ema_decay is None else ema_update(state.ema_params, params, state.step, ema_decay)
        )
        # behind a barrier: the optimizer squares gradients too, and XLA would write the squares out for both
        norm = optax.tree.norm(jax.lax.optimization_barrier(grads))
        metrics = {"loss": value, "grad_norm": norm, **metrics}
        if isinstance(opt_state, SkipState):
            metrics["skipped"] = opt_state.skipped - state.opt_state.skipped
        metrics = {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}
        return TrainState(state.step + 1, params, opt_state, ema_params, state.key), metrics

    return step


def mean_over_parts(
    f: Callable[[Key[Array, ""], Any], PyTree], key: Key[Array, ""], batch: Any, n: int
) -> PyTree:
    """`1/n sum_p f(fold_in(key, p), batch[p::n])` in a loop, summed in float32 or better.

    With each `n`-th row a part has as many of each device, in their order, so that no row leaves its device. Raises
    ValueError where the rows do not divide into `n` parts.
    """
    rows = {len(x) for x in jax.tree.leaves(batch)}
    if any(r % n for r in rows):
        raise ValueError(
            f"a batch of {max(rows)} rows (of each device, by pmap) does not divide into {n} microbatches; "
            "choose a divisor of it"
        )
    parts = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
    out = jax.eval_shape(f, key, jax.tree.map(lambda x: x[0], parts))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), out)

    def add(total: PyTree, part: tuple[Array, Any]) -> tuple[PyTree, None]:
        p, rows = part
        return jax.tree.map(jnp.add, total, f(jax.random.fold_in(key, p), rows)), None

    total, _ = jax.lax.scan(add, start, (jnp.arange(n), parts))
    keep = lambda x, like: x.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.inexact) else x
    return jax.tree.map(lambda x, like: keep(x / n, like), total, out)


def ema_update(ema_params: PyTree, params: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """`d ema + (1 - d) params`, `d = min(decay, (1 + step) / (10 + step))`, in the dtype of the average."""
    decay_k = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    mean = optax.incremental_update(params, ema_params, 1.0 - decay_k)
    return jax.tree.map(lambda new, old: new.astype(old.dtype), mean, ema_params)
