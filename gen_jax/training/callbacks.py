"""What is told of a run while it goes on: lines of figures, TensorBoard, and what a user adds."""

import json
import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

from gen_jax import checks, jsonlines, paths
from gen_jax.training.state import TrainState
from gen_jax.types import AnyPath

FLUSH = 10.0
"""Seconds after which what TensorBoard is to show is put on the disk, and lines into a bucket, at the next log point."""


class Callback:
    """Methods that `fit` calls; a subclass has those it needs, the others do nothing.

    `on_start` and `on_log` run in process 0 alone. `on_checkpoint`, `on_sample` and `close` run in every process, so
    that they may compute on arrays that are spread over processes: there only process 0 should write. A `state` is valid
    during the call; the next step reuses its memory.
    """

    @checks.checked
    def on_start(self, step: int) -> None:
        """Before the first step: `step` are done, more than 0 where an earlier run goes on."""

    @checks.checked
    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """After each `log_every` steps: means of the metrics since the last time, rates, seconds so far, what it cost.

        - `images_per_second` counts rows of batches, whatever they are.
        - `flops_per_step`: floating-point operations of a step on all devices (`cost.flops`). `mfu`: how much that is, at
          `steps_per_second`, of what the devices can do (`cost.peak`), from 0 to 1.
        - `data_share`, `checkpoint_share`: how much of the time since the last log point the devices waited for batches,
          and the loop for checkpoints.
        - `peak_bytes`: most memory in use so far on a device of this process (by the process, where it is a CPU).
          `program_bytes`: what the compiled program needs on a device.

        What is not known on a device is left out. A metric of the loss that is called as one of these is "loss.NAME".
        """

    def flush(self) -> None:
        """Before each checkpoint: write what a run that goes on from there will not write again."""

    @checks.checked
    def on_checkpoint(self, step: int, state: TrainState) -> None:
        """After each checkpoint; its files are still being written."""

    @checks.checked
    def on_sample(self, step: int, state: TrainState) -> None:
        """After each `sample_every` steps."""

    def close(self) -> None:
        """At the end, also where it is an error."""


class JSONLines(Callback):
    """A file with one line of JSON for each log point; `fit` adds one that writes `metrics.jsonl`.

    Started at a step, it removes every line beyond that step, so that a resumed run never has a line twice. What is no
    line of figures it moves to `NAME.bad` beside the file, with a warning. Numbers that are not finite become null, which
    is what JSON has.
    """

    @checks.checked
    def __init__(self, path: str | AnyPath):
        self.path = paths.path_of(path)
        self.seconds = 0.0
        """Training time of the last line that was there at the start."""
        self._text, self._waiting, self._next = "", False, 0.0
        """Of a file in a bucket, to which nothing can be added: all of it, and when it is written anew."""

    @checks.checked
    def on_start(self, step: int) -> None:
        """Remove the lines beyond `step`, and what is no line."""
        lines, bad = jsonlines.read(self.path)
        if bad:
            self._set_aside(bad)
        lines = [line for line in lines if cast(int, line["step"]) <= step]
        self._text = "".join(f"{json.dumps(line)}\n" for line in lines)
        paths.replace(self.path, self._text)
        self.seconds = lines[-1].get("seconds") or 0.0 if lines else 0.0

    def _set_aside(self, bad: Sequence[bytes]) -> None:
        aside = self.path.with_name(f"{self.path.name}.bad")
        added = b"".join(line + b"\n" for line in bad)
        if paths.is_remote(aside):
            paths.replace(aside, (aside.read_bytes() if aside.exists() else b"") + added)
        else:
            with aside.open("ab") as file:
                file.write(added)
        shown = repr(bad[0][:60].decode(errors="replace"))
        warnings.warn(
            f"{self.path} has {len(bad)} lines that are no figures, the first is {shown}: moved to {aside.name}",
            stacklevel=2,
        )

    @checks.checked
    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if "step" in clean:  # of a caller of one's own: `fit` has none
            clean["loss.step"] = clean.pop("step")
        line = json.dumps({"step": step, **clean}) + "\n"
        if not paths.is_remote(self.path):
            with self.path.open("a") as file:
                file.write(line)
            return
        self._text, self._waiting = self._text + line, True
        if time.monotonic() > self._next:
            self.flush()

    def flush(self) -> None:
        """Write the lines that a bucket does not have yet."""
        if self._waiting:
            paths.replace(self.path, self._text)
            self._waiting, self._next = False, time.monotonic() + FLUSH

    def close(self) -> None:
        """The same."""
        self.flush()


class TensorBoard(Callback):
    """The same figures for TensorBoard; `fit` adds one that writes to `tensorboard/`."""

    @checks.checked
    def __init__(self, directory: str | AnyPath):
        self._directory, self._step, self._next = paths.path_of(directory), 0, 0.0
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        """Where the file is, that is to go into a bucket."""

    @checks.checked
    def on_start(self, step: int) -> None:
        """Let TensorBoard forget what was logged beyond `step`."""
        self._step = step

    @cached_property
    def _writer(self):
        """Opened at the first write, while the devices work: the import is slow where torch is there.

        Files are named, and read in order, by the second in which they begin: the step tells apart two of one second.
        tensorboardX's own `SummaryWriter` writes in a thread, and waits for it forever where a full disk has ended it.
        """
        from tensorboardX.event_file_writer import EventsWriter

        place = self._directory
        if paths.is_remote(place):
            self._scratch = tempfile.TemporaryDirectory(prefix="gen_jax-")
            place = Path(self._scratch.name)
        paths.make(place)
        writer = EventsWriter(str(place / "events"), f".{self._step:012d}")
        if self._step:
            from tensorboardX.proto.event_pb2 import SessionLog

            self._write(writer, self._step + 1, session_log=SessionLog(status=SessionLog.START))
        return writer

    def _write(self, writer, step: int, **what: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        writer.write_event(Event(wall_time=time.time(), step=step, **what))

    @checks.checked
    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Write each value."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(self._writer, step, summary=scalar(name, value))
        if time.monotonic() > self._next:
            self.flush()

    def flush(self) -> None:
        """Put on the disk what was logged."""
        if "_writer" in self.__dict__:
            self._writer.flush()
            self._upload()
        self._next = time.monotonic() + FLUSH

    def close(self) -> None:
        """Close the file."""
        if "_writer" in self.__dict__:
            self._writer.close()
            self._upload()
        if self._scratch is not None:
            self._scratch.cleanup()

    def _upload(self) -> None:
        if self._scratch is not None:
            paths.upload(Path(self._scratch.name), self._directory)
