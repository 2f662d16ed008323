"""Two small runs, with every kind of file that a run has: one that goes on training, one that is drawn from."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from gen_jax import launch, plots, training
from gen_jax.codec import Pixels
from gen_jax.conditioning import Labels
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling, to_dict
from gen_jax.networks import unet

EVERY, KEEP, TRAINED, STEPS = 2, 3, 8, 12
"""Checkpoints, and the step where a run was left, and where it ends."""
MODEL = Model(
    dataclasses.replace(unet.mnist_small, channels=(8,), blocks=1, embedding=16, num_classes=3),
    process.DDPM(schedule="cosine"),
    "v",
    Labels(3, names=("one", "two", "three")),
    Pixels((8, 8, 1)),
    Sampling("ddim", 4, 2.0),
)
DEVICES = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))


def loss(params: Mapping[str, jax.Array], key: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
    """A denoising map."""
    noise = jax.random.normal(key, batch["x"].shape)
    error = jnp.tanh((batch["x"] + noise) @ params["in"]) @ params["out"] - batch["x"]
    return jnp.mean(error**2), {"largest": jnp.abs(error).max()}


class Rows:
    """Batches in an order that the step says."""

    batch_size = 8

    def __init__(self, seed: int):
        self.arrays = {"x": np.random.default_rng(seed).standard_normal((64, 6)).astype(np.float32)}

    def select(self, step: jax.Array, num_steps: int) -> jax.Array:
        """Rows of so many steps."""
        steps = step + jnp.arange(num_steps)
        return (steps[:, None] * 8 + jnp.arange(8)[None]).astype(jnp.int32) % 64


OPTIMIZER = optax.adam(1e-2)
STEP = training.make_step(loss, OPTIMIZER, ema_decay=0.9)


def train(workdir: Path, steps: int, seed: int = 0) -> list[np.ndarray]:
    """Train or go on; every number of the state in the end."""
    first, second = jax.random.split(jax.random.key(seed))
    params = {"in": jax.random.normal(first, (6, 24)), "out": 0.1 * jax.random.normal(second, (24, 6))}
    state = training.fit(
        STEP,
        training.TrainState.create(params, OPTIMIZER, jax.random.key(seed)),
        Rows(seed),
        num_steps=steps,
        workdir=workdir,
        config={"seed": seed, "net": {"width": 24}},
        mesh=DEVICES,
        options=training.Options(
            progress=False, steps_per_call=2, log_every=2, checkpoint_every=EVERY, keep=KEEP
        ),
    )
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def make(place: Path, seed: int = 0) -> None:
    """`trained`, left at step `TRAINED`, and `model`, a run of diffusion; the files of another seed are another's."""
    train(place / "trained", TRAINED, seed)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), x.dtype), shapes)
    optimizer = optax.sgd(0.1)
    state = training.TrainState.create(params, optimizer, jax.random.key(0), ema=True)
    config = launch.record("soak", Options(seed), model=to_dict(MODEL))
    with training.Checkpoints(place / "model" / "checkpoints", keep=KEEP) as checkpoints:
        for step in (2, 4, 6):
            scaled = jax.tree.map(lambda x, step=step: x * (1 + step / 8), params)
            checkpoints.save(state._replace(ema_params=scaled, step=jnp.int32(step)), {"config": config})
    (place / "model" / "config.json").write_text(json.dumps(config, indent=2))
    for run in (place / "trained", place / "model"):
        (run / "summary.json").write_text(json.dumps({"loss": 0.5 + seed, "steps": TRAINED}))
        images = rng.integers(0, 256, (4, 8, 8, 1), np.uint8)
        np.save(run / "samples.npy", images)
        np.save(run / "labels.npy", np.arange(4) % 3)
        plots.save_grid(run / "samples.png", images)
        Image.fromarray(images[0, ..., 0]).save(run / "forward.png")
    shutil.copytree(place / "trained" / "tensorboard", place / "model" / "tensorboard", dirs_exist_ok=True)
    shutil.copy(place / "trained" / "metrics.jsonl", place / "model" / "metrics.jsonl")


@dataclasses.dataclass(frozen=True)
class Options:
    """Of the run that is drawn from."""

    seed: int = 0
