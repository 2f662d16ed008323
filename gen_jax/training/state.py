"""What training carries from step to step, and the one step that every family of models trains with."""

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Annotated, NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from gen_jax import checks
from gen_jax.training import ema as averages
from gen_jax.training.ema import Decay
from gen_jax.training.objective import Build, Differentiate, Loss, Metrics, averaged, value_of, with_metrics
from gen_jax.training.skip import SkipState
from gen_jax.types import Count

Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
"""Of optax."""
MUTABLE = ("batch_stats", "cache", "intermediates", "perturbations")
"""Collections of Flax that a network changes while it runs, which no gradient moves."""


class Aux(NamedTuple):
    """What a loss may use beside the parameters that it is differentiated by. Nothing is differentiated through it."""

    step: Int[Array, ""]
    """Steps done so far, int32: a term may be warmed up, a schedule of a consistency loss followed."""
    ema_params: PyTree | None
    """The running average before this step, as in `TrainState`: a teacher."""
    frozen: PyTree | None
    """Weights that are not trained, as given to `fit` or to the compiled step; None where there are none."""


class TrainState(NamedTuple):
    """Everything that a run has learned or counted; what a checkpoint holds."""

    step: Annotated[Int[Array, ""], checks.Range(0)]
    """Steps done so far, int32."""
    params: PyTree
    opt_state: PyTree | None
    """What the optimizer remembers."""
    ema_params: PyTree | None
    """Running average of `params`, to sample with, in float32 or better; None without one, a dict of several by name."""
    key: Key[Array, ""]
    """The seed. It never changes: step `k` draws from `fold_in(key, k)`."""

    @classmethod
    @checks.checked
    def create(
        cls,
        params: PyTree,
        optimizer: Optimizer,
        key: Key[Array, ""],
        *,
        ema: bool | Collection[str] = True,
    ) -> "TrainState":
        """The state before the first step, with the average at the initial parameters.

        `ema=False` is without an average, `ema=("short", "long")` with one for each name (`make_step`). Moments of the
        optimizer and averages are in float32 or better, whatever the parameters are: in bfloat16 they would not move.

        Raises ValueError for a leaf of `params` that no gradient can move: an integer, a function, the statistics of a
        BatchNorm.
        """
        check_params(params)
        if isinstance(ema, bool):
            average = averages.start(params) if ema else None
        else:
            averages.check_names(ema)
            average = {name: averages.start(params) for name in ema}
        opt_state = optimizer.init(averages.wide(params))
        return cls(jnp.zeros((), jnp.int32), params, opt_state, average, key)


def check_params(params: PyTree, called: str = "params") -> None:
    """Raise ValueError, that names it, for a leaf of `params` that gradients do not move."""
    _check_collections(params)
    # by name: flax.nnx takes a second to import, and Equinox need not be there
    is_statistic = lambda x: type(x).__name__ in ("BatchStat", "StateIndex")
    found = [x for x in jax.tree.leaves(params, is_leaf=is_statistic) if is_statistic(x)]
    if jax.tree.leaves(found):
        raise ValueError(
            "params hold the statistics of a BatchNorm (batch_stats). A step changes only what has a gradient, so they "
            "would never change; use GroupNorm or LayerNorm"
        )
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(getattr(x, "dtype", object), jnp.inexact):
            raise ValueError(
                f"{called} must be floating-point arrays, but {called}{jax.tree_util.keystr(path)} is "
                f"{getattr(x, 'dtype', type(x).__name__)}; split off what is not learned: "
                "nnx.split(model, nnx.Param, ...) or equinox.partition(model, equinox.is_inexact_array)"
            )


def check_state(state: TrainState) -> None:
    """Raise ValueError for a state with parts that are no arrays, or parameters that gradients do not move."""
    check_params(state.params, "state.params")
    for name in ("opt_state", "ema_params"):
        for path, x in jax.tree_util.tree_leaves_with_path(getattr(state, name)):
            if not hasattr(x, "dtype"):
                raise ValueError(
                    f"state.{name} must be arrays, but state.{name}{jax.tree_util.keystr(path)} is {checks.came(x)}: "
                    "make the state by TrainState.create."
                )


