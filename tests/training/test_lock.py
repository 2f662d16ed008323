"""The lock of a workdir: who has it, who had it, and file systems without locks."""

import errno
import multiprocessing
import os
import threading
import time

import pytest

from gen_jax import paths, pretrained, training
from gen_jax.training import lock
from tests import gcs


def path_in(directory):
    return directory / lock.FILE


def test_a_second_holder_is_refused_with_the_name_of_the_first(tmp_path):
    path = path_in(tmp_path)
    said = rf"workdir {tmp_path} is in use by a run \(pid {os.getpid()} on \S+, since [\d\- :]+\): wait until it ends"
    with lock.held(path):
        assert lock.is_held(path)
        with pytest.raises(lock.WorkdirInUse, match=said), lock.held(path):
            pass
    assert lock.is_held(path) is False
    assert lock.holder(path) == ""
    with lock.held(path):
        pass


def test_a_run_without_a_checkpoint_is_being_trained_or_was_never(tmp_path):
    """Sampling says which: while a run has the lock its first checkpoint is to come."""
    (tmp_path / "checkpoints").mkdir()
    with lock.held(path_in(tmp_path)):
        said = rf"{tmp_path} is being trained, by a run \(pid {os.getpid()} .* no checkpoint yet: wait"
        with pytest.raises(training.CheckpointError, match=said):
            training.load(tmp_path)
        (tmp_path / "checkpoints").rmdir()
        with pytest.raises(training.CheckpointError, match=said):
            pretrained.load(tmp_path)
    with pytest.raises(training.CheckpointError, match=r"no checkpoint in .*: train first"):
        training.load(tmp_path)
    path_in(tmp_path).write_text('{"name": "a run", "pid": 1}')  # of one that was killed
    with pytest.raises(training.CheckpointError, match=r"no checkpoint in .*: train first"):
        training.load(tmp_path)


@pytest.mark.parametrize(("error", "left"), [(KeyError, True), (KeyboardInterrupt, None), (SystemExit, None)])
def test_a_holder_that_left_with_an_error_is_known(tmp_path, error, left):
    """A signal is none: all processes of a run end by it."""
    with pytest.raises(error), lock.held(path_in(tmp_path), "process 1 of 2"):
        raise error
    assert ("process 1 of 2" in lock.holder(path_in(tmp_path))) == bool(left)
    assert lock.words(path_in(tmp_path)).get("left") is left


def test_words_that_are_none_are_nobody(tmp_path):
    for text in (b"", b"\xff", b"3", b"{"):
        path_in(tmp_path).write_bytes(text)
        assert lock.holder(path_in(tmp_path)) == ""
    with lock.held(path_in(tmp_path)):
        pass


def test_a_forked_child_does_not_hold_the_lock_on(tmp_path):
    """Workers of a loader may outlive the run that was killed."""
    path, fork = path_in(tmp_path), multiprocessing.get_context("fork")
    with lock.held(path):
        child = fork.Process(target=time.sleep, args=(60,))
        child.start()
    until = time.monotonic() + 5  # it lets go as soon as it runs
    while lock.is_held(path) and time.monotonic() < until:
        time.sleep(0.01)
    assert child.is_alive()
    assert lock.is_held(path) is False
    child.kill()
    child.join()


@pytest.fixture(params=["without locks", "in a bucket"])
def leased(request, tmp_path, monkeypatch):
    """The path of a lock that is a lease, and what lists the directory."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "LEASE", 1.2)
    if request.param == "without locks":
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        yield path_in(tmp_path), lambda: os.listdir(tmp_path)
        return
    with gcs.reached() as server:
        run = paths.path_of(f"{server.url}/run")
        yield path_in(run), lambda: list(paths.objects(run))


def test_a_lease_is_renewed_until_its_holder_ends(leased):
    path, listing = leased
    with lock.held(path):
        for _ in range(3):
            time.sleep(0.6)  # longer than the lease in all
            said = rf"in use by a run \(pid {os.getpid()}"
            with pytest.raises(lock.WorkdirInUse, match=said), lock.held(path):
                pass
        assert lock.is_held(path)
    assert lock.is_held(path) is False
    with lock.held(path):
        pass
    assert listing() == [lock.FILE]


def test_the_lease_of_a_holder_that_died_lapses(leased):
    path, _ = leased
    path.write_text('{"name": "a run", "pid": 1, "host": "gone", "since": "then"}')
    with pytest.raises(lock.WorkdirInUse, match="pid 1 on gone, since then"), lock.held(path):
        pass
    time.sleep(lock.LEASE / 2)  # so long without a sign of life: what is left is waited for
    with lock.held(path):
        assert f"pid {os.getpid()}" in lock.holder(path)


def test_a_holder_of_a_lease_that_left_with_an_error_is_known(leased):
    path, _ = leased
    with pytest.raises(KeyError), lock.held(path, "process 1 of 2"):
        raise KeyError
    assert lock.words(path)["left"] is True
    assert lock.is_held(path) is False
    with lock.held(path):  # at once
        pass


def test_a_holder_whose_place_is_taken_ends(leased, monkeypatch):
    """After a time without network, say, in which another run has begun."""
    path, _ = leased
    left = threading.Event()
    monkeypatch.setattr(lock, "_leave", lambda path: left.set())
    with lock.held(path):
        path.write_text('{"name": "another run", "pid": 1, "host": "there", "since": "now"}')
        assert left.wait(10)
    assert "another run" in lock.holder(path)  # whose lease it stays
