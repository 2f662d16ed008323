"""Sizes, models that share the steps, estimates that are heard, weights that are told: by identities."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import generate, samplers
from gen_jax.codec import Latents
from gen_jax.conditioning import Labels, Nothing
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling
from tests.test_latent import Linear

KEY = jax.random.key(0)
DDPM = process.DDPM(1000, "scaled_linear", 0.00085, 0.012)
SCHEDULE = samplers.Schedule(spacing="leading", steps_offset=1, to_data=True)


@dataclass(frozen=True)
class Each:
    """The exact estimate of latents that are N(0.1, 0.25^2), each alone: a network of any size."""

    def build(self):
        def apply(params, x, t):
            alpha, sigma = (f(t)[:, None, None, None] for f in (DDPM.alpha, DDPM.sigma))
            gain = alpha * 0.0625 / (alpha**2 * 0.0625 + sigma**2)
            return 0.1 + gain * (x - alpha * 0.1)

        return SimpleNamespace(apply=apply, init=lambda *_: {})


class Raw(Latents):
    """Latents that are not decoded, though they have an autoencoder, and so images of any size."""

    def decode(self, x_0, weights=None):
        return x_0


CODEC = Raw((4, 4, 4), 2.0, autoencoder=Linear(2))
MODEL = Model(Each(), DDPM, "x0", Nothing(), CODEC, Sampling("ddim", 4, schedule=SCHEDULE))
WEIGHTS = {"network": {}, "autoencoder": jnp.eye(4)}
NOISE = np.random.default_rng(0).standard_normal((3, 6, 10, 4)).astype(np.float32)


def draw(num=3, model=MODEL, **options):
    return generate.sample(model, WEIGHTS, KEY, num, **options)[0]


def test_other_sizes_are_drawn_as_the_model_says_them():
    """Latents of this network do not know of one another, so a part of a larger picture is a smaller one."""
    large = draw(height=12, width=20, x_T=NOISE)
    assert large.shape == (3, 6, 10, 4)
    np.testing.assert_allclose(large[:, :4, :4], draw(x_T=NOISE[:, :4, :4]), atol=1e-6)
    assert draw(height=12).shape == (3, 6, 4, 4)
    np.testing.assert_array_equal(draw(height=8, width=8), draw())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"height": 9}, "2 must divide height and width of images, got 9 x 8"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"height": 12, "x_T": NOISE}, r"x_T must have the shape \(3, 6, 4, 4\)"),
        ({"beside": NOISE}, r"beside must have the shape \(3, 4, 4, 0\)"),
        ({"model": replace(MODEL, beside=5)}, "draws into pictures that exist, by retouch.inpaint"),
    ],
)
def test_sizes_that_can_not_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        draw(**options)


def test_estimates_are_heard_while_samples_are_drawn():
    heard = []
    out = draw(chunk=2, on_step=lambda step, x0_hat: heard.append((step, x0_hat)))
    assert [step for step, _ in heard] == [0, 1, 2, 3] * 2
    assert [x.shape for _, x in heard] == [(2, 4, 4, 4)] * 4 + [(1, 4, 4, 4)] * 4
    np.testing.assert_allclose(
        np.concatenate([heard[3][1], heard[7][1]]), out, rtol=1e-5
    )  # it ends at x0_hat
    np.testing.assert_allclose(out, draw(chunk=2), atol=1e-6)
    with pytest.raises(ZeroDivisionError):
        draw(chunk=2, on_step=lambda step, x0_hat: step // 0)
    arguments = WEIGHTS, KEY, generate.plan(MODEL), np.arange(2)
    tells = lambda *ticket: generate.sampler(MODEL).lower(*arguments, *[None] * 5, *ticket).as_text()
    assert "callback" in tells(np.int32(0))
    assert "callback" not in tells(None)


@pytest.mark.parametrize("solver", ["ddim", "euler"])
def test_a_model_that_hands_over_to_itself_draws_what_it_would_have(solver):
    whole = draw(nfe=10, solver=solver, height=12, width=20, x_T=NOISE)
    both = (MODEL, WEIGHTS), (MODEL, WEIGHTS)
    shared = lambda part: generate.refine(
        *both, KEY, 3, part=part, nfe=10, solver=solver, height=12, width=20, x_T=NOISE
    )[0]
    np.testing.assert_allclose(shared(0.7), whole, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="leaves 0 of 10 steps"):
        shared(0.0)


def test_models_of_other_latents_do_not_share_steps():
    other = replace(MODEL, codec=replace(CODEC, scale=1.0))
    with pytest.raises(ValueError, match="same latents"):
        generate.refine((MODEL, WEIGHTS), (other, WEIGHTS), KEY, 1)
    bare = replace(MODEL, sampling=Sampling("ddim", 4))
    with pytest.raises(ValueError, match="need a schedule"):
        generate.refine((MODEL, WEIGHTS), (bare, WEIGHTS), KEY, 1)


@dataclass(frozen=True)
class Distilled:
    """A network whose estimate is the weight that it is told."""

    guidance_features: int = 8

    def build(self):
        def apply(params, x, t, label, *, guidance):
            assert len(guidance) == len(x) == len(label)
            return jnp.broadcast_to(guidance[:, None, None, None], x.shape)

        return SimpleNamespace(apply=apply, init=lambda *_: {})


def test_a_distilled_network_is_told_its_weight_and_asked_once():
    model = replace(MODEL, network=Distilled(), condition=Labels(3))
    for guidance, told in ((8.5, 7.5), (1.0, 0.0)):
        np.testing.assert_allclose(draw(model=model, guidance=guidance), told, atol=1e-5)
    with pytest.raises(ValueError, match="told the weight of guidance and asked once"):
        draw(model=model, negative_prompt="fog")
