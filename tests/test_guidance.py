"""Guidance on mixtures with labels, where every denoiser, posterior and conditional law is exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from gen_jax import gmm, guidance, samplers
from gen_jax.diffusion import oracle, prediction, process
from gen_jax.diffusion.process import VP
from gen_jax.samplers import times

PROCESS = VP()
MODEL = oracle.mixture(
    gmm.GMM(
        jnp.array([0.2, 0.5, 0.3]),
        jnp.array([[2.0, -1.0], [-1.5, 0.5], [0.0, 2.0]]),
        jnp.array([[0.5, 0.1], [0.2, 0.2], [0.05, 0.9]]),
    ),
    PROCESS,
    labels=jnp.array([0, 1, 0]),
)
X = jax.random.normal(jax.random.key(0), (20, 2))
each_time = pytest.mark.parametrize("t", [0.05, 0.4, 0.8])


@each_time
def test_weights_zero_and_one_are_the_denoisers_themselves(t):
    t, conditional = jnp.float32(t), MODEL.given(0)
    for weight, expected in ((0.0, MODEL), (1.0, conditional)):
        np.testing.assert_array_equal(
            guidance.classifier_free(conditional, MODEL, weight)(X, t), expected(X, t)
        )


@each_time
@pytest.mark.parametrize("weight", [-1.0, 0.5, 3.0])
def test_the_score_is_that_of_the_density_times_a_power_of_the_classifier(t, weight):
    """grad log [p_t(x) p_t(y | x)^w], by automatic differentiation of the exact densities."""
    t, label = jnp.float32(t), jnp.zeros(len(X), jnp.int32)
    log_density = lambda x: jnp.sum(MODEL.log_prob(x, t) + weight * MODEL.log_class(x, t, label))
    x0_hat = jax.jit(lambda w: guidance.classifier_free(MODEL.given(0), MODEL, w)(X, t))(weight)
    score = (PROCESS.alpha(t) * x0_hat - X) / PROCESS.sigma(t) ** 2
    np.testing.assert_allclose(score, jax.grad(log_density)(X), rtol=2e-4, atol=2e-4)


@each_time
def test_classifier_guidance_at_one_is_the_exact_conditional(t):
    """Bayes' rule, with the exact classifier; at other weights the score is that of `p_t(x) p_t(y | x)^w`."""
    t, label = jnp.float32(t), jnp.zeros(len(X), jnp.int32)
    log_prob = lambda x, t: MODEL.log_class(x, t, label)
    guided = jax.jit(lambda w: guidance.classifier(MODEL, log_prob, PROCESS, w)(X, t))
    np.testing.assert_allclose(guided(1.0), MODEL.given(0)(X, t), rtol=1e-3, atol=1e-4)
    free = guidance.classifier_free(MODEL.given(0), MODEL, 2.5)(X, t)
    np.testing.assert_allclose(guided(2.5), free, rtol=1e-3, atol=3e-4)
    np.testing.assert_allclose(guided(0.0), MODEL(X, t), rtol=1e-5, atol=1e-6)


def test_classifier_guidance_adds_nothing_where_there_is_no_signal():
    proc = process.DDPM(num_steps=10, schedule="linear", zero_terminal_snr=True)
    model = oracle.mixture(
        gmm.GMM(jnp.array([0.4, 0.6]), jnp.array([[-1.0], [1.0]]), jnp.ones((2, 1)) / 4), proc
    )
    label = jnp.zeros(5, jnp.int32)
    guided = guidance.classifier(model, lambda x, t: model.log_class(x, t, label), proc, 2.0)
    x = jnp.linspace(-1, 1, 5)[:, None]
    np.testing.assert_allclose(guided(x, jnp.float32(10.0)), model(x, jnp.float32(10.0)), rtol=1e-6)


def by_label(x_t, t, label):
    """A network that is told labels: 0, 1, or 2 for none."""
    estimates = jnp.stack([MODEL.given(0)(x_t, t), MODEL.given(1)(x_t, t), MODEL(x_t, t)])
    return jnp.take_along_axis(estimates, label[None, :, None], 0)[0]


