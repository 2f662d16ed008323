"""Means and rates between log points, and what the terminal shows: a progress bar or plain lines."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


class Meter:
    """Averages of the metrics since the last log point, and the rate.

    The averages are sums that can be kept: a run that goes on in the middle of an interval logs what it would have.
    """

    def __init__(self, step: int, now: float, sums: Mapping[str, Sequence[str]] = {}):
        self._sums = {name: (float.fromhex(total), int(count)) for name, (total, count) in sums.items()}
        self._step, self._start = step, now

    def sums(self) -> dict[str, list[str]]:
        """The sums and how many steps they are of, as JSON has them to the last bit, infinite ones as well."""
        return {name: [total.hex(), str(count)] for name, (total, count) in self._sums.items()}

    def reset(self, step: int, now: float) -> None:
        """Start a new interval after `step`, at the time `now`."""
        self._sums = {}
        self.start(step, now)

    def start(self, step: int, now: float) -> None:
        """Count the rate from `step` on, at the time `now`."""
        self._step, self._start = step, now

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Take in the metrics `[K]` of one call."""
        before = {name: self._sums.get(name, (0.0, 0)) for name in metrics}
        self._sums = {
            name: (before[name][0] + float(np.sum(x, dtype=np.float64)), before[name][1] + len(x))
            for name, x in metrics.items()
        }

    def skip(self, seconds: float) -> None:
        """Do not count a pause (a sample grid, a checkpoint) as training time."""
        self._start += seconds

    def mean(self) -> dict[str, float]:
        """Mean of every metric over the steps of the interval; NaN of none."""
        return {name: total / count if count else math.nan for name, (total, count) in self._sums.items()}

    def steps_per_second(self, step: int, now: float) -> float:
        """Rate from the start of the interval to `step`, reached at the time `now`."""
        return (step - self._step) / max(now - self._start, 1e-9)


class Reporter:
    """A progress bar on a terminal, a line a log point elsewhere, nothing when not `enabled`."""

    def __init__(self, enabled: bool, *, step: int, num_steps: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._enabled, self._num_steps = enabled, num_steps
        self.of_images = False
        """What a row is, in the rate."""
        console = Console()
        self._bar = None
        if enabled and console.is_terminal:
            columns = (
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=2)
            self._task = self._bar.add_task("compiling", total=num_steps, completed=step)
            self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, values: dict[str, float], shown: str = "loss") -> None:
        """Show the figures of a log point, and of the metrics one."""
        rate, rows = values["steps_per_second"], "images" if self.of_images else "rows"
        text = f"{shown} {values[shown]:.4g}  {rate:.3g} steps/s  {values['images_per_second']:.4g} {rows}/s"
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        elif self._enabled:
            left = (self._num_steps - step) / max(rate, 1e-9)
            time = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            print(f"step {step}/{self._num_steps}  {text}  {time} left", flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._enabled:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
