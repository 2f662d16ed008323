"""The training losses of a VAE: unbiased gradients, schedules, devices, and that they train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gen_jax import data, likelihoods, training, vae
from gen_jax.networks.autoencoder import MLPDecoder, MLPEncoder
from tests.marks import slow
from tests.vae.models import KEY, ONE, SHAPE, images, network


def test_dreg_is_unbiased():
    """Its gradient and the plain one have the same mean, and that of the decoder is the same draw by draw."""
    model, params = network()
    x, n = {"image": images(2)}, 20_000
    losses = [vae.iwae_loss(model, 3, doubly_reparameterised=dreg) for dreg in (False, True)]
    both = jax.vmap(lambda key: [jax.grad(lambda p: loss(p, key, x)[0])(params) for loss in losses])
    grads = jax.jit(both)(jax.random.split(KEY, n))
    plain, dreg = (
        np.concatenate([np.float64(a).reshape(n, -1) for a in jax.tree.leaves(g.encoder)], 1) for g in grads
    )
    error = ((plain - dreg).var(0) / n) ** 0.5
    assert (np.abs(plain.mean(0) - dreg.mean(0)) <= 5 * error + 1e-7).all()
    assert np.abs(plain.mean(0)).max() > 20 * error.max(), "there is something to compare"
    close = lambda a, b: np.testing.assert_allclose(a[:50], b[:50], rtol=1e-3, atol=1e-4)
    jax.tree.map(close, *(g.decoder for g in grads))


def test_systematic_draws_each_as_often_as_it_is_due():
    """The mean number of times over `u` is `m v`, and never off by one or more."""
    v = jnp.asarray(np.random.default_rng(0).dirichlet(0.3 * np.ones(7), 1)[0], jnp.float32)
    u = (jnp.arange(4000) + 0.5) / 4000
    for m in (1, 3, 20):
        drawn = jax.vmap(lambda u, m=m: vae.systematic_resampling(u, v, m))(u)
        times = np.asarray(jax.nn.one_hot(drawn, 7).sum(1))
        np.testing.assert_allclose(times.mean(0), m * np.asarray(v), atol=1e-3)
        assert np.abs(times - m * np.asarray(v)).max() < 1
    np.testing.assert_array_equal(
        vae.systematic_resampling(jnp.float32(0.999), jnp.float32([0, 1, 0]), 2), [1, 1]
    )


@pytest.mark.usefixtures("optimized")  # more to compute than to compile
@pytest.mark.parametrize("dreg", [pytest.param(False, marks=pytest.mark.slow), True])
def test_gradient_of_a_few_samples_is_unbiased(dreg):
    """At the same noise the bound is the same number, and the gradient that of all samples, in the mean over draws."""
    model, params = network()
    x, n = {"image": images(2)}, 20_000
    losses = [
        vae.iwae_loss(model, 5, doubly_reparameterised=dreg, gradient_samples=m) for m in (None, 1, 2, 5)
    ]
    values = [jax.jit(lambda p, loss=loss: loss(p, KEY, x)[0])(params) for loss in losses]
    np.testing.assert_allclose(values, values[0], rtol=1e-6)
    both = jax.vmap(lambda key: [jax.grad(lambda p: loss(p, key, x)[0])(params) for loss in losses[:3]])
    flat = lambda g: np.concatenate([np.float64(a).reshape(n, -1) for a in jax.tree.leaves(g)], 1)
    whole, one, two = map(flat, jax.jit(both)(jax.random.split(KEY, n)))
    for few in (one, two):
        error = ((whole - few).var(0) / n) ** 0.5
        assert (np.abs(whole.mean(0) - few.mean(0)) <= 5 * error + 1e-7).all()
    assert np.abs(whole.mean(0)).max() > 20 * error.max(), "there is something to compare"
    assert (one - whole).var() > (two - whole).var() > 0


@pytest.mark.parametrize("chunk", slow([1, 4, 6], but=(4,)))
def test_gradient_of_a_few_samples_is_the_same_in_chunks(chunk):
    """Two images, so that 5 samples are scored one, two or three at a time."""
    model, params = network()
    options = {"gradient_samples": 2, "doubly_reparameterised": True}
    grads = [
        jax.jit(jax.value_and_grad(vae.iwae_loss(model, 5, chunk=size, **options), has_aux=True))(
            params, KEY, {"image": images(2)}
        )
        for size in (None, chunk)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *grads)


def test_gradient_samples_are_some_of_the_samples():
    model, _ = network()
    for m, said in (
        (0, "gradient_samples must be at least 1, got 0"),
        (4, "from 1 to num_samples = 3, got 4"),
    ):
        with pytest.raises(ValueError, match=said):
            vae.iwae_loss(model, 3, gradient_samples=m)


def test_beta_and_free_bits_have_their_limits():
    """`beta = 0` leaves the reconstruction, no free bits the ELBO; more of them than are spent stop the KL's gradient."""
    model, params = network()
    x = {"image": images(4)}
    kl = np.asarray(vae.kl_to_prior(model.encode(params, x["image"])).mean(0))
    least = float(kl.mean())  # between the two: one is free, the other pays
    options = [{}, {"beta": 0.0}, {"beta": 3.0}, {"free_bits": 100.0}, {"free_bits": least}]

    @jax.jit
    def everything(params):
        losses = [vae.loss(model, **option) for option in options]
        return [jax.value_and_grad(loss, has_aux=True)(params, KEY, x) for loss in losses]

    ((_, terms), _), *_ = results = everything(params)
    one, none, three, free, some = (float(value) for (value, _), _ in results)
    reconstruction = float(terms["reconstruction"])
    np.testing.assert_allclose(kl.sum(), terms["kl"], rtol=1e-5)
    np.testing.assert_allclose(one, terms["kl"] - reconstruction, rtol=1e-5)
    np.testing.assert_allclose(none, -reconstruction, rtol=1e-5)
    np.testing.assert_allclose(three, 3 * terms["kl"] - reconstruction, rtol=1e-5)
    np.testing.assert_allclose(free, 200 - reconstruction, rtol=1e-5)
    np.testing.assert_allclose(some, np.maximum(kl, least).sum() - reconstruction, rtol=1e-5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, results[3][1], results[1][1])


