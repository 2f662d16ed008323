"""The bound as a loss, and the learned schedule, against closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from gen_jax import samplers
from gen_jax.diffusion import likelihood, loss, prediction
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR, expand
from gen_jax.networks import monotone
from gen_jax.networks.monotone import Monotone

KEY = jax.random.key(7)
PROCESSES = {
    "ddpm": DDPM(50, beta_max=0.3),
    "vp": VP(),
    "log-snr": LogSNR(lambda t: 10 - 20 * t),
    "ve": VE(),
    "edm": EDM(log_mean=0.0, log_std=3.0),  # wide: as trained, the tails are as heavy as they are rare
    "flow": FlowMatching(),
}
STD = 0.5  # of Gaussian data
GAMMA = Monotone(ends=(-6.0, 3.0), features=8)


def gaussian(process, x_t, t, std=STD):
    """E[x_0 | x_t] of N(0, std^2), a function of x_t and the noise level alone."""
    alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
    return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x_t


def learned(params):
    return LogSNR(lambda t: -GAMMA.apply(params, t))


def wild(seed):
    """A schedule far from a straight line."""
    params = GAMMA.init(jax.random.key(seed), 0.5)["params"]
    return {"params": params | {"height": params["height"] + 5, "shift": params["shift"] - 3}}


@pytest.mark.parametrize(
    "name", ["ddpm", "vp"] + [pytest.param(n, marks=pytest.mark.slow) for n in ("ve", "edm", "flow")]
)
def test_variational_is_the_bounds_diffusion_term_per_dimension(name):
    """Of a denoiser with a known error, noise apart: mean over stratified times against the bound's own sum."""
    process, n, dims = PROCESSES[name], 20_000, 2
    x_0 = jnp.zeros((n, dims))
    size = lambda t: 0.3 * jnp.asarray(process.sigma(t)) / (1 + jnp.asarray(process.sigma(t)))
    predict = lambda x_t, t: jnp.zeros_like(x_t) + expand(size(t), x_t)
    run = jax.jit(lambda key: loss.variational(key, predict, process, x_0, predicts="x0")[0])
    values = np.array([run(key) for key in jax.random.split(KEY, 4)])
    denoise = lambda x_t, t: jnp.zeros_like(x_t) + size(t)
    options = {} if name == "ddpm" else {"num_samples": 2000}
    bound = jax.jit(lambda key: likelihood.vlb(key, denoise, process, x_0[:1], **options))(KEY)
    np.testing.assert_allclose(values.mean(), bound.diffusion[0] / dims, rtol=0.02)


@pytest.mark.parametrize("name", ["ddpm", "log-snr"])
def test_variational_is_the_same_under_every_prediction(name):
    process, x_0 = PROCESSES[name], jax.random.normal(KEY, (16, 5))

    def value(scale, predicts):
        def predict(x_t, t):
            x0_hat, levels = jnp.tanh(scale * x_t), (process.alpha(t), process.sigma(t))
            return prediction.from_x0(x0_hat, x_t, *levels, predicts=predicts)

        return loss.variational(KEY, predict, process, x_0, predicts=predicts)[0]

    @jax.jit
    def of_all(scale):
        return {p: jax.value_and_grad(value)(scale, p) for p in prediction.PREDICTIONS}

    results = of_all(jnp.asarray(0.7))
    for result in results.values():
        np.testing.assert_allclose(result, results["x0"], rtol=1e-3)


def test_variational_is_half_the_error_in_eps_where_log_snr_is_even_in_time():
    """d SNR = SNR d log_snr: the weight on eps is 1/2 of the range of log_snr (Kingma et al. 2021, Eq. 17)."""
    process, x_0 = LogSNR(lambda t: 10 - 20 * t), jax.random.normal(KEY, (32, 3))
    predict = lambda x_t, t: 0.8 * x_t
    run = lambda function: jax.jit(lambda x_0: function(KEY, predict, process, x_0, predicts="eps"))(x_0)
    value, metrics = run(loss.variational)
    np.testing.assert_allclose(value, 0.5 * 20 * 0.999 * metrics["mse"], rtol=1e-4)
    moment, _ = run(loss.second_moment)
    assert moment > value**2


def test_ddpm_weighs_as_ho_et_al():
    """beta_t^2 / (2 beta_tilde alpha (1 - alpha_bar)) on the error in eps (Ho et al. 2020, Eq. 12, with beta_tilde)."""
    process, seen = PROCESSES["ddpm"], {}
    x_0 = jax.random.normal(KEY, (50, 1))

    def predict(x_t, t):
        seen.update(x_t=np.float64(x_t[:, 0]), t=np.asarray(t, int))
        return jnp.zeros_like(x_t)

    value, _ = loss.variational(KEY, predict, process, x_0)
    t, bars = seen["t"], np.cumprod(1 - process.betas)
    assert sorted(t) == list(range(1, 51))
    beta, bar = process.betas[t - 1], bars[t - 1]
    before = np.where(t > 1, bars[t - 2], 1)
    eps = (seen["x_t"] - np.sqrt(bar) * np.float64(x_0[:, 0])) / np.sqrt(1 - bar)
    with np.errstate(divide="ignore"):
        tilde = (1 - before) / (1 - bar) * beta
        weight = np.where(t > 1, beta**2 / (2 * tilde * (1 - beta) * (1 - bar)), 0)
    np.testing.assert_allclose(value, np.sum(weight * eps**2), rtol=1e-3)


