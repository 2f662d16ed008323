"""Runs whose directory is in a bucket, on a server of loopback."""

import json
import random
import signal
import time

import numpy as np
import pytest
import toy
from processes import end_all, final, finish, log, start, start_two, wait_until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gen_jax import paths, training
from gen_jax.data.fetching import fetched
from tests import gcs

STEPS = 60


@pytest.fixture(scope="module")
def bucket():
    with gcs.reached() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A test that fails leaves no process behind."""
    yield
    end_all()


def has(bucket, name):
    return f"{bucket.bucket}/{name}" in bucket.objects


def lines(bucket, name="run"):
    text = bucket.objects[f"{bucket.bucket}/{name}/metrics.jsonl"].data.decode()
    return [json.loads(line) for line in text.splitlines()]


def order(lines):
    return [(line["step"], line["order"], line["loss"], line["grad_norm"]) for line in lines]


def test_a_run_in_a_bucket_is_alone_survives_a_kill_and_ends_in_the_bits_of_a_local_one(bucket, tmp_path):
    here, there, url = tmp_path / "here", tmp_path / "there", f"{bucket.url}/run"
    how = {"at": url, **bucket.env}
    run = start(there, "--hold-at", "35", "--lease", "3", **how)
    whole = start(here)
    wait_until(lambda: has(bucket, "run/checkpoints/30/commit_success.txt"), there, run)
    assert [line["step"] for line in lines(bucket)] == [15, 30]  # what a checkpoint covers is there before it

    said = rf"workdir {url} is in use by a run \(pid {run.pid} on "
    with pytest.raises(training.WorkdirInUse, match=said):  # a second one beside it
        toy.fit(url)
    assert run.poll() is None
    run.kill()
    assert finish(run) == -signal.SIGKILL

    assert finish(start(there, "--lease", "3", **how)) == 0, log(there)  # the lease lapses
    assert "resuming: checkpoint of step 30" in log(there)
    assert finish(whole) == 0, log(here)
    assert_same(bucket, there, here)
    loaded = training.load(url)
    assert (loaded.step, loaded.config) == (STEPS, {"batch_size": toy.BATCH})
    written = {name.removeprefix(f"{bucket.bucket}/run/").split("/")[0] for name in bucket.names()}
    assert written == {".lock", "checkpoints", "config.json", "metrics.jsonl", "tensorboard"}


def assert_same(bucket, there, here):
    for x, y in zip(final(there), final(here), strict=True):
        np.testing.assert_array_equal(x, y)
    assert order(lines(bucket)) == order([json.loads(line) for line in (here / "metrics.jsonl").open()])


@pytest.mark.slow
def test_kills_at_any_instant_cost_nothing(bucket, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    assert finish(start(here)) == 0, log(here)
    bucket.objects.clear()
    seed = random.randrange(2**32)
    print(f"seed of the instants: {seed}")  # shown when the test fails
    instants, seen = random.Random(seed), set()
    for _ in range(8):
        process = start(
            there, "--seconds-per-call", "0.6", "--lease", "2", at=f"{bucket.url}/run", **bucket.env
        )
        taken = bucket.generation("run/.lock")
        wait_until(lambda taken=taken: bucket.generation("run/.lock") != taken, there, process)
        time.sleep(instants.uniform(0, 8))
        process.kill()
        if finish(process) == 0:
            break
        seen.add(max(training.Checkpoints(f"{bucket.url}/run/checkpoints", create=False).steps(), default=0))
    print(f"killed with the checkpoints of {sorted(seen)}")
    assert finish(start(there, "--lease", "2", at=f"{bucket.url}/run", **bucket.env)) == 0, log(there)
    assert_same(bucket, there, here)


@pytest.mark.slow
def test_two_processes_in_a_bucket_equal_one_and_end_with_each_other(bucket, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    assert finish(start(here)) == 0, log(here)
    bucket.objects.clear()
    how = {"at": f"{bucket.url}/run", **bucket.env}
    pair = start_two(there, "--seconds-per-call", "0.2", "--lease", "4", **how)
    wait_until(lambda: has(bucket, "run/checkpoints/20/commit_success.txt"), there, pair[0])
    pair[1].kill()
    began = time.monotonic()
    assert finish(pair[0], timeout=60) == 1, log(there)
    assert time.monotonic() - began < 20
    assert f"process 1 of 2 (pid {pair[1].pid} on " in log(there)
    assert finish(*start_two(there, "--lease", "4", **how)) == [0, 0], log(there)
    for x, y in zip(final(there), final(here), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def test_a_checkpoint_in_a_bucket_that_is_damaged_or_half_written_is_not_used(bucket, tmp_path):
    url = f"{bucket.url}/damaged"
    problem = toy.setup(30)
    toy.fit(url, 20, problem=problem)
    data = [name for name in bucket.names(f"{bucket.bucket}/damaged/checkpoints/20/params/") if "/d/" in name]
    for name in data:
        bucket.write(name, bucket.objects[name].data[::-1])
    bucket.put("damaged/checkpoints/25/params/_METADATA", b"{}")  # without the object that is written at last
    with pytest.warns(UserWarning, match=rf"checkpoint {url}/checkpoints/20 is damaged .* using step 10"):
        state = toy.fit(url, 30, problem=problem)
    toy.assert_same_bits(state, toy.fit(tmp_path, 30, problem=problem))
    assert has(bucket, "damaged/checkpoints.damaged/20/commit_success.txt")
    assert not bucket.names(f"{bucket.bucket}/damaged/checkpoints/25")
    assert order(lines(bucket, "damaged")) == order(toy.lines(tmp_path))


def test_figures_and_a_trace_are_in_the_bucket(bucket, tmp_path):
    toy.fit(f"{bucket.url}/traced", 20, profile="5:10")
    found = fetched(paths.path_of(f"{bucket.url}/traced/tensorboard"), tmp_path)
    events = EventAccumulator(str(found)).Reload()
    logged = [(event.step, np.float32(event.value)) for event in events.Scalars("loss")]
    assert logged == [(line["step"], np.float32(line["loss"])) for line in lines(bucket, "traced")]
    assert list(found.rglob("*.xplane.pb"))


def test_lines_are_written_to_a_bucket_at_times_and_before_checkpoints(bucket):
    """An object is written anew for each: not for each line."""
    written = training.JSONLines(f"{bucket.url}/lines/metrics.jsonl")
    written.on_start(0)
    first = bucket.generation("lines/metrics.jsonl")
    for step in range(1, 100):
        written.on_log(step, {"loss": 1.0})
    assert bucket.generation("lines/metrics.jsonl") != first
    assert len(lines(bucket, "lines")) == 1
    written.flush()
    assert [line["step"] for line in lines(bucket, "lines")] == list(range(1, 100))
    bucket.put(
        "lines/metrics.jsonl", bucket.objects[f"{bucket.bucket}/lines/metrics.jsonl"].data + b'{"step": 1'
    )
    again = training.JSONLines(f"{bucket.url}/lines/metrics.jsonl")
    with pytest.warns(UserWarning, match="1 lines that are no figures"):
        again.on_start(50)
    again.on_log(51, {"loss": 2.0})
    again.close()
    assert [line["step"] for line in lines(bucket, "lines")] == list(range(1, 52))
    assert bucket.objects[f"{bucket.bucket}/lines/metrics.jsonl.bad"].data == b'{"step": 1\n'
