"""Runs in processes of their own: killed, preempted, and several at once."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import toy
from processes import (
    assert_same,
    end_all,
    final,
    finish,
    lines,
    log,
    order,
    start,
    start_two,
    wait_until,
    wait_until_logged,
)

from gen_jax import training

STEPS = 60


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A test that fails leaves no process behind."""
    yield
    end_all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run in one process with one device."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(workdir)
    assert finish(process) == 0, log(workdir)
    assert [step for step, *_ in order(workdir)] == [15, 30, 45, 60]
    return workdir


@pytest.mark.parametrize(
    "targets", [(15,), pytest.param((15, 30), marks=pytest.mark.slow)], ids=["once", "twice"]
)
def test_fit_killed_is_the_same_to_the_bit(whole, tmp_path, targets):
    seed = random.randrange(2**32)
    print(f"seed of the instants: {seed}")  # shown when the test fails
    instants = random.Random(seed)
    reached = []
    for target in targets:
        process = start(tmp_path, "--seconds-per-call", "0.1")
        wait_until_logged(tmp_path, target, process)
        time.sleep(instants.uniform(0.0, 0.5))
        process.kill()
        assert finish(process) == -signal.SIGKILL
        reached.append(lines(tmp_path)[-1]["step"])
    assert reached == sorted(reached)
    assert reached[-1] < STEPS
    assert finish(start(tmp_path)) == 0, log(tmp_path)
    assert "resuming" in log(tmp_path)
    assert_same(tmp_path, whole)


