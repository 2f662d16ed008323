"""The other processes of a run: when one of them dies, the rest end within seconds, and say which one it was.

Each process holds a lock of its own in the workdir, which the kernel releases when it dies. The first process looks at
all of them, the others at that of the first. JAX notices by itself too, but later, and does not say who (`HEARTBEAT`).
In a bucket locks are leases: who leaves with an error is noticed as soon, who is killed when he has not renewed his.
"""

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator

import jax

from gen_jax import paths
from gen_jax.training import lock
from gen_jax.types import AnyPath

HEARTBEAT = 30
"""Seconds without a sign of life after which JAX itself ends the processes of a run, where the locks do not tell."""
EVERY, GRACE = 1.0, 2.0
"""Seconds between two looks, and for what all processes end with, an error of the data, to be said by itself."""

_STATUS = re.compile("[A-Z_]{4,}: ")
"""How errors of JAX begin, among them those of messages to other processes: their types are those of others too."""


@contextlib.contextmanager
def watched(workdir: AnyPath) -> Iterator[None]:
    """End this process, with exit code 1 and a sentence, where another process of the run dies; does nothing alone.

    Locks that can not be seen from this host are not looked at.
    """
    me, count = jax.process_index(), jax.process_count()
    if count == 1:
        yield
        return
    from jax.experimental import multihost_utils

    locks, ended = [workdir / f"{lock.FILE}.{i}" for i in range(count)], threading.Event()
    every = lock.LEASE / 10 if paths.is_remote(workdir) else EVERY
    with lock.held(locks[me], f"process {me} of {count}"):
        multihost_utils.sync_global_devices("every process holds its lock")
        now = lambda: paths.modified(locks[me])  # of a lease: when this process renewed its own
        seen = [path for path in (locks[:1] if me else locks[1:]) if lock.is_held(path, now())]
        multihost_utils.sync_global_devices("every process has seen the others")
        gone = lambda: [path for path in seen if lock.is_held(path, now()) is False and lock.words(path)]

        def look() -> None:
            while not ended.wait(every):
                with contextlib.suppress(OSError):  # of the network: it is tried again
                    if (found := gone()) and not ended.wait(GRACE):
                        _leave(found[0], locks[me])

        threading.Thread(target=look, daemon=True).start()
        try:
            yield
        except Exception as error:  # what fails first is often a message to the one that is gone
            late = paths.is_remote(workdir) and _STATUS.match(str(error))
            until = time.monotonic() + (lock.LEASE / 2 + every if late else EVERY)
            while time.monotonic() < until:
                if died := [path for path in gone() if "left" not in lock.words(path)]:
                    _leave(died[0], locks[me])
                time.sleep(EVERY / 10)
            raise
        finally:
            ended.set()


def _leave(gone: AnyPath, mine: AnyPath) -> None:
    """The last words. Nothing else would return: all wait for the one that is gone."""
    with contextlib.suppress(OSError, ValueError):
        what = "has left with an error" if "left" in lock.words(gone) else "is gone"
        text = f"{lock.holder(gone)} {what}: this one ends too"
        text += "; the same command goes on from the last checkpoint"
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
        said = lock.words(gone)
        lock.let_go()
        mine.write_text(json.dumps(said | {"ended": True}))  # who looks at this one is to say the same
    os._exit(1)
