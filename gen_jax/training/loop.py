"""The loop of every experiment: compiled steps, logs, samples, checkpoints, resumption."""

import contextlib
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from gen_jax import checks, paths
from gen_jax.training import feeding, lock, partners, profiling, room
from gen_jax.training import identity as identities
from gen_jax.training import workdir as run_directory
from gen_jax.training.callbacks import Callback, JSONLines, TensorBoard
from gen_jax.training.checkpoint import DIRECTORY, Checkpoints, prove
from gen_jax.training.compile import compile_step, lower_once
from gen_jax.training.cost import Cost
from gen_jax.training.distributed import StopRequest, agreement, default_parallel
from gen_jax.training.feeding import InMemory
from gen_jax.training.layout import Layout
from gen_jax.training.logs import Reporter
from gen_jax.training.mesh import make_mesh
from gen_jax.training.options import Options
from gen_jax.training.run import SUMS, Run, crossed
from gen_jax.training.state import Step, TrainState, check_state, check_step
from gen_jax.training.workdir import Json
from gen_jax.types import AnyPath, Size


@checks.checked
def fit(
    step: Step,
    state: TrainState | Callable[..., TrainState],
    batches: object,
    *,
    num_steps: Size,
    workdir: str | AnyPath | None = None,
    config: object = None,
    may_change: Collection[str] = ("num_steps", "steps", "workdir"),
    options: Options = Options(),
    schedule: optax.Schedule | None = None,
    shown: str = "loss",
    callbacks: Sequence[Callback] = (),
    frozen: PyTree = None,
    start_from: PyTree = None,
    mesh: Mesh | None = None,
    resume: bool = True,
) -> TrainState:
    """Train to `num_steps` steps, or go on where an earlier run in `workdir` stopped; returns the last state.

    An interrupted and resumed run ends in the same bits as one that was not. SIGTERM saves at the end of the current
    call and raises `Preempted` (exit code 75); Ctrl-C saves and raises KeyboardInterrupt. A complete run is said to be so
    and its final state returned.

    Args:
        step: from `make_step`.
        state: the state before the first step, or a function that makes it. A function is called only where there is no
            checkpoint, in a program in which every device makes its own part and which compiles beside the step's: that
            saves seconds, and where it is split memory.
        batches: the data; the batch of a step is a function of the step. `data.batches(arrays, batch_size, key=key)`, a
            list of batches, `Repeated(loader)` of a loader, or an object of one's own (`InMemory`, `Stream`).
        num_steps: steps of the whole run.
        workdir: where `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/` are written: a directory, or
            `gs://BUCKET/PATH`. With None nothing is: no checkpoints, no resumption, and a signal ends the run at once.
        config: a dataclass or mapping that describes the run. It is saved; a run that resumes must have an equal one.
            Without it the programs are compared (`identity`): a run resumes with the same loss and, for the same number
            of steps, with the same optimizer.
        may_change: fields of `config` (dotted names) that may differ when a run resumes; without a config "loss" and
            "optimizer".
        options: how it is run. Its `*_every` count steps and fire at the end of the call in which a multiple lies.
        schedule: `step -> learning rate`, for the log alone.
        shown: the metric that the terminal shows.
        callbacks: what is told of the run beside `JSONLines` and `TensorBoard`, which a run with a `workdir` has.
        frozen: weights for the loss that are not trained, as `aux.frozen` (`make_step(aux=True)`): an argument of the
            compiled program, on the devices as parameters are, and in no checkpoint.
        start_from: what `state` is called with, such as the weights of a model that is trained further; arrays of the
            host, or of any device. They are an argument of the program that makes the state, split as parameters are, and
            are on the devices while it runs.
        mesh: devices with an axis "data"; None: all, as `make_mesh` has them for `options`.
        resume: False refuses a `workdir` that has checkpoints.

    In the log a metric of the loss with a name that `fit` needs itself (`step`, `seconds`, a rate) is "loss.step" and so
    on. That the state can be saved is tried before the first step, with small arrays of the same kinds.

    Raises ValueError when `config` differs from the checkpoint's, or the batch size, the number or the order of the data;
    when the state is one that cannot be saved, or with `resume=False` in a `workdir` that has checkpoints; WorkdirInUse,
    a ValueError, at once when another run is in `workdir`; OSError when `workdir` cannot be written, lacks room, or is
    full in the middle; TrainingDiverged, leaving all checkpoints as they are, when the loss, the gradient norm or the
    parameters to be saved are not finite (of steps that `skip_exploding` leaves out: 100 in a row).
    """
    check_step(step)
    given = state if isinstance(state, TrainState) else None
    if given is not None:
        check_state(given)
    if isinstance(may_change, str):
        raise ValueError(f"may_change must be a list of names, got {may_change!r}: ({may_change!r},).")
    batches = feeding.as_batches(batches)
    given_to_state = () if start_from is None else (start_from,)

    def make(*args: PyTree) -> TrainState:
        return state if isinstance(state, TrainState) else state(*args)

    shapes = jax.eval_shape(make, *given_to_state)
    if not isinstance(shapes, TrainState):
        raise ValueError(
            "state must be a TrainState, or a function that makes one, as TrainState.create(params, optimizer, key) "
            f"does; it made {checks.came(shapes)}."
        )
    check_state(shapes)
    mesh = (
        make_mesh(options.shard, tensor=options.tensor, replicas=options.replicas) if mesh is None else mesh
    )
    parallel = options.parallel or default_parallel(options.shard, mesh)
    if options.profile is not None and workdir is None:
        raise ValueError("profile needs a workdir, in which the trace is written.")
    layout = Layout(parallel, mesh, options.shard)
    like = _like(layout, shapes) if given is None else layout.put_state(given)
    meta = {"config": run_directory.plain(config), "data": feeding.identity(batches)}
    if config is None and workdir is not None:
        batch = feeding.shapes(batches, 0)
        meta["identity"] = identities.of_run(step, shapes, batch, frozen, num_steps)
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        checkpoints = restored = None
        sums: Mapping[str, Sequence[str]] = {}
        if workdir is not None:
            kept = options.keep + len(options.keep_from)
            path = run_directory.prepare(workdir)
            run_directory.check_shared(path)
            stack.enter_context(room.explained(path / DIRECTORY, shapes))
            stack.enter_context(lock.of_run(path))
            stack.enter_context(partners.watched(path))
            checkpoints = stack.enter_context(
                Checkpoints(path / DIRECTORY, keep=options.keep, keep_from=options.keep_from)
            )
            if (found := _restore(checkpoints, like, meta, may_change, resume)) is not None:
                restored, sums = found[0], found[1].get(SUMS, {})
            if restored is None or int(restored.step) < num_steps:
                room.check(path / DIRECTORY, shapes, keep=kept)
            if restored is None:
                prove(like, meta)
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
        if start > num_steps:
            warnings.warn(
                f"num_steps is {num_steps}, but the run in {workdir} has {start} steps: its state is that of {start}.",
                stacklevel=2,
            )
        if start >= num_steps:
            return _begin(make, layout, shapes, given_to_state) if first is None else first
        size = call_size(options.steps_per_call, start, num_steps)
        compiled = compile_step(
            step,
            parallel=parallel,
            mesh=layout.mesh,
            shard=options.shard,
            steps_per_call=size,
            select=getattr(batches, "select", None),
        )
        for callback in callbacks if main else ():
            callback.on_start(start)
        cost = Cost([*layout.mesh.devices.flat], watch=not isinstance(batches, InMemory))
        stack.callback(cost.close)
        run = Run(
            shown=shown,
            schedule=None if schedule is None else jax.jit(schedule),  # a hundred small dispatches without it
            start=start,
            num_steps=num_steps,
            log_every=options.log_every,
            batch_size=batches.batch_size,
            meta=meta,
            checkpoints=checkpoints,
            reporter=reporter,
            callbacks=callbacks,
            cost=cost,
            seconds=max((c.seconds for c in callbacks if isinstance(c, JSONLines)), default=0.0),
            sums=sums,
        )
        stop = StopRequest() if checkpoints is None else stack.enter_context(StopRequest())
        ask, asked = agreement(layout.mesh), None
        frozen = layout.put_frozen(frozen)
        feed = feeding.feed(compiled, batches, start, num_steps)
        with cost.spend("data"):
            data = next(feed)
        reporter.of_images = feeding.of_images(data, 1 + (size > 1 and not isinstance(batches, InMemory)))
        program = compiled.lower(like if first is None else first, data, frozen)
        run.check_metrics(program.out_info[1])
        with ThreadPoolExecutor(1) as pool:
            compiling = pool.submit(program.compile)  # for much of it XLA uses one core
            first = _begin(make, layout, shapes, given_to_state) if first is None else first
            cost.of_program(compiled.flops, compiling.result())
        steps = None if options.profile is None else profiling.steps_of(options.profile)
        trace = profiling.Trace(steps, paths.path_of(workdir or "") / "tensorboard")
        stack.callback(trace.close)
        run.begin(start)
        state = first
        for end in range(start + size, num_steps + 1, size):
            with trace.call(end, size):
                state, metrics = compiled(state, data, frozen)
            trace.after(end, state)
            answer, asked = asked, ask(stop.signal)
            with cost.waiting(metrics):
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
) -> TrainState:
    """The state that `make` makes."""
    args = tuple(layout.put_frozen(tree) for tree in args)
    state: TrainState = lower_once(make, *args, out_shardings=layout.state_sharding(shapes)).compile()(*args)
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


def _restore(
    checkpoints: Checkpoints, like: TrainState, now: Json, may_change: Collection[str], resume: bool
) -> tuple[TrainState, Json] | None:
    if not resume:
        if steps := checkpoints.steps():
            raise ValueError(
                f"resume=False expects a workdir without checkpoints, but {checkpoints.directory} has some, up to step "
                f"{steps[-1]}; leave out resume=False, remove them, or give another workdir"
            )
        return None

    def check(meta: Json) -> None:
        if "identity" in now:
            where = str(checkpoints.directory)
            identities.check(meta.get("identity"), now["identity"], may_change, where)
        run_directory.check_config(meta["config"], now["config"], may_change)
        run_directory.check_config({"data": meta["data"]}, {"data": now["data"]}, may_change)

    return checkpoints.restore(like, check)
