"""What `fit` counts and writes: metrics, log points, checkpoints, and the end of a run."""

import contextlib
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np
import optax

from gen_jax import checks, ending
from gen_jax.training.callbacks import Callback
from gen_jax.training.checkpoint import Checkpoints, NotFiniteError
from gen_jax.training.cost import FIGURES, Cost
from gen_jax.training.logs import Meter, Reporter
from gen_jax.training.state import Metrics, TrainState

PATIENCE = 100
"""How many steps in a row `skip_exploding` may leave out as not finite before the run ends with an error."""


RATES = ("steps_per_second", "images_per_second", "seconds", *FIGURES)
"""Figures of a log point that are not of the loss; with a schedule there is "learning_rate" as well."""

SUMS = "sums"
"""In the metadata of a checkpoint: the sums of the metrics since the last log point."""


class TrainingDiverged(FloatingPointError):
    """The loss, the gradient or the parameters are not finite."""


class Preempted(SystemExit):
    """SIGTERM, after the state was saved. Uncaught, it ends the program with exit code 75, so that it is begun again."""


class Run:
    """What has been measured and saved so far. Metrics are read one call late, so that the devices never wait."""

    def __init__(
        self,
        *,
        shown: str,
        schedule: optax.Schedule | None,
        start: int,
        num_steps: int,
        log_every: int,
        batch_size: int,
        meta: Mapping[str, object],
        checkpoints: Checkpoints | None,
        reporter: Reporter,
        callbacks: Sequence[Callback],
        cost: Cost,
        seconds: float,
        sums: Mapping[str, Sequence[str]],
    ):
        self.num_steps, self.log_every, self.batch_size = num_steps, log_every, batch_size
        # all at once: to ask for one later would wait for the devices
        self.rates = None if schedule is None else _rates(schedule, num_steps)
        self.shown = shown
        self.added = {"step", *RATES, *(() if schedule is None else ("learning_rate",))}
        self.meta, self.checkpoints, self.reporter, self.callbacks = meta, checkpoints, reporter, callbacks
        self.cost, self.meter = cost, Meter(start, time.perf_counter(), sums)
        self.began = time.perf_counter() - seconds
        self.compiled = False
        self.pending: tuple[int, Metrics] | None = None
        self.lost = 0
        self.logged = False
        """Whether there was a log point: what is wrong with the data, or the start, mostly shows before it."""

    def begin(self, step: int) -> None:
        """Start the clock of the rates: all is compiled, and the first call comes next."""
        self.meter.start(step, time.perf_counter())

    def collect(self, end: int, metrics: Metrics) -> None:
        """Remember the metrics of the call that ends at `end`, and read those of the call before."""
        self.drain(idle=False)
        self.pending = end, metrics

    def drain(self, *, idle: bool = True) -> None:
        """Wait for the remembered metrics, check and log them; `idle`: the devices have nothing to do meanwhile."""
        if self.pending is None:
            return
        (end, on_devices), self.pending = self.pending, None
        metrics: dict[str, np.ndarray] = jax.device_get(on_devices)
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
            # the first call is slower: rates count from its end where there is a second one
            self.meter.start(end, time.perf_counter())
        self.compiled = True
        self.meter.add({name: v if name == "skipped" else v[finite] for name, v in metrics.items()})
        self.reporter.advance(end)
        if logs:
            self.log(end, idle)

    def log(self, end: int, idle: bool) -> None:
        """One log point. What the callbacks take is left out of the next rate, if the devices wait for them."""
        now, self.logged = time.perf_counter(), True
        rate = self.meter.steps_per_second(end, now)
        values = apart(self.meter.mean(), self.added)
        if self.rates is not None:
            values["learning_rate"] = float(self.rates[end - 1])
        values |= {"steps_per_second": rate, "images_per_second": rate * self.batch_size}
        values |= {"seconds": now - self.began, **self.cost.figures(rate)}
        self.meter.reset(end, now)
        with self.pause() if idle else contextlib.nullcontext():
            if jax.process_index() == 0:
                for callback in self.callbacks:
                    callback.on_log(end, values)
            self.reporter.log(end, values, self.shown)

    def check_metrics(self, metrics: Collection[str]) -> None:
        """Raise ValueError unless a step reports what a run needs, and what the terminal shows."""
        if missing := {"loss", "grad_norm"} - set(metrics):
            raise ValueError(
                f"step must report loss and grad_norm among its metrics, as that of make_step does, but not "
                f"{' and '.join(sorted(missing))}."
            )
        names = apart(dict.fromkeys(metrics, 0.0), self.added)
        if self.shown not in names:
            near = checks.nearest(self.shown, names)
            raise ValueError(f"shown must be one of {', '.join(names)}, got {self.shown!r}.{near}")

    def save(self, end: int, state: TrainState) -> None:
        """Write a checkpoint, unless something in it is not finite."""
        if self.checkpoints is None:
            return
        self.drain()
        with self.pause(), self.cost.spend("checkpoint"):
            for callback in self.callbacks:
                callback.flush()
            try:
                self.checkpoints.save(state, {**self.meta, SUMS: self.meter.sums()})
            except NotFiniteError as error:
                self.diverged(end - 1, str(error))
            for callback in self.callbacks:
                callback.on_checkpoint(end, state)

    def sample(self, end: int, state: TrainState) -> None:
        """The callbacks' samples, outside of the rates."""
        self.drain()
        with self.pause():
            for callback in self.callbacks:
                callback.on_sample(end, state)

    def diverged(self, step: int, what: str) -> NoReturn:
        """Say where it happened and what is left."""
        rate = "" if self.rates is None else f" (learning rate {self.rates[step]:.4g})"
        good = "no checkpoint yet"
        if self.checkpoints is not None and (steps := self.checkpoints.steps()):
            good = f"last good checkpoint: {self.checkpoints.directory / str(steps[-1])}"
        do = "lower the learning rate, lengthen the warm-up or clip the gradients harder."
        if not self.logged:
            do = f"Is there a NaN in the data, or in the parameters at the start? Look there first. Else {do}"
        raise TrainingDiverged(
            f"training diverged at step {step}{rate}: {what}; {good}. {do[0].upper()}{do[1:]}"
        )

    def stop(self, number: int, end: int) -> NoReturn:
        """Leave after a signal; the state is being saved."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        name = signal.Signals(number).name
        text = f"{name}: saved step {end} of {self.num_steps}; the same command goes on from there"
        self.reporter.say(text)
        if number == signal.SIGINT:
            raise KeyboardInterrupt(text)
        raise Preempted(ending.PREEMPTED)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time spent inside out of the rates."""
        begin = time.perf_counter()
        yield
        self.meter.skip(time.perf_counter() - begin)


def crossed(end: int, size: int, every: int) -> bool:
    """Whether a multiple of `every` lies in `(end - size, end]`; of 0 none does."""
    return every > 0 and end // every > (end - size) // every


def apart(metrics: Mapping[str, float], taken: Collection[str]) -> dict[str, float]:
    """Metrics of a loss, those with the name of another figure under "loss.NAME"."""
    return {f"loss.{name}" if name in taken else name: value for name, value in metrics.items()}


def _rates(schedule: optax.Schedule, num_steps: int) -> np.ndarray:
    """The learning rate of each step; ValueError where one is negative or not finite."""
    rates = np.broadcast_to(np.asarray(jax.vmap(schedule)(np.arange(num_steps))), (num_steps,))
    bad = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0)))
    if len(bad):
        raise ValueError(
            f"schedule must give rates that are finite and not negative, got {rates[bad[0]]} at step {bad[0]}."
        )
    return rates
