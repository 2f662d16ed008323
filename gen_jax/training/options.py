"""How a run is done."""

from dataclasses import dataclass
from typing import Literal

from gen_jax import checks


@dataclass(frozen=True)
class Options:
    """How `fit` runs; nothing here changes what is learned. ValueError for a number of steps below 1."""

    parallel: Literal["jit", "pmap"] | None = None
    """One program over all devices, or one on each (`compile_step`); None: what is faster here (`default_parallel`)."""
    fsdp: bool = False
    """Split parameters, averages and optimizer state over the devices."""
    steps_per_call: int = 10
    """Steps in one call of the compiled program; lowered to a divisor of the number of steps."""
    log_every: int = 100
    """Steps between two lines of figures."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end."""
    sample_every: int | None = None
    """Steps between two calls of the callbacks' `on_sample`; None: never."""
    keep: int = 3
    """How many of the newest checkpoints stay."""
    keep_from: tuple[int, ...] = ()
    """For each of these steps a checkpoint is written at the end of its call, and the first at or after it stays."""
    progress: bool = True
    """Show progress on the terminal."""

    def __post_init__(self) -> None:
        for name in ("steps_per_call", "log_every", "checkpoint_every"):
            checks.whole(name, getattr(self, name), "step")
        if self.sample_every is not None:
            checks.whole("sample_every", self.sample_every, "step")
        checks.whole("keep", self.keep, "checkpoint")
