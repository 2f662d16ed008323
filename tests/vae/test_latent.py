"""The autoencoder of latent diffusion: its loss is the VAE's, its terms are their formulas, its scale is measured."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.test_util import check_grads

from gen_jax import data, training, vae
from gen_jax.likelihoods import Gaussian
from gen_jax.networks import layers, quantize
from gen_jax.networks.classifier import Classifier
from gen_jax.networks.discriminator import PatchDiscriminator
from gen_jax.training import Aux
from gen_jax.vae import critics, latent
from gen_jax.vae.model import Posterior
from tests.networks.drawn import parameters

KEY = jax.random.key(0)


class Small(nn.Module):
    """An autoencoder of pointwise maps of 2 x 2 squares: little to compile."""

    def setup(self):
        self.encoder, self.decoder = nn.Dense(4), Head()

    def __call__(self, x):
        return self.decode(self.encode(x)[0])

    def encode(self, x):
        return tuple(jnp.split(self.encoder(nn.tanh(layers.space_to_depth(x, 2))), 2, axis=-1))

    def decode(self, z):
        return self.decoder(z)


class Head(nn.Module):
    @nn.compact
    def __call__(self, z):
        h = nn.Dense(4, name="out")(nn.tanh(nn.Dense(5, name="hidden")(z)))
        return layers.depth_to_space(h, 2, (len(h), 2 * h.shape[1], 2 * h.shape[2]))


NET = Small()
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 6, 1)).astype(np.uint8)
BATCH = {"image": jnp.asarray(IMAGES)}
PARAMS = latent.Params(parameters(NET, jnp.zeros((1, 8, 6, 1))))


def aux(step=0, frozen=None):
    return Aux(jnp.asarray(step), None, frozen)


def gradient(loss, params=PARAMS, *args):
    """`((value, metrics), gradient)`."""
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, KEY, BATCH, *args)


def close(a, b, rtol=1e-4, atol=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol * (1 + np.abs(y).max())), a, b
    )


def draw(tree):
    """The latents that the loss draws."""
    mean, log_variance = NET.apply(tree, data.to_unit(IMAGES), method="encode")
    return latent.gaussian()(None, jax.random.split(KEY)[1], Posterior(mean, log_variance / 2), None).z


class AsEncoder(nn.Module):
    """The encoder of step 7 that this one is."""

    def setup(self):
        self.net = Small()

    def __call__(self, x):
        mean, log_variance = self.net.encode(x)
        return mean, log_variance / 2


class AsDecoder(nn.Module):
    """The decoder of step 7 that this one is."""

    def setup(self):
        self.net = Small()

    def __call__(self, z):
        return self.net.decode(z)


def test_loss_is_that_of_a_vae():
    """The same bits of noise, the same value and gradient as `vae.loss` of the two halves as separate networks."""
    likelihood = Gaussian(0.3)
    ours = latent.loss(NET, latent.gaussian(0.7), likelihood=likelihood)
    model = vae.VAE(AsEncoder(), AsDecoder(), likelihood, (4, 3, 2))
    theirs = vae.loss(model, beta=0.7, prepare=lambda key, image: data.to_unit(image))
    nested = {"params": {"net": PARAMS.autoencoder["params"]}}
    (value, metrics), grads = gradient(ours)
    (expected, expected_metrics), halves = gradient(theirs, vae.Params(nested, nested))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in ("reconstruction", "kl"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5)
    both = jax.tree.map(jnp.add, halves.encoder, halves.decoder)["params"]["net"]
    close(grads.autoencoder["params"], both)


def test_kl_weight_may_follow_the_step():
    at = lambda step: gradient(
        latent.loss(NET, latent.gaussian(optax.linear_schedule(0.0, 1.0, 10))), PARAMS, aux(step)
    )
    fixed = lambda weight: gradient(latent.loss(NET, latent.gaussian(weight)))
    close(at(5), fixed(0.5))


def test_error_has_the_unit_that_sigma_says():
    (value, metrics), _ = gradient(latent.loss(NET, latent.gaussian(0.0), likelihood=Gaussian(0.1)))
    constant = 48 * (np.log(0.1) + np.log(2 * np.pi) / 2)
    np.testing.assert_allclose(value, 48 * metrics["mse"] / (2 * 0.1**2) + constant, rtol=1e-5)


def test_feature_distance_is_its_formula():
    rng = np.random.default_rng(0)
    a, b = ([rng.normal(size=(3, 4, 5, 6)), rng.normal(size=(3, 2, 2, 8))] for _ in range(2))
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    expected = sum(((unit(x) - unit(y)) ** 2).sum(-1).mean((1, 2)) for x, y in zip(a, b, strict=True))
    single = lambda maps: [jnp.asarray(x, jnp.float32) for x in maps]
    found = critics.feature_distance(single(a), single(b))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(critics.feature_distance(single(a), single(a)), 0, atol=1e-6)
    np.testing.assert_allclose(critics.feature_distance(single(a), [-x for x in single(a)]), 8, rtol=1e-5)


def test_perceptual_term_is_the_distance_of_a_frozen_classifiers_maps():
    judge = Classifier(3, channels=(4, 6), embedding=4, groups=2)
    frozen = parameters(judge, jnp.zeros((1, 8, 6, 1)), jnp.zeros(1))
    features = jax.jit(critics.classifier_features(judge))
    maps = features(frozen, data.to_unit(IMAGES))
    assert [m.shape for m in maps] == [(6, 4, 3, 4), (6, 2, 2, 6)]
    perceptual = latent.Perceptual(features, 7.0)
    (plain, _), _ = gradient(latent.loss(NET, latent.gaussian()))
    (value, metrics), _ = gradient(
        latent.loss(NET, latent.gaussian(), perceptual=perceptual), PARAMS, aux(frozen=frozen)
    )
    drawn = draw(PARAMS.autoencoder)
    picture = NET.apply(PARAMS.autoencoder, drawn, method="decode")
    expected = critics.feature_distance(features(frozen, picture), maps).mean()
    np.testing.assert_allclose(metrics["perceptual"], expected, rtol=1e-4)
    np.testing.assert_allclose(value - plain, 7 * expected, rtol=1e-3)
    with pytest.raises(ValueError, match="perceptual term needs the step or frozen weights"):
        latent.loss(NET, latent.gaussian(), perceptual=perceptual)(PARAMS, KEY, BATCH)


def test_hinge_and_adaptive_weight_are_their_formulas():
    real, drawn = jnp.array([0.5, 2.0]), jnp.array([-3.0, 1.0])
    np.testing.assert_allclose(critics.hinge(real, drawn), (0.25 + 1.0) / 2)
    weight = critics.adaptive_weight((jnp.array([3.0]), jnp.array([[4.0]])), {"a": jnp.array([0.0, 2.0])})
    np.testing.assert_allclose(weight, 2.5, rtol=1e-5)
    np.testing.assert_allclose(critics.adaptive_weight(jnp.ones(1), jnp.zeros(1)), 1e4)


def players(start=0):
    """An adversary, parameters with its discriminator, and the loss without and with it."""
    net = PatchDiscriminator(channels=(2,), groups=1)
    params = PARAMS._replace(discriminator=parameters(net, jnp.zeros((1, 8, 6, 1))))
    adversary = latent.Adversary(net, 0.8, start)
    return (
        adversary,
        params,
        latent.loss(NET, latent.gaussian()),
        latent.loss(NET, latent.gaussian(), adversary=adversary),
    )


def test_each_player_has_the_gradient_of_its_own_term():
    adversary, params, plain, game = players()
    (_, metrics), grads = gradient(game, params, aux())
    logits = lambda judge, x: adversary.net.apply(judge, x)
    generator = lambda tree, z: -logits(params.discriminator, NET.apply(tree, z, method="decode")).mean()
    (_, _), of_error = gradient(plain, params)
    of_game = jax.jit(jax.grad(lambda tree: generator(tree, draw(tree))))(params.autoencoder)
    fixed = draw(params.autoencoder)
    last = lambda tree: tree["params"]["decoder"]["out"]["kernel"]
    by_game = jax.grad(lambda tree: generator(tree, fixed))(params.autoencoder)
    weight = critics.adaptive_weight(last(of_error.autoencoder), last(by_game))
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-3)
    close(
        grads.autoencoder,
        jax.tree.map(lambda a, b: a + 0.8 * weight * b, of_error.autoencoder, of_game),
        rtol=1e-3,
    )
    picture = NET.apply(params.autoencoder, fixed, method="decode")
    expected = jax.grad(
        lambda judge: critics.hinge(logits(judge, data.to_unit(IMAGES)), logits(judge, picture))
    )
    close(grads.discriminator, expected(params.discriminator))


def test_the_game_begins_at_its_start():
    _, params, plain, game = players(start=10)
    (_, _), expected = gradient(plain, params)
    (_, _), before = gradient(game, params, aux(9))
    (_, _), after = gradient(game, params, aux(10))
    close(before.autoencoder, expected.autoencoder)
    assert all(np.all(np.asarray(g) == 0) for g in jax.tree.leaves(before.discriminator))
    assert any(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(after.discriminator))


def quantised(num_codes=5):
    return PARAMS._replace(codebook=quantize.create(jax.random.key(3), num_codes, 2))


def test_a_step_takes_the_codebook_to_its_moving_average():
    """With an optimizer of its own, whatever that of the networks does."""
    params, options = quantised(), {"decay": 0.8, "dead": 0.5}
    rule = latent.optimizer(optax.chain(optax.clip_by_global_norm(1e-3), optax.adam(1e-3)))
    step = training.make_step(latent.loss(NET, latent.vector_quantised(**options)), rule, ema_decay=None)
    state = training.TrainState.create(params, rule, KEY, ema=False)
    new, metrics = jax.jit(step)(state, BATCH)
    z, _ = NET.apply(params.autoencoder, data.to_unit(IMAGES), method="encode")
    indices = quantize.nearest(quantize.codes(params.codebook), z)
    key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
    close(new.params.codebook, quantize.update(key, params.codebook, z, indices, **options), atol=1e-6)
    share = quantize.usage(indices, 5)
    np.testing.assert_allclose(metrics["perplexity"], quantize.perplexity(share), rtol=1e-5)
    np.testing.assert_allclose(metrics["codes_used"], (share > 0).mean(), rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), new.params.autoencoder, params.autoencoder)
    assert moved["params"]["encoder"]["kernel"]


def test_the_encoder_gets_the_decoders_gradient_and_the_commitment():
    """Straight through: that of the decoder's loss at the code, as if the code were the encoder's output."""
    params = quantised()
    loss = latent.loss(NET, latent.vector_quantised(commitment=0.5))
    (_, metrics), grads = gradient(loss, params)
    x = data.to_unit(IMAGES)
    z, pull = jax.vjp(lambda tree: NET.apply(tree, x, method="encode")[0], params.autoencoder)
    codes = quantize.codes(params.codebook)
    z_q = codes[quantize.nearest(codes, z)]
    error = lambda tree, z: -Gaussian(0.05).log_prob(NET.apply(tree, z, method="decode"), x).mean()
    of_decoder, of_code = jax.grad(error, (0, 1))(params.autoencoder, z_q)
    (of_encoder,) = pull(of_code + 0.5 * 2 * (z - z_q) / 6)
    close(grads.autoencoder, jax.tree.map(jnp.add, of_decoder, of_encoder), rtol=1e-3)
    np.testing.assert_allclose(metrics["commitment"], np.square(z - z_q).sum((1, 2, 3)).mean(), rtol=1e-4)


def test_finite_scalar_decodes_the_rounded_latents():
    (value, metrics), _ = gradient(latent.loss(NET, latent.finite_scalar((3, 4))))
    x = data.to_unit(IMAGES)
    z, indices = quantize.fsq(NET.apply(PARAMS.autoencoder, x, method="encode")[0], (3, 4))
    expected = -Gaussian(0.05).log_prob(NET.apply(PARAMS.autoencoder, z, method="decode"), x).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["codes_used"], len(np.unique(indices)) / 12, rtol=1e-5)


def test_loss_gradient_is_the_derivative():
    """Of the KL autoencoder, with noise, by the parameters of both halves."""
    loss = latent.loss(NET, latent.gaussian(), likelihood=Gaussian(2.0))
    value = jax.jit(lambda tree: loss(latent.Params(tree), KEY, BATCH)[0])
    check_grads(value, (PARAMS.autoencoder,), 1, modes=["rev"], rtol=0.02, atol=0.02, eps=1e-2)


@pytest.mark.parametrize(
    ("bottleneck", "params"),
    [
        (latent.gaussian(1e-3), PARAMS),
        (latent.vector_quantised(), quantised(16)),
        (latent.finite_scalar((8, 8)), PARAMS),
    ],
)
def test_training_lowers_the_error(bottleneck, params):
    rule = latent.optimizer(training.adam(3e-3, num_steps=100, schedule="constant")[0])
    step = training.make_step(latent.loss(NET, bottleneck), rule, ema_decay=None)
    compiled = training.compile_step(
        step, steps_per_call=25, mesh=Mesh(np.array(jax.devices()[:1]), ("data",))
    )
    smooth = {"image": jnp.broadcast_to(BATCH["image"][None, :, :1, :1], (25, 6, 8, 6, 1))}  # flat images
    state, first = compiled(training.TrainState.create(params, rule, KEY, ema=False), smooth)
    _, last = compiled(state, smooth)
    assert float(last["mse"][-1]) < float(first["mse"][0]) / 2


def test_statistics_are_those_of_draws():
    found = latent.statistics(NET, PARAMS.autoencoder, IMAGES, batch_size=4)
    mean, log_variance = NET.apply(PARAMS.autoencoder, data.to_unit(IMAGES), method="encode")
    noise = np.random.default_rng(0).normal(size=(4000, *mean.shape))
    draws = np.asarray(mean) + np.exp(np.asarray(log_variance) / 2) * noise
    np.testing.assert_allclose(found.mean, draws.mean((0, 1, 2, 3)), atol=0.01)
    np.testing.assert_allclose(found.std, draws.std((0, 1, 2, 3)), rtol=0.01)
    scale, shift = latent.measure(NET, PARAMS.autoencoder, IMAGES, batch_size=5)
    scaled = (draws - shift) * scale
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=0.01)
    scale, shift = latent.measure(NET, PARAMS.autoencoder, IMAGES, noise=False)
    scaled = (np.asarray(mean) - shift) * scale
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-4)
    (_, metrics), _ = gradient(latent.loss(NET, latent.gaussian()))
    np.testing.assert_allclose(found.kl, metrics["kl"], rtol=1e-5)


def test_reconstruct_decodes_the_means_whatever_the_batch():
    mean, _ = NET.apply(PARAMS.autoencoder, data.to_unit(IMAGES), method="encode")
    expected = np.asarray(data.to_uint8(NET.apply(PARAMS.autoencoder, mean, method="decode")), int)
    for size in (4, 100):
        found = latent.reconstruct(NET, PARAMS.autoencoder, IMAGES, batch_size=size)
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1
    round_off = lambda z: quantize.fsq(z, (3, 4))[0]
    z, _ = NET.apply(PARAMS.autoencoder, data.to_unit(IMAGES), method="encode")
    expected = np.asarray(data.to_uint8(NET.apply(PARAMS.autoencoder, round_off(z), method="decode")), int)
    found = latent.reconstruct(NET, PARAMS.autoencoder, IMAGES, quantiser=round_off)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: latent.loss(NET, latent.vector_quantised()), "with a codebook"),
        (lambda: players()[3], "with a discriminator"),
        (lambda: latent.loss(NET, latent.gaussian(optax.constant_schedule(1.0))), "aux=True"),
    ],
)
def test_loss_says_what_is_missing(make, message):
    with pytest.raises(ValueError, match=message):
        make()(PARAMS, KEY, BATCH)


def test_the_place_of_the_last_kernel_is_checked():
    adversary, params, _, _ = players()
    other = latent.Adversary(adversary.net, last=("params", "decoder", "final", "kernel"))
    with pytest.raises(ValueError, match="no params/decoder/final"):
        latent.loss(NET, latent.gaussian(), adversary=other)(params, KEY, BATCH)
