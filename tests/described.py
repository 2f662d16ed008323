"""Models and runs for tests: small networks with drawn parameters, described as trained ones are."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from gen_jax import training
from gen_jax.codec import Pixels
from gen_jax.conditioning import Labels, Nothing
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling, to_dict
from gen_jax.networks import unet
from tests.networks.drawn import parameters

SHAPE = (28, 28, 1)
SMALL = dataclasses.replace(unet.mnist_small, channels=(8,), embedding=16)


def model(num_classes=None, **changes):
    """Step 9's small model, with labels where there are classes."""
    proc = process.DDPM(schedule="cosine")
    parts = {
        "network": dataclasses.replace(SMALL, time_scale=1000 / proc.t_max, num_classes=num_classes),
        "process": proc,
        "predicts": "v",
        "condition": Nothing() if num_classes is None else Labels(num_classes),
        "codec": Pixels(SHAPE),
        "sampling": Sampling("ddpm", 4, 2.0),
    }
    return Model(**(parts | changes))


def weights(described, scale=0.02):
    """Random parameters of its network."""
    x = jnp.zeros((1, *described.codec.shape))
    return parameters(described.network.build(), x, jnp.zeros(1), scale=scale)


def run(workdir, described, saved=(0,), **parts):
    """A run of this model, with other parameters at each of its checkpoints."""
    params = weights(described)
    config = {"format": 2, "model": to_dict(described), "options": {"dataset": "mnist"}} | parts
    state = training.TrainState.create(params, optax.sgd(0.1), jax.random.key(0), ema=False)
    with training.Checkpoints(workdir / "checkpoints") as checkpoints:
        for step in saved:
            scaled = jax.tree.map(lambda p, step=step: p * (1 + step / 10), params)
            state = state._replace(params=scaled, step=jnp.int32(step))
            checkpoints.save(state, {"config": config})
    return workdir
