"""Runs of `run_toy.py` in processes of their own."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import gen_jax

HERE = Path(__file__).parent
CACHE = tempfile.TemporaryDirectory()
STARTED = []
"""Processes, for `end_all` after a test that failed."""


def start(workdir, *options, inside=(), at=None, **environment):
    """A run of `run_toy.py` in `workdir`, or in `at`, which leaves `final.npz` and its log in `workdir`.

    `inside` are words before its command.
    """
    environment = {
        **{name: x for name, x in os.environ.items() if name != "XLA_FLAGS"},
        "PYTHONPATH": os.pathsep.join([str(Path(gen_jax.__file__).parents[1]), str(HERE)]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        **environment,
    }
    where, out = str(at or workdir), str(workdir / "final.npz")
    command = [*inside, sys.executable, str(HERE / "run_toy.py"), where, out, *options]
    workdir.mkdir(exist_ok=True)
    with (workdir / "log.txt").open("a") as log:
        STARTED.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return STARTED[-1]


def end_all():
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def start_two(workdir, *options, at=None, **environment):
    """The two processes of one run."""
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
            at=at,
            **environment,
        )
        for index in range(2)
    ]


def finish(*processes, timeout=120):
    codes = [process.wait(timeout) for process in processes]
    return codes[0] if len(codes) == 1 else codes


def log(workdir):
    return (workdir / "log.txt").read_text()


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until_logged(workdir, step, process, timeout=120):
    wait_until(lambda: any(line["step"] >= step for line in lines(workdir)), workdir, process, timeout)


def wait_until(happened, workdir, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not happened():
        assert process.poll() is None, log(workdir)
        assert time.monotonic() < deadline, log(workdir)
        time.sleep(0.01)


def final(workdir):
    with np.load(workdir / "final.npz") as file:
        return [file[name] for name in file.files]


def order(workdir):
    """What the log says about the rows seen and the losses, step by step."""
    return [(line["step"], line["order"], line["loss"], line["grad_norm"]) for line in lines(workdir)]


def assert_same(a, b):
    for x, y in zip(final(a), final(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert order(a) == order(b)
