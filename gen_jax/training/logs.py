"""Means and rates between log points, and what the terminal shows: a progress bar or plain lines."""

import math

import numpy as np


class Meter:
    """Averages of the metrics since the last log point, and the rate."""

    def __init__(self, step: int, now: float):
        self.reset(step, now)

    def reset(self, step: int, now: float) -> None:
        """Start a new interval after `step`, at the time `now`."""
        self._values: list[dict[str, np.ndarray]] = []
        self._step, self._start = step, now

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """Take in the metrics `[K]` of one call."""
        self._values.append(metrics)

    def skip(self, seconds: float) -> None:
        """Do not count a pause (a sample grid, a checkpoint) as training time."""
        self._start += seconds

    def mean(self) -> dict[str, float]:
        """Mean of every metric over the steps of the interval; NaN of none."""
        names = self._values[0] if self._values else {}
        each = {name: np.concatenate([v[name] for v in self._values]) for name in names}
        return {name: float(np.mean(x)) if len(x) else math.nan for name, x in each.items()}

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
