"""Training: a pure step, a compiler for many devices, one loop, checkpoints that survive.

>>> optimizer, schedule = training.adam(3e-4, num_steps=10_000, warmup_steps=500)
>>> state = lambda: training.TrainState.create(net.init(key, x), optimizer, jax.random.key(0))
>>> step = training.make_step(loss, optimizer)  # loss(params, key, batch) -> (scalar, metrics)
>>> state = training.fit(step, state, batches, num_steps=10_000, workdir="checkpoints/run", schedule=schedule)
"""

from gen_jax.training.checkpoint import CheckpointError, Checkpoints, Loaded, load
from gen_jax.training.compile import Compiled, compile_step
from gen_jax.training.distributed import default_parallel, initialize_distributed, share_cores
from gen_jax.training.layout import Layout
from gen_jax.training.loop import InMemory, Stream, fit
from gen_jax.training.optimizer import adam, muon, scheduled
from gen_jax.training.run import Preempted, TrainingDiverged
from gen_jax.training.skip import SkipState, skip_exploding
from gen_jax.training.state import TrainState, make_step
from gen_jax.training.workdir import keep_programs

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Compiled",
    "InMemory",
    "Layout",
    "Loaded",
    "Preempted",
    "SkipState",
    "Stream",
    "TrainState",
    "TrainingDiverged",
    "adam",
    "compile_step",
    "default_parallel",
    "fit",
    "initialize_distributed",
    "keep_programs",
    "load",
    "make_step",
    "muon",
    "scheduled",
    "share_cores",
    "skip_exploding",
]
