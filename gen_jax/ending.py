"""How a program ends: what is wrong with its input is said in a sentence, and Ctrl-C is obeyed."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

INPUT, PREEMPTED, INTERRUPTED = 2, 75, 130
"""Exit codes: of a wrong input, as of a wrong flag; of SIGTERM, as EX_TEMPFAIL of sysexits.h, "try again"; and of Ctrl-C,
as the shell's."""
OF_INPUT = (ValueError, OSError, ArithmeticError, MemoryError)
NO_MEMORY = "RESOURCE_EXHAUSTED"
"""What JAX says where memory is."""


@contextlib.contextmanager
def said(name: str, *, debug: bool = False, hint: str = "") -> Iterator[None]:
    """End the program `name` with a sentence on stderr, and exit code 2, for what is wrong with its input or its files.

    Ctrl-C ends it with exit code 130: training saves first; the second time at once. With `debug` errors are raised as
    they are. `hint` follows the sentence.
    """
    with _second_interrupt(), contextlib.nullcontext() if debug else _quiet_threads():
        try:
            yield
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)
        except Exception as error:
            if debug or not (isinstance(error, OF_INPUT) or NO_MEMORY in str(error)):
                raise
            wrong(f"{name}: {str(error).strip() or type(error).__name__}{hint}")


def wrong(sentence: str) -> NoReturn:
    """Say on stderr what is wrong with the input, and end."""
    print(sentence, file=sys.stderr)
    end = SystemExit(sentence)
    end.code = INPUT
    raise end


@contextlib.contextmanager
def _quiet_threads() -> Iterator[None]:
    """No tracebacks of threads and tasks that write a checkpoint: they report their errors to the run."""
    before, sys.unraisablehook = sys.unraisablehook, lambda *_: None
    logging.getLogger("asyncio").setLevel(
        logging.CRITICAL
    )  # of tasks that are freed as late as the program ends
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def _second_interrupt() -> Iterator[None]:
    """End the process at the second SIGINT, also where the main thread is in a long call of XLA.

    Python runs handlers of signals between two of its instructions in the main thread alone, which may be minutes later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        seen = 0
        while data := ours.recv(64):
            seen += data.count(signal.SIGINT)
            if seen > 1:
                _end()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()


def _end() -> None:
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), b"\x1b[?25h")  # a progress bar hides the cursor
        os.write(2, b"interrupted twice: ended at once\n")
    os._exit(INTERRUPTED)
