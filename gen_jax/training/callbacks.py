"""What is told of a run while it goes on: lines of figures, TensorBoard, and what a user adds."""

import json
import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from gen_jax import checks
from gen_jax.training.state import TrainState
from gen_jax.training.workdir import Json


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
        """After each `log_every` steps: means of the metrics since the last time, rates, seconds so far.

        `images_per_second` counts rows of batches, whatever they are. A metric of the loss that is called as another
        figure is "loss.NAME".
        """

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

    Started at a step, it removes every line beyond that step, so that a resumed run never has a line twice. Numbers that
    are not finite become null, which is what JSON has.
    """

    @checks.checked
    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        self.seconds = 0.0
        """Training time of the last line that was there at the start."""

    @checks.checked
    def on_start(self, step: int) -> None:
        """Remove the lines beyond `step`."""
        lines = [(line, text) for line, text in _read(self.path) if line["step"] <= step]
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text("".join(f"{text}\n" for _, text in lines))
        os.replace(temporary, self.path)
        self.seconds = lines[-1][0].get("seconds") or 0.0 if lines else 0.0

    @checks.checked
    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if "step" in clean:  # of a caller of one's own: `fit` has none
            clean["loss.step"] = clean.pop("step")
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **clean}) + "\n")


class TensorBoard(Callback):
    """The same figures for TensorBoard; `fit` adds one that writes to `tensorboard/`."""

    @checks.checked
    def __init__(self, directory: str | Path):
        self._directory, self._step = str(Path(directory).expanduser()), 0

    @checks.checked
    def on_start(self, step: int) -> None:
        """Let TensorBoard forget what was logged beyond `step`."""
        self._step = step

    @cached_property
    def _writer(self):
        """Opened at the first write, while the devices work: the import is slow where torch is there.

        Files are named, and read in order, by the second in which they begin: the step tells apart two of one second.
        """
        from tensorboardX import SummaryWriter

        purge = self._step + 1 if self._step else None
        return SummaryWriter(self._directory, purge_step=purge, filename_suffix=f".{self._step:012d}")

    @checks.checked
    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Write each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is buffered."""
        if "_writer" in self.__dict__:
            self._writer.close()


def _read(path: Path) -> list[tuple[Json, str]]:
    """Whole lines of a JSONL file, as read and as they stand; the last one of a killed run may be cut short."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append((json.loads(text), text))
        except json.JSONDecodeError:
            continue
    return lines