def test_fit_preempted_saves_asks_to_be_begun_again_and_goes_on(whole, tmp_path):
    process = start(tmp_path, "--seconds-per-call", "0.1")
    wait_until_logged(tmp_path, 15, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, timeout=20) == 75
    assert "SIGTERM: saved step" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    step = training.load(tmp_path).step
    assert f"saved step {step} of {STEPS}" in log(tmp_path)
    assert 15 < step < STEPS
    assert finish(start(tmp_path)) == 0, log(tmp_path)
    assert f"resuming: checkpoint of step {step}" in log(tmp_path)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(
    "options",
    [
        # in CI: preempted, below, and finished by one process
        pytest.param([], id="jit", marks=pytest.mark.slow),
        pytest.param(["--shard", "fsdp", "--stream"], id="fsdp"),
        pytest.param(["--parallel", "pmap"], id="pmap", marks=pytest.mark.slow),
    ],
)
def test_fit_in_two_processes_equals_one(whole, tmp_path, options):
    assert finish(*start_two(tmp_path, *options)) == [0, 0], log(tmp_path)
    for x, y in zip(final(tmp_path), final(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
    np.testing.assert_allclose(order(tmp_path), order(whole), rtol=1e-5)


def test_fit_in_two_processes_stops_in_both_when_one_is_preempted(whole, tmp_path):
    processes = start_two(tmp_path, "--seconds-per-call", "0.1")
    wait_until_logged(tmp_path, 15, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    assert finish(*processes, timeout=30) == [75, 75], log(tmp_path)
    assert 15 < training.load(tmp_path).step < STEPS
    assert finish(start(tmp_path)) == 0, log(tmp_path)  # and one process goes on
    for x, y in zip(final(tmp_path), final(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


BAD = b'{"step": "6", "loss": 1}\n\xff\xfe\x00\n[1, 2]\nnull\n{"loss": 1}\n{"step": 7, "loss": "x"}\n{"step": 45, "lo'


def last_words(workdir, before):
    """What was said after `before` characters of the log: a sentence, without a traceback."""
    said = log(workdir)[before:]
    assert "Traceback" not in said, said
    return said.splitlines()[-1]


def test_a_run_survives_company_a_kill_a_full_disk_a_damaged_log_and_ctrl_c(whole, tmp_path):
    workdir = tmp_path / "run"
    process = start(workdir, "--hold-at", "20")
    wait_until_logged(workdir, 15, process)
    assert finish(start(workdir)) == 2, log(workdir)  # a second one beside it
    said = f"run_toy: workdir {workdir} is in use by a run (pid {process.pid} on "
    assert sum(line.startswith(said) for line in log(workdir).splitlines()) == 1, log(workdir)
    assert process.poll() is None
    process.kill()
    finish(process)

    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(BAD)
    before = len(log(workdir))
    assert finish(start(workdir, "--full-from", "35")) == 2, log(workdir)
    words = last_words(workdir, before)
    assert words.startswith(f"run_toy: no room in {workdir} (File too large)")
    assert f"the checkpoint of step {training.load(workdir).step} stands" in words
    assert "has 7 lines that are no figures" in log(workdir)
    assert (workdir / "metrics.jsonl.bad").read_bytes() == BAD + b"\n"

    before = len(log(workdir))
    process = start(workdir, "--hold-at", "45")
    wait_until(lambda: "step 45/60" in log(workdir)[before:], workdir, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert finish(process, timeout=5) == 130
    assert last_words(workdir, before) == "interrupted twice: ended at once"

    assert finish(start(workdir)) == 0, log(workdir)
    assert_same(workdir, whole)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of futures of files that are gone
def test_a_run_is_read_while_its_only_checkpoint_is_replaced(tmp_path):
    process = start(tmp_path, "--num-steps", "100000", "--checkpoint-every", "5", "--keep", "1")
    wait_until_logged(tmp_path, 10, process)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is damaged")
        loaded = [training.load(tmp_path).step for _ in range(40)]
    assert process.poll() is None, log(tmp_path)
    process.kill()
    finish(process)
    assert sorted(loaded) == loaded
    assert len(set(loaded)) > 5


def test_a_process_that_is_left_alone_ends_and_names_the_one_that_is_gone(tmp_path):
    processes = start_two(tmp_path, "--seconds-per-call", "0.1")
    wait_until_logged(tmp_path, 10, processes[0])
    processes[1].kill()
    began = time.monotonic()
    assert finish(processes[0], timeout=60) == 1, log(tmp_path)
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 15
    assert f"process 1 of 2 (pid {processes[1].pid} on " in log(tmp_path)


def test_initialize_distributed_names_the_missing_variable(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="missing: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        training.initialize_distributed()


@pytest.mark.parametrize(
    ("before", "batch_size", "environment", "expected"),
    [
        ("", 64, {}, "2 pmap"),
        pytest.param("", 63, {}, "1 jit", marks=pytest.mark.slow),
        ("", 64, {"JAX_NUM_CPU_DEVICES": "3"}, "3 pmap"),
        *(
            pytest.param(before, 64, environment, expected, marks=pytest.mark.slow)
            for before, environment, expected in (
                ("", {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "4 pmap"),
                ("jax.devices()", {}, "1 jit"),
                ("os.cpu_count = lambda: 1", {}, "1 jit"),
            )
        ),
    ],
)
def test_split_cpu_devices_makes_two_devices_unless_told(before, batch_size, environment, expected):
    code = (
        f"import os, jax; from gen_jax import training; {before or 'os.cpu_count = lambda: 2'}\n"
        f"training.split_cpu_devices({batch_size}); print(jax.device_count(), training.default_parallel())\n"
        "assert training.default_parallel('fsdp') == 'jit'"
    )
    unset = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    clean = {name: x for name, x in os.environ.items() if name not in unset} | {"JAX_PLATFORMS": "cpu"}
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=clean | environment, capture_output=True, text=True, check=True).stdout
    assert found.split() == expected.split()


def test_initialize_distributed_does_nothing_alone():
    training.initialize_distributed()
    training.initialize_distributed()


def test_toy_is_not_trivial(whole):
    """The comparisons above are of a model that moved."""
    _, state, _ = toy.setup()
    assert max(np.abs(x - y).max() for x, y in zip(final(whole), toy.leaves(state), strict=True)) > 0.1
