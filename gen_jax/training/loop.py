"""The loop of every experiment: compiled steps, logs, samples, checkpoints, resumption."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from gen_jax.training import workdir as run_directory
from gen_jax.training.checkpoint import DIRECTORY, Checkpoints
from gen_jax.training.compile import Compiled, compile_step, lower_once
from gen_jax.training.distributed import StopRequest, agreement
from gen_jax.training.layout import Layout
from gen_jax.training.logs import MetricsFile, Reporter
from gen_jax.training.optimizer import Schedule
from gen_jax.training.run import Run, crossed
from gen_jax.training.state import Step, TrainState


@runtime_checkable
class InMemory(Protocol):
    """A data set that lives on the devices; the batch of a step is a pure function of the step."""

    @property
    def arrays(self) -> Mapping[str, Any]:
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
    state: TrainState | Callable[[], TrainState],
    batches: InMemory | Stream,
    *,
    num_steps: int,
    workdir: str | Path,
    config: Any = None,
    may_change: Collection[str] = ("num_steps", "steps", "workdir"),
    schedule: Schedule | None = None,
    parallel: str = "jit",
    mesh: Mesh | None = None,
    fsdp: bool = False,
    steps_per_call: int = 10,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    keep: int = 3,
    milestone: int | None = None,
    sample_every: int | None = None,
    on_sample: Callable[[int, TrainState], None] | None = None,
    resume: bool = True,
    progress: bool = True,
) -> TrainState:
    """Train to `num_steps` steps, or go on where an earlier run in `workdir` stopped; returns the last state.

    `state` is that before the first step, or a function that makes it. A function is called only where there is no
    checkpoint, in a program in which every device makes its own part and which compiles beside the step's: that saves
    seconds, and with `fsdp` room.

    Writes `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/` (the newest `keep`) in `workdir`.
    The checkpoint of `milestone` stays as well, from whose younger parameters a run may be guided (`gen_jax.runs`).
    `*_every` count steps and fire at the end of the call in which a multiple of them lies; a checkpoint is
    always written at the end. `steps_per_call` is lowered to a divisor of `num_steps`, so that there is one
    compilation. `schedule` is only logged. `on_sample(step, state)` runs in every process and must not keep
    `state`, whose memory the next call reuses.

    An interrupted and resumed run ends in the same bits as one that was not. SIGTERM saves at the end of the
    current call and raises `Preempted` (exit code 0); Ctrl-C saves and raises KeyboardInterrupt. A complete
    run is said to be so and its final state returned.

    Raises ValueError when `config` differs from the checkpoint's in a field not listed in `may_change`
    (dotted names), or with `resume=False` in a `workdir` that has checkpoints; OSError when `workdir` cannot
    be written or lacks room; TrainingDiverged, leaving all checkpoints as they are, when the loss, the
    gradient norm or the parameters to be saved are not finite (of steps that `skip_exploding` leaves out: 100 in a row).
    """
    given = state if isinstance(state, TrainState) else None
    make: Any = state if given is None else lambda: given
    shapes = jax.eval_shape(make)
    path = run_directory.prepare(workdir, shapes, keep=keep + (milestone is not None))
    layout = Layout(parallel, fsdp=fsdp) if mesh is None else Layout(parallel, mesh, fsdp)
    options = run_directory.plain(config)
    identity = _identity(batches)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(path / DIRECTORY, keep=keep, milestone=milestone))
        like = _like(layout, shapes) if given is None else layout.put_state(given)
        restored = _restore(checkpoints, like, options, identity, may_change, resume)
        first = restored if restored is not None or given is None else like
        start = 0 if first is None else int(first.step)
        if jax.process_index() == 0:
            run_directory.write_json(path / "config.json", options)
        reporter = Reporter(progress and jax.process_index() == 0, step=start, num_steps=num_steps)
        stack.callback(reporter.close)
        if restored is not None:
            done = f"already complete ({num_steps} steps)" if start >= num_steps else "resuming"
            reporter.say(f"{done}: checkpoint of step {start} in {checkpoints.directory}")
        if start >= num_steps:
            return _begin(make, layout.state_sharding(shapes)) if first is None else first
        size = call_size(steps_per_call, start, num_steps)
        compiled = compile_step(
            step,
            parallel=parallel,
            mesh=layout.mesh,
            fsdp=fsdp,
            steps_per_call=size,
            select=getattr(batches, "select", None),
        )
        file = MetricsFile(path, start) if jax.process_index() == 0 else None
        if file is not None:
            stack.callback(file.close)
        run = Run(
            schedule=None if schedule is None else jax.jit(schedule),  # a hundred small dispatches without it
            start=start,
            num_steps=num_steps,
            log_every=log_every,
            batch_size=batches.batch_size,
            meta={"config": options, "data": identity},
            checkpoints=checkpoints,
            reporter=reporter,
            file=file,
        )
        stop = stack.enter_context(StopRequest())
        ask, asked = agreement(layout.mesh), None
        feed = _feed(compiled, batches, start, num_steps)
        data = next(feed)
        if first is None:
            first = _begin(make, layout.state_sharding(shapes), lambda: compiled.lower(like, data))
        state = first
        for end in range(start + size, num_steps + 1, size):
            state, metrics = compiled(state, data)
            answer, asked = asked, ask(stop.signal)
            data = next(feed, None)  # while the devices work
            run.collect(end, metrics)
            requested = _read_signal(asked if jax.process_count() == 1 else answer)
            due = crossed(end, size, checkpoint_every) or (
                milestone is not None and end - size < milestone <= end
            )
            if requested or end == num_steps or due:
                run.save(state)
            if on_sample is not None and sample_every and crossed(end, size, sample_every):
                run.drain()
                with run.pause():
                    on_sample(end, state)
            if requested and end < num_steps:
                run.stop(requested, end)
        return state


def _like(layout: Layout, shapes: TrainState) -> TrainState:
    """Shapes and shardings of a state that is not there; its key is, for Orbax has no form for the shape of one."""
    key = layout.put_data(jnp.zeros((), shapes.key.dtype))
    return layout.shapes(shapes)._replace(key=key)


def _begin(
    make: Callable[[], TrainState],
    shardings: PyTree,
    lower_step: Callable[[], jax.stages.Lowered] | None = None,
) -> TrainState:
    """The state that `make` makes, in a program that compiles beside the step's: XLA does much of that on one core."""
    program = lower_once(make, out_shardings=shardings)
    if lower_step is None:
        return program.compile()()
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(lower_step().compile)
        state = program.compile()()
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