def _check_collections(params: PyTree) -> None:
    """Raise ValueError for a mutable collection of Flax, at any depth: beside one that is called "params"."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    named = [[str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path] for path in paths]
    beside = {tuple(names[:i]) for names in named for i, name in enumerate(names) if name == "params"}
    for names in named:
        for i, name in enumerate(names):
            if name not in MUTABLE or (name != "batch_stats" and tuple(names[:i]) not in beside):
                continue
            what = "the statistics of a BatchNorm (batch_stats)" if name == "batch_stats" else f"{name!r}"
            where = "".join(f"[{each!r}]" for each in names[: i + 1])
            raise ValueError(
                f"params hold {what}, in params{where}. A network writes them while it runs, and gradients must not "
                'change them: train the collection "params" alone, and use GroupNorm or LayerNorm in place of a BatchNorm'
            )


@runtime_checkable
class Step(Protocol):
    """`(state, batch) -> (state, metrics)`, pure."""

    def __call__(
        self,
        state: TrainState,
        batch: PyTree,
        *,
        frozen: PyTree = None,
        axis_name: str | None = None,
        spread: Callable[[Build, Loss], Differentiate] | None = None,
    ) -> tuple[TrainState, Metrics]:
        """Gradients and metrics are averaged over `axis_name`, where one is bound. `frozen` is for the loss (`Aux`).

        `spread(build, loss)` is `build(loss)` on many devices at once, for arrays that are split over them; without it
        the loss and its gradient are those of the batch as it is. A step of one's own may leave it out: then the
        compiler splits it over the devices as it sees fit.
        """


def check_step(step: Step) -> None:
    """Raise ValueError for what is no step, such as a loss."""
    if not takes(step, "axis_name"):
        raise ValueError(
            "step must be made by training.make_step(loss, optimizer), called as step(state, batch, axis_name=None). "
            f"Got {checks.came(step)} of {', '.join(inspect.signature(step).parameters)}."
        )


def takes(step: Step, name: str) -> bool:
    """Whether a step has an argument of that name, as far as can be seen."""
    try:
        parameters = inspect.signature(step).parameters
    except (TypeError, ValueError):  # of C, or not to be looked at
        return True
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


@checks.checked
def make_step(
    loss: Loss,
    optimizer: Optimizer,
    *,
    ema_decay: float | Mapping[str, float | Decay] | None = 0.9999,
    aux: bool = False,
    microbatches: Count = 1,
) -> Step:
    """One step of stochastic gradient descent, as a pure function that knows nothing of devices.

        g_k         = d/dparams loss(params_k, fold_in(key, k), batch_k)
        params_k+1  = params_k + optimizer(g_k)
        ema_k+1     = d_k ema_k + (1 - d_k) params_k+1,   d_k = min(ema_decay, (1 + k) / (10 + k))

    The average warms up so that the initial parameters are forgotten early. `ema_decay=None` is for a state without one,
    `TrainState.create(..., ema=False)`. For several, `ema_decay={"short": 0.99, "long": ema.power(6.94)}` gives each a
    name and a decay, a number or a function of the step, and `TrainState.create(..., ema=("short", "long"))` has them.
    Under gradient accumulation an average moves at every micro-step.

    With `aux=True` the loss is called as `loss(params, key, batch, aux)`, where `aux` holds the step, the average and
    frozen weights (`Aux`).

    With `microbatches = n` the gradient is the mean of the gradients of `n` equal parts of the batch, one after the
    other, so that only the activations of one part are in memory. Part `p` has the rows `p, p + n, p + 2n, ...` and
    draws from `fold_in(fold_in(key, k), p)`.

    The optimizer may use the loss: `update` gets `value=`, `grad=` and `value_fn=` where it takes them
    (`optax.contrib.reduce_on_plateau`, `optax.lbfgs`). `value_fn(params)` is the loss of this batch with the noise of
    this step. The optimizer sees gradients and parameters in float32 or better.

    The metrics are those of the loss with `loss` and `grad_norm` (global norm, before any clipping), float32
    scalars; with `skip_exploding` also `skipped`, 1 where the step was not taken. Raises ValueError when a decay
    is outside [0, 1), the averages of the state are not those of `ema_decay`, the loss returns something else or reports
    a metric under one of these names, frozen weights are given without `aux`, or the rows do not divide into
    `microbatches`.
    """
    decays, loss = averages.tracks(ema_decay), with_metrics(loss)
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    optimizer = optax.with_extra_args_support(optimizer)
    build = partial(_in_parts, n=microbatches)

    def step(
        state: TrainState,
        batch: PyTree,
        *,
        frozen: PyTree = None,
        axis_name: str | None = None,
        spread: Callable[[Build, Loss], Differentiate] | None = None,
    ) -> tuple[TrainState, Metrics]:
        tracks = averages.by_name(state.ema_params, state.params)
        if set(tracks) != set(decays):
            ema = tuple(decays) if "" not in decays and decays else bool(decays)
            raise ValueError(f"ema_decay needs a state from TrainState.create(..., ema={ema})")
        wanted = jax.eval_shape(optimizer.init, averages.wide(state.params))
        if jax.tree.structure(state.opt_state) != jax.tree.structure(wanted):  # type: ignore[operator]
            raise ValueError(
                "state.opt_state is of another optimizer than that of make_step, or of other parameters: give both the "
                "same, TrainState.create(params, optimizer, key) and make_step(loss, optimizer)"
            )
        if frozen is not None and not aux:
            raise ValueError(
                "there are frozen weights but the loss does not take them: make_step(..., aux=True)"
            )
        key = jax.random.fold_in(state.key, state.step)
        extra = (Aux(state.step, state.ema_params, frozen),) if aux else ()
        if axis_name is not None:
            spread = partial(averaged, axis_name=axis_name)
        differentiate = build(loss) if spread is None else spread(build, loss)
        (value, metrics), grads = differentiate(state.params, key, batch, *extra)
        if taken := {"loss", "grad_norm", "skipped"} & set(metrics):
            raise ValueError(f"the loss reports {sorted(taken)}, which make_step adds itself; rename them")
        grads = averages.wide(grads)
        updates, opt_state = optimizer.update(
            grads,
            state.opt_state,
            averages.wide(state.params),
            value=value,
            grad=grads,
            value_fn=value_of(differentiate, key, batch, *extra),
        )
        opt_state = averages.like(opt_state, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        ema_params = averages.from_names(
            {name: averages.update(x, params, state.step, decays[name]) for name, x in tracks.items()}
        )
        # behind a barrier: the optimizer squares gradients too, and XLA would write the squares out for both
        norm = optax.tree.norm(jax.lax.optimization_barrier(grads))
        metrics = {"loss": value, "grad_norm": norm, **metrics}
        if isinstance(opt_state, SkipState):
            metrics["skipped"] = opt_state.skipped - cast(SkipState, state.opt_state).skipped
        metrics = {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}
        return TrainState(state.step + 1, params, opt_state, ema_params, state.key), metrics

    step.parts = (loss, optimizer, aux)  # type: ignore[attr-defined]  # of which `identity` tells runs apart
    return step


def _in_parts(loss: Loss, n: int) -> Differentiate:
    """The loss and its gradient, of a batch that is taken in `n` parts."""
    differentiate = jax.value_and_grad(loss, has_aux=True)
    if n == 1:
        return differentiate

    def of(params: PyTree, key: Key[Array, ""], batch: PyTree, *extra: Aux) -> PyTree:
        return mean_over_parts(lambda key_p, rows: differentiate(params, key_p, rows, *extra), key, batch, n)

    return of


def mean_over_parts(
    f: Callable[[Key[Array, ""], PyTree], PyTree], key: Key[Array, ""], batch: PyTree, n: int
) -> PyTree:
    """`1/n sum_p f(fold_in(key, p), batch[p::n])` in a loop, summed in float32 or better.

    A part takes every `n`-th row, which is as many rows from each device, so that no row moves to another device. Raises
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

    def add(total: PyTree, part: tuple[Array, PyTree]) -> tuple[PyTree, None]:
        p, rows = part
        return jax.tree.map(jnp.add, total, f(jax.random.fold_in(key, p), rows)), None

    total, _ = jax.lax.scan(add, start, (jnp.arange(n), parts))
    keep = lambda x, like: x.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.inexact) else x
    return jax.tree.map(lambda x, like: keep(x / n, like), total, out)
