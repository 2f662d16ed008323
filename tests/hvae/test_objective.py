"""The training loss of a hierarchical VAE, and the errors for wrong input."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from gen_jax import hvae, keys, likelihoods, training, vae
from gen_jax.diffusion import process
from gen_jax.hvae import temperature
from gen_jax.networks.mlp import MLP
from tests.hvae.models import KEY, Linear, drawn, flat, images, networks


def some_bound():
    rng = np.random.default_rng(0)
    return vae.Elbo.of(
        jnp.asarray(rng.normal(size=6), jnp.float32), jnp.asarray(rng.uniform(0, 2, (6, 3)), jnp.float32)
    )


def test_objective_in_its_limits():
    bound = some_bound()
    np.testing.assert_allclose(hvae.objective(bound), -bound.value.mean(), rtol=1e-6)
    np.testing.assert_allclose(hvae.objective(bound, beta=0.0), -bound.reconstruction.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        hvae.objective(bound, free_bits=50.0), 150 - bound.reconstruction.mean(), rtol=1e-6
    )
    slopes = jax.grad(
        lambda kl: hvae.objective(bound._replace(kl=kl), free_bits=np.array([0.0, 50.0, 0.0], np.float32))
    )(bound.kl)
    np.testing.assert_allclose(slopes, np.broadcast_to([1 / 6, 0, 1 / 6], (6, 3)), rtol=1e-6)
    with pytest.raises(ValueError, match="free_bits must be at least 0, got -1"):
        hvae.objective(bound, free_bits=-1.0)


def test_balance_is_even_where_levels_say_the_same_a_number():
    sizes = np.array([8.0, 4.0, 2.0])
    even = vae.Elbo.of(jnp.zeros(6), jnp.full((6, 3), 100.0) * sizes[None])
    np.testing.assert_allclose(hvae.balanced(even, sizes), 1, atol=1e-3)
    uneven = even._replace(kl=even.kl.at[:, 0].mul(10.0).at[:, 1].mul(0.0))
    weights = hvae.balanced(uneven, sizes)
    np.testing.assert_allclose(weights, np.array([10, 0, 1]) * 3 / 11, atol=1e-3)
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
    slopes = jax.grad(lambda kl: hvae.balanced(even._replace(kl=kl), sizes)[0])(uneven.kl)
    np.testing.assert_array_equal(slopes, 0)


def test_loss_on_eight_devices_is_that_of_one():
    """With free bits, which are of the whole batch's mean, and a warm-up, which is of the step."""
    model = networks(2)
    x = images(16)
    params, optimizer = drawn(model, x), optax.sgd(0.1)
    loss = hvae.loss(
        model,
        beta=optax.linear_schedule(0.5, 1.0, 3),
        balance=lambda step: 0.5,
        free_bits=2.0,
        prepare=lambda key, x: x,
    )
    step = training.make_step(loss, optimizer, ema_decay=None, aux=True)
    results = []
    for options in ({"mesh": Mesh(np.array(jax.devices()[:1]), (keys.AXIS,))}, {"parallel": "pmap"}):
        state = training.TrainState.create(params, optimizer, KEY, ema=False)
        compiled = training.compile_step(step, **options)
        for _ in range(2):
            state, metrics = compiled(state, {"image": x})
        results.append(jax.device_get((state.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), results[0][0], jax.device_get(params))
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hvae.HVAE((), (), likelihoods.Bernoulli(), ()), "at least one, got 0 encoders"),
        (lambda: networks(2, terms="posterior"), "terms must be"),
        (lambda: flat(merge="product"), "merge must be one of precision, residual, concat"),
        (lambda: flat(latents=(3, 0)).init(KEY, images(1)), "latent of at least 1 channel"),
        (
            lambda: hvae.HVAE((MLP((1,)),), (MLP((1,)),), likelihoods.Bernoulli(), (0,)),
            "latent[0] must be at least 1, got 0",
        ),
        (
            lambda: hvae.diffusion_chain(lambda x, t: x, process.VP(), np.array([0.1, 0.5])),
            "decreasing numbers",
        ),
        (
            lambda: hvae.elbo(KEY, Linear().chain(), jnp.ones((1, 1)), terms="posterior"),
            'terms="sampled" does without',
        ),
        (lambda: hvae.elbo(KEY, Linear().chain(), jnp.ones((1, 1)), terms="all"), "got 'all'"),
        (lambda: hvae.elbo(KEY, Linear().chain()._replace(decode=()), jnp.ones((1, 1))), "got 3 and 0"),
        (
            lambda: temperature.per_level(1.0, 4, 3),
            "this model has 3 levels: levels must be from 0 to 3, got 4",
        ),
        (lambda: temperature.per_level(np.ones(2), None, 3), "temperature must be one number or 3"),
    ],
)
def test_bad_input_is_told_what_was_expected(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
