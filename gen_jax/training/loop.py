"""The loop of every experiment: compiled steps, logs, samples, checkpoints, resumption."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from gen_jax.training import workdir as run_directory
from gen_jax.training.callbacks import Callback, JSONLines, TensorBoard
from gen_jax.training.checkpoint import DIRECTORY, Checkpoints
from gen_jax.training.compile import Compiled, compile_step, lower_once
from gen_jax.training.distributed import StopRequest, agreement, default_parallel
from gen_jax.training.layout import Layout
from gen_jax.training.logs import Reporter
from gen_jax.training.options import Options
from gen_jax.training.run import Run, crossed
from gen_jax.training.state import Step, TrainState
from gen_jax.training.workdir import Json


@runtime_checkable
class InMemory(Protocol):
    """A data set that lives on the devices; the batch of a step is a pure function of the step."""

    @property
    def arrays(self) -> Mapping[str, Array | np.ndarray]:
        """Arrays with one leading axis of examples."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    def select(self, step: Int[Array, ""], num_steps: int) -> Int[Array, "K B"]:
        """Rows of the batches of `num_steps` steps from `step`."""


@runtime_checkable
class Stream(Protocol):
    """Host batches in an order that is a function of the step; `batch_size` is that of all processes."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    def seek(self, step: int) -> None:
        """Go to the batch of `step`."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next batch: this process's rows."""


def fit(
    step: Step,
    state: TrainState | Callable[..., TrainState],
    batches: InMemory | Stream,
    *,
    num_steps: int,
    workdir: str | Path | None,
    config: object = None,
    may_change: Collection[str] = ("num_steps", "steps", "workdir"),
    options: Options = Options(),
    schedule: optax.Schedule | None = None,
    callbacks: Sequence[Callback] = (),
    frozen: PyTree = None,
    start_from: PyTree = None,
    mesh: Mesh | None = None,
    resume: bool = True,
) -> TrainState:
    """Train to `num_steps` steps, or go on where an earlier run in `workdir` stopped; returns the last state.

    An interrupted and resumed run ends in the same bits as one that was not. SIGTERM saves at the end of the current
    call and raises `Preempted` (exit code 0); Ctrl-C saves and raises KeyboardInterrupt. A complete run is said to be so
    and its final state returned.

    Args:
        step: from `make_step`.
        state: the state before the first step, or a function that makes it. A function is called only where there is no
            checkpoint, in a program in which every device makes its own part and which compiles beside the step's: that
            saves seconds, and with `fsdp` memory.
        batches: the data; the batch of a step is a function of the step.
        num_steps: steps of the whole run.
        workdir: where `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/` are written. With None nothing
            is: no checkpoints, no resumption, and a signal ends the run at once.
        config: a dataclass or mapping that describes the run. It is saved; a run that resumes must have an equal one.
        may_change: fields of `config` (dotted names) that may differ when a run resumes.
        options: how it is run. Its `*_every` count steps and fire at the end of the call in which a multiple lies.
        schedule: `step -> learning rate`, for the log alone.
        callbacks: what is told of the run beside `JSONLines` and `TensorBoard`, which a run with a `workdir` has.
        frozen: weights for the loss that are not trained, as `aux.frozen` (`make_step(aux=True)`): an argument of the
            compiled program, on the devices as parameters are, and in no checkpoint.
        start_from: what `state` is called with, such as the weights of a model that is trained further; arrays of the
            host, or of any device. They are an argument of the program that makes the state, split as parameters are, and
            are on the devices while it runs.
        mesh: devices with an axis "data"; None: all.
        resume: False refuses a `workdir` that has checkpoints.

    Raises ValueError when `config` or the data differ from the checkpoint's, or with `resume=False` in a `workdir` that
    has checkpoints; OSError when `workdir` cannot be written or lacks room; TrainingDiverged, leaving all checkpoints as
    they are, when the loss, the gradient norm or the parameters to be saved are not finite (of steps that
    `skip_exploding` leaves out: 100 in a row).
    """
    given = state if isinstance(state, TrainState) else None

    given_to_state = () if start_from is None else (start_from,)

    def make(*args: PyTree) -> TrainState:
        return state if isinstance(state, TrainState) else state(*args)

    shapes = jax.eval_shape(make, *given_to_state)
    parallel = options.parallel or default_parallel(options.fsdp, mesh)
    layout = Layout(parallel, fsdp=options.fsdp) if mesh is None else Layout(parallel, mesh, options.fsdp)
    like = _like(layout, shapes) if given is None else layout.put_state(given)
    meta = {"config": run_directory.plain(config), "data": _identity(batches)}
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        checkpoints = restored = None
        if workdir is not None:
            kept = options.keep + len(options.keep_from)
            path = run_directory.prepare(workdir, shapes, keep=kept)
            checkpoints = stack.enter_context(
                Checkpoints(path / DIRECTORY, keep=options.keep, keep_from=options.keep_from)
            )
            restored = _restore(checkpoints, like, meta, may_change, resume)
            if main:
                run_directory.write_json(path / "config.json", meta["config"])
                callbacks = JSONLines(path / "metrics.jsonl"), TensorBoard(path / "tensorboard"), *callbacks
        for callback in callbacks:
            stack.callback(callback.close)
        first = restored if restored is not None or given is None else like
        start = 0 if first is None else int(first.step)
        reporter = Reporter(options.progress and main, step=start, num_steps=num_steps)
        stack.callback(reporter.close)
        if checkpoints is not None and restored is not None:
            done = f"already complete ({num_steps} steps)" if start >= num_steps else "resuming"
            reporter.say(f"{done}: checkpoint of step {start} in {checkpoints.directory}")
        if start >= num_steps:
            return _begin(make, layout, shapes, given_to_state) if first is None else first
        size = call_size(options.steps_per_call, start, num_steps)
        compiled = compile_step(
            step,
            parallel=parallel,
            mesh=layout.mesh,
            fsdp=options.fsdp,
            steps_per_call=size,
            select=getattr(batches, "select", None),
        )
        for callback in callbacks if main else ():
            callback.on_start(start)
        run = Run(
            schedule=None if schedule is None else jax.jit(schedule),  # a hundred small dispatches without it
            start=start,
            num_steps=num_steps,
            log_every=options.log_every,
            batch_size=batches.batch_size,
            meta=meta,
            checkpoints=checkpoints,
            reporter=reporter,
            callbacks=callbacks,
            seconds=max((c.seconds for c in callbacks if isinstance(c, JSONLines)), default=0.0),
        )
        stop = StopRequest() if checkpoints is None else stack.enter_context(StopRequest())
        ask, asked = agreement(layout.mesh), None
        frozen = layout.put_frozen(frozen)
        feed = _feed(compiled, batches, start, num_steps)
        data = next(feed)
        if first is None:
            lower = lambda: compiled.lower(like, data, frozen)
            first = _begin(make, layout, shapes, given_to_state, lower)
        else:
            compiled.lower(first, data, frozen).compile()
        run.begin(start)
        state = first
        for end in range(start + size, num_steps + 1, size):
            state, metrics = compiled(state, data, frozen)
            answer, asked = asked, ask(stop.signal)
            data = next(feed, None)  # while the devices work
            run.collect(end, metrics)
            requested = _read_signal(asked if jax.process_count() == 1 else answer)
            due = crossed(end, size, options.checkpoint_every) or any(
                end - size < at <= end for at in options.keep_from
            )
            if requested or end == num_steps or due:
                run.save(end, state)
            if options.sample_every and crossed(end, size, options.sample_every):
                run.sample(end, state)
            if requested and end < num_steps:
                run.stop(requested, end)
        run.drain()
        return state


