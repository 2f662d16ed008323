"""What can be done with a VAE: samples, interpolation, labels, latents of any shape, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import keys, likelihoods, vae
from gen_jax.networks.autoencoder import MLPDecoder, MLPEncoder
from tests.vae.models import KEY, SHAPE, images, network


def test_sample_is_decoded_noise_and_does_not_depend_on_the_number():
    model, params = network()

    @jax.jit
    def draw(index):
        z = keys.normal(jax.random.split(KEY)[0], (5, 2), index)
        both = [model.sample(KEY, params, 5, mean=mean, index=index) for mean in (False, True)]
        return *both, model.decode(params, z)

    bits, means, decoded = draw(jnp.arange(5))
    assert set(np.unique(bits)) <= {0.0, 1.0}
    np.testing.assert_allclose(decoded, means, rtol=1e-6)
    for other, same in zip(draw(jnp.arange(5)[::-1]), (bits, means, decoded), strict=True):
        np.testing.assert_allclose(other[::-1], same, rtol=1e-6)


def test_interpolation_ends_at_reconstructions_and_runs_straight():
    model, params = network()

    @jax.jit
    def everything(a, b):
        middle = (model.encode(params, a).mean + model.encode(params, b).mean) / 2
        ends = model.reconstruct(params, a), model.reconstruct(params, b)
        return model.interpolate(params, a, b, 5), *ends, model.decode(params, middle)

    line, first, last, middle = everything(images(3), images(3, seed=2))
    assert line.shape == (3, 5, *SHAPE)
    for k, expected in ((0, first), (4, last), (2, middle)):
        np.testing.assert_allclose(line[:, k], expected, rtol=1e-4)


def test_labels_reach_every_bound():
    """A batch of two labels is made of batches of one; a label changes what is drawn; wrong ones are refused."""
    model, params = network(num_classes=2)
    x = images(4)

    @jax.jit
    def everything(label):
        bound = model.log_prob(params, KEY, x, 6, label, chunk=8)
        return bound, model.elbo(params, KEY, x, label).value, model.sample(KEY, params, 4, label, mean=True)

    zeros, ones, mixed = (everything(jnp.array(label)) for label in ([0] * 4, [1] * 4, [0, 1, 0, 1]))
    for zero, one, both in zip(zeros, ones, mixed, strict=True):
        np.testing.assert_allclose(both[0::2], zero[0::2], rtol=1e-5)
        np.testing.assert_allclose(both[1::2], one[1::2], rtol=1e-5)
        assert (np.abs(zero - one) > 1e-3).any()
    batch, label = {"image": x, "label": jnp.zeros(4, jnp.int32)}, jnp.zeros(2, jnp.int32)
    for loss in (
        vae.loss(model),
        vae.iwae_loss(model, 2),
        vae.iwae_loss(model, 2, doubly_reparameterised=True),
        vae.iwae_loss(model, 2, gradient_samples=1),
    ):
        jax.eval_shape(loss, params, KEY, batch)
    line = jax.eval_shape(lambda: model.interpolate(params, x[:2], x[2:], 3, label))
    assert line.shape == (2, 3, *SHAPE)
    with pytest.raises(ValueError, match="needs its label"):
        jax.eval_shape(model.elbo, params, KEY, x)
    plain, plain_params = network()
    with pytest.raises(ValueError, match="takes no label"):
        jax.eval_shape(plain.elbo, plain_params, KEY, x, batch["label"])


def test_latents_may_have_any_shape():
    class Maps(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="mean")(x), nn.Dense(3, name="log_std")(x)

    class Back(nn.Module):
        @nn.compact
        def __call__(self, z):
            return nn.Dense(1)(z)

    model, x = vae.VAE(Maps(), Back(), likelihoods.Bernoulli(), (*SHAPE[:2], 3)), images(2)
    params = jax.eval_shape(model.init, KEY, x)
    assert jax.eval_shape(lambda p: model.sample(KEY, p, 4), params).shape == (4, *SHAPE)
    assert jax.eval_shape(lambda p: model.log_prob(p, KEY, x, 4, chunk=2), params).shape == (2,)
    loss = vae.iwae_loss(model, 2, doubly_reparameterised=True)
    grad = jax.eval_shape(jax.grad(lambda p: loss(p, KEY, {"image": x})[0]), params)
    assert jax.tree.map(lambda a: a.shape, grad) == jax.tree.map(lambda a: a.shape, params)


def test_bad_input():
    model, params = network()
    with pytest.raises(ValueError, match="latent must be at least 1"):
        vae.VAE(MLPEncoder(0), MLPDecoder(SHAPE), likelihoods.Bernoulli(), 0)
    wide = vae.VAE(MLPEncoder(3, ()), model.decoder, model.likelihood, 2)
    wide_params = network(3)[1]._replace(decoder=params.decoder)
    with pytest.raises(ValueError, match="the encoder gives latents of shape"):
        jax.eval_shape(wide.elbo, wide_params, KEY, images())
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        jax.eval_shape(lambda p: model.iwae(p, KEY, images(), 0), params)
    loss = vae.loss(model)
    with pytest.raises(ValueError, match=r"data\.binarize"):
        jax.eval_shape(loss, params, KEY, {"image": jax.ShapeDtypeStruct((2, *SHAPE), jnp.int32)})
