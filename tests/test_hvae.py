"""The hierarchical VAE against the VAE, exact likelihoods, and the diffusion model that it can be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.sharding import Mesh
from jax.test_util import check_grads

from gen_jax import gmm, hvae, keys, likelihoods, training, vae
from gen_jax.diffusion import likelihood, oracle, process
from gen_jax.hvae import chain, gaussian, importance, temperature
from gen_jax.networks import autoencoder, ladder
from gen_jax.networks.mlp import MLP
from tests.networks.drawn import parameters

KEY = jax.random.key(0)
SHAPE = (7, 6, 1)
each_merge = pytest.mark.parametrize("merge", gaussian.MERGES)


def images(n=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (n, *SHAPE)), jnp.float32)


def drawn_gaussian(rng, shape=(3, 4)):
    return hvae.Gaussian(
        jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)
    )


# --- the Gaussian of a level


def test_log_prob_equals_scipy():
    rng = np.random.default_rng(0)
    p, z = drawn_gaussian(rng), jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    expected = scipy.stats.norm(p.mean, np.exp(p.log_std)).logpdf(z).sum(1)
    np.testing.assert_allclose(gaussian.log_prob(p, z), expected, rtol=1e-5)


def test_kl_is_the_mean_of_the_log_ratio():
    rng = np.random.default_rng(0)
    q, p = drawn_gaussian(rng), drawn_gaussian(rng)
    z = jax.vmap(lambda key: gaussian.sample(key, q))(jax.random.split(KEY, 40_000))
    ratios = jax.vmap(lambda z: gaussian.log_prob(q, z) - gaussian.log_prob(p, z))(z)
    error = ratios.std(0) / len(ratios) ** 0.5
    assert (jnp.abs(ratios.mean(0) - gaussian.kl(q, p)) < 4 * error).all()
    np.testing.assert_array_equal(gaussian.kl(q, q), 0)


def test_kl_to_the_standard_normal_is_that_of_the_vae():
    q = drawn_gaussian(np.random.default_rng(0))
    same = vae.kl_to_prior(vae.Posterior(*q)).sum(1)
    np.testing.assert_allclose(gaussian.kl(q, gaussian.standard(q.mean)), same, rtol=1e-6)


def test_precision_is_the_product_of_the_densities():
    rng = np.random.default_rng(0)
    p, e = drawn_gaussian(rng, (2, 1)), drawn_gaussian(rng, (2, 1))
    z = np.linspace(-12, 12, 20_001)
    for i in range(2):
        density = np.prod([scipy.stats.norm(g.mean[i], np.exp(g.log_std[i])).pdf(z) for g in (p, e)], axis=0)
        mean = (z * density).sum() / density.sum()
        std = (((z - mean) ** 2 * density).sum() / density.sum()) ** 0.5
        q = gaussian.precision(p, e)
        np.testing.assert_allclose([q.mean[i, 0], np.exp(q.log_std[i, 0])], [mean, std], rtol=1e-4)


def test_merges_in_their_limits():
    """Evidence that says nothing leaves the prior; evidence that says all takes its place."""
    rng = np.random.default_rng(0)
    p, e = drawn_gaussian(rng), drawn_gaussian(rng)
    nothing, everything = (
        e._replace(log_std=jnp.full((3, 4), 40.0)),
        e._replace(log_std=jnp.full((3, 4), -40.0)),
    )
    for found, expected in (
        (gaussian.precision(p, nothing), p),
        (gaussian.precision(p, everything), everything),
        (gaussian.residual(p, hvae.Gaussian(jnp.zeros((3, 4)), jnp.zeros((3, 4)))), p),
        (gaussian.concat(p, e), e),
    ):
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.log_std, expected.log_std, rtol=1e-5, atol=1e-6)


def test_residual_kl_is_the_formula_of_nvae():
    """`(d_mean^2 / std_p^2 + d_std^2 - log d_std^2 - 1) / 2` (Vahdat & Kautz 2020, Eq. 2)."""
    rng = np.random.default_rng(0)
    p, change = drawn_gaussian(rng), drawn_gaussian(rng)
    variance = np.exp(2 * np.float64(change.log_std))
    terms = (change.mean / np.exp(p.log_std)) ** 2 + variance - np.log(variance) - 1
    np.testing.assert_allclose(gaussian.kl(gaussian.residual(p, change), p), terms.sum(1) / 2, rtol=1e-5)


def test_bounded_deviations_stay_within_the_bound_and_are_themselves_near_zero():
    raw = jnp.asarray([[-1e6, -1e-3, 0.0, 1e-3, 1e6]])
    found = gaussian.bounded(raw, raw, 5.0).log_std
    np.testing.assert_allclose(found, [[-5, -1e-3, 0, 1e-3, 5]], rtol=1e-6)


# --- the chain


class Linear:
    """`z_3 ~ N(0, 1)`, `z_{l-1} = a z_l + b + noise`: every posterior is a Gaussian, and so is `p(x)`."""

    a, b, std = (
        (0.8, -1.3, 0.6),
        (0.5, -0.2, 1.0),
        (0.7, 0.4, 0.9),
    )  # of x given z_1, z_1 given z_2, z_2 given z_3

    def __init__(self):
        mean, variance = [0.0], [1.0]
        for a, b, std in zip(self.a[::-1], self.b[::-1], self.std[::-1], strict=True):
            mean.insert(0, a * mean[0] + b)
            variance.insert(0, a**2 * variance[0] + std**2)
        self.mean, self.variance = mean, variance

    def below(self, level, z):
        """`p(z_{level} | z_{level + 1})`, with `z_0 = x`."""
        return hvae.Gaussian(self.a[level] * z + self.b[level], jnp.full((1, 1), np.log(self.std[level])))

    def above(self, level, z):
        """`p(z_{level + 1} | z_level)`, by Bayes' rule."""
        variance = 1 / (1 / self.variance[level + 1] + (self.a[level] / self.std[level]) ** 2)
        known = self.mean[level + 1] / self.variance[level + 1]
        mean = variance * (known + self.a[level] * (z - self.b[level]) / self.std[level] ** 2)
        return hvae.Gaussian(mean, jnp.full((1, 1), np.log(variance) / 2))

    def chain(self):
        return hvae.Chain(
            tuple(lambda z, i=i: self.above(i, z) for i in range(3)),
            tuple(lambda z, i=i: self.below(i, z) for i in (1, 2)),
            gaussian.standard,
            lambda z, x: gaussian.log_prob(self.below(0, z), x),
        )

    def log_prob(self, x):
        return scipy.stats.norm(self.mean[0], self.variance[0] ** 0.5).logpdf(np.asarray(x)[:, 0])


