"""The ladder VAE: its bound, its samples, and how it starts and trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from gen_jax import hvae, keys, training
from gen_jax.hvae import gaussian
from tests.hvae.models import KEY, SHAPE, flat, images, small
from tests.marks import slow
from tests.networks.drawn import parameters

each_merge = pytest.mark.parametrize("merge", gaussian.MERGES)
some_merges = pytest.mark.parametrize("merge", slow(gaussian.MERGES, but=("concat",)))


@some_merges
def test_ladder_weights_have_the_mean_of_its_bound(merge):
    """The closed KLs against the log ratios at the draws, through every network of the ladder."""
    x, model = images(2), flat(merge)
    params = parameters(model, x)
    draw = jax.vmap(lambda key, p: (model.elbo(p, key, x).value, model.iwae(p, key, x, 1)), (0, None))
    bound, weight = jax.jit(draw)(jax.random.split(KEY, 500), params)
    # the noise of the two differs, so their deviations add
    error = ((bound.var(0) + weight.var(0)) / len(bound)) ** 0.5
    assert (jnp.abs((bound - weight).mean(0)) < 4 * error).all()
    log_p = jax.nn.logsumexp(weight, axis=0) - np.log(len(weight))
    assert (log_p > bound.mean(0)).all(), "an importance sampled likelihood is above the bound"


@pytest.fixture(scope="module")
def convolutional():
    """A ladder with space, its parameters, and its functions compiled."""
    model = small()
    params = parameters(model, images(1))
    sample = jax.jit(lambda params, key, heat: model.sample(key, params, 3, temperature=heat, mean=True))
    return model, params, sample


def test_ladder_halves_and_doubles_any_size(convolutional):
    model, params, sample = convolutional
    assert list(model.latent_shapes) == [(4, 3, 3), (4, 3, 2), (2, 2, 2)]
    assert sample(params, KEY, jnp.ones(3)).shape == (3, *SHAPE)
    latents = model.encode(params, KEY, images(1))
    assert [z.shape[1:] for z in latents] == model.latent_shapes


def test_temperature_0_is_deterministic_and_levels_leave_the_others_at_their_means(convolutional):
    model, params, sample = convolutional
    first, second = (sample(params, jax.random.key(i), jnp.zeros(3)) for i in (1, 2))
    np.testing.assert_allclose(first, second, rtol=1e-6)
    np.testing.assert_allclose(first[0], first[1], rtol=1e-6)
    top = model.sample(KEY, params, 3, levels=1, mean=True)
    np.testing.assert_allclose(top, sample(params, KEY, jnp.asarray([0.0, 0.0, 1.0])), rtol=1e-5)
    assert jnp.abs(top - first).max() > 1e-3
    # a level's noise is the same however many are drawn: from the top on down, samples change less and less
    whole = sample(params, KEY, jnp.ones(3))
    assert jnp.abs(whole - top).max() > 1e-3
    assert set(np.unique(model.sample(KEY, params, 3))) <= {0.0, 1.0}, (
        "without mean=True a draw from p(x | z)"
    )


def test_sample_and_elbo_of_an_example_do_not_depend_on_the_batch(convolutional):
    model, params, _ = convolutional
    x, index = images(4), jnp.arange(2, 4)
    elbo = jax.jit(lambda params, x, index: model.elbo(params, KEY, x, index=index).value)
    np.testing.assert_allclose(elbo(params, x, jnp.arange(4))[2:], elbo(params, x[2:], index), rtol=1e-5)


def test_reconstruct_with_all_levels_follows_the_posterior(convolutional):
    """Its mean is that of the likelihood at the latents which `encode` draws; without levels it is a sample's."""
    model, params, sample = convolutional
    x = images(3)
    none = model.reconstruct(params, KEY, x, levels=0)
    np.testing.assert_allclose(none, sample(params, KEY, jnp.zeros(3)), rtol=1e-5)
    assert jnp.abs(model.reconstruct(params, KEY, x) - none).max() > 1e-3


@pytest.mark.slow
def test_six_levels_start_as_quietly_as_two():
    """Each KL is a few hundredths of a nat at its own initialisation, however many levels there are."""
    x = images(16)
    for levels in (2, 6):
        model = flat(latents=(2,) * levels)
        kl = jax.jit(lambda key: model.elbo(model.init(key, x), key, x).kl)(KEY)
        assert kl.shape == (16, levels)
        assert 0 < kl.mean(0).max() < 0.2


@pytest.mark.slow  # half a minute to compile; in CI: how six levels start
def test_twelve_levels_train():
    """Gradients are finite, none is skipped, and the loss falls."""
    model = flat(latents=(2,) * 12)
    x = images(32)
    x = x.at[:, :, :3].set(x[:, :1, :1])  # something to learn
    params = jax.jit(model.init)(KEY, x)
    optimizer = training.skip_exploding(optax.adam(5e-3))
    state = training.TrainState.create(params, optimizer, KEY, ema=False)
    one = Mesh(np.array(jax.devices()[:1]), (keys.AXIS,))
    step = training.make_step(hvae.loss(model), optimizer, ema_decay=None)
    compiled = training.compile_step(
        step, steps_per_call=60, mesh=one, select=lambda step, n: jnp.broadcast_to(jnp.arange(32), (n, 32))
    )
    state, metrics = compiled(state, {"image": x})
    assert np.isfinite(metrics["grad_norm"]).all()
    assert int(state.opt_state.skipped) == 0
    assert metrics["loss"][-10:].mean() < metrics["loss"][:5].mean() - 2
    np.testing.assert_allclose(metrics["loss"], -metrics["elbo"], rtol=1e-5)
    np.testing.assert_allclose(sum(metrics[f"kl_{i + 1}"] for i in range(12)), metrics["kl"], rtol=1e-4)
