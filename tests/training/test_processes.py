"""Runs in processes of their own: killed, preempted, and several at once."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import toy

import gen_jax
from gen_jax import training

HERE = Path(__file__).parent
STEPS = 60


CACHE = tempfile.TemporaryDirectory()


def start(workdir, *options, **environment):
    """A run of `run_toy.py` in `workdir`, which leaves `final.npz` there."""
    environment = {
        **{name: x for name, x in os.environ.items() if name != "XLA_FLAGS"},
        "PYTHONPATH": os.pathsep.join([str(Path(gen_jax.__file__).parents[1]), str(HERE)]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        **environment,
    }
    command = [sys.executable, str(HERE / "run_toy.py"), str(workdir), str(workdir / "final.npz"), *options]
    workdir.mkdir(exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(*processes, timeout=120):
    codes = [process.wait(timeout) for process in processes]
    return codes[0] if len(codes) == 1 else codes


def log(workdir):
    return (workdir / "log.txt").read_text()


def last_logged(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_until_logged(workdir, step, process, timeout=120):
    deadline = time.monotonic() + timeout
    while last_logged(workdir) < step:
        assert process.poll() is None, log(workdir)
        assert time.monotonic() < deadline, log(workdir)
        time.sleep(0.01)


def final(workdir):
    with np.load(workdir / "final.npz") as file:
        return [file[name] for name in file.files]


def order(workdir):
    """What the log says about the rows seen and the losses, step by step."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["order"], line["loss"], line["grad_norm"]) for line in lines]


def assert_same(a, b):
    for x, y in zip(final(a), final(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert order(a) == order(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run in one process with one device."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(workdir)
    assert finish(process) == 0, log(workdir)
    assert [step for step, *_ in order(workdir)] == list(range(5, STEPS + 1, 5))
    return workdir


def test_fit_killed_three_times_is_the_same_to_the_bit(whole, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed of the instants: {seed}")  # shown when the test fails
    instants = random.Random(seed)
    reached = []
    for target in (5, 15, 30):
        process = start(tmp_path, "--seconds-per-call", "0.1")
        wait_until_logged(tmp_path, target, process)
        time.sleep(instants.uniform(0.0, 0.5))
        process.kill()
        assert finish(process) == -signal.SIGKILL
        reached.append(last_logged(tmp_path))
    assert reached == sorted(reached)
    assert reached[-1] < STEPS
    assert finish(start(tmp_path)) == 0, log(tmp_path)
    assert "resuming" in log(tmp_path)
    assert_same(tmp_path, whole)


def test_fit_preempted_saves_exits_with_zero_and_goes_on(whole, tmp_path):
    process = start(tmp_path, "--seconds-per-call", "0.1")
    wait_until_logged(tmp_path, 15, process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, timeout=20) == 0
    assert "SIGTERM: saved step" in log(tmp_path)
    assert "Traceback" not in log(tmp_path)
    step = training.load(tmp_path).step
    assert f"saved step {step} of {STEPS}" in log(tmp_path)
    assert 15 < step < STEPS
    assert finish(start(tmp_path)) == 0, log(tmp_path)
    assert f"resuming: checkpoint of step {step}" in log(tmp_path)
    assert_same(tmp_path, whole)


def start_two(workdir, *options):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        start(
            workdir,
            *options,
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]


@pytest.mark.parametrize(
    "options",
    [
        # in CI: preempted, below, and finished by one process
        pytest.param([], id="jit", marks=pytest.mark.slow),
        pytest.param(["--fsdp", "--stream"], id="fsdp"),
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
    assert finish(*processes, timeout=30) == [0, 0], log(tmp_path)
    assert 15 < training.load(tmp_path).step < STEPS
    assert finish(start(tmp_path)) == 0, log(tmp_path)  # and one process goes on
    for x, y in zip(final(tmp_path), final(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def test_initialize_distributed_names_the_missing_variable(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="missing: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        training.initialize_distributed()


@pytest.mark.parametrize(
    ("before", "batch_size", "environment", "expected"),
    [
        ("", 64, {}, "2 pmap"),
        ("", 63, {}, "1 jit"),
        ("", 64, {"JAX_NUM_CPU_DEVICES": "3"}, "3 pmap"),
        ("", 64, {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "4 pmap"),
        ("jax.devices()", 64, {}, "1 jit"),
        ("os.cpu_count = lambda: 1", 64, {}, "1 jit"),
    ],
)
def test_split_cpu_devices_makes_two_devices_unless_told(before, batch_size, environment, expected):
    code = (
        f"import os, jax; from gen_jax import training; {before or 'os.cpu_count = lambda: 2'}\n"
        f"training.split_cpu_devices({batch_size}); print(jax.device_count(), training.default_parallel())\n"
        "assert training.default_parallel(fsdp=True) == 'jit'"
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
