"""What experiments share when they are launched: options, start-up, the end.

@dataclass(frozen=True)
class Config:
    workdir: Path = launch.ROOT / "checkpoints" / "mine"
    data: launch.Data = launch.Data()
    training: launch.Training = launch.Training(steps=1000)
    sampling: launch.Sampling = launch.Sampling()

config = launch.parse(Config)       # --steps, --batch-size, --dataset, --num, ...: groups have no prefix
launch.start(config.training.batch_size)
config = launch.resolved(config)    # --batch-per-device
...
launch.finish(config.workdir, {"loss": 0.1})
"""

from gen_jax.launch.options import (
    ROOT,
    Autoencoding,
    Data,
    Sampling,
    Training,
    flat,
    may_change,
    read_prompts,
    record,
    resolved,
)
from gen_jax.launch.start import finish, parse, run, save, say, start

__all__ = [
    "ROOT",
    "Autoencoding",
    "Data",
    "Sampling",
    "Training",
    "finish",
    "flat",
    "may_change",
    "parse",
    "read_prompts",
    "record",
    "resolved",
    "run",
    "save",
    "say",
    "start",
]
