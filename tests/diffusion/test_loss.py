import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from gen_jax import keys
from gen_jax.diffusion import loss, prediction
from gen_jax.diffusion.loss.noising import draw
from gen_jax.diffusion.process import DDPM, VP, LogSNR, Process
from tests.marks import slow

WEIGHTINGS = {
    "simple": (loss.simple, lambda snr, own: own),
    "snr": (loss.snr, lambda snr, own: snr),
    "min_snr": (loss.min_snr(5.0), lambda snr, own: np.minimum(snr, 5.0)),
    "edm": (loss.edm(0.5), lambda snr, own: (1 / snr + 0.25) / (1 / snr * 0.25)),  # (s^2 + d^2) / (s d)^2
    "p2": (loss.p2(0.5, 2.0), lambda snr, own: snr / (2 + snr) ** 0.5),
    "sigmoid": (loss.sigmoid(2.0), lambda snr, own: snr / (1 + snr * np.exp(-2.0))),
    "own": (lambda log_snr: 1 / (1 + jnp.exp(log_snr)), lambda snr, own: 1 / (1 + snr)),
}
each_prediction = pytest.mark.parametrize("predicts", prediction.PREDICTIONS)
each_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)
each_process = pytest.mark.parametrize("process", [DDPM(), DDPM(schedule="cosine"), VP()], ids=str)

KEY = jax.random.key(7)
X_0 = jax.random.uniform(jax.random.key(1), (16, 5, 2), minval=-1.0)
W = jax.random.normal(jax.random.key(2), (2, 2)) / 2


def network(params, x_t, t):
    """Something smooth that depends on everything."""
    return jnp.tanh(x_t @ params) + 0.1 * jnp.cos(t).reshape(-1, 1, 1)


def in_space(predicts, process):
    """The same network, which estimates x_0, as one that predicts something else."""

    def predict(params, x_t, t):
        levels = process.alpha(t), process.sigma(t)
        return prediction.from_x0(network(params, x_t, t), x_t, *levels, predicts=predicts)

    return predict


@pytest.mark.parametrize("process", [DDPM(), VP()], ids=str)
@each_prediction
@each_weighting
def test_denoising_equals_numpy(process, predicts, weighting):
    ours, weight = WEIGHTINGS[weighting]
    seen = {}

    def predict(x_t, t):
        seen.update(x_t=np.float64(x_t), t=np.float64(t))
        return network(W, x_t, t)

    value, metrics = loss.denoising(KEY, predict, process, X_0, predicts=predicts, weighting=ours)
    x_t, t, x_0 = seen["x_t"], seen["t"], np.float64(X_0)
    alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
    eps = (x_t - alpha * x_0) / sigma
    y = np.float64(network(W, jnp.asarray(x_t, jnp.float32), jnp.asarray(t, jnp.float32)))
    target, x0_hat = {
        "eps": (eps, (x_t - sigma * y) / alpha),
        "x0": (x_0, y),
        "v": (alpha * eps - sigma * x_0, alpha * x_t - sigma * y),
        "score": (-eps / sigma, (x_t + sigma**2 * y) / alpha),
        "velocity": (eps - x_0, (x_t - sigma * y) / (alpha + sigma)),
    }[predicts]
    mse, mse_x0 = (target - y) ** 2, (x_0 - x0_hat) ** 2
    expected = (weight((alpha / sigma) ** 2, mse / mse_x0) * mse_x0).mean()
    np.testing.assert_allclose(value, expected, rtol=2e-4)
    np.testing.assert_allclose(metrics["mse"], mse.mean(), rtol=2e-4)


NOT_SIMPLE = [weighting for weighting in WEIGHTINGS if weighting != "simple"]


@functools.cache
def losses_and_gradients(process):
    """Of every weighting and prediction, in one program, which draws and perturbs once."""

    def loss_fn(params, predicts, weighting):
        predict, ours = partial(in_space(predicts, process), params), WEIGHTINGS[weighting][0]
        return loss.denoising(KEY, predict, process, X_0, predicts=predicts, weighting=ours)[0]

    of_all = lambda weighting: {
        p: jax.value_and_grad(loss_fn)(W, p, weighting) for p in prediction.PREDICTIONS
    }
    return jax.jit(lambda: {weighting: of_all(weighting) for weighting in NOT_SIMPLE})()


@pytest.mark.parametrize("process", slow([VP(), DDPM(), DDPM(schedule="cosine")], but=[VP()]), ids=str)
@pytest.mark.parametrize("weighting", NOT_SIMPLE)
def test_same_weighting_is_the_same_loss_and_gradient_under_every_prediction(process, weighting):
    results = losses_and_gradients(process)[weighting]
    expected = results["x0"]
    for value, gradient in results.values():
        np.testing.assert_allclose(value, expected[0], rtol=1e-3)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-3, atol=1e-3 * np.abs(expected[1]).max())


