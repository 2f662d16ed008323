"""The other processes of a run: when one of them dies, the rest end within seconds, and say which one it was.

Each process holds a lock of its own in the workdir, which the kernel releases when it dies. The first process looks at
all of them, the others at that of the first. JAX notices by itself too, but later, and does not say who (`HEARTBEAT`).
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from gen_jax.training import lock

HEARTBEAT = 30
"""Seconds without a sign of life after which JAX itself ends the processes of a run, where the locks do not tell."""
EVERY, GRACE = 1.0, 2.0
"""Seconds between two looks, and for what all processes end with, an error of the data, to be said by itself."""


@contextlib.contextmanager
def watched(workdir: Path) -> Iterator[None]:
    """End this process, with exit code 1 and a sentence, where another process of the run dies; does nothing alone.

    Locks that can not be seen from this host are not looked at.
    """
    me, count = jax.process_index(), jax.process_count()
    if count == 1:
        yield
        return
    from jax.experimental import multihost_utils

    paths, ended = [workdir / f"{lock.FILE}.{i}" for i in range(count)], threading.Event()
    with lock.held(paths[me], f"process {me} of {count}"):
        multihost_utils.sync_global_devices("every process holds its lock")
        seen = [path for path in (paths[:1] if me else paths[1:]) if lock.is_held(path)]
        multihost_utils.sync_global_devices("every process has seen the others")
        gone = lambda: [path for path in seen if lock.is_held(path) is False and lock.words(path)]

        def look() -> None:
            while not ended.wait(EVERY):
                if (found := gone()) and not ended.wait(GRACE):
                    _leave(found[0], paths[me])

        threading.Thread(target=look, daemon=True).start()
        try:
            yield
        except Exception:
            until = time.monotonic() + EVERY  # what fails first is often a message to the one that is gone
            while time.monotonic() < until:
                if died := [path for path in gone() if "left" not in lock.words(path)]:
                    _leave(died[0], paths[me])
                time.sleep(EVERY / 10)
            raise
        finally:
            ended.set()


def _leave(gone: Path, mine: Path) -> None:
    """The last words. Nothing else would return: all wait for the one that is gone."""
    with contextlib.suppress(OSError, ValueError):
        what = "has left with an error" if "left" in lock.words(gone) else "is gone"
        text = f"{lock.holder(gone)} {what}: this one ends too"
        text += "; the same command goes on from the last checkpoint"
        mine.write_text(gone.read_text())  # who looks at this one is to say the same
        sys.stdout.flush()
        print(text, file=sys.stderr, flush=True)
    os._exit(1)