def test_chain_with_its_posterior_has_the_exact_likelihood():
    """`p(x, z) / q(z | x) = p(x)` at every draw, so the weights do not vary, and the bound is met in the mean."""
    model, x = Linear(), jnp.asarray([[-1.0], [0.3], [2.0]])
    weights = jax.jit(lambda key: chain.log_weight(key, model.chain(), x))(KEY)
    np.testing.assert_allclose(weights, model.log_prob(x), rtol=1e-5)
    draws = jax.jit(jax.vmap(lambda key: hvae.elbo(key, model.chain(), x)))(jax.random.split(KEY, 5000))
    error = draws.value.std(0) / len(draws.value) ** 0.5
    assert (jnp.abs(draws.value.mean(0) - model.log_prob(x)) < 4 * error).all()
    np.testing.assert_allclose(draws.value, draws.reconstruction - draws.kl.sum(2), rtol=1e-4, atol=1e-4)


def test_bound_of_neighbours_is_lower_by_what_the_levels_know_of_each_other():
    """`a_l cov(z_l, z_{l+1} | z_{l-1}) / std_l^2` for each level but the last, with an exact posterior.

    It puts an independent `z_l'` in the place of `z_l` in `E log p(z_l | z_{l+1})`, and for Gaussians `E (z_l' - a
    z_{l+1} - b)^2 - E (z_l - a z_{l+1} - b)^2 = 2 a cov(z_l, z_{l+1})`.
    """
    model, x = Linear(), jnp.asarray([[-1.0], [0.3], [2.0]])
    slope = lambda i: float(
        (model.above(i, jnp.ones((1, 1))).mean - model.above(i, jnp.zeros((1, 1))).mean)[0, 0]
    )
    variance = lambda i: float(jnp.exp(2 * model.above(i, x).log_std[0, 0]))
    gap = sum(model.a[i] * slope(i) * variance(i - 1) / model.std[i] ** 2 for i in (1, 2))
    draw = jax.vmap(lambda key: hvae.elbo(key, model.chain(), x, terms="neighbours").value)
    draws = jax.jit(draw)(jax.random.split(KEY, 5000))
    error = draws.std(0) / len(draws) ** 0.5
    assert (jnp.abs(draws.mean(0) + gap - model.log_prob(x)) < 4 * error).all()
    assert gap > 20 * error.max()


