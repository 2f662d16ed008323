"""The books of a run: metrics read one call late, log points, checkpoints of what is finite, a clean end."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import PyTree

from gen_jax.training.checkpoint import Checkpoints, NotFiniteError
from gen_jax.training.logs import Meter, MetricsFile, Reporter
from gen_jax.training.optimizer import Schedule
from gen_jax.training.state import TrainState

PATIENCE = 100
"""How many steps in a row may be skipped for not being finite (`skip_exploding`) before the run is given up."""


class TrainingDiverged(FloatingPointError):
    """The loss, the gradient or the parameters are not finite."""


class Preempted(SystemExit):
    """SIGTERM, after the state was saved. Uncaught, it ends the program with exit code 0."""


class Run:
    """What has been measured and saved so far. Metrics are read one call late: the devices never wait."""

    def __init__(
        self,
        *,
        schedule: Schedule | None,
        start: int,
        num_steps: int,
        log_every: int,
        batch_size: int,
        meta: dict[str, Any],
        checkpoints: Checkpoints,
        reporter: Reporter,
        file: MetricsFile | None,
    ):
        self.num_steps, self.log_every, self.batch_size = num_steps, log_every, batch_size
        # once: while the devices work, asking for a rate would wait for them
        self.rates = None if schedule is None else np.asarray(jax.vmap(schedule)(np.arange(num_steps)))
        self.meta, self.checkpoints, self.reporter, self.file = meta, checkpoints, reporter, file
        self.meter = Meter(start, time.perf_counter())
        self.began = time.perf_counter() - (file.seconds if file else 0.0)
        self.compiled = False
        self.pending: tuple[int, PyTree] | None = None
        self.lost = 0

    def collect(self, end: int, metrics: PyTree) -> None:
        """Remember the metrics of the call that ends at `end`, and read those of the call before."""
        self.drain()
        self.pending = end, metrics

    def drain(self) -> None:
        """Wait for the remembered metrics, check and log them."""
        if self.pending is None:
            return
        (end, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        size = len(metrics["loss"])
        finite = np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"])
        skipped = metrics.get("skipped", np.zeros(size)) > 0
        for i in range(size):
            self.lost = 0 if finite[i] else self.lost + 1
            if self.lost > (PATIENCE if skipped[i] else 0):
                what = f"loss {metrics['loss'][i]}, gradient norm {metrics['grad_norm'][i]}"
                self.diverged(
                    end - size + i, what if self.lost == 1 else f"{what}, {self.lost} steps in a row"
                )
        logs = crossed(end, size, self.log_every) or end == self.num_steps
        if not self.compiled and not logs:
            # the first call compiled: rates count from its end where there is a second one
            self.meter.reset(end, time.perf_counter())
        self.compiled = True
        self.meter.add({name: v if name == "skipped" else v[finite] for name, v in metrics.items()})
        self.reporter.advance(end)
        if logs:
            self.log(end)

    def log(self, end: int) -> None:
        """One log point."""
        now = time.perf_counter()
        rate = self.meter.steps_per_second(end, now)
        values = self.meter.mean()
        if self.rates is not None:
            values["learning_rate"] = float(self.rates[end - 1])
        values |= {"steps_per_second": rate, "images_per_second": rate * self.batch_size}
        values["seconds"] = now - self.began
        self.meter.reset(end, now)
        if self.file is not None:
            self.file.write(end, values)
        self.reporter.log(end, values)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, unless something in it is not finite."""
        self.drain()
        with self.pause():
            try:
                self.checkpoints.save(state, self.meta)
            except NotFiniteError as error:
                self.diverged(int(state.step) - 1, str(error))

    def diverged(self, step: int, what: str) -> NoReturn:
        """Say where it happened and what is left."""
        rate = "" if self.rates is None else f" (learning rate {self.rates[step]:.4g})"
        steps = self.checkpoints.steps()
        good = (
            f"last good checkpoint: {self.checkpoints.directory / str(steps[-1])}"
            if steps
            else "no checkpoint yet"
        )
        raise TrainingDiverged(
            f"training diverged at step {step}{rate}: {what}; {good}. "
            "Lower the learning rate, lengthen the warm-up or clip the gradients harder."
        )

    def stop(self, number: int, end: int) -> NoReturn:
        """Leave after a signal; the state is being saved."""
        self.checkpoints.close()
        name = signal.Signals(number).name
        text = f"{name}: saved step {end} of {self.num_steps}; the same command goes on from there"
        self.reporter.say(text)
        if number == signal.SIGINT:
            raise KeyboardInterrupt(text)
        raise Preempted(0)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time spent inside out of the rates."""
        begin = time.perf_counter()
        yield
        self.meter.skip(time.perf_counter() - begin)


def crossed(end: int, size: int, every: int) -> bool:
    """Whether a multiple of `every` lies in `(end - size, end]`."""
    return end // every > (end - size) // every