@pytest.mark.parametrize(
    ("predicts", "weight"),
    [("eps", lambda s: s), ("x0", lambda s: jnp.ones_like(s)), ("v", lambda s: s + 1)],
)
def test_simple_is_this_weight_in_log_snr(predicts, weight):
    value = partial(loss.denoising, KEY, partial(network, W), VP(), X_0, predicts=predicts)
    own = value(weighting=lambda log_snr: weight(jnp.exp(log_snr)))[0]
    np.testing.assert_allclose(value()[0], own, rtol=1e-4)


@pytest.mark.parametrize("predicts", ["eps", "v"])
@pytest.mark.parametrize("weighting", ["simple", "min_snr"])
def test_denoising_derivatives(predicts, weighting):
    with jax.enable_x64(True):
        x_0, params = jnp.asarray(X_0[:4], jnp.float64), jnp.asarray(W, jnp.float64)

        def loss_fn(params):
            return loss.denoising(
                KEY,
                partial(network, params),
                DDPM(),
                x_0,
                predicts=predicts,
                weighting=WEIGHTINGS[weighting][0],
            )[0]

        check_grads(jax.jit(loss_fn), (params,), order=1, modes=["rev"], rtol=1e-5)


def test_perfect_network_has_no_loss():
    def predict(x_t, t):  # data are all 0.5
        levels = VP().alpha(t), VP().sigma(t)
        return prediction.from_x0(jnp.full_like(x_t, 0.5), x_t, *levels, predicts="v")

    value, _ = loss.denoising(KEY, predict, VP(), jnp.full((64, 3), 0.5), predicts="v")
    assert value < 1e-8


def test_stratified_draws_are_uniform_and_one_in_every_interval():
    n, seeds = 32, 400
    u = np.asarray(jax.vmap(lambda key: loss.stratified(key, n))(jax.random.split(KEY, seeds)))
    assert ((u >= 0) & (u < 1)).all()
    sorted_u = np.sort(u, axis=1)
    np.testing.assert_allclose(np.diff(sorted_u, axis=1), 1 / n, atol=1e-6)
    for column in (0, 17):  # each example by itself is uniform: Kolmogorov-Smirnov, p = 0.001
        distance = np.abs(np.sort(u[:, column]) - (np.arange(seeds) + 0.5) / seeds).max()
        assert distance < 1.95 / seeds**0.5


def test_independent_draws_are_uniform():
    u = np.sort(loss.independent(KEY, 4000))
    assert np.abs(u - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / 4000**0.5


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 1.0), (-1.0, 0.5)])
def test_logit_normal_draws_have_their_distribution(mean, std):
    u = np.float64(loss.logit_normal(mean, std)(KEY, 4000))
    z = (scipy.special.logit(u) - mean) / std
    assert (
        scipy.stats.kstest(z, scipy.stats.norm.cdf).statistic < 2 / 4000
    )  # one in each interval of 1 / 4000
    independent = loss.logit_normal(mean, std, uniform=loss.independent)(KEY, 4000)
    assert scipy.stats.kstest((scipy.special.logit(independent) - mean) / std, "norm").pvalue > 0.01


def test_logit_normal_draws_stay_inside_the_process_at_the_ends():
    ends = loss.logit_normal(3.0, 20.0, uniform=lambda key, n: jnp.array([0.0, 1 - 2.0**-24, 1.0]))(KEY, 3)
    for process in DDPM(), VP():
        times = process.times(ends)
        assert float(times.min()) >= process.t_min
        assert float(times.max()) <= process.t_max
    with pytest.raises(ValueError, match="std must be positive"):
        loss.logit_normal(0.0, 0.0)


def test_stratified_times_make_the_loss_vary_less():
    x_0 = jnp.zeros((16, 100))  # the error of predicting v = 0 is then alpha_t^2, but for the noise

    def spread(time_sampling):
        def value(key):
            return loss.denoising(
                key, lambda x, t: jnp.zeros_like(x), VP(), x_0, predicts="v", time_sampling=time_sampling
            )[0]

        return jax.jit(jax.vmap(value))(jax.random.split(KEY, 100)).std()

    assert spread(loss.stratified) < 0.5 * spread(loss.independent)


def weighted_v_loss(time_sampling, params, key, x_0):
    return loss.denoising(
        key,
        partial(network, params),
        DDPM(),
        x_0,
        predicts="v",
        weighting=loss.min_snr(5.0),
        time_sampling=time_sampling,
    )[0]


@functools.cache
def compiled(time_sampling):
    return jax.jit(jax.value_and_grad(partial(weighted_v_loss, time_sampling)))


