"""One run a directory: a lock that the kernel releases when its holder ends, however it ends.

with lock.held(workdir / lock.FILE):
    ...                                  # WorkdirInUse, at once, where another process is in here

Reading needs no lock. In buckets, and on file systems without locks, a lease takes their place: a file that its holder
renews.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

import jax
import numpy as np

from gen_jax import paths
from gen_jax.types import AnyPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
"""Name of the lock of a workdir."""
LEASE = 30.0
"""Seconds after which a lease that is not renewed has lapsed."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_descriptors: set[int] = set()
_leases: dict[AnyPath, Callable[[str], None]] = {}
"""Those of this process, and what ends each."""


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
def of_run(workdir: AnyPath) -> Iterator[None]:
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
def held(path: AnyPath, name: str = "a run") -> Iterator[None]:
    """Hold the lock at `path`. Raises WorkdirInUse, which says by whom and since when, where another process does.

    A holder that ended well leaves an empty file, one that died its `name` and where it was, one that ended with an error
    also that it left (`words`).
    """
    mine, last = _self(name), ""
    with _taken(path, mine) as write:
        try:
            yield
        except Exception:  # a signal, of which all processes know, is no error
            last = json.dumps(mine | {"left": True})
            raise
        finally:
            write(last)


@contextlib.contextmanager
def _taken(path: AnyPath, mine: dict[str, object]) -> Iterator[Callable[[str], None]]:
    """Take the lock, with the words `mine` in it; yields what writes others."""
    descriptor = None if paths.is_remote(path) else os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    taken = None
    try:
        if descriptor is not None and (taken := _lock(descriptor)):
            _descriptors.add(descriptor)
            _write(descriptor, json.dumps(mine))
            yield partial(_write, descriptor)
        elif taken is not None:
            raise WorkdirInUse(_in_use(path))
    finally:
        if descriptor is not None:
            _descriptors.discard(descriptor)
            os.close(descriptor)
    if taken is None:
        with _leased(path, mine) as write:
            yield write


def words(path: AnyPath) -> dict[str, object]:
    """What the last holder of the lock at `path` left in it."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(found := json.loads(path.read_text()), dict):
            return found
    return {}


def holder(path: AnyPath) -> str:
    """Who holds the lock at `path`, or held it last; "" for nobody, or one that ended well."""
    said = words(path)
    who = (said.get(key) for key in ("name", "pid", "host", "since"))
    return "{} (pid {} on {}, since {})".format(*who) if said else ""


def is_held(path: AnyPath, now: float | None = None) -> bool | None:
    """Whether a process holds the lock at `path`, as far as can be seen from here; None where there is none.

    Of a lease that is whether it was renewed in half of `LEASE`. `now` is the time where it is, by default that of this
    machine.
    """
    if paths.is_remote(path):
        return _is_fresh(path, now, 1 / 2) if path.exists() else None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        taken = _lock(descriptor)
        return _is_fresh(path, now, 1 / 2) if taken is None else not taken
    finally:
        os.close(descriptor)


def _is_fresh(path: AnyPath, now: float | None = None, most: float = 1.0) -> bool:
    """Whether a lease has a holder, who renewed it in the last `most` of `LEASE`."""
    said = words(path)
    now = time.time() if now is None else now
    return bool(said) and not {"left", "ended"} & set(said) and now - paths.modified(path) < most * LEASE


def _clock(path: AnyPath) -> Callable[[], float]:
    """The time where `path` is, whatever the clocks of hosts say: that of a file that is written beside it."""
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    probe.write_bytes(b"")
    ahead = paths.modified(probe) - time.monotonic()
    probe.unlink()
    return lambda: ahead + time.monotonic()


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


def _in_use(path: AnyPath) -> str:
    who = holder(path) or "another run"
    return f"workdir {path.parent} is in use by {who}: wait until it ends, or give another workdir"


@contextlib.contextmanager
def _leased(path: AnyPath, mine: dict[str, object]) -> Iterator[Callable[[str], None]]:
    """The same by a file that is renewed ten times in the time after which it lapses, `LEASE`.

    Where it was not renewed in a fifth of that, its holder is dead or slow: it is waited for.
    """
    text, now = json.dumps(mine | {"token": secrets.token_hex(8)}), _clock(path)
    while _is_fresh(path, now()):
        if _is_fresh(path, now(), 1 / 5):
            raise WorkdirInUse(_in_use(path))
        time.sleep(LEASE / 20)
    paths.replace(path, text)
    time.sleep(min(1.0, LEASE / 10))  # another one may do the same: the last one has it
    if not _is(path, text):
        raise WorkdirInUse(_in_use(path))
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(LEASE / 10):
            with contextlib.suppress(Exception):  # of the network: it is tried again
                if _is(path, text):
                    paths.replace(path, text)
                elif words(path):
                    _leave(path)

    def write(last: str) -> None:
        _leases.pop(path, None)
        ended.set()
        thread.join(LEASE)
        with contextlib.suppress(Exception):  # it lapses without words
            if _is(path, text):
                paths.replace(path, last)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    _leases[path] = write
    yield write


def let_go() -> None:
    """End all leases of this process, which ends without more ado: the kernel releases locks alone."""
    for write in list(_leases.values()):
        write("")


def _is(path: AnyPath, text: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text() == text
    return False


def _leave(path: AnyPath) -> NoReturn:
    """The last words of a holder that was away for so long, in a suspended machine or without a network, that another run
    has taken its place: the next checkpoint would be one among those of the other."""
    print(
        f"{_in_use(path)}; this one was away for more than {LEASE:.0f} s, and ends",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
