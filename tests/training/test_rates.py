"""The rates of a run are those of its steps: no compilation, no callback that the devices wait for."""

import time
from types import SimpleNamespace

import pytest
import toy

from gen_jax import training
from gen_jax.training import run

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch):
    """The clock of the rates, which anything may set forward by an hour."""
    lost = []
    now = SimpleNamespace(perf_counter=lambda: time.perf_counter() + HOUR * len(lost))
    monkeypatch.setattr(run, "time", now)
    return lost


class Slow(training.Callback):
    """One of its methods takes an hour."""

    def __init__(self, method, clock):
        setattr(self, method, lambda *args: clock.append(method))


@pytest.mark.parametrize("method", ["on_log", "on_checkpoint", "on_sample"])
def test_pauses_are_left_out_of_the_rates(tmp_path, clock, method):
    toy.fit(tmp_path, 40, sample_every=10, callbacks=[Slow(method, clock)])
    assert len(clock) >= 3
    assert all(line["steps_per_second"] > 100 / HOUR for line in toy.lines(tmp_path))
    assert toy.lines(tmp_path)[-1]["seconds"] > HOUR  # of the whole run, pauses and all


def test_compilation_is_left_out_of_the_rates_where_the_first_call_logs(tmp_path, clock):
    def loss(params, key, batch):
        clock.append("traced")
        return toy.loss(params, key, batch)

    toy.fit(tmp_path, 10, steps_per_call=10, problem=toy.setup(10, loss=loss))
    assert len(clock) == 1
    (line,) = toy.lines(tmp_path)
    assert line["steps_per_second"] > 100 / HOUR


def test_what_is_done_while_the_devices_work_counts(tmp_path, clock):
    """There the next steps are under way: without it the rate would be of more steps than were done in the time."""
    toy.fit(tmp_path, 40, checkpoint_every=100, callbacks=[Slow("on_log", clock)])
    rates = [line["steps_per_second"] for line in toy.lines(tmp_path)]
    assert rates[0] > 100 / HOUR > max(rates[1:])