@pytest.mark.slow
def test_variational_derivatives():
    """With respect to the network and to the schedule, in float64."""
    with jax.enable_x64(True):
        x_0 = jax.random.normal(KEY, (4, 2), jnp.float64)

        def value(scale, slope):
            process = LogSNR(lambda t: 6 - 9 * t**slope)
            predict = lambda x_t, t: jnp.tanh(scale * x_t) + process.log_snr(t)[:, None] / 10
            return loss.variational(KEY, predict, process, x_0)[0]

        args = jnp.asarray(0.7, jnp.float64), jnp.asarray(1.3, jnp.float64)
        check_grads(jax.jit(value), args, order=1, modes=["rev"], rtol=1e-5)


# --- learned schedules ---


def schedule_gradients(params, seeds=64, batch=512, dims=16):
    """Gradients with respect to a schedule of the loss of the exact denoiser, one a seed."""
    x_0 = STD * jax.random.normal(jax.random.key(1), (seeds, batch, dims))

    def value(params, key, x_0):
        process = learned(params)
        predict = lambda x_t, t: gaussian(process, x_t, t)
        return loss.variational(key, predict, process, x_0, predicts="x0")[0]

    return jax.jit(jax.vmap(jax.grad(value), (None, 0, 0)))(params, jax.random.split(KEY, seeds), x_0)[
        "params"
    ]


@pytest.mark.slow
def test_expected_loss_depends_on_a_learned_schedule_by_its_ends_alone():
    """Kingma et al. 2021, Section 5.1: L = 1/2 int E|x - x0_hat|^2 dSNR, here 1/2 log((1 + v SNR_1) / (1 + v SNR_0))."""
    params = wild(0)
    gradients = schedule_gradients(params)
    for name in ("slope", "shift", "height"):
        g = np.float64(gradients[name])
        z = g.mean(0) / (g.std(0) / len(g) ** 0.5)
        assert np.abs(z).max() < 4.5
        assert np.abs(g).max() > 0  # it is the mean that vanishes

    def closed_form(first, log_range):
        low, high = jnp.exp(-first - jnp.exp(log_range)), jnp.exp(-first)
        return 0.5 * jnp.log((1 + STD**2 * high) / (1 + STD**2 * low))

    expected = jax.grad(closed_form, (0, 1))(params["params"]["first"], params["params"]["log_range"])
    for name, want in zip(monotone.ENDS, expected, strict=True):
        g = np.float64(gradients[name])
        assert abs(g.mean() - want) < 4.5 * g.std() / len(g) ** 0.5
        assert abs(want) > 4.5 * g.std() / len(g) ** 0.5  # which this can tell from 0


def test_value_and_bound_do_not_depend_on_the_inside():
    x = STD * jax.random.normal(KEY, (8, 1))

    @jax.jit
    def diffusion(params, key):
        process = learned(params)
        rms = lambda t: (
            STD * process.sigma(t) / jnp.sqrt(process.alpha(t) ** 2 * STD**2 + process.sigma(t) ** 2)
        )
        return likelihood.vlb(key, lambda x_t, t: x + rms(t), process, x, num_samples=500).diffusion[0]

    expected = 0.5 * np.log((1 + STD**2 * np.exp(6.0)) / (1 + STD**2 * np.exp(-3.0)))
    for seed in range(3):
        np.testing.assert_allclose(diffusion(wild(seed), KEY), expected, rtol=1e-3)


@pytest.mark.slow
def test_second_moment_trains_the_inside_to_a_lower_variance():
    params, batch = wild(0), 256
    optimizer = optax.adam(0.05)

    def data(key):
        return STD * jax.random.normal(key, (batch, 8))

    def predict(process):
        return lambda x_t, t: gaussian(process, x_t, t)

    def moment(params, key):
        process = learned(monotone.fix_ends(params))
        return loss.second_moment(key, predict(process), process, data(key), predicts="x0")[0]

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = optimizer.update(jax.grad(moment)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(KEY, 60))[0][0]

    @jax.jit
    def estimates(params):
        process = learned(params)
        x_0, keys = data(jax.random.key(11)), jax.random.split(jax.random.key(12), 400)
        value = lambda key: loss.variational(
            key, predict(process), process, x_0, predicts="x0", time_sampling=loss.independent
        )[0]
        return jax.vmap(value)(keys)

    trained = train(params)
    before, after = (np.float64(estimates(p)) for p in (params, trained))
    assert after.var() < 0.7 * before.var()
    error = np.hypot(before.std(), after.std()) / 400**0.5
    assert abs(before.mean() - after.mean()) < 4 * error
    for name in monotone.ENDS:
        assert trained["params"][name] == params["params"][name]


@pytest.mark.slow
def test_a_learned_schedule_samples():
    """What is learned is a process like any other: the exact denoiser's samples have the data's moments."""
    process = learned(wild(1))
    grid = samplers.times.log_snr(process, 50)
    plan = samplers.DDIM().plan(process, grid)
    x = samplers.sample(KEY, partial(gaussian, process), plan, process.prior(jax.random.key(1), (4000, 1)))
    # the prior's variance, 1, stands in for alpha_T^2 STD^2 + sigma_T^2
    alpha, sigma = process.alpha(1.0), process.sigma(1.0)
    expected = STD * sigma / np.sqrt(alpha**2 * STD**2 + sigma**2)
    np.testing.assert_allclose(x.std(), expected, rtol=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"x_0": jnp.ones((2, 3), jnp.uint8)}, "uint8.*127.5"),
        ({"predicts": "noise"}, "'eps'.*'noise'"),
        ({"predict": lambda x, t: x[:, :1]}, r"returned \(2, 1\)"),
    ],
)
@pytest.mark.parametrize("function", [loss.variational, loss.second_moment])
def test_variational_rejects_bad_input(function, options, words):
    fine = {"predict": lambda x, t: x, "process": VP(), "x_0": jnp.zeros((2, 3))}
    with pytest.raises(ValueError, match=words):
        function(KEY, **(fine | options))
