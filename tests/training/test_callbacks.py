import json

import jax
import numpy as np
import pytest
import toy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gen_jax import training

ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


class Record(training.Callback):
    """Everything that was called, in order."""

    def __init__(self):
        self.calls = []

    def on_start(self, step):
        self.calls.append(("start", step))

    def on_log(self, step, values):
        self.calls.append(("log", step))
        assert {"loss", "grad_norm", "steps_per_second", "seconds"} <= set(values)

    def on_checkpoint(self, step, state):
        self.calls.append(("checkpoint", step))
        assert int(state.step) == step

    def on_sample(self, step, state):
        self.calls.append(("sample", step))
        assert int(state.step) == step

    def close(self):
        self.calls.append(("close",))


def fit(workdir, num_steps=20, callbacks=(), problem=None, **options):
    step, state, schedule = toy.setup(num_steps) if problem is None else problem
    how = {"steps_per_call": 5, "log_every": 10, "checkpoint_every": 10, "progress": False} | options
    return training.fit(
        step,
        state,
        toy.InMemory(),
        num_steps=num_steps,
        workdir=workdir,
        schedule=schedule,
        options=training.Options(**how),
        callbacks=callbacks,
        mesh=ONE,
    )


def test_callbacks_are_told_in_order_also_of_a_resumed_run(tmp_path):
    record = Record()
    fit(tmp_path, callbacks=[record], sample_every=10)
    expected = [("start", 0)]
    expected += [
        ("log", 10),
        ("checkpoint", 10),
        ("sample", 10),
        ("log", 20),
        ("checkpoint", 20),
        ("sample", 20),
    ]
    assert record.calls == [*expected, ("close",)]
    again = Record()
    fit(tmp_path, 30, callbacks=[again])
    assert again.calls == [("start", 20), ("log", 30), ("checkpoint", 30), ("close",)]
    complete = Record()
    fit(tmp_path, 30, callbacks=[complete])
    assert complete.calls == [("close",)]


def test_callbacks_are_closed_after_an_error(tmp_path):
    class Broken(Record):
        def on_log(self, step, values):
            raise RuntimeError("no room")

    broken, other = Broken(), Record()
    with pytest.raises(RuntimeError, match="no room"):
        fit(tmp_path, callbacks=[broken, other])
    assert broken.calls[-1] == other.calls[-1] == ("close",)


def test_a_callback_needs_none_of_the_methods(tmp_path):
    fit(tmp_path, callbacks=[training.Callback()], sample_every=5)


def test_without_a_workdir_nothing_is_written_and_the_state_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = Record()
    state = fit(None, callbacks=[record], sample_every=10)
    assert list(tmp_path.iterdir()) == []
    assert record.calls == [
        ("start", 0),
        ("log", 10),
        ("sample", 10),
        ("log", 20),
        ("sample", 20),
        ("close",),
    ]
    toy.assert_same_bits(state, fit(tmp_path / "run"))


def test_without_a_workdir_signals_are_not_held_back():
    import signal

    before = signal.getsignal(signal.SIGINT)

    class Look(training.Callback):
        def on_sample(self, step, state):
            assert signal.getsignal(signal.SIGINT) is before

    fit(None, callbacks=[Look()], sample_every=5)


def test_without_a_workdir_what_is_not_finite_still_ends_the_run():
    def loss(params, key, batch):
        value, metrics = toy.loss(params, key, batch)
        return value * np.nan, metrics

    jax.config.update("jax_debug_nans", False)
    try:
        with pytest.raises(training.TrainingDiverged, match=r"step 0 .*no checkpoint yet"):
            fit(None, problem=toy.setup(20, loss=loss))
    finally:
        jax.config.update("jax_debug_nans", True)


def test_tensorboard_has_the_figures_of_the_lines(tmp_path):
    fit(tmp_path)
    fit(tmp_path, 30)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [line["step"] for line in lines] == [10, 20, 30]
    for name in ("loss", "seconds", "learning_rate", "flops_per_step", "mfu", "data_share", "program_bytes"):
        events = board.Scalars(name)
        assert [event.step for event in events] == [10, 20, 30]
        np.testing.assert_allclose(
            [event.value for event in events], [line[name] for line in lines], rtol=1e-6
        )


def test_seconds_go_on_where_the_run_was_stopped(tmp_path):
    fit(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["seconds"] = 1000.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fit(tmp_path, 30)
    assert 1000 < json.loads(path.read_text().splitlines()[-1])["seconds"] < 1100


def test_json_lines_forget_what_is_beyond_the_step(tmp_path):
    path = tmp_path / "lines.jsonl"
    file = training.JSONLines(path)
    file.on_start(0)
    for step in (1, 2, 3):
        file.on_log(step, {"loss": 1.0 / step, "seconds": float(step), "bad": np.inf})
    with path.open("a") as cut:
        cut.write('{"step": 4, "lo')
    again = training.JSONLines(path)
    again.on_start(2)
    again.on_log(5, {"loss": 0.1})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": 1.0, "seconds": 1.0, "bad": None},
        {"step": 2, "loss": 0.5, "seconds": 2.0, "bad": None},
        {"step": 5, "loss": 0.1},
    ]
    assert again.seconds == 2.0


@pytest.mark.parametrize(
    ("devices", "options", "expected"),
    [(1, {}, "jit"), (8, {}, "pmap"), (8, {"shard": "fsdp"}, "jit"), (8, {"parallel": "jit"}, "jit")],
)
def test_fit_runs_as_is_faster_here_unless_told(monkeypatch, devices, options, expected):
    """Several devices of one CPU: pmap."""
    from gen_jax.training import loop

    seen = []
    compile_step = loop.compile_step
    monkeypatch.setattr(
        loop, "compile_step", lambda *args, **how: seen.append(how["parallel"]) or compile_step(*args, **how)
    )
    step, state, _ = toy.setup(10)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("data",))
    how = training.Options(steps_per_call=5, progress=False, **options)
    training.fit(step, state, toy.InMemory(), num_steps=10, workdir=None, options=how, mesh=mesh)
    assert seen == [expected]


def test_default_parallel_of_a_mesh_of_two_axes_is_jit():
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    assert training.default_parallel(mesh=mesh) == "jit"