@each_time
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_one_batched_call_is_the_two_calls(t, weight):
    label = jnp.arange(len(X)) % 2
    batched = guidance.classifier_free_batched(by_label, label, jnp.full_like(label, 2), weight)
    two = guidance.classifier_free(lambda x, t: by_label(x, t, label), MODEL, weight)
    np.testing.assert_allclose(batched(X, jnp.float32(t)), two(X, jnp.float32(t)), rtol=1e-5, atol=1e-6)


def test_one_batched_call_at_zero_and_one_is_the_network_itself():
    """To the bit, with a network whose rows do not depend on the batch."""
    label, t = jnp.arange(len(X)) % 2, jnp.float32(0.4)
    network = lambda x, t, label: jnp.sin(3 * x) * (1.0 + label[:, None]) + t
    null = jnp.full_like(label, 2)
    for weight, of in ((0.0, null), (1.0, label)):
        found = guidance.classifier_free_batched(network, label, null, weight)(X, t)
        np.testing.assert_array_equal(found, network(X, t, of))


def test_weights_may_be_one_a_sample_and_traced():
    t, weight = jnp.float32(0.4), jnp.linspace(-1, 3, len(X))
    guided = jax.jit(lambda w: guidance.classifier_free(MODEL.given(0), MODEL, w)(X, t))
    for i in (0, 7, 19):
        np.testing.assert_allclose(guided(weight)[i], guided(weight[i])[i], rtol=1e-6)
    label = jnp.zeros(len(X), jnp.int32)
    log_prob = lambda x, t: MODEL.log_class(x, t, label)
    classified = jax.jit(lambda w: guidance.classifier(MODEL, log_prob, PROCESS, w)(X, t))(weight)
    np.testing.assert_allclose(classified, guided(weight), rtol=1e-3, atol=3e-4)


def test_linear_combines_any_number():
    t, (a, b) = jnp.float32(0.4), (MODEL.given(0), MODEL.given(1))
    composed = guidance.linear([MODEL, a, b], [1 - 1.5 - 0.7, 1.5, 0.7])(X, t)
    u = MODEL(X, t)
    np.testing.assert_allclose(composed, u + 1.5 * (a(X, t) - u) + 0.7 * (b(X, t) - u), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        guidance.linear([a, MODEL], [2.0, -1.0])(X, t),
        guidance.classifier_free(a, MODEL, 2.0)(X, t),
        rtol=1e-5,
        atol=1e-6,
    )


def test_rescale_brings_each_sample_to_the_deviation_of_the_conditional():
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    c, u = (lambda x_t, t: 2 * x_t + 1), (lambda x_t, t: x_t**2)
    guided = lambda amount: np.asarray(guidance.classifier_free(c, u, 4.0, rescale=amount)(x, 0.5))
    plain, half, whole = guided(0.0), guided(0.5), guided(1.0)
    std = lambda a: np.asarray(a).reshape(3, -1).std(1)
    np.testing.assert_allclose(std(whole), std(c(x, 0)), rtol=1e-5)
    np.testing.assert_allclose(half, (plain + whole) / 2, rtol=1e-5, atol=1e-6)


def rescale_noise_cfg(guided, conditional, phi):
    """Of diffusers' pipelines, in numpy."""
    std = lambda y: y.std(axis=tuple(range(1, y.ndim)), ddof=1, keepdims=True)
    return phi * guided * std(conditional) / std(guided) + (1 - phi) * guided


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("predicts", prediction.PREDICTIONS)
@pytest.mark.parametrize("batched", [False, True])
def test_rescale_without_the_rest_is_that_of_the_output(batched, predicts, phi):
    """Of what the network says, guided and rescaled, and made an estimate of the data only then."""
    proc, t, w = process.DDPM(), np.float32(400), 4.0
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))
    said = (lambda x, sign: jnp.sin(2 * x + sign)), (lambda x, sign: 0.5 * x + jnp.where(sign > 0, x**2, 0.3))
    net = lambda x, sign: sum(part(x, sign.reshape(-1, 1, 1, 1)) for part in said)
    signs = [jnp.full(3, s) for s in (1.0, -1.0)]
    c, u = (np.asarray(net(x, sign), np.float64) for sign in signs)
    y = rescale_noise_cfg(u + w * (c - u), c, phi)
    alpha, sigma = jnp.asarray(proc.alpha(t)), jnp.asarray(proc.sigma(t))
    expected = prediction.to_x0(jnp.asarray(y, jnp.float32), x, alpha, sigma, predicts=predicts)

    def at(x_t, t, sign):
        return prediction.as_denoiser(lambda x, t: net(x, sign), proc, predicts=predicts)(x_t, t)

    options = {"rescale": phi, "without": prediction.without_output(proc, predicts=predicts)}
    if batched:
        guided = guidance.classifier_free_batched(at, *signs, w, **options)
    else:
        one, other = (functools.partial(at, sign=sign) for sign in signs)
        guided = guidance.classifier_free(one, other, w, **options)
    got = guided(x, t)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    if predicts == "x0":
        c, u = jnp.asarray(c, jnp.float32), jnp.asarray(u, jnp.float32)
        plain = guidance.classifier_free(lambda x, t: c, lambda x, t: u, w, rescale=phi)(x, t)
        np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-5)