def networks(levels, likelihood=None, **options):
    likelihood = likelihood or likelihoods.Bernoulli()
    sizes = (3, 2, 2)[:levels]
    return hvae.HVAE(
        tuple(autoencoder.MLPEncoder(n, (8,)) for n in sizes),
        (autoencoder.MLPDecoder(SHAPE, (8,)), *(MLP((8, n)) for n in sizes[:-1])),
        likelihood,
        sizes,
        **options,
    )


def drawn(model, x):
    """Parameters of a chain, without an `init` to compile."""
    up = [
        parameters(net, z)
        for net, z in zip(model.encoder, [x, *(jnp.zeros((1, n)) for n in model.latent)], strict=False)
    ]
    down = [
        parameters(net, jnp.zeros((1, n)), seed=2) for net, n in zip(model.decoder, model.latent, strict=True)
    ]
    return hvae.Params(tuple(up), tuple(down))


@pytest.mark.parametrize("terms", ["sampled", "neighbours"])
def test_one_level_is_the_vae(terms):
    x, model = images(), networks(1, terms=terms)
    params = drawn(model, x)
    plain = vae.VAE(model.encoder[0], model.decoder[0], model.likelihood, 3)
    same = vae.Params(params.encoder[0], params.decoder[0])
    one, other = model.elbo(params, KEY, x), plain.elbo(same, KEY, x)
    np.testing.assert_allclose(one.value, other.value, rtol=1e-6)
    np.testing.assert_allclose(one.reconstruction, other.reconstruction, rtol=1e-6)
    np.testing.assert_allclose(one.kl[:, 0], other.kl, rtol=1e-5)
    np.testing.assert_allclose(
        model.decode(params, jnp.ones((4, 3))), plain.decode(same, jnp.ones((4, 3))), rtol=1e-6
    )


def test_the_books_loss_is_twice_its_bound():
    """Its `sum (x_hat - x)^2 - sum(1 + log s^2 - (mu - mu_p)^2 - s^2)`, written out for two levels."""
    x = images() / 2 + 0.2
    model = networks(2, likelihoods.Gaussian(squash=True), terms="neighbours")
    params = drawn(model, x)
    z_1, z_2 = model.encode(params, KEY, x)
    (mu_1, log_s_1), (mu_2, log_s_2) = (
        model.encoder[i].apply(params.encoder[i], z) for i, z in enumerate((x, z_1))
    )
    z_hat = model.decoder[1].apply(params.decoder[1], z_2)
    book = (
        jnp.square(model.decode(params, z_1) - x).sum((1, 2, 3))
        - (1 + 2 * log_s_1 - (mu_1 - z_hat) ** 2 - jnp.exp(2 * log_s_1)).sum(1)
        - (1 + 2 * log_s_2 - mu_2**2 - jnp.exp(2 * log_s_2)).sum(1)
    )
    constant = x[0].size * np.log(2 * np.pi)
    np.testing.assert_allclose(-2 * model.elbo(params, KEY, x).value - constant, book, rtol=1e-4)


