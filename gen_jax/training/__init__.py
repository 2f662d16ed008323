"""Training: a pure step, a compiler for many devices, one loop, checkpoints that survive.

>>> optimizer, schedule = training.adam(3e-4, num_steps=10_000, warmup_steps=500)
>>> state = lambda: training.TrainState.create(net.init(key, x), optimizer, jax.random.key(0))
>>> step = training.make_step(loss, optimizer)  # loss(params, key, batch) -> (scalar, metrics)
>>> state = training.fit(step, state, batches, num_steps=10_000, workdir="checkpoints/run", schedule=schedule)
"""

from gen_jax.training import cost, ema
from gen_jax.training.cache import enable_compilation_cache
from gen_jax.training.callbacks import Callback, JSONLines, TensorBoard
from gen_jax.training.checkpoint import CheckpointError, Checkpoints
from gen_jax.training.compile import Compiled, compile_step
from gen_jax.training.distributed import (
    default_parallel,
    initialize_distributed,
    on_host,
    split_cpu_devices,
    wait_for_all,
)
from gen_jax.training.feeding import InMemory, Repeated, Stream
from gen_jax.training.layout import Layout
from gen_jax.training.loading import Loaded, load
from gen_jax.training.lock import WorkdirInUse
from gen_jax.training.loop import fit
from gen_jax.training.mesh import make_mesh
from gen_jax.training.optimizer import adam, muon, scheduled
from gen_jax.training.options import Options
from gen_jax.training.run import Preempted, TrainingDiverged
from gen_jax.training.skip import SkipState, skip_exploding
from gen_jax.training.state import Aux, Loss, Metrics, Step, TrainState, make_step

__all__ = [
    "Aux",
    "Callback",
    "CheckpointError",
    "Checkpoints",
    "Compiled",
    "InMemory",
    "JSONLines",
    "Layout",
    "Loaded",
    "Loss",
    "Metrics",
    "Options",
    "Preempted",
    "Repeated",
    "SkipState",
    "Step",
    "Stream",
    "TensorBoard",
    "TrainState",
    "TrainingDiverged",
    "WorkdirInUse",
    "adam",
    "compile_step",
    "cost",
    "default_parallel",
    "ema",
    "enable_compilation_cache",
    "fit",
    "initialize_distributed",
    "load",
    "make_mesh",
    "make_step",
    "muon",
    "on_host",
    "scheduled",
    "skip_exploding",
    "split_cpu_devices",
    "wait_for_all",
]