def _read_signal(asked: Any) -> int:
    return 0 if asked is None else int(asked)


def _identity(batches: Any) -> dict[str, Any]:
    """What makes the batch of a step the batch that it is; the position itself is the step."""
    if hasattr(batches, "get_state"):
        state = dict(batches.get_state())
        state.pop("step", None)
        return {"batch_size": batches.batch_size, **state}
    arrays = jax.tree.leaves(getattr(batches, "arrays", None))
    identity = {"batch_size": batches.batch_size, "num_examples": int(arrays[0].shape[0]) if arrays else None}
    if hasattr(batches, "key"):
        identity["key"] = np.asarray(jax.random.key_data(batches.key)).tolist()
    return identity


def _restore(
    checkpoints: Checkpoints,
    state: TrainState,
    config: dict[str, Any],
    identity: dict[str, Any],
    may_change: Collection[str],
    resume: bool,
) -> TrainState | None:
    if not resume:
        if checkpoints.steps():
            raise ValueError(
                f"resume=False, but {checkpoints.directory} has them up to step {checkpoints.steps()[-1]}; "
                "resume, remove them, or give another --workdir"
            )
        return None

    def check(meta: dict[str, Any]) -> None:
        run_directory.check_config(meta["config"], config, may_change)
        run_directory.check_config({"data": meta["data"]}, {"data": identity}, may_change)

    found = checkpoints.restore(state, check)
    return None if found is None else found[0]


def _feed(compiled: Compiled, batches: Any, start: int, num_steps: int) -> Iterator[PyTree]:
    """The second argument of every call, on the devices."""
    if hasattr(batches, "select"):
        data = compiled.put(dict(batches.arrays))
        for _ in range(start, num_steps, compiled.steps_per_call):
            yield data
        return
    batches.seek(start)
    for _ in range(start, num_steps, compiled.steps_per_call):
        if compiled.steps_per_call == 1:
            yield compiled.put(dict(next(batches)))
        else:
            several = [dict(next(batches)) for _ in range(compiled.steps_per_call)]
            yield compiled.put(jax.tree.map(lambda *rows: np.stack(rows), *several))
