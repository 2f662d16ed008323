"""Cases in a process of their own, which is ended where it hangs, and begun again where it dies.

worker = Worker("soak_inputs", place, seed=0)
worker.ask(17)                                     # what case 17 came to
"""

import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).parent
SECONDS, BYTES = 60.0, 2 * 2**30
"""Longer is a hang, and more is too much."""
SENTENCES = (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, OSError)
"""Errors that say what is wrong; any other one, and those of subclasses such as UnicodeDecodeError, nobody meant."""
LONGEST = 3000
"""Characters of a message, at most."""


class Wrong(Exception):
    """An answer that is not the right one."""


class Cases(Protocol):
    """What a module of cases has: a case by its number, the same each time."""

    kinds: tuple[str, ...]
    """Case `i` is of the kind `i % len(kinds)`."""

    def warm(self) -> None:
        """Read what is sound, so that all is imported and compiled."""

    def __call__(self, number: int) -> str:
        """What it was; raises `Wrong`, or the error that the reader raised."""


def outcome(cases: Callable[[int], str], number: int) -> dict[str, Any]:
    """`ended` is "right", "error" with a sentence, "wrong", or "traceback", of an error of no reader's own."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {"ended": "right", "said": cases(number)}
    except Wrong as error:
        return {"ended": "wrong", "said": str(error)}
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        meant = type(error).__module__.startswith("gen_jax") or type(error) in SENTENCES
        if meant and " " in str(error).strip() and len(said) < LONGEST:
            return {"ended": "error", "said": said}
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {"ended": "traceback", "said": f"{said:.400} ({last.filename}:{last.lineno})"}


def serve(module: str, place: str, seed: str) -> None:
    """Answer the numbers on standard input, a line of JSON each; what is printed meanwhile goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    obey_modes()
    cases = importlib.import_module(module).Cases(Path(place), int(seed))
    cases.warm()
    from soak_guard import Guard

    guard = Guard()
    print(json.dumps(cases.kinds), file=answers, flush=True)
    for line in sys.stdin:
        number, guard.on, began = int(line), True, time.perf_counter()
        found = outcome(cases, number)
        guard.on = False
        if guard.seen:
            found |= {"ended": "code", "said": guard.seen.pop()}
            guard.seen.clear()
        found |= {"seconds": time.perf_counter() - began}
        print(json.dumps(found), file=answers, flush=True)


def obey_modes() -> None:
    """Take from root what lets it read files whose mode forbids it (CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH)."""
    if sys.platform != "linux" or os.geteuid():
        return
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc.capget(header, data)
    for word in (0, 1):  # effective and permitted
        data[word] &= ~0b110
    libc.capset(header, data)


class Worker:
    """The other side of `serve`."""

    def __init__(self, module: str, place: Path, seed: int):
        self._arguments = (module, str(place), str(seed))
        self._log = place / f"{module}-{id(self)}.log"
        self._start()

    def _start(self) -> None:
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import soak_worker; soak_worker.serve(*sys.argv[1:])"
        environment = environment_of(place=Path(self._arguments[1]))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        self.most = 0
        self.kinds = self._answer(300)
        if not isinstance(self.kinds, list):
            raise RuntimeError(f"the worker does not start: {self._log.read_text()[-2000:]}")

    def ask(self, number: int) -> dict[str, Any]:
        """What the case came to; also "hang", "memory" and "died", after which the process is another one."""
        assert self._process.stdin is not None
        began = time.monotonic()
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        found = self._answer(SECONDS)
        if isinstance(found, dict) and self.most > BYTES:
            found["ended"] = "memory"
        elif not isinstance(found, dict):
            found = {"ended": found, "said": "", "seconds": time.monotonic() - began}
        found["bytes"] = self.most
        if found["ended"] in ("hang", "memory", "died"):
            self.close()
            self._start()
        found |= {"number": number, "kind": self.kinds[number % len(self.kinds)]}
        with self._log.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
        return found

    def _answer(self, seconds: float) -> Any:
        """The next line; or why there is none."""
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.most = max(self.most, memory(self._process.pid))
            if memory(self._process.pid) > 2 * BYTES:
                return "memory"
            if select.select([self._process.stdout], [], [], 0.2)[0]:
                line = self._process.stdout.readline()
                self.most = max(self.most, memory(self._process.pid))
                return json.loads(line) if line else "died"
        return "hang"

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def environment_of(place: Path) -> dict[str, str]:
    """Of processes here: one device, and compiled programs for all of them in one place."""
    return {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")]),
    }


def memory(process: int) -> int:
    """The most that a process has had at a time, in bytes; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
