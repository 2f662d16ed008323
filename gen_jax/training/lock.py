"""One run a directory: a lock that the kernel releases when its holder ends, however it ends.

with lock.held(workdir / lock.FILE):
    ...                                  # WorkdirInUse, at once, where another process is in here

Reading needs no lock. On file systems without locks a lease takes their place: a file whose time stamp its holder renews.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
"""Name of the lock of a workdir."""
LEASE = 60.0
"""Seconds after which a lease that is not renewed has lapsed."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_descriptors: set[int] = set()


class WorkdirInUse(ValueError):
    """Another run is in this directory."""


def _close_in_child() -> None:
    """A lock is of all that have it open: a forked child, such as a worker of a loader, would hold it on."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def of_run(workdir: Path) -> Iterator[None]:
    """The lock of a run. Of several processes the first one holds it; all of them get the same WorkdirInUse."""
    with contextlib.ExitStack() as stack:
        said = ""
        if jax.process_index() == 0:
            try:
                stack.enter_context(held(workdir / FILE))
            except WorkdirInUse as error:
                said = str(error)
        if said := _of_first(said):
            raise WorkdirInUse(said)
        yield


def _of_first(text: str, most: int = 4096) -> str:
    """What the first process says, in every process."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    said = np.zeros(most, np.uint8)
    data = np.frombuffer(text.encode()[:most], np.uint8)
    said[: len(data)] = data
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(said))).rstrip(b"\0").decode(errors="ignore")


@contextlib.contextmanager
def held(path: Path, name: str = "a run") -> Iterator[None]:
    """Hold the lock at `path`. Raises WorkdirInUse, which says by whom and since when, where another process does.

    A holder that ended well leaves an empty file, one that died its `name` and where it was, one that ended with an error
    also that it left (`words`).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not (taken := _lock(descriptor)):
            if taken is not None:
                raise WorkdirInUse(_in_use(path))
            os.close(descriptor)
            descriptor = -1
            with _leased(path, name):
                yield
            return
        _descriptors.add(descriptor)
        mine, last = _self(name), ""
        _write(descriptor, json.dumps(mine))
        try:
            yield
        except Exception:  # a signal, of which all processes know, is no error
            last = json.dumps(mine | {"left": True})
            raise
        finally:
            _write(descriptor, last)
    finally:
        if descriptor >= 0:
            _descriptors.discard(descriptor)
            os.close(descriptor)


def words(path: Path) -> dict[str, object]:
    """What the last holder of the lock at `path` left in it."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(found := json.loads(path.read_text()), dict):
            return found
    return {}


def holder(path: Path) -> str:
    """Who holds the lock at `path`, or held it last; "" for nobody, or one that ended well."""
    said = words(path)
    who = (said.get(key) for key in ("name", "pid", "host", "since"))
    return "{} (pid {} on {}, since {})".format(*who) if said else ""


def is_held(path: Path) -> bool | None:
    """Whether a process holds the lock at `path`, as far as can be seen from here; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        taken = _lock(descriptor)
        return None if taken is None else not taken
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock could be taken; None where the file system has none."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _self(name: str) -> dict[str, object]:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"name": name, "pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _write(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock is held without words
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _in_use(path: Path) -> str:
    who = holder(path) or "another run"
    return f"workdir {path.parent} is in use by {who}: wait until it ends, or give another workdir"


@contextlib.contextmanager
def _leased(path: Path, name: str) -> Iterator[None]:
    """The same by a file that is renewed: left by a process that died, it can be taken after `LEASE`."""
    seconds, mine = LEASE, json.dumps(_self(name) | {"token": secrets.token_hex(8)})
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    probe.write_text(mine)  # its time is the file system's, whatever the clocks of its hosts say
    if holder(path) and probe.stat().st_mtime - path.stat().st_mtime < seconds:
        probe.unlink()
        raise WorkdirInUse(_in_use(path))
    os.replace(probe, path)
    time.sleep(min(1.0, seconds / 10))  # another one may do the same: the last one has it
    is_mine = lambda: path.exists() and path.read_text() == mine
    if not is_mine():
        raise WorkdirInUse(_in_use(path))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(seconds / 4):
            with contextlib.suppress(OSError):
                if is_mine():
                    os.utime(path)

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if is_mine():
            path.write_text("")
