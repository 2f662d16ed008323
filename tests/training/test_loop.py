import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from toy import fit, lines, steps

from gen_jax import training
from gen_jax.training import loop
from gen_jax.training.cost import FIGURES
from gen_jax.training.loop import call_size
from tests.marks import slow


def stop_at(step, number=signal.SIGTERM):
    """A sample callback that sends this process a signal."""
    return lambda now, state: os.kill(os.getpid(), number) if now == step else None


def deterministic(workdir):
    """The lines of the log without what depends on the clock."""
    clock = {"seconds", "steps_per_second", "images_per_second", *FIGURES} - {"flops_per_step"}
    return [{name: x for name, x in line.items() if name not in clock} for line in lines(workdir)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, fit(workdir)


def test_fit_equals_steps_by_hand(whole):
    step, state, _ = toy.setup(40)
    memory, step = toy.InMemory(), jax.jit(step)
    for k in range(40):
        rows = np.asarray(memory.select(jnp.int32(k), 1))[0]
        state, _ = step(state, {name: x[rows] for name, x in memory.arrays.items()})
    toy.assert_close(whole[1], state, 1e-6)


def test_fit_logs_means_rates_and_learning_rate(whole):
    workdir, _ = whole
    log = lines(workdir)
    assert [line["step"] for line in log] == [10, 20, 30, 40]
    rows = np.asarray(toy.InMemory().select(jnp.int32(0), 40))
    schedule = toy.setup(40)[2]
    for line in log:
        k = line["step"]
        np.testing.assert_allclose(
            line["order"], np.mean([toy.order(r) for r in rows[k - 10 : k]]), rtol=1e-5
        )
        np.testing.assert_allclose(line["learning_rate"], float(schedule(k - 1)), rtol=1e-6)
        np.testing.assert_allclose(line["images_per_second"], line["steps_per_second"] * toy.BATCH, rtol=1e-6)
        assert {"loss", "grad_norm", "seconds"} <= set(line)
    assert log[0]["seconds"] < log[-1]["seconds"]


def test_fit_leaves_config_tensorboard_and_checkpoints(whole):
    workdir, state = whole
    assert json.loads((workdir / "config.json").read_text())["net"] == {"depth": 2}
    assert any((workdir / "tensorboard").iterdir())
    assert steps(workdir) == [20, 30, 40]
    loaded = training.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, state.ema_params)
    assert loaded.step == 40
    assert loaded.config["width"] == toy.WIDTH


def test_fit_keeps_the_first_checkpoints_from_given_steps_even_when_resumed(whole, tmp_path):
    keep = {"keep": 1, "keep_from": (3, 12, 37)}
    with pytest.raises(training.Preempted):
        fit(tmp_path, **keep, sample_every=5, on_sample=stop_at(15))
    assert steps(tmp_path) == [5, 15, 20]  # calls are of 5 steps
    toy.assert_same_bits(fit(tmp_path, **keep), whole[1])
    assert steps(tmp_path) == [5, 15, 40]  # 40 is the first from 37
    assert int(fit(tmp_path, 50, **keep).step) == 50
    assert steps(tmp_path) == [5, 15, 40, 50]


@pytest.mark.parametrize("stream", [False, True])
def test_fit_stopped_by_sigterm_and_resumed_is_the_same_to_the_bit(whole, tmp_path, stream):
    before = signal.getsignal(signal.SIGTERM)
    make = toy.Stream if stream else toy.InMemory
    with pytest.raises(training.Preempted) as stopped:
        fit(tmp_path, memory=make(), sample_every=5, on_sample=stop_at(15))
    assert stopped.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert steps(tmp_path) == [10, 20]  # noticed at the end of the next call
    memory = make()
    state = fit(tmp_path, memory=memory)
    toy.assert_same_bits(state, whole[1])
    assert deterministic(tmp_path) == deterministic(whole[0])
    if stream:
        assert memory.taken == list(range(20, 40))


