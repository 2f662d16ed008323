"""Importance sampling against exact likelihoods, in chunks and on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import keys, training
from gen_jax.hvae import chain, importance
from gen_jax.vae import importance as chunks
from tests.hvae.models import KEY, Linear, drawn, images, networks


def test_iwae_is_the_same_in_parts_and_rises_to_the_likelihood():
    """Of a linear chain whose encoder is too wide; more draws are never worse, and many are right."""
    model, x = Linear(), jnp.asarray([[-1.0], [0.3], [2.0]])
    wide = lambda q: q._replace(log_std=q.log_std + 0.4)
    rough = model.chain()
    rough = rough._replace(encode=tuple(lambda z, f=f: wide(f(z)) for f in rough.encode))
    weigh = lambda key: chain.log_weight(key, rough, x)
    whole = jax.jit(lambda: importance.iwae(weigh, KEY, 1000))()
    parts = jax.jit(lambda: importance.iwae(weigh, KEY, 1000, sample_chunk=300))()
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    np.testing.assert_allclose(whole, model.log_prob(x), atol=0.15)
    bound = lambda k: jax.jit(jax.vmap(lambda key: importance.iwae(weigh, key, k)))(
        jax.random.split(KEY, 200)
    ).mean()
    exact = model.log_prob(x).mean()
    assert bound(1) < bound(5) - 0.1 < exact


@pytest.mark.parametrize("size", [3, 7, 20])
def test_examples_in_chunks_are_all_the_examples(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float32)
    each = lambda x, index: x.sum(1) + keys.normal(KEY, x.shape, index).sum(1)
    found = chunks.in_chunks(each, size, x, jnp.arange(7))
    np.testing.assert_allclose(found, each(x, jnp.arange(7)), rtol=1e-5)
    few = chunks.in_chunks(each, size, x[2:5], jnp.arange(2, 5))
    np.testing.assert_allclose(few, found[2:5], rtol=1e-5)


@pytest.mark.parametrize("arguments", [(0, None), (4, 0)])
def test_iwae_says_that_it_needs_a_draw(arguments):
    num_samples, sample_chunk = arguments
    with pytest.raises(ValueError, match="at least 1"):
        importance.iwae(lambda key: jnp.zeros(2), KEY, num_samples, sample_chunk=sample_chunk)


def test_log_prob_on_eight_devices_is_that_of_one():
    model, x = networks(2), images(16)
    params = drawn(model, x)
    layout = training.Layout()
    assert layout.shards == 8
    log_prob = jax.jit(lambda params, x: model.log_prob(params, KEY, x, 20, chunk=8))
    one = log_prob(params, x)
    np.testing.assert_allclose(one, log_prob(params, layout.put_batch(x)), rtol=1e-5)
    assert (
        one
        > jax.jit(jax.vmap(lambda key: model.elbo(params, key, x).value))(jax.random.split(KEY, 20)).mean(0)
    ).all()