def test_kl_warmup_follows_the_step():
    model, params = network()
    x = {"image": images(8)}
    warm = vae.loss(model, beta=optax.linear_schedule(0.0, 1.0, 2))
    with pytest.raises(ValueError, match="aux=True"):
        warm(params, KEY, x)
    optimizer = optax.sgd(0.0)
    compiled = training.compile_step(
        training.make_step(warm, optimizer, ema_decay=None, aux=True),
        steps_per_call=3,
        select=lambda step, count: jnp.broadcast_to(jnp.arange(8)[None], (count, 8)),
    )
    _, metrics = compiled(training.TrainState.create(params, optimizer, KEY, ema=False), x)
    for beta, loss, kl, reconstruction in zip(
        (0, 0.5, 1), *(metrics[name] for name in ("loss", "kl", "reconstruction")), strict=True
    ):
        np.testing.assert_allclose(loss, beta * kl - reconstruction, rtol=1e-5)


@pytest.mark.parametrize("options", slow([{}, {"parallel": "pmap"}], [{}]), ids=["jit", "pmap"])
def test_every_way_of_spreading_a_step_gives_the_same_parameters(options):
    """With free bits, which look at the whole batch, and with DReG."""
    model, params = network()
    images = np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8)
    losses = (
        vae.loss(model, free_bits=1.0, prepare=data.binarize),
        vae.iwae_loss(model, 3, doubly_reparameterised=True, prepare=data.binarize),
    )

    def both(params, key, batch):
        values, metrics = zip(*(loss(params, key, batch) for loss in losses), strict=True)
        return sum(values), metrics[0] | metrics[1]

    optimizer = optax.sgd(0.1)
    step = training.make_step(both, optimizer, ema_decay=None)
    results = []
    for how in ({"mesh": ONE}, options):
        compiled = training.compile_step(step, **how)
        state, _ = compiled(training.TrainState.create(params, optimizer, KEY, ema=False), {"image": images})
        results.append(jax.device_get(state.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *results)


@pytest.mark.slow  # 1,600 steps; in CI: each bound and its gradient
def test_training_raises_the_likelihood_and_iwae_raises_it_further(optimized):
    """The direction of the published figures on 5,000 digits: after the ELBO, a few steps on the IWAE bound gain more of
    log p(x) than as many on the ELBO, and lose of the ELBO itself (Burda et al. 2016, Table 1; Rainforth et al. 2018)."""
    train = {"image": data.load("mnist")["image"][:5000]}
    x = data.binarize(jax.random.key(9), data.load("mnist", split="test")["image"][:300])
    model = vae.VAE(
        MLPEncoder(10, (64,), activation=jnp.tanh),
        MLPDecoder((28, 28, 1), (64,), activation=jnp.tanh),
        likelihoods.Bernoulli(),
        10,
    )

    optimizer, _ = training.adam(3e-3, num_steps=1, schedule="constant")
    feed = data.batches(train, 100, key=jax.random.key(1))

    def trainer(loss):
        """400 steps from given parameters."""
        step = training.make_step(loss, optimizer, ema_decay=None)
        compiled = training.compile_step(step, steps_per_call=400, select=feed.select, mesh=ONE)
        create = lambda params: training.TrainState.create(
            jax.tree.map(jnp.copy, params), optimizer, KEY, ema=False
        )
        return lambda params: jax.device_get(compiled(create(params), dict(feed.arrays))[0].params)

    @jax.jit
    def bounds(params):
        elbo, log_prob = model.elbo(params, KEY, x).value, model.log_prob(params, KEY, x, 300)
        return elbo.mean(), log_prob.mean(), (log_prob - elbo).mean()

    on_elbo = trainer(vae.loss(model, prepare=data.binarize))
    on_iwae = trainer(vae.iwae_loss(model, 10, doubly_reparameterised=True, prepare=data.binarize))
    start = jax.jit(model.init)(KEY, x[:1])
    first = on_elbo(on_elbo(start))
    more, better = on_elbo(first), on_iwae(first)
    untrained, early, late, tight = (bounds(params) for params in (start, first, more, better))
    assert untrained[1] < -500 < -165 < early[1] < late[1] - 1
    assert tight[1] > late[1] + 1
    assert tight[0] < late[0]
