"""Small pipelines of Stable Diffusion with weights of `tests/retouch_by_diffusers.py`, whose texts are encoded."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import samplers
from gen_jax.codec import Latents
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling
from gen_jax.pretrained import components, names
from tests import retouch_by_diffusers as peer
from tests.networks import stable_diffusion

FOUND = np.load(Path(__file__).with_name("retouch_by_diffusers.npz"))
SHAPES = json.loads(str(FOUND["shapes"]))
INPUTS = peer.inputs()
KEY = jax.random.key(0)


class Unrounded(Latents):
    """Latents whose images are numbers in [0, 1], not bytes."""

    def decode(self, x_0, weights=None):
        z = x_0 / self.scale + self.shift
        return jnp.clip(self.autoencoder.build().apply(weights, z, method="decode") / 2 + 0.5, 0, 1)


@dataclass(frozen=True)
class Given:
    """Texts that are encoded already: sample `i` has the `i`-th."""

    guides: bool = True

    def init(self, key):
        return None

    def prepare(self, batch):
        return {}

    def of_batch(self, key, batch):
        raise NotImplementedError

    def null(self, n, like=None):
        return jnp.asarray(INPUTS["negative"])[:n]

    def choose(self, key, index, label=None, prompt=None):
        return INPUTS["context"][index]

    def tell(self, params, cond):
        return (None, cond)


def network(name):
    """The configuration of a part and its parameters."""
    shapes = SHAPES[name]
    tensors = stable_diffusion.drawn(shapes)
    config, x = components.autoencoder(peer.VAE), jnp.zeros((1, 4, 4, 3))
    arguments = (x,)
    if name != "vae":
        config = components.unet(peer.COMMON | peer.UNETS[name])
        x = jnp.zeros((1, 4, 4, shapes["conv_in.weight"][1]))
        arguments = (x, jnp.zeros(1), None, jnp.zeros((1, 5, 12)))
    like = jax.eval_shape(config.build().init, KEY, *arguments)
    return config, names.to_linen(tensors, like, part="vae" if name == "vae" else "unet")


def model(name):
    """The description and the weights of a pipeline."""
    (unet, params), (vae, coding) = network(name), network("vae")
    schedule = samplers.Schedule(spacing="leading", steps_offset=1, to_data=False)
    described = Model(
        replace(unet, time_offset=-1.0),
        process.DDPM(1000, "scaled_linear", 0.00085, 0.012),
        "eps",
        Given(),
        Unrounded((4, 4, 4), peer.VAE["scaling_factor"], autoencoder=vae),
        Sampling("ddim", peer.STEPS, peer.GUIDANCE, schedule=schedule),
        beside=5 if name == "inpaint" else 0,
    )
    return described, {"network": params, "autoencoder": coding}