def _like(layout: Layout, shapes: TrainState) -> TrainState:
    """Shapes and shardings of a state that is not made yet, but for the key, of which Orbax takes no shape."""
    key = layout.put_data(jnp.zeros((), shapes.key.dtype))
    return layout.shapes(shapes)._replace(key=key)


def _begin(
    make: Callable[..., TrainState],
    layout: Layout,
    shapes: TrainState,
    args: tuple[PyTree, ...],
    lower_step: Callable[[], jax.stages.Lowered] | None = None,
) -> TrainState:
    """The state that `make` makes, while the step compiles in a second thread: for much of it XLA uses one core."""
    args = tuple(layout.put_frozen(tree) for tree in args)
    program = lower_once(make, *args, out_shardings=layout.state_sharding(shapes))
    if lower_step is None:
        return program.compile()(*args)
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(lower_step().compile)
        state = program.compile()(*args)
        step.result()
    return state


def call_size(steps_per_call: int, start: int, num_steps: int) -> int:
    """The largest number of steps, up to `steps_per_call`, that divides both the run and where it starts.

    It is the same for a run and its resumed rest, which makes their arithmetic the same to the bit.
    """
    if steps_per_call < 1:
        raise ValueError(f"steps_per_call must be at least 1, got {steps_per_call}")
    common = math.gcd(start, num_steps)
    return next(k for k in range(min(steps_per_call, common), 0, -1) if common % k == 0)


def _read_signal(asked: Array | int | None) -> int:
    return 0 if asked is None else int(asked)


def _identity(batches: InMemory | Stream) -> Json:
    """What makes the batch of a step the batch that it is; the position itself is the step."""
    identity: Json = {"batch_size": batches.batch_size}
    if hasattr(batches, "get_state"):
        return identity | {name: x for name, x in batches.get_state().items() if name != "step"}
    arrays = jax.tree.leaves(getattr(batches, "arrays", None))
    identity["num_examples"] = int(arrays[0].shape[0]) if arrays else None
    if hasattr(batches, "key"):
        identity["key"] = np.asarray(jax.random.key_data(batches.key)).tolist()
    return identity


def _restore(
    checkpoints: Checkpoints, like: TrainState, now: Json, may_change: Collection[str], resume: bool
) -> TrainState | None:
    if not resume:
        if steps := checkpoints.steps():
            raise ValueError(
                f"resume=False, but {checkpoints.directory} has them up to step {steps[-1]}; "
                "resume, remove them, or give another workdir"
            )
        return None

    def check(meta: Json) -> None:
        run_directory.check_config(meta["config"], now["config"], may_change)
        run_directory.check_config({"data": meta["data"]}, {"data": now["data"]}, may_change)

    found = checkpoints.restore(like, check)
    return None if found is None else found[0]


def _feed(compiled: Compiled, batches: InMemory | Stream, start: int, num_steps: int) -> Iterator[PyTree]:
    """The second argument of every call, on the devices."""
    size = compiled.steps_per_call
    if isinstance(batches, InMemory):
        data = compiled.put(dict(batches.arrays))
        for _ in range(start, num_steps, size):
            yield data
        return
    batches.seek(start)
    for _ in range(start, num_steps, size):
        if size == 1:
            yield compiled.put(dict(next(batches)))
        else:
            several = [dict(next(batches)) for _ in range(size)]
            yield compiled.put(jax.tree.map(lambda *rows: np.stack(rows), *several))
