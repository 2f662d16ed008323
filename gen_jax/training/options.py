"""How a run is done."""

from dataclasses import dataclass
from typing import Literal

from gen_jax import checks
from gen_jax.training import profiling
from gen_jax.types import Count, Size


@checks.checked
@dataclass(frozen=True)
class Options:
    """How `fit` runs; nothing here changes what is learned. ValueError for what is no number of steps."""

    parallel: Literal["jit", "pmap"] | None = None
    """One program over all devices, or one on each (`compile_step`); None: what is faster here (`default_parallel`)."""
    shard: Literal["zero1", "fsdp"] | None = None
    """Split averages and the optimizer's state over the devices, or parameters too (`Layout`)."""
    tensor: Count = 1
    """How many neighbouring devices share the heads and channels of an example."""
    replicas: Count | None = None
    """In how many parts the devices are, each with all parameters (default: one for each slice of TPUs)."""
    steps_per_call: Count = 10
    """Steps in one call of the compiled program; lowered to a divisor of the number of steps."""
    log_every: Size = 100
    """Steps between two lines of figures; there is always one at the end, with 0 no other."""
    checkpoint_every: Size = 1000
    """Steps between two checkpoints; there is always one at the end, with 0 no other."""
    sample_every: Size | None = None
    """Steps between two calls of the callbacks' `on_sample`; None or 0: never."""
    keep: Count = 3
    """How many of the newest checkpoints stay."""
    keep_from: tuple[Size, ...] = ()
    """For each of these steps a checkpoint is written at the end of its call, and the first at or after it stays."""
    progress: bool = True
    """Show progress on the terminal."""
    profile: str | None = None
    """START:STOP, steps of which a trace is written to WORKDIR/tensorboard, for TensorBoard's profiler."""

    def __post_init__(self) -> None:
        if self.profile is not None:
            profiling.steps_of(self.profile)
