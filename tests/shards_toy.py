"""A model that compiles at once, and the samples of it: `python -m tests.shards_toy DIRECTORY OUT PAUSE`.

Each process leaves the moments of all samples in OUT; after each file it waits for PAUSE seconds.
"""

import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import generate, launch
from gen_jax.codec import Pixels
from gen_jax.conditioning import Labels
from gen_jax.diffusion import process
from gen_jax.generate import shards
from gen_jax.model import Model, Sampling


class Network(nn.Module):
    """Two convolutions, told the time and a label."""

    @nn.compact
    def __call__(self, x_t, t, label=0):
        each = nn.Embed(4, 8)(jnp.broadcast_to(label, len(x_t))) + nn.Dense(8)(t[:, None] / 1000)
        return nn.Conv(1, (3, 3))(nn.silu(nn.Conv(8, (3, 3))(x_t) + each[:, None, None]))

    def build(self):
        return self


def described():
    """A model of three labels, and its weights."""
    m = Model(Network(), process.DDPM(), "v", Labels(3), Pixels((6, 6, 1)), Sampling("ddpm", 4))
    return m, {"network": m.init(jax.random.key(0))}


def write(directory):
    """33 samples in 6 files."""
    return generate.write(*described(), jax.random.key(1), 33, directory, shard=6, chunk=3, guidance=2.0)


def features(images):
    return images.reshape(len(images), -1) / 255


if __name__ == "__main__":
    launch.start()
    directory, out, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
    save = shards._save
    shards._save = lambda *what: (save(*what), time.sleep(pause))
    write(directory)
    found = generate.moments(directory, features)
    np.savez(f"{out}/{jax.process_index()}.npz", mean=found.mean, cov=found.cov)
