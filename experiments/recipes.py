"""What a training is made of, how long a step of it takes, and the figures that it has logged."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import PyTree

from gen_jax import data, plots, training


class Recipe(NamedTuple):
    """The first arguments of `training.fit`."""

    step: training.Step
    state: Callable[[], training.TrainState]
    batches: data.InMemory | data.Stream
    schedule: optax.Schedule


class _Rate(training.Callback):
    """Remembers the highest rate that was logged."""

    steps_per_second = 0.0

    def on_log(self, step: int, values: Mapping[str, float]) -> None:
        """Compare."""
        self.steps_per_second = max(self.steps_per_second, values["steps_per_second"])


def seconds_a_step(
    made: Recipe, frozen: PyTree = None, parallel: Literal["jit", "pmap"] | None = None, calls: int = 4
) -> float:
    """Least seconds of a step over some calls of the compiled program, in a run that leaves nothing."""
    rate, options = _Rate(), training.Options(parallel=parallel, log_every=10, progress=False)
    training.fit(
        made.step,
        made.state,
        made.batches,
        num_steps=10 * (calls + 1),
        workdir=None,
        options=options,
        callbacks=[rate],
        frozen=frozen,
    )
    return 1 / rate.steps_per_second


def seconds(calls: Mapping[str, Callable[[], PyTree]], rounds: int = 5) -> dict[str, float]:
    """Median seconds of each call, in turns, so that all see the same machine; the first, which compiles, is left out."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            found[name].append(time.perf_counter() - start)
    return {name: float(np.median(times[1:])) for name, times in found.items()}


def figures(workdir: Path) -> list[dict[str, float]]:
    """Those of all log points of a run; none where there are none to read: a run is complete without them."""
    try:
        return plots.read_metrics(workdir / "metrics.jsonl")
    except ValueError:  # no file, or one that is damaged
        return []


def last_figures(workdir: Path) -> dict[str, float]:
    """Those of the last log point, with "seconds_of_training"; empty where there is none."""
    last = [{}, *figures(workdir)][-1]
    return {**last, "seconds_of_training": last["seconds"]} if "seconds" in last else last
