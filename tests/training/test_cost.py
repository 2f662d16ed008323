"""What a run costs, as its lines and its summary say: against closed forms and against what took the time."""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_flops import of_mlp
from test_loop import stop_at

from gen_jax import launch, training
from gen_jax.training import cost, loop

TOTALS = ("flops", "mfu", "seconds_of_data", "seconds_of_checkpoints", "peak_bytes", "program_bytes")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and what was compiled for it."""
    workdir, made, compile_step = tmp_path_factory.mktemp("whole"), [], loop.compile_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop, "compile_step", lambda *a, **how: made.append(compile_step(*a, **how)) or made[-1]
        )
        toy.fit(workdir)
    return workdir, made[0]


def test_lines_have_the_figures(whole):
    workdir, compiled = whole
    assert compiled.flops == of_mlp(toy.BATCH)
    for line in toy.lines(workdir):
        assert line["flops_per_step"] == of_mlp(toy.BATCH)
        rate = of_mlp(toy.BATCH) * line["steps_per_second"]
        np.testing.assert_allclose(line["mfu"], rate / cost.peak(jax.devices()), rtol=1e-6)
        assert 0 <= line["data_share"] + line["checkpoint_share"] <= 1
        assert line["peak_bytes"] > 50e6  # of a process with jax
        params = 2 * toy.DIM * toy.WIDTH + toy.WIDTH
        assert 4 * 4 * params < line["program_bytes"] < 1e8  # two moments and an average


def test_nothing_is_compiled_or_awaited_for_them(tmp_path, monkeypatch):
    """One trace, one program, and in the main thread no other wait than that for the metrics of the call before."""
    made, programs, waits = [], [], []
    compile_step, compile_, wait = loop.compile_step, jax.stages.Lowered.compile, jax.block_until_ready
    cost.peak(jax.devices())  # once a process
    monkeypatch.setattr(
        loop, "compile_step", lambda *a, **how: made.append(compile_step(*a, **how)) or made[-1]
    )
    monkeypatch.setattr(
        jax.stages.Lowered,
        "compile",
        lambda self, *a, **how: programs.append(self) or compile_(self, *a, **how),
    )
    monkeypatch.setattr(
        jax, "block_until_ready", lambda x: waits.append(threading.current_thread().name) or wait(x)
    )
    toy.fit(tmp_path, memory=toy.Stream())
    assert made[0].traces == 1
    assert len(programs) == 1
    assert set(waits) == {"watch of the devices"}
    assert len(waits) == 8  # calls
    waits.clear()
    toy.fit(tmp_path / "memory")
    assert waits == []  # there is nothing to wait for


class Slow(toy.Stream):
    """Batches that take a while."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def __next__(self):
        time.sleep(self.seconds)
        return super().__next__()


def test_data_share_is_high_where_the_devices_wait_and_zero_where_all_is_on_them(whole, tmp_path):
    toy.fit(tmp_path, 12, memory=Slow(0.05), steps_per_call=1, log_every=4, checkpoint_every=0)
    assert min(line["data_share"] for line in toy.lines(tmp_path)[1:]) > 0.3
    assert max(line["data_share"] for line in toy.lines(whole[0])[1:]) == 0


@pytest.mark.parametrize(("data", "step"), [(0.3, 0.1), (0.1, 0.3), (0.2, 0.0)])
def test_waiting_is_the_time_from_when_the_results_are_there(data, step, monkeypatch):
    """Batches that come while the devices work cost nothing; of those that come later, what is left."""
    monkeypatch.setattr(jax, "block_until_ready", lambda seconds: time.sleep(seconds))
    found = cost.Cost(jax.devices()[:1], watch=True)
    found.of_program(1.0, jax.jit(jnp.sin).lower(1.0).compile())
    found.figures(1.0)
    begin = time.perf_counter()
    with found.waiting(step):
        time.sleep(data)
    share = found.figures(1.0)["data_share"]
    took = time.perf_counter() - begin
    assert share * took == pytest.approx(max(took - step, 0) if data > step else 0, abs=0.07)
    found.close()


def test_checkpoint_share_is_the_time_of_checkpoints(tmp_path, monkeypatch):
    save = training.Checkpoints.save

    def slow(self, *args):
        time.sleep(0.1)
        save(self, *args)

    monkeypatch.setattr(training.Checkpoints, "save", slow)
    toy.fit(tmp_path)
    lines = toy.lines(tmp_path)
    took = np.diff([line["seconds"] for line in lines])
    shares = np.array([line["checkpoint_share"] for line in lines[1:]])
    assert (shares * took >= 0.1).all()
    assert (shares < 1).all()
    assert lines[0]["checkpoint_share"] == 0  # before the first one


def test_of_run_is_the_same_for_a_run_that_was_interrupted(whole, tmp_path):
    with pytest.raises(training.Preempted):
        toy.fit(tmp_path, sample_every=5, on_sample=stop_at(15))
    part = cost.of_run(tmp_path)
    assert part["flops"] == 20 * of_mlp(toy.BATCH)
    toy.fit(tmp_path)
    found, expected = cost.of_run(tmp_path), cost.of_run(whole[0])
    assert set(found) == set(expected) == set(TOTALS)
    assert found["flops"] == expected["flops"] == 40 * of_mlp(toy.BATCH)
    assert found["seconds_of_checkpoints"] > part["seconds_of_checkpoints"] > 0


LINES = [
    {
        "step": 10,
        "seconds": 8.0,
        "steps_per_second": 5.0,
        "flops_per_step": 3.0,
        "mfu": 0.5,
        "data_share": 0.25,
    },
    {
        "step": 40,
        "seconds": 20.0,
        "steps_per_second": 10.0,
        "flops_per_step": 3.0,
        "mfu": 0.1,
        "data_share": 0.5,
    },
    {"step": 50, "seconds": 30.0, "steps_per_second": None, "peak_bytes": 7.0},
]


def test_of_run_sums_over_the_lines(tmp_path):
    """10 steps in 2 s, then 30 in 3 s; a quarter of 8 s for data and half of the next 12 s."""
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    expected = {"flops": 120.0, "mfu": (2 * 0.5 + 3 * 0.1) / 5, "seconds_of_data": 8.0, "peak_bytes": 7.0}
    assert cost.of_run(tmp_path) == pytest.approx(expected)


@pytest.mark.parametrize("text", [None, "", '{"step": 3, "loss": 0.5}\n'])
def test_of_run_without_figures_is_empty(tmp_path, text):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert cost.of_run(tmp_path) == {}


def test_of_run_of_no_directory_says_so(tmp_path):
    with pytest.raises(ValueError, match="workdir must be the directory of a run, there is none at"):
        cost.of_run(tmp_path / "nowhere")


def test_the_summary_of_a_run_has_what_it_cost(whole, capsys):
    summary = launch.finish(whole[0], {"loss": 0.5})
    assert summary == {"loss": 0.5, **cost.of_run(whole[0])}
    assert json.loads((whole[0] / "summary.json").read_text()) == summary
    assert "flops" in capsys.readouterr().out


def test_memory_is_that_of_the_fullest_device():
    from unittest.mock import Mock

    full = lambda used: Mock(spec=jax.Device, platform="gpu", process_index=0, memory_stats=lambda: used)
    assert cost.memory([full({"peak_bytes_in_use": 3}), full({"peak_bytes_in_use": 5}), full({})]) == 5
    assert cost.memory([full(None)]) is None
