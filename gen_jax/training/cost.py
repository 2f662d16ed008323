"""What a run costs: its operations against what its devices can do, where its time goes, its memory."""

import contextlib
import itertools
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jaxtyping import PyTree

from gen_jax import checks, jsonlines, paths
from gen_jax.training.flops import flops
from gen_jax.training.peaks import peak
from gen_jax.types import AnyPath

__all__ = ["flops", "of_run", "peak"]

FIGURES = ("flops_per_step", "mfu", "data_share", "checkpoint_share", "peak_bytes", "program_bytes")
"""Of a log point, see `Callback.on_log`."""


def memory(devices: Sequence[jax.Device]) -> float | None:
    """Most bytes in use so far on one of the devices of this process; by the whole process, where it has a CPU alone."""
    here = [d for d in devices if d.process_index == jax.process_index()]
    if known := [used for d in here if (used := _stats(d).get("peak_bytes_in_use")) is not None]:
        return float(max(known))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return float(most) if all(d.platform == "cpu" for d in here) else None


def _stats(device: jax.Device) -> Mapping[str, int]:
    try:
        return device.memory_stats() or {}
    except (NotImplementedError, jax.errors.JaxRuntimeError):  # a platform without them
        return {}


def program_memory(program: jax.stages.Compiled) -> float | None:
    """Bytes on a device of a compiled program: arguments, results that share no memory with them, and temporaries."""
    if (m := program.memory_analysis()) is None:
        return None
    used = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return float(used - m.alias_size_in_bytes)


class Watch:
    """When results are there, told by a thread that waits for them, so that the main one does not."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[PyTree, list[float]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._wait, daemon=True, name="watch of the devices").start()

    def _wait(self) -> None:
        while (call := self._calls.get()) is not None:
            with contextlib.suppress(Exception):  # the main thread meets it too
                jax.block_until_ready(call[0])
            call[1].append(time.perf_counter())

    def done(self, results: PyTree) -> list[float]:
        """A list that gets the time at which they were there."""
        found: list[float] = []
        self._calls.put((results, found))
        return found

    def close(self) -> None:
        """End the thread, after what it waits for."""
        self._calls.put(None)


class Cost:
    """The figures of a run: those of `FIGURES` that are known on its devices."""

    def __init__(self, devices: Sequence[jax.Device], *, watch: bool):
        self.devices, self.known = devices, dict[str, float | None]()
        self._watch = Watch() if watch else None
        self._spent, self._start = {"data": 0.0, "checkpoint": 0.0}, time.perf_counter()

    def of_program(self, flops_per_step: float, program: jax.stages.Compiled) -> None:
        """What is known before the first step."""
        self._peak = peak(self.devices)
        self.known = {"flops_per_step": flops_per_step, "program_bytes": program_memory(program)}

    @contextlib.contextmanager
    def spend(self, what: str) -> Iterator[None]:
        """The time inside goes to data or to a checkpoint."""
        begin = time.perf_counter()
        yield
        self._spent[what] += time.perf_counter() - begin

    @contextlib.contextmanager
    def waiting(self, results: PyTree) -> Iterator[None]:
        """Of the time inside goes to data what is left when the results are there: the devices then do nothing."""
        done, begin = [] if self._watch is None else self._watch.done(results), time.perf_counter()
        yield
        if done:
            self._spent["data"] += max(time.perf_counter() - max(begin, done[0]), 0.0)

    def figures(self, steps_per_second: float) -> dict[str, float]:
        """Those of a log point; the shares are of all the time since the one before, or since the start."""
        now = time.perf_counter()
        wall, self._start = max(now - self._start, 1e-9), now
        found = {
            **self.known,
            "mfu": self._mfu(steps_per_second),
            **{f"{what}_share": min(seconds / wall, 1.0) for what, seconds in self._spent.items()},
            "peak_bytes": memory(self.devices),
        }
        self._spent = dict.fromkeys(self._spent, 0.0)
        return {name: value for name in FIGURES if (value := found.get(name)) is not None}

    def _mfu(self, steps_per_second: float) -> float | None:
        rate = (self.known["flops_per_step"] or 0.0) * steps_per_second
        return None if self._peak is None else rate / self._peak

    def close(self) -> None:
        """End the watch."""
        if self._watch is not None:
            self._watch.close()


@checks.checked
def of_run(workdir: str | AnyPath) -> dict[str, float]:
    """What a run has cost so far, in all its parts, by the figures in its `metrics.jsonl`; of those it lacks, nothing.

    - `flops`: of all steps; `mfu`: mean over the time of the steps.
    - `seconds_of_data`, `seconds_of_checkpoints`: of `seconds`, as the shares say.
    - `peak_bytes`, `program_bytes`: the most there was.

    What came after the last line, such as the last checkpoint, is not in them. ValueError for a `workdir` that is none.
    """
    workdir = paths.path_of(workdir)
    if not paths.is_remote(workdir) and not workdir.is_dir():
        raise ValueError(f"workdir must be the directory of a run, there is none at {workdir}.")
    lines, _ = jsonlines.read(workdir / "metrics.jsonl")
    start: jsonlines.Line = {"step": 0}
    parts = list(itertools.pairwise([start, *lines]))
    there = {name for line in lines for name in line}
    steps = lambda before, line: _value(line, "step") - _value(before, "step")
    seconds = lambda before, line: _value(line, "seconds") - _value(before, "seconds")
    busy = lambda before, line: steps(before, line) / (_value(line, "steps_per_second") or float("inf"))

    def total(name: str, each: Callable[..., float]) -> float:
        return float(sum(_value(line, name) * each(before, line) for before, line in parts))

    most = lambda name: max((_value(line, name) for line in lines), default=0.0)
    found = {
        "flops_per_step": ("flops", total("flops_per_step", steps)),
        "mfu": ("mfu", total("mfu", busy) / (sum(busy(*part) for part in parts) or 1.0)),
        "data_share": ("seconds_of_data", total("data_share", seconds)),
        "checkpoint_share": ("seconds_of_checkpoints", total("checkpoint_share", seconds)),
        "peak_bytes": ("peak_bytes", most("peak_bytes")),
        "program_bytes": ("program_bytes", most("program_bytes")),
    }
    return {name: value for figure, (name, value) in found.items() if figure in there}


def _value(line: jsonlines.Line, name: str) -> float:
    return float(line.get(name) or 0.0)