@pytest.mark.parametrize(
    ("how", "time_sampling"),
    [(how, loss.stratified) for how in ("eager", "sharded", "shard_map", "pmap")]
    + [("pmap", loss.independent), ("pmap", loss.logit_normal(0.5))],
)
def test_loss_and_gradient_are_the_same_on_eight_devices(how, time_sampling):
    assert jax.device_count() == 8
    loss_and_gradient = jax.value_and_grad(partial(weighted_v_loss, time_sampling))
    expected = compiled(time_sampling)(W, KEY, X_0)
    mesh = jax.sharding.Mesh(jax.devices(), (keys.AXIS,))

    def local(params, key, x_0):
        return jax.lax.pmean(loss_and_gradient(params, key, x_0), keys.AXIS)

    if how == "eager":
        got = loss_and_gradient(W, KEY, X_0)
    elif how == "sharded":
        x_0 = jax.device_put(X_0, jax.NamedSharding(mesh, P(keys.AXIS)))
        got = compiled(time_sampling)(W, KEY, x_0)
    elif how == "shard_map":
        specs = {"in_specs": (P(), P(), P(keys.AXIS)), "out_specs": P(), "check_vma": False}
        got = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(W, KEY, X_0)
    else:
        x_0 = X_0.reshape(8, 2, *X_0.shape[1:])
        got = jax.pmap(local, keys.AXIS, in_axes=(None, None, 0), out_axes=None)(W, KEY, x_0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)


def losses_of_the_bound(params, key, x_0):
    """`hybrid` and `variational` of a network, the latter of a learned schedule, too: their sum, and each."""
    predict = partial(network, params["net"])
    pair = lambda x_t, t: (predict(x_t, t), params["v"] + 0.1 * x_t)
    learned = LogSNR(lambda t: 6 - 9 * t ** params["slope"])
    each = {
        "hybrid": loss.hybrid(key, pair, DDPM(16, beta_max=0.5), x_0, weight=0.7)[0],
        "variational": loss.variational(key, predict, learned, x_0)[0],
    }
    return each["hybrid"] + each["variational"], each


def test_losses_of_the_bound_and_their_gradient_are_the_same_on_eight_devices():
    params = {"net": W, "v": jnp.asarray(0.4), "slope": jnp.asarray(1.3)}
    values_and_gradient = jax.value_and_grad(losses_of_the_bound, has_aux=True)

    def local(params, key, x_0):
        return jax.lax.pmean(values_and_gradient(params, key, x_0), keys.AXIS)

    mesh = jax.sharding.Mesh(jax.devices(), (keys.AXIS,))
    assert mesh.size == 8
    specs = {"in_specs": (P(), P(), P(keys.AXIS)), "out_specs": P(), "check_vma": False}
    once = {"compiler_options": {"xla_backend_optimization_level": 0}}  # what runs once need not run fast
    got = jax.jit(jax.shard_map(local, mesh=mesh, **specs), **once)(params, KEY, X_0)
    expected = jax.jit(values_and_gradient, **once)(params, KEY, X_0)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected)
    for name, gradient in expected[1].items():
        assert jnp.abs(gradient).min() > 1e-3, name


def test_noise_belongs_to_the_example():
    seen = []

    def predict(x_t, t):
        seen.append(x_t)
        return x_t

    class Fixed(VP):
        def times(self, u):
            return jnp.full_like(u, 0.5)

    for x_0 in (X_0, X_0[:4]):
        loss.denoising(KEY, predict, Fixed(), x_0)
    np.testing.assert_array_equal(seen[0][:4], seen[1])


def test_loss_is_float32_for_a_bfloat16_network():
    def value(dtype):
        return loss.denoising(KEY, lambda x, t: network(W, x, t).astype(dtype), VP(), X_0)

    (low, metrics), (high, _) = value(jnp.bfloat16), value(jnp.float32)
    assert low.dtype == metrics["mse"].dtype == jnp.float32
    np.testing.assert_allclose(low, high, rtol=1e-2)


def test_loss_works_with_a_process_of_ones_own():
    class Straight(Process):
        t_min, t_max = 0.01, 1.0

        def alpha(self, t):
            return 1 - 0.99 * t

        def sigma(self, t):
            return t

    value, _ = loss.denoising(KEY, partial(network, W), Straight(), X_0, weighting=loss.min_snr())
    assert jnp.isfinite(value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: loss.denoising(KEY, network, VP(), jnp.ones((2, 3), jnp.uint8)), "uint8.*127.5"),
        (lambda: loss.denoising(KEY, lambda x, t: x[:, :1], VP(), X_0), r"returned \(16, 1, 2\)"),
        (lambda: loss.denoising(KEY, lambda x, t: x, VP(), X_0, predicts="noise"), "'eps'.*'noise'"),
        (lambda: loss.min_snr(0.0), "gamma.*5"),
        (lambda: loss.edm(0.0), "sigma_data.*0.5"),
        (lambda: loss.p2(k=0.0), "gamma >= 0 and k > 0"),
    ],
)
def test_loss_rejects_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_offset_noise_is_one_number_for_each_example_and_channel():
    x_0 = jnp.zeros((512, 4, 3, 2))
    plain, moved = (draw(KEY, VP(), x_0, loss.stratified, offset) for offset in (0.0, 0.1))
    added = np.asarray(moved.eps - plain.eps)
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-6)
    assert scipy.stats.kstest(added[:, 0, 0].ravel(), scipy.stats.norm(scale=0.1).cdf).pvalue > 0.01
    np.testing.assert_allclose(moved.x_t, VP().perturb(x_0, moved.t, moved.eps), atol=1e-6)
    np.testing.assert_array_equal(moved.t, plain.t)