def test_interval_guides_inside_alone():
    weight = guidance.interval(3.0, PROCESS, 0.3, 0.6)
    guided = guidance.classifier_free(MODEL.given(0), MODEL, weight)
    plain = guidance.classifier_free(MODEL.given(0), MODEL, 3.0)
    for t, expected in ((0.1, MODEL.given(0)), (0.3, plain), (0.45, plain), (0.7, MODEL.given(0))):
        np.testing.assert_array_equal(guided(X, jnp.float32(t)), expected(X, jnp.float32(t)))


def test_cfg_plus_plus_is_its_algorithm():
    """Two estimates, the guided data and the unconditional noise (Chung et al. 2025, Algorithm 2), written out."""
    grid, scale = times.log_snr(PROCESS, 6), 0.6
    c, u = MODEL.given(0), MODEL
    x = expected = 3.0 * X
    for t, s in itertools.pairwise(grid):
        alpha_t, sigma_t, alpha_s, sigma_s = (
            np.float32(f(v)) for v in (t, s) for f in (PROCESS.alpha, PROCESS.sigma)
        )
        u_hat, t = u(expected, jnp.float32(t)), jnp.float32(t)
        x0_hat = u_hat + scale * (c(expected, t) - u_hat)
        expected = alpha_s * x0_hat + sigma_s * (expected - alpha_t * u_hat) / sigma_t
    denoise = guidance.classifier_free(c, u, guidance.cfg_plus_plus(scale, PROCESS, grid))
    plan = samplers.DDIM().plan(PROCESS, grid)
    found = jax.jit(lambda x: samplers.sample(jax.random.key(0), denoise, plan, x))(x)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_nothing_recompiles():
    """Neither weights, labels nor intervals do."""
    plan, traces = samplers.DDIM().plan(PROCESS, times.uniform(PROCESS, 4)), []

    @jax.jit
    def draw(x, label, weight, low, high):
        traces.append(1)
        inside = guidance.interval(weight, PROCESS, low, high)
        denoise = guidance.classifier_free_batched(by_label, label, jnp.full_like(label, 2), inside)
        return samplers.sample(jax.random.key(0), denoise, plan, x)

    for label, weight, low, high in ((0, 1.0, 0.1, 0.9), (1, 3.0, 0.2, 0.5), (1, 0.0, 0.0, 1.0)):
        draw(X, jnp.full(len(X), label), weight, low, high)
    assert len(traces) == 1


def energy_distance(x, y):
    """`2 E|X - Y| - E|X - X'| - E|Y - Y'|` (Szekely & Rizzo 2013), in one dimension by the distribution functions."""
    z = np.sort(np.concatenate([x, y]))
    f, g = (np.searchsorted(np.sort(v), z, side="right") / len(v) for v in (x, y))
    return 2 * np.sum((f - g)[:-1] ** 2 * np.diff(z))


