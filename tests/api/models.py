"""Calls of `model`, `pretrained` and `launch`."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gen_jax import launch, model, pretrained, training
from gen_jax.diffusion.process import DDPM
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.pretrained import lora, lora_writing, names, safetensors
from gen_jax.samplers import Schedule
from gen_jax.training import lora as low_rank
from tests import described, small_folder
from tests.api.walk import call
from tests.networks.drawn import parameters

WORK = Path(tempfile.mkdtemp(prefix="gen_jax-api-"))
atexit.register(shutil.rmtree, WORK, ignore_errors=True)
SMALL = described.model()
RUN = described.run(WORK / "run", SMALL)
PUBLISHED = small_folder.model()
WEIGHTS = small_folder.weights(PUBLISHED)
CODING = AutoencoderKLConfig(1, 1, channels=(8,), blocks=1, latent_channels=2, groups=4)
TENSORS = WORK / "some.safetensors"
LOW = low_rank.init(jax.random.key(0), WEIGHTS["network"], 2)


def files():
    """What is read: a folder of diffusers, a LoRA, tensors, autoencoders."""
    pretrained.save(WORK / "folder", PUBLISHED, WEIGHTS)
    lora_writing.write(WORK / "lora.safetensors", LOW, WEIGHTS["network"], alpha=2.0, xl=False)
    safetensors.write(TENSORS, {"weight": np.ones((2, 3), np.float32)})
    coding = {"autoencoder": parameters(CODING.build(), jnp.zeros((1, CODING.factor, CODING.factor, 1)))}
    state = training.TrainState.create(coding, optax.sgd(0.1), jax.random.key(0), ema=False)
    with training.Checkpoints(WORK / "autoencoder" / "checkpoints") as checkpoints:
        checkpoints.save(state, {"config": {}})
    tiny = AutoencoderTinyConfig()
    tree = parameters(tiny.build(), jnp.zeros((1, 8, 8, 3)))
    safetensors.write(WORK / "taesd.safetensors", names.from_linen(tree, part="taesd", linear=False))


files()
STYLE = lora.load(WORK / "lora.safetensors", PUBLISHED)
MODEL = {
    "to_dict": call(SMALL, ()),
    "from_dict": call(model.to_dict(SMALL), ()),
    "to_json": call(SMALL, ()),
    "from_json": call(model.to_json(SMALL), ()),
}
PRETRAINED = {
    "is_published": call(
        str(WORK / "folder"), free=("path: misspelt",)
    ),  # nothing is there, which is an answer
    "load": call(str(WORK / "folder"), dtype="float32", types=()),
    "load_run": call(str(RUN), types=()),
    "load_autoencoder": call(str(WORK / "autoencoder"), CODING),
    "load_tiny": call(str(WORK / "taesd.safetensors")),
    "save": call(
        str(WORK / "new"), PUBLISHED, WEIGHTS, "diffusers", free=("path: misspelt",)
    ),  # another name
    "inversion.add": call(PUBLISHED, WEIGHTS, {"<cat>": np.ones((1, 8), np.float32)}),
    "lora.load": call(str(WORK / "lora.safetensors"), PUBLISHED),
    "lora.merge": call(WEIGHTS, [(STYLE, 0.8)]),
    "safetensors.read": call(str(TENSORS)),
    "safetensors.write": call(
        str(WORK / "new.safetensors"),
        {"weight": np.ones((2, 3), np.float32)},
        {"format": "pt"},
        max_shard_bytes=1000,
    ),
    "schedulers.read": call({"_class_name": "DDIMScheduler"}),
    "schedulers.write": call(DDPM(), "eps", Schedule("leading", 1, False), "ddim"),
}


@dataclass(frozen=True)
class Config:
    """Options of an experiment."""

    steps: int = 3
    workdir: Path = WORK


@dataclass(frozen=True)
class Trains(Config):
    """Options of one that trains."""

    training: launch.Training = launch.Training(batch_per_device=2)


(WORK / "quick_experiment.py").write_text("parse = lambda: 3\nmain = print\n")
(WORK / "prompts.txt").write_text("a cat\n")
ANYTHING = tuple(  # is a value that can be written
    f"value: {kind}" for kind in ("None", "a word", "complex", "words", "one column", "NaN", "infinity")
)
NAMED = ("experiment: misspelt",)  # any name is one
LAUNCH = {
    "finish": call(WORK, {"loss": 0.1}, config=Config(), experiment="mine", lines=("next",), free=NAMED),
    "flat": call(Config()),
    "may_change": call("num"),
    "parse": call(
        Config,
        ["--steps", "4"],
        presets={"a": Config()},
        description="words",
        free=("description: misspelt",),
    ),
    "read_prompts": call(str(WORK / "prompts.txt")),
    "record": call("mine", Config(), free=NAMED),
    "resolved": call(Trains()),
    "run": call(str(WORK / "quick_experiment.py")),
    "save": call(WORK / "array.npy", np.ones(3), free=ANYTHING),
    "say": call("words", free=("words: misspelt",)),
    "start": call(2),
}
EXAMPLES = {
    f"{package}.{name}": example
    for package, examples in (("model", MODEL), ("pretrained", PRETRAINED), ("launch", LAUNCH))
    for name, example in examples.items()
}
