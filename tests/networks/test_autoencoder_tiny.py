"""The tiny autoencoder: diffusers' numbers, its size, precision, what does not fit."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.pretrained import names
from tests.networks.drawn import parameters
from tests.networks.stable_diffusion import drawn
from tests.pretrained.stable_diffusion import relative

KEY = jax.random.key(0)
FIXTURE = np.load(Path(__file__).with_name("autoencoder_tiny.npz"))  # by make_autoencoder_tiny.py
TINY = AutoencoderTinyConfig(channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def run(net, method):
    return jax.jit(lambda params, x: net.apply(params, x, method=method))


def shapes(config):
    image = jnp.zeros((1, config.factor, config.factor, config.in_channels))
    return jax.eval_shape(config.build().init, KEY, image)


@pytest.mark.parametrize("name", ["taesd", "other"])
def test_autoencoder_is_that_of_diffusers(name):
    of = lambda key: FIXTURE[f"{name}/{key}"]
    fields = json.loads(str(of("config")))
    config = AutoencoderTinyConfig(**{k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()})
    net = config.build()
    params = names.to_linen(drawn(json.loads(str(of("shapes")))), shapes(config), part="taesd")
    assert relative(run(net, "encode")(params, of("image")), of("encoded")) < 1e-5
    assert relative(run(net, "decode")(params, of("latents")), of("decoded")) < 1e-5


def test_default_has_the_parameters_of_taesd():
    leaves = jax.tree.leaves(shapes(AutoencoderTinyConfig()))
    assert sum(leaf.size for leaf in leaves) == 2_445_063


def test_autoencoder_computes_in_bfloat16_with_float32_parameters():
    """The largest error is below 5% of the largest value."""
    half, x = dataclasses.replace(TINY, dtype="bfloat16"), jax.random.normal(KEY, (2, 4, 6, 3))
    params = parameters(half.build(), x)
    y16, y32 = (run(config.build(), "__call__")(params, x) for config in (half, TINY))
    assert y16.dtype == jnp.float32
    assert 0 < relative(y16, y32) < 0.05


def test_config_is_hashable_and_survives_json():
    fields = json.loads(json.dumps(dataclasses.asdict(TINY)))
    read = AutoencoderTinyConfig(**{k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()})
    assert (read, hash(read)) == (TINY, hash(TINY))


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 4, 5, 3), "that 2 divides"),
        ("encode", (1, 4, 4, 1), "images of 3 channels"),
        ("decode", (1, 4, 4, 3), "latents of 4 channels"),
    ],
)
def test_autoencoder_says_what_does_not_fit(method, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: TINY.build().apply(p, jnp.zeros(shape), method=method), shapes(TINY))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_blocks": ()}, "as many levels"),
        ({"decoder_blocks": (1,)}, "as many levels"),
        ({"channels": 0}, "positive numbers of channels"),
        ({"dtype": "int8"}, "dtype must be a floating-point type"),
    ],
)
def test_config_says_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)
