"""What a run of weeks meets: kills at the worst instants, a clock that jumps back, many checkpoints."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import toy
from processes import assert_same, end_all, final, finish, log, start, start_two, wait_until_logged

from gen_jax import training

STEPS = 60


@pytest.fixture(autouse=True)
def ended():
    yield
    end_all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert finish(start(workdir)) == 0, log(workdir)
    return workdir


def unfinished(workdir):
    """Temporary directories of checkpoints that are being written."""
    place = workdir / "checkpoints"
    return {name for name in os.listdir(place) if "tmp" in name} if place.exists() else set()


def kill(workdir, process, rng) -> str:
    """At a random instant, or as soon as a checkpoint begins to be written; what it was, or "ended"."""
    if rng.random() < 0.5:
        before, until = unfinished(workdir), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until and not unfinished(workdir) - before:
            time.sleep(0.0005)
        kind = "in a checkpoint"
    else:
        time.sleep(rng.uniform(0, 8))
        kind = "anywhere"
    if process.poll() is not None:
        assert process.returncode == 0, log(workdir)
        return "ended"
    process.kill()
    process.wait()
    return kind


@pytest.mark.slow
def test_100_kills_lose_nothing(whole, tmp_path):
    """Half of them when the temporary directory of a checkpoint appears. Each run is begun again until it is complete."""
    seed = random.randrange(2**32)
    rng, kinds, runs = random.Random(seed), [], 0
    while sum(kind != "ended" for kind in kinds) < 100:
        workdir, end = tmp_path / str(runs), None
        while end != "ended":
            end = kill(workdir, start(workdir, "--seconds-per-call", "0.1"), rng)
            kinds.append(end)
        assert_same(workdir, whole)
        assert not (workdir / "checkpoints.damaged").exists()
        runs += 1
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    print(f"seed {seed}: {counts}, {runs} complete runs")


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1], ids=["the coordinator", "the other"])
def test_one_of_two_processes_is_killed(whole, tmp_path, dies):
    for target in (15, 30):
        both = start_two(tmp_path, "--seconds-per-call", "0.1")
        wait_until_logged(tmp_path, target, both[0])
        both[dies].kill()
        began = time.monotonic()
        assert finish(both[1 - dies], timeout=60) != 0
        assert time.monotonic() - began < 60
    assert finish(*start_two(tmp_path)) == [0, 0], log(tmp_path)
    for x, y in zip(final(tmp_path), final(whole), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_clock_that_jumps_back_loses_nothing(whole, tmp_path):
    """An hour back after some checkpoints; then a kill, and a run with the clock as it was."""
    process = start(tmp_path, "--seconds-per-call", "0.1", "--clock-back-at", "20")
    wait_until_logged(tmp_path, 45, process)
    process.kill()
    process.wait()
    assert finish(start(tmp_path)) == 0, log(tmp_path)
    assert "resuming: checkpoint of step 40" in log(tmp_path) or "step 50" in log(tmp_path)
    assert_same(tmp_path, whole)


class Used(training.Callback):
    """Memory and open files of this process at each checkpoint."""

    def __init__(self):
        self.memory, self.files = [], []

    def on_checkpoint(self, step, state):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(len(os.listdir("/proc/self/fd")))


@pytest.mark.slow
def test_2000_checkpoints_take_no_more_memory_nor_files(tmp_path):
    used = Used()
    options = {"steps_per_call": 1, "checkpoint_every": 1, "log_every": 100}
    toy.fit(tmp_path, 2000, callbacks=[used], **options)
    assert len(used.files) == 2000
    assert max(used.files[-200:]) <= max(used.files[200:400])
    growth = np.median(used.memory[-200:]) - np.median(used.memory[200:400])
    print(f"{growth:.1f} MiB more after 1,600 checkpoints; {used.files[-1]} open files")
    assert growth < 20
