"""Colours of latents against a least-squares fit that is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import previews
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from tests.test_generate_sizes import MODEL, WEIGHTS, Latents, draw, replace

KEY = jax.random.key(0)


def test_a_linear_map_is_found_where_there_is_one():
    """Of this autoencoder latents are pixels, and a colour the mean of its four."""
    codec = replace(MODEL.codec, shape=(4, 4, 4))
    see = previews.linear(MODEL, WEIGHTS)
    image = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 1)).astype(np.uint8)
    # of squares of one colour alone: pixels of a latent were equal in the fit, so any split among them fits
    image = image[:, ::2, ::2].repeat(2, 1).repeat(2, 2)
    x_0 = codec.at(8, 12).encode({"image": image}, WEIGHTS["autoencoder"])
    found = see(np.asarray(x_0))
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), image[:, ::2, ::2], atol=1)


def test_fit_is_least_squares():
    rng = np.random.default_rng(0)
    x_0 = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    images = rng.integers(0, 256, (2, 6, 10, 3)).astype(np.uint8)
    matrix, offset = previews.fit(x_0, images)
    residual = images.reshape(2, 3, 2, 5, 2, 3).mean((2, 4)) - (x_0 @ matrix + offset)
    np.testing.assert_allclose(residual.sum((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(np.einsum("nhwc,nhwd->cd", x_0, residual), 0, atol=1e-2)


def test_a_picture_is_written_after_each_step(tmp_path):
    config = AutoencoderTinyConfig(channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    params = config.build().init(KEY, jnp.zeros((1, 4, 4, 3)))
    save = previews.saving(tmp_path / "now.png", previews.tiny(config, params))
    draw(1, height=300, width=300, on_step=save)  # it runs while a program of JAX does
    assert Image.open(tmp_path / "now.png").size == (608, 608)  # 300 pixels and a frame, twice as large


def test_latents_without_an_autoencoder_have_no_colours():
    with pytest.raises(ValueError, match="no autoencoder"):
        previews.linear(replace(MODEL, codec=Latents((4, 4, 4))), WEIGHTS)
