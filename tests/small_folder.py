"""A small random Stable Diffusion as a model of this library, which `pretrained.save` writes."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util

from gen_jax import samplers
from gen_jax.codec import Latents
from gen_jax.conditioning import Reader, Text
from gen_jax.diffusion.process import DDPM
from gen_jax.model import Model, Sampling
from gen_jax.networks import unet
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.pretrained import components, parts
from gen_jax.text import Tokenizer

TOKENIZER = replace(
    Tokenizer.load(Path(__file__).parent / "text" / "tiny_tokenizer"), pad="<|endoftext|>", length=77
)
NETWORK = replace(
    unet.sd15,
    channels=(8, 16),
    blocks=1,
    depth=(1, 0),
    heads=2,
    context_features=8,
    groups=4,
    embedding=32,
    sinusoid_features=8,
)


def model(**changes):
    """Its description, with other parts where they are given."""
    encoder = CLIPTextConfig(TOKENIZER.vocab_size, 8, 1, 2, 16)
    parts = {
        "network": NETWORK,
        "process": DDPM(1000, "scaled_linear", 0.00085, 0.012),
        "predicts": "eps",
        "condition": Text((Reader(TOKENIZER, encoder),)),
        "codec": Latents(
            (8, 8, 4),
            0.18215,
            autoencoder=AutoencoderKLConfig(channels=(8, 8), blocks=1, groups=4, exact_norm=True),
        ),
        "sampling": Sampling("ddim", 50, 7.5, schedule=samplers.Schedule("leading", 1, False)),
    }
    return Model(**(parts | changes))


def weights(described, seed=0):
    """Random weights of a description, without a compilation."""
    rng, trees = np.random.default_rng(seed), {}
    draw = lambda x: (0.1 * rng.standard_normal(x.shape)).astype(x.dtype)
    for place in parts.places(described).values():
        trees[place.path] = jax.tree.map(draw, components.parameters(place.config, place.channels))
    return traverse_util.unflatten_dict(trees)
