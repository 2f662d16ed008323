"""A trace of some steps of a run: what the devices and the host did, for TensorBoard's profiler and for Perfetto."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from jaxtyping import PyTree

from gen_jax import paths
from gen_jax.types import AnyPath


def steps_of(text: str) -> range:
    """`"100:120"` as the steps 100 to 119. ValueError for what is not of this form, or has no step."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"profile must be START:STOP, two steps of which the first is less, got {text!r}.")
    return range(int(found[1]), int(found[2]))


class Trace:
    """Of the calls that take one of `steps`, begun before the first of them and written after the last."""

    def __init__(self, steps: range | None, directory: AnyPath):
        self.steps, self.directory, self.running = steps, directory, False
        self.scratch: tempfile.TemporaryDirectory[str] | None = None
        """Where a trace is, that is to go into a bucket."""

    @contextlib.contextmanager
    def call(self, end: int, size: int) -> Iterator[None]:
        """Around the call of the steps `end - size` to `end`; calls are one step of the profiler each."""
        if self.steps is None:
            yield
            return
        if not self.running and end - size < self.steps.stop and end > self.steps.start:
            self.scratch = tempfile.TemporaryDirectory() if paths.is_remote(self.directory) else None
            jax.profiler.start_trace(self.scratch.name if self.scratch else str(self.directory))
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=end):
            yield

    def after(self, end: int, state: PyTree) -> None:
        """End the trace where no other step of it follows, once the devices have done theirs."""
        if self.running and self.steps is not None and end >= self.steps.stop:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Write what there is."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            self.steps = None
            if self.scratch is not None:
                with self.scratch as scratch:
                    paths.upload(Path(scratch), self.directory)