def test_chain_has_the_right_derivatives():
    x, model = images(2), networks(2)
    check_grads(
        jax.jit(lambda params: model.elbo(params, KEY, x).value.mean()),
        (drawn(model, x),),
        order=1,
        modes=["rev"],
        rtol=0.05,
        atol=0.05,
    )


# --- the bridge


def mixture(dims=3):
    rng = np.random.default_rng(0)
    return gmm.GMM(
        jnp.asarray([0.3, 0.7], jnp.float32),
        jnp.asarray(rng.normal(size=(2, dims)), jnp.float32),
        jnp.asarray(rng.uniform(0.1, 0.4, (2, dims)), jnp.float32),
    )


@pytest.mark.parametrize(
    "proc", [process.VP(), process.FlowMatching(), process.DDPM(num_steps=8)], ids=["vp", "flow", "ddpm"]
)
def test_elbo_of_the_noising_chain_is_the_bound_of_diffusion(proc):
    """Both estimates of the chain's bound agree with `likelihood.vlb` on the exact denoiser, within 4 standard errors."""
    data = mixture()
    x, _ = gmm.sample(KEY, data, 2)
    times = np.array([0.95, 0.6, 0.3, 0.1]) * proc.t_max
    times = np.asarray(proc.snap(times)) if isinstance(proc, process.DDPM) else times
    denoise = oracle.mixture(data, proc)
    noisy = hvae.diffusion_chain(denoise, proc, times)

    @jax.jit
    @jax.vmap
    def draw(key):
        bound = likelihood.vlb(key, denoise, proc, x, times=times)
        sampled, posterior = (hvae.elbo(key, noisy, x, terms=terms) for terms in ("sampled", "posterior"))
        terms = (
            (posterior.kl[:, -1], bound.prior),
            (posterior.kl[:, :-1].sum(1), bound.diffusion),
            (-posterior.reconstruction, bound.reconstruction),
            (-posterior.value, bound.nats),
            (-sampled.value, bound.nats),
        )
        return jnp.asarray([one for one, _ in terms]), jnp.asarray([other for _, other in terms])

    ours, theirs = draw(jax.random.split(KEY, 2000))
    error = ((ours.var(0) + theirs.var(0)) / len(ours)) ** 0.5
    assert (jnp.abs(ours.mean(0) - theirs.mean(0)) < 4 * error + 1e-4).all()


def test_levels_of_the_noising_chain_are_the_steps_of_diffusion():
    """With a denoiser that always says the same no term is random, and level by level the two agree to rounding."""
    with jax.enable_x64(True):
        proc, rng = process.VP(), np.random.default_rng(0)
        x, always = (jnp.asarray(rng.normal(size=(2, 5))) for _ in range(2))
        denoise = lambda x_t, t: jnp.broadcast_to(always, x_t.shape)
        times = np.array([0.9, 0.5, 0.3, 0.05])
        bound = hvae.elbo(KEY, hvae.diffusion_chain(denoise, proc, times), x, terms="posterior")
        whole = likelihood.vlb(KEY, denoise, proc, x, times=times)
        np.testing.assert_allclose(-bound.value, whole.nats, rtol=1e-10)
        np.testing.assert_allclose(bound.kl[:, -1], whole.prior, rtol=1e-10)
        for level, pair in enumerate(zip(times[::-1][1:], times[::-1], strict=False)):
            step = likelihood.vlb(KEY, denoise, proc, x, times=np.array(pair))
            np.testing.assert_allclose(bound.kl[:, level], step.diffusion, rtol=1e-10)