def test_samples_of_guidance_and_what_they_are_not(optimized):
    """Weight 1 is the exact conditional law; at weight 3 samples are not of `p(x) p(y | x)^3`, though each score is."""
    params = gmm.GMM(
        jnp.array([0.5, 0.5]), jnp.array([[-1.0], [1.0]]), jnp.array([[0.5], [0.5]], jnp.float32)
    )
    model = oracle.mixture(params, PROCESS, labels=jnp.array([0, 1]))
    n, label = 20_000, jnp.zeros(20_000, jnp.int32)
    log_prob = lambda x, t: model.log_class(x, t, label)
    plan = samplers.DPMSolverPP(2).plan(PROCESS, times.log_snr(PROCESS, 40))
    x_T = PROCESS.prior(jax.random.key(0), (n, 1))

    @jax.jit
    def draw(weight):
        denoise = guidance.classifier(model, log_prob, PROCESS, weight)
        return samplers.sample(jax.random.key(1), denoise, plan, x_T)[:, 0]

    rng = np.random.default_rng(0)
    exact = lambda: rng.normal(-1, np.sqrt(0.5), n)
    noise = max(energy_distance(exact(), exact()) for _ in range(19))
    one = np.asarray(draw(1.0))
    assert energy_distance(one, exact()) < 2 * noise
    np.testing.assert_allclose([one.mean(), one.std()], [-1, np.sqrt(0.5)], atol=0.025)
    # of p(x) p(y | x)^3, by its distribution function on a grid
    grid = np.linspace(-6, 4, 20_001)
    log_joint = lambda m: -((grid - m) ** 2)  # variance 1/2
    log_class = log_joint(-1) - np.logaddexp(log_joint(-1), log_joint(1))
    log_tilted = np.logaddexp(log_joint(-1), log_joint(1)) + 3 * log_class
    mass = np.exp(log_tilted - scipy.special.logsumexp(log_tilted))
    tilted = np.interp(rng.uniform(size=n), np.cumsum(mass), grid)
    assert energy_distance(np.asarray(draw(3.0)), tilted) > 20 * noise


def test_classifier_loss_is_least_for_the_exact_classifier():
    """Cross-entropy at noised data: that of the exact posterior is the mean of `-log p_t(y | x_t)`, and none is below."""
    data, _ = gmm.sample(
        jax.random.key(2), gmm.GMM(jnp.exp(MODEL.log_weights), MODEL.means, MODEL.values), 4000
    )
    label = jax.random.categorical(
        jax.random.key(3),
        jnp.stack([MODEL.log_class(data, jnp.float32(1e-3), jnp.full(4000, k)) for k in (0, 1)], 1),
    )
    at = lambda x, t, k: jax.vmap(lambda x, t: MODEL.log_class(x[None], t, jnp.array([k]))[0])(x, t)
    classify = lambda params, x, t: params * jnp.stack([at(x, t, k) for k in (0, 1)], 1)
    loss = jax.jit(
        lambda p: guidance.classifier_loss(classify, PROCESS)(
            p, jax.random.key(4), {"image": data, "label": label}
        )
    )
    value, metrics = loss(1.0)
    assert value < loss(0.7)[0]
    assert value < loss(1.4)[0]
    assert metrics["accuracy"] > 0.6
    rows = jnp.zeros(len(X), jnp.int32)
    log_prob = guidance.log_class(lambda x, t: classify(1.0, x, t), rows)
    t = jnp.float32(0.4)
    np.testing.assert_allclose(log_prob(X, t), MODEL.log_class(X, t, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.classifier_free(MODEL, MODEL, jnp.ones(3))(X, 0.4), "each of the 20 samples"),
        (lambda: guidance.linear([MODEL], [1.0, 0.0]), "got 2 for 1 denoisers"),
        (lambda: guidance.linear([MODEL, MODEL], [1.0, 1.0]), "must sum to 1"),
        (lambda: guidance.interval(2.0, PROCESS, 0.2, 1.5), "0 <= low < high <= 1; got 0.2 and 1.5"),
        (lambda: guidance.interval(2.0, PROCESS, 0.5, 0.5), "an interval of the process"),
        (lambda: guidance.cfg_plus_plus(0.5, PROCESS, np.array([0.1, 0.5])), "decreasing times"),
        (
            lambda: guidance.classifier_free_batched(by_label, jnp.zeros(20, int), jnp.zeros(20), 2.0),
            "must be alike in structure",
        ),
    ],
)
def test_bad_input_is_told_what_was_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()
