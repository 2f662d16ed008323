"""Codecs: formulas against numpy, round trips, ranges, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.codec import Codec, Latents, Pixels


def test_pixels_are_scaled_to_their_range_and_come_back_to_the_byte():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    codec = Pixels((16, 16, 1))
    x_0 = jax.jit(codec.encode)({"image": images, "label": np.zeros(1)})
    assert x_0.dtype == jnp.float32
    np.testing.assert_allclose(x_0, images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(codec.decode(x_0), images)
    np.testing.assert_array_equal(codec.decode(jnp.array([[[[-3.0], [3.0]]]])).ravel(), [0, 255])


def test_latents_are_scaled_and_come_back():
    z = np.random.default_rng(0).normal(5, 3, (1000, 4)).astype(np.float32)
    codec = Latents((4,), scale=1 / 3, shift=5.0)
    x_0 = jax.jit(codec.encode)({"latent": z})
    np.testing.assert_allclose(x_0, (z - 5) / 3, atol=1e-6)
    np.testing.assert_allclose(codec.decode(x_0), z, rtol=1e-5, atol=1e-5)
    named = Latents((4,), name="z")
    np.testing.assert_array_equal(named.encode({"z": z}), z)


def test_only_pixels_have_bounds():
    far = lambda x_t, t: 5 * x_t
    x, t = jnp.array([[[[-1.0], [0.1], [1.0]]]]), jnp.zeros(())
    np.testing.assert_allclose(Pixels((1, 3, 1)).bound(far)(x, t).ravel(), [-1, 0.5, 1])
    np.testing.assert_allclose(Latents((1, 3, 1)).bound(far)(x, t).ravel(), [-5, 0.5, 5])


@pytest.mark.parametrize("codec", [Pixels((2, 2, 1)), Latents((3,))])
def test_codecs_keep_the_protocol(codec):
    assert isinstance(codec, Codec)


IMAGE = np.zeros((2, 4, 4, 1), np.uint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pixels((28, 0, 1)), r"shape\[1\] must be at least 1, got 0"),
        (lambda: Pixels((4, 4, 1)).encode({"image": IMAGE.astype(np.float32)}), "got float32"),
        (lambda: Pixels((4, 4, 1)).encode({"image": IMAGE.astype(np.int32)}), "got int32"),
        (
            lambda: Pixels((4, 4, 3)).encode({"image": IMAGE}),
            r"shape \(4, 4, 3\), got uint8 of shape \(4, 4, 1\)",
        ),
        (lambda: Latents(()), "at least one"),
        (lambda: Latents((3,), scale=0.0), "scale"),
        (lambda: Latents((3,), scale=float("inf")), "scale"),
        (lambda: Latents((3,), shift=float("nan")), "shift"),
        (lambda: Latents((3,)).encode({"latent": np.zeros((2, 4), np.float32)}), r"shape \(3,\)"),
        (lambda: Latents((3,)).encode({"latent": np.zeros((2, 3), np.uint8)}), "got uint8"),
    ],
)
def test_bad_input_is_told_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
