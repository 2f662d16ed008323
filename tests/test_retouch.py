"""Images that exist: what is kept of them, by closed forms, and what is refused."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import retouch
from gen_jax.codec import Latents
from gen_jax.conditioning import Nothing
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling
from tests.test_latent import Free, Linear

KEY = jax.random.key(0)
PROCESS = process.VP()
MEAN, DEVIATION = 0.1, 0.25


@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of pixels that are N(MEAN, DEVIATION^2), each alone."""

    def build(self):
        def apply(params, x, t):
            alpha, sigma = (f(t)[:, None, None, None] for f in (PROCESS.alpha, PROCESS.sigma))
            gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
            return MEAN + gain * (x - alpha * MEAN)

        return SimpleNamespace(apply=apply, init=lambda *_: {})


MODEL = Model(Gaussian(), PROCESS, "x0", Nothing(), Free((4, 4, 1)), Sampling("ddim", 60))
WEIGHTS = {"network": {}}


def images(n=1500):
    x = MEAN + DEVIATION * np.random.default_rng(0).standard_normal((n, 4, 4, 1))
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("strength", [0.2, 0.5])
def test_vary_keeps_as_much_as_the_noise_leaves(strength):
    # x_t = a x + s eps, and the flow back to the data keeps ranks: the correlation is a d / sqrt(a^2 d^2 + s^2)
    before = images()
    after = retouch.vary(MODEL, WEIGHTS, KEY, before, strength=strength)
    x, y = (im.astype(np.float64).ravel() / 127.5 - 1 for im in (before, after))
    t = jnp.float32(strength * PROCESS.t_max)
    a, s = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    exact = a * DEVIATION / np.hypot(a * DEVIATION, s)
    error = 5 / np.sqrt(x.size)
    assert abs(np.corrcoef(x, y)[0, 1] - exact) < error * (1 - exact**2) + 0.01
    assert abs(y.mean() - MEAN) < error * DEVIATION + 0.002
    assert abs(y.std() / DEVIATION - 1) < error + 0.02  # of 60 steps


def test_vary_of_full_strength_keeps_nothing():
    before = images()
    after = retouch.vary(MODEL, WEIGHTS, KEY, before, strength=1.0)
    x, y = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(x.size)


@pytest.mark.parametrize("coded", [False, True])
def test_inpaint_keeps_what_is_known_and_draws_the_rest(coded):
    codec = Latents((4, 4, 1), autoencoder=Linear()) if coded else MODEL.codec
    model, weights = replace(MODEL, codec=codec), {**WEIGHTS, "autoencoder": jnp.eye(1)}
    before, mask = images(400), np.ones((1, 4, 4, 1), bool)
    mask[:, 1:3, 1:3] = False
    after = retouch.inpaint(model, weights, KEY, before, mask, resample=2, nfe=20)
    known = np.broadcast_to(mask, before.shape)
    np.testing.assert_array_equal(after[known], before[known])
    x, y = before[~known].astype(np.float64), after[~known].astype(np.float64)
    assert abs(np.corrcoef(x, y)[0, 1]) < 5 / np.sqrt(
        x.size
    )  # pixels are independent: nothing is told of these
    assert abs(y.mean() / 127.5 - 1 - MEAN) < 5 * DEVIATION / np.sqrt(y.size) + 0.01


def test_inpaint_in_part_keeps_as_much_of_what_is_not_known_as_the_noise_leaves():
    """As `vary` does, where pixels are independent and no step is taken again."""
    strength, before, mask = 0.5, images(1000), np.ones((1, 4, 4, 1), bool)
    mask[:, 1:3, 1:3] = False
    after = retouch.inpaint(MODEL, WEIGHTS, KEY, before, mask, strength=strength, resample=1)
    known = np.broadcast_to(mask, before.shape)
    np.testing.assert_array_equal(after[known], before[known])
    x, y = (im[~known].astype(np.float64) for im in (before, after))
    a, s = (float(f(jnp.float32(strength * PROCESS.t_max))) for f in (PROCESS.alpha, PROCESS.sigma))
    exact = a * DEVIATION / np.hypot(a * DEVIATION, s)
    assert abs(np.corrcoef(x, y)[0, 1] - exact) < 5 / np.sqrt(x.size) * (1 - exact**2) + 0.01


def test_known_latents_are_those_whose_pixels_all_are():
    mask = np.ones((1, 4, 6, 1), bool)
    mask[0, 0, 3] = False
    found = np.asarray(retouch.known_latents(jnp.asarray(mask), 2))[0, :, :, 0]
    np.testing.assert_array_equal(found, [[True, False, True], [True, True, True]])


GOOD = np.zeros((2, 4, 4, 1), np.uint8)
MASK = np.ones((1, 4, 4, 1), bool)
REFUSED = [
    (lambda: retouch.vary(MODEL, WEIGHTS, KEY, GOOD, strength=0.0), "strength"),
    (lambda: retouch.vary(MODEL, WEIGHTS, KEY, GOOD, strength=1.2), "strength"),
    (lambda: retouch.vary(MODEL, WEIGHTS, KEY, GOOD[..., :0], strength=0.5), "as the model draws them"),
    (lambda: retouch.vary(MODEL, WEIGHTS, KEY, GOOD / 255, strength=0.5), "uint8"),
    (lambda: retouch.vary(MODEL, WEIGHTS, KEY, GOOD, prompt="a"), "unconditional"),
    (lambda: retouch.inpaint(MODEL, WEIGHTS, KEY, GOOD, MASK, strength=0.0), "strength"),
    (lambda: retouch.inpaint(MODEL, WEIGHTS, KEY, GOOD, MASK[:, :3]), "mask must be bool"),
    (lambda: retouch.inpaint(MODEL, WEIGHTS, KEY, GOOD, MASK.astype(np.float32)), "mask must be bool"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_can_not_be_done_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