def test_fit_saves_on_ctrl_c_and_restores_the_handler(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"SIGINT: saved step 20 of 40"):
        fit(tmp_path, sample_every=5, on_sample=stop_at(15, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert steps(tmp_path) == [10, 20]


def test_fit_of_a_complete_run_says_so_and_changes_nothing(whole, tmp_path, capsys):
    workdir, state = whole
    log = (workdir / "metrics.jsonl").read_bytes()
    again = fit(workdir, progress=True)
    assert "already complete" in capsys.readouterr().out
    toy.assert_same_bits(again, state)
    assert (workdir / "metrics.jsonl").read_bytes() == log


def test_fit_goes_on_with_more_steps(tmp_path):
    fit(tmp_path, 20)
    assert int(fit(tmp_path, 30).step) == 30
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]


SPREAD = ({"shard": "fsdp"}, {"shard": "zero1", "replicas": 2}, {"shard": "fsdp", "tensor": 2, "replicas": 2})


@pytest.mark.parametrize("how", slow(SPREAD, but=SPREAD[2:]))
def test_fit_resumes_in_another_mode(whole, tmp_path, how):
    with pytest.raises(training.Preempted):
        fit(tmp_path, sample_every=5, on_sample=stop_at(15), mesh=None, **how)
    toy.assert_close(fit(tmp_path, parallel="pmap", mesh=None), whole[1], 1e-5)


def test_fit_compiles_once(tmp_path):
    traced = []

    def loss(params, key, batch):
        traced.append(1)
        return toy.loss(params, key, batch)

    fit(tmp_path, 40, problem=toy.setup(40, loss=loss))
    assert len(traced) == 1
    fit(tmp_path, 80, problem=toy.setup(80, loss=loss))
    assert len(traced) == 2  # one more in the run that goes on


def test_fit_refuses_a_config_that_differs(whole):
    config = {"width": 8, "net": {"depth": 3}, "num_steps": 99}
    with pytest.raises(ValueError, match=r"(?s)width: 256 saved, 8 now.*net\.depth: 2 saved, 3 now") as error:
        fit(whole[0], config=config)
    assert "num_steps" not in str(error.value)
    fit(whole[0], config=config, may_change=("width", "net", "num_steps"))


def test_fit_refuses_data_that_differ(whole):
    with pytest.raises(ValueError, match=r"data\.batch_size: 32 saved, 64 now"):
        fit(whole[0], memory=toy.InMemory(64))


def test_fit_refuses_to_start_over_in_a_used_workdir(whole):
    with pytest.raises(ValueError, match="checkpoints has some, up to step 40"):
        fit(whole[0], resume=False)


def test_fit_forgets_log_lines_beyond_the_checkpoint(whole, tmp_path):
    with pytest.raises(training.Preempted):
        fit(tmp_path, sample_every=5, on_sample=stop_at(15))
    with (tmp_path / "metrics.jsonl").open("a") as file:  # what a run that was killed later would have left
        file.write('{"step": 30, "loss": 7}\n{"step": 40, "lo')
    fit(tmp_path)
    assert deterministic(tmp_path) == deterministic(whole[0])


def test_fit_calls_back_at_the_end_of_the_call(tmp_path):
    seen = []
    fit(tmp_path, 30, sample_every=12, on_sample=lambda step, state: seen.append((step, int(state.step))))
    assert seen == [(15, 15), (25, 25)]


def test_fit_works_outside_the_main_thread(tmp_path):
    result = []
    thread = threading.Thread(target=lambda: result.append(fit(tmp_path, 10)))
    thread.start()
    thread.join()
    assert int(result[0].step) == 10


def test_fit_prints_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    fit(tmp_path, 20, progress=True)
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in out] == ["step 10/20", "step 20/20"]
    assert "loss" in out[0]
    assert "steps/s" in out[0]
    assert "s left" in out[0]


@pytest.mark.parametrize(
    ("asked", "start", "num_steps", "size"),
    [
        (10, 0, 100, 10),
        (10, 0, 96, 8),
        (8, 0, 100, 5),
        (8, 60, 100, 5),
        (10, 0, 97, 1),
        (10, 0, 7, 7),
        (3, 9, 12, 3),
    ],
)
def test_call_size_divides_the_run(asked, start, num_steps, size):
    assert call_size(asked, start, num_steps) == size


def test_call_size_is_the_same_for_the_rest_of_a_run():
    for num_steps in range(1, 200):
        for asked in (1, 7, 10):
            size = call_size(asked, 0, num_steps)
            assert all(call_size(asked, start, num_steps) == size for start in range(size, num_steps, size))


EIGHT = jax.sharding.Mesh(np.array(jax.devices()), ("data",))


@pytest.mark.parametrize(
    "layout", [{}, {"mesh": EIGHT}, {"mesh": EIGHT, "shard": "fsdp"}, {"mesh": EIGHT, "parallel": "pmap"}]
)
def test_a_function_that_makes_the_state_is_as_good_as_the_state(tmp_path, layout):
    step, state, schedule = toy.setup(20)
    leaves = lambda state: jax.tree.leaves((state.params, state.ema_params, state.opt_state))
    made = fit(tmp_path / "made", 20, problem=(step, lambda: state, schedule), **layout)
    given = fit(tmp_path / "given", 20, problem=(step, state, schedule), **layout)
    for a, b in zip(leaves(made), leaves(given), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        np.testing.assert_array_equal(a, b)
    assert int(made.step) == 20


def test_a_state_is_not_made_where_there_is_a_checkpoint(tmp_path, monkeypatch):
    step, state, schedule = toy.setup(40)
    whole = fit(tmp_path / "whole", problem=(step, state, schedule))
    problem = step, lambda: state, schedule
    fit(tmp_path / "parts", 20, problem=problem)
    monkeypatch.setattr(loop, "_begin", None)
    again = fit(tmp_path / "parts", problem=problem)
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    assert fit(tmp_path / "parts", problem=problem).step == 40


def test_the_step_is_compiled_once_where_the_state_is_made(tmp_path):
    step, state, schedule = toy.setup(20)
    traced = []

    def counted(*args, **options):
        traced.append(None)
        return step(*args, **options)

    fit(tmp_path, 20, problem=(counted, lambda: state, schedule))
    assert len(traced) == 1


@pytest.mark.parametrize("options", [{}, {"shard": "fsdp", "mesh": EIGHT}], ids=["one device", "fsdp"])
def test_fit_makes_a_state_of_what_it_starts_from(whole, options):
    """Given weights are arguments of the program that makes the state, and lie there as parameters do."""
    step, _, schedule = toy.setup(40)
    optimizer = training.adam(1e-2, num_steps=40, warmup_steps=5)[0]
    seen = []

    def make(given):
        seen.append(jax.tree.leaves(given)[0])
        return training.TrainState.create(given, optimizer, jax.random.key(3))

    given = jax.tree.map(np.asarray, toy.params())
    state = fit(None, problem=(step, make, schedule), start_from=given, **options)
    toy.assert_close(whole[1], state, 1e-5)
    assert all(isinstance(x, jax.core.Tracer) for x in seen)