def test_latents_of_the_noising_chain_are_noised_data():
    """`z_t = alpha_t x + sigma_t eps` at every level, by its moments."""
    proc, x, times = process.VP(), jnp.asarray([[1.5, -0.7]]), np.array([0.9, 0.4, 0.1])
    noisy = hvae.diffusion_chain(lambda x_t, t: x_t, proc, times)
    latents = jax.vmap(lambda key: jnp.stack(hvae.infer(key, noisy, x)[0]))(jax.random.split(KEY, 50_000))
    for z, t in zip(latents[:, :, 0].swapaxes(0, 1), times[::-1], strict=True):
        np.testing.assert_allclose(z.mean(0), proc.alpha(t) * x[0], atol=0.02)
        np.testing.assert_allclose(z.std(0), proc.sigma(t), rtol=0.02)


# --- importance sampling


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
def test_examples_in_turns_are_the_examples_sample_chunk(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float32)
    each = lambda x, index: x.sum(1) + keys.normal(KEY, x.shape, index).sum(1)
    found = importance.in_chunks(each, x, size)
    np.testing.assert_allclose(found, each(x, jnp.arange(7)), rtol=1e-5)
    few = importance.in_chunks(each, x[2:5], size, jnp.arange(2, 5))
    np.testing.assert_allclose(few, found[2:5], rtol=1e-5)


@pytest.mark.parametrize("arguments", [(0, None), (4, 0)])
def test_iwae_says_that_it_needs_a_draw(arguments):
    num_samples, sample_chunk = arguments
    with pytest.raises(ValueError, match="at least 1"):
        importance.iwae(lambda key: jnp.zeros(2), KEY, num_samples, sample_chunk=sample_chunk)


# --- the ladder


def small(merge="residual"):
    """Three levels at two resolutions, of an image that no patch and no halving divides."""
    stages = (ladder.Stage(6, (3, 2)), ladder.Stage(5, (2,), halvings=1, hidden=4))
    return hvae.Ladder(ladder.Ladder(SHAPE, 1, stages, patch=2), likelihoods.Bernoulli(), merge)


def flat(merge="residual", latents=(3, 2, 2), width=8):
    """A ladder of multilayer perceptrons."""
    net = ladder.Ladder(SHAPE, 1, (ladder.Stage(width, latents),), patch=7)
    return hvae.Ladder(net, likelihoods.Bernoulli(), merge)


@each_merge
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


def test_twelve_levels_start_as_quietly_as_two():
    """Each KL is a few hundredths of a nat at its own initialisation, however many levels there are."""
    x = images(16)
    for levels in (2, 12):
        model = flat(latents=(2,) * levels)
        kl = jax.jit(lambda key: model.elbo(model.init(key, x), key, x).kl)(KEY)
        assert kl.shape == (16, levels)
        assert 0 < kl.mean(0).max() < 0.2


@pytest.mark.slow  # half a minute to compile; in CI: how twelve levels start
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


# --- the objective


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
    with pytest.raises(ValueError, match="at least 0 nats, got -1"):
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


def test_log_prob_on_eight_devices_is_that_of_one():
    model, x = networks(2), images(16)
    params = drawn(model, x)
    layout = training.Layout()
    assert layout.shards == 8
    log_prob = jax.jit(lambda params, x: model.log_prob(params, KEY, x, 20, chunk=8))
    one = log_prob(params, x)
    np.testing.assert_allclose(one, log_prob(params, layout.put_batch(x)), rtol=1e-5)
    assert (
        one > jax.vmap(lambda key: model.elbo(params, key, x).value)(jax.random.split(KEY, 20)).mean(0)
    ).all()


# --- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hvae.HVAE((), (), likelihoods.Bernoulli(), ()), "at least one, got 0 encoders"),
        (lambda: networks(2, terms="posterior"), "terms must be"),
        (lambda: flat(merge="product"), "merge must be one of precision, residual, concat"),
        (lambda: flat(latents=(3, 0)).init(KEY, images(1)), "latent of at least 1 channel"),
        (
            lambda: hvae.HVAE((MLP((1,)),), (MLP((1,)),), likelihoods.Bernoulli(), (0,)),
            "at least 1 number, got",
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
        (lambda: temperature.per_level(np.ones(2), None, 3), "expected one temperature or 3"),
    ],
)
def test_bad_input_is_told_what_was_expected(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
