"""The learned variance: its terms against normal.kl and scipy, its gradients, its sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax.test_util import check_grads

from gen_jax import normal, samplers
from gen_jax.diffusion import loss, prediction, variance
from gen_jax.diffusion.process import DDPM, VP, expand
from gen_jax.samplers import learned

KEY = jax.random.key(7)
PROCESS = DDPM(20, beta_max=0.4)
STD = 0.5
X_0 = jax.random.uniform(jax.random.key(1), (20, 4), minval=-1.0)  # stratified: every t occurs


def posterior(process, t, x_0, x_t):
    """Mean and variance of q(x_{t-1} | x_t, x_0), as Ho et al. 2020 write them (Eq. 7)."""
    beta, bars = process.betas[t - 1], np.concatenate([[1.0], np.cumprod(1 - process.betas)])
    bar, before = bars[t], bars[t - 1]
    mean = (np.sqrt(before) * beta * x_0 + np.sqrt(1 - beta) * (1 - before) * x_t) / (1 - bar)
    return mean, (1 - before) / (1 - bar) * beta


def test_bounds_are_ho_et_als_variances():
    t = jnp.arange(1.0, 21)
    step = variance.ancestral(PROCESS, t)
    tilde = np.array([posterior(PROCESS, i, 0, 0)[1] for i in range(1, 21)])
    np.testing.assert_allclose(np.exp(step.log_high), PROCESS.betas, rtol=1e-4)
    np.testing.assert_allclose(np.exp(step.log_low[1:]), tilde[1:], rtol=1e-4)
    np.testing.assert_allclose(np.exp(step.log_low[0]), tilde[1], rtol=1e-4)
    weight = [posterior(PROCESS, i, 1.0, 0.0)[0] for i in range(1, 21)]
    np.testing.assert_allclose(step.x0_weight, weight, rtol=1e-4)
    v = jnp.full((20, 1), 0.3)
    between = PROCESS.betas[1:] ** 0.3 * tilde[1:] ** 0.7
    np.testing.assert_allclose(np.exp(variance.log_variance(step, v)[1:, 0]), between, rtol=1e-4)


def test_kl_equals_that_of_normals_and_the_integral():
    t, x_t = jnp.arange(2.0, 21), 0.4
    step = variance.ancestral(PROCESS, t)
    x_0, x0_hat, v = 0.7, 0.2, 0.6
    log_var = variance.log_variance(step, jnp.full((19,), v))
    got = variance.kl(step, jnp.full((19,), x_0 - x0_hat), log_var)
    for i in (0, 5, 18):
        p_mean, p_var = posterior(PROCESS, int(t[i]), x_0, x_t)
        q_mean, q_std = posterior(PROCESS, int(t[i]), x0_hat, x_t)[0], np.exp(np.float64(log_var[i]) / 2)
        p, q = scipy.stats.norm(p_mean, p_var**0.5), scipy.stats.norm(q_mean, q_std)
        pair = [
            normal.Normal(jnp.float32(m), jnp.float32(s)) for m, s in ((p_mean, p_var**0.5), (q_mean, q_std))
        ]
        np.testing.assert_allclose(got[i], normal.kl(*pair), rtol=1e-3)
        inside = lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x))
        expected, _ = scipy.integrate.quad(inside, p_mean - 9 * p_var**0.5, p_mean + 9 * p_var**0.5)
        np.testing.assert_allclose(got[i], expected, rtol=1e-3)


@pytest.mark.parametrize(
    "predicts", ["eps"] + [pytest.param(p, marks=pytest.mark.slow) for p in prediction.PREDICTIONS[1:]]
)
def test_hybrid_equals_numpy(predicts):
    seen, v = {}, 0.3

    def predict(x_t, t):
        seen.update(x_t=np.float64(x_t), t=np.asarray(t, int))
        levels = PROCESS.alpha(t), PROCESS.sigma(t)
        y = prediction.from_x0(jnp.tanh(x_t), x_t, *levels, predicts=predicts)
        seen["y"] = np.float64(y)
        return y, jnp.full_like(x_t, v)

    value, metrics = loss.hybrid(KEY, predict, PROCESS, X_0, predicts=predicts, weight=0.5)
    x_0, total, squares = np.float64(X_0), 0.0, []
    for t, x_t, y, x in zip(seen["t"], seen["x_t"], seen["y"], x_0, strict=True):
        alpha, sigma = PROCESS.alpha(np.float64(t)), PROCESS.sigma(np.float64(t))
        eps = (x_t - alpha * x) / sigma
        target = {
            "eps": eps,
            "x0": x,
            "v": alpha * eps - sigma * x,
            "score": -eps / sigma,
            "velocity": eps - x,
        }
        squares.append((target[predicts] - y) ** 2)
        x0_hat = np.tanh(x_t)
        low = posterior(PROCESS, max(t, 2), 0, 0)[1]
        std = (PROCESS.betas[t - 1] ** v * low ** (1 - v)) ** 0.5
        if t == 1:
            h = 1 / 255
            total += -np.log(
                scipy.stats.norm.cdf(x + h, x0_hat, std) - scipy.stats.norm.cdf(x - h, x0_hat, std)
            ).mean()
        else:
            (m, var), (m_hat, _) = posterior(PROCESS, t, x, x_t), posterior(PROCESS, t, x0_hat, x_t)
            total += (np.log(std / var**0.5) + (var + (m - m_hat) ** 2) / (2 * std**2) - 0.5).mean()
    assert 1 in seen["t"]
    bits = total / np.log(2)  # T times the mean over T examples
    np.testing.assert_allclose(metrics["mse"], np.mean(squares), rtol=1e-3)
    np.testing.assert_allclose(metrics["vlb_bits_per_dim"], bits, rtol=2e-3)
    np.testing.assert_allclose(value, np.mean(squares) + 0.5 * bits, rtol=2e-3)


def hybrid_of(params, weight=1e-3):
    def predict(x_t, t):
        return jnp.tanh(params["y"] * x_t), params["v"] * jnp.ones_like(x_t) + 0.1 * x_t

    return loss.hybrid(KEY, predict, PROCESS, X_0, weight=weight)


def test_the_mean_learns_from_the_simple_loss_alone_and_the_variance_from_the_bound_alone():
    params = {"y": jnp.asarray(0.8), "v": jnp.asarray(0.4)}
    hybrid = jax.jit(jax.grad(lambda p: hybrid_of(p, 0.7)[0]))(params)
    simple = lambda y: loss.denoising(KEY, lambda x_t, t: jnp.tanh(y * x_t), PROCESS, X_0)[0]
    np.testing.assert_allclose(hybrid["y"], jax.jit(jax.grad(simple))(params["y"]), rtol=1e-5)
    bits = jax.jit(jax.grad(lambda p: hybrid_of(p)[1]["vlb_bits_per_dim"]))(params)
    assert float(bits["y"]) == 0
    assert abs(float(bits["v"])) > 0.01
    np.testing.assert_allclose(hybrid["v"], 0.7 * bits["v"], rtol=1e-5)


@pytest.mark.slow
def test_hybrid_derivatives():
    with jax.enable_x64(True):
        x_0 = jnp.asarray(np.asarray(X_0), jnp.float64)
        predict = lambda v: lambda x_t, t: (jnp.tanh(x_t), v * jnp.ones_like(x_t))
        value = lambda v: loss.hybrid(KEY, predict(v), PROCESS, x_0)[1]["vlb_bits_per_dim"]
        check_grads(jax.jit(value), (jnp.asarray(0.4, jnp.float64),), order=1, modes=["rev"], rtol=1e-5)


def best_v(process, t):
    """Of Gaussian data the posterior's variance is known: where between the bounds it lies."""
    alpha, sigma = expand(process.alpha(t), jnp.zeros((1, 1))), expand(process.sigma(t), jnp.zeros((1, 1)))
    step = variance.ancestral(process, t)
    spread = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # var(x_0 | x_t)
    exact = jnp.exp(expand(step.log_low, sigma)) + expand(step.x0_weight, sigma) ** 2 * spread
    low, high = expand(step.log_low, sigma), expand(step.log_high, sigma)
    return (jnp.log(exact) - low) / (high - low)


def exact_pair(process, off=0.0):
    """(E[x_0 | x_t], v) of N(0, STD^2), with the exact variance of x_{t-1} given x_t."""

    def apply(x_t, t):
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        x0_hat = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x_t
        return x0_hat, jnp.broadcast_to(best_v(process, t), x_t.shape) + off

    return apply


def test_the_bound_is_least_at_the_exact_variance():
    x_0 = STD * jax.random.normal(KEY, (4000, 2))
    process = DDPM(10, beta_max=0.7)

    @jax.jit
    def bits(off):
        return loss.hybrid(KEY, exact_pair(process, off), process, x_0, predicts="x0")[1]["vlb_bits_per_dim"]

    best = bits(0.0)
    assert bits(-0.3) > best
    assert bits(0.3) > best


# --- sampling ---


def test_at_the_bounds_sampling_is_ddpms():
    grid = samplers.times.uniform(PROCESS, 7)
    x_T = PROCESS.prior(jax.random.key(1), (5, 3))
    plans = learned.plan(PROCESS, grid)
    ours = jax.jit(lambda v: learned.sample(KEY, lambda x, t: (jnp.tanh(x), jnp.full_like(x, v)), plans, x_T))
    theirs = jax.jit(lambda plan: samplers.sample(KEY, lambda x, t: jnp.tanh(x), plan, x_T))
    for v, name in ((0.0, "posterior"), (1.0, "beta")):
        expected = theirs(samplers.DDPM(variance=name).plan(PROCESS, grid))
        np.testing.assert_allclose(ours(v), expected, rtol=1e-4, atol=1e-5)


def test_samples_with_the_exact_variance_have_the_datas_in_few_steps():
    """The reverse of a Gaussian is Gaussian: with the exact variance no step makes an error, with a bound each does."""
    process = DDPM(5, beta_max=0.9, schedule="linear", beta_min=0.05)
    grid, n = samplers.times.uniform(process, 5), 40_000
    alpha, sigma = process.alpha(process.t_max), process.sigma(process.t_max)
    x_T = jnp.sqrt(alpha**2 * STD**2 + sigma**2) * jax.random.normal(jax.random.key(1), (n, 1))
    # the last step returns E[x_0 | x_1], whose variance is short of the data's by var(x_0 | x_1)
    a, s = process.alpha(1.0), process.sigma(1.0)
    expected = a * STD**2 / np.sqrt(a**2 * STD**2 + s**2)

    denoise = variance.as_denoiser(exact_pair(process), process, predicts="x0")

    def std(v):
        fixed = lambda x_t, t: (denoise(x_t, t)[0], jnp.full_like(x_t, v))
        run = jax.jit(
            lambda x: learned.sample(KEY, denoise if v is None else fixed, learned.plan(process, grid), x)
        )
        return float(run(x_T).std())

    assert abs(std(None) / expected - 1) < 4 / (2 * n) ** 0.5
    assert abs(std(0.0) / expected - 1) > 0.05
    assert abs(std(1.0) / expected - 1) > 0.05


def test_samples_depend_on_key_and_index_alone():
    denoise = lambda x_t, t: (0.5 * x_t, 0.1 * x_t)
    x_T = PROCESS.prior(KEY, (6, 2))

    @jax.jit
    def both(x_T):
        plans, index = learned.plan(PROCESS, np.array([20.0, 9.0, 0.0])), jnp.arange(2, 4)
        part = learned.sample(KEY, denoise, plans, x_T[2:4], index=index)
        return learned.sample(KEY, denoise, plans, x_T)[2:4], part

    np.testing.assert_allclose(*both(x_T), rtol=1e-5)


def test_one_step_to_the_data_is_the_denoisers_answer():
    plans, x_T = learned.plan(PROCESS, np.array([20.0, 0.0])), PROCESS.prior(KEY, (6, 2))
    x_0 = learned.sample(KEY, lambda x_t, t: (0.5 * x_t, 0.1 * x_t), plans, x_T)
    np.testing.assert_allclose(x_0, 0.5 * x_T, rtol=1e-5)


@pytest.mark.slow
def test_sampling_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    options = {"variance_type": "learned_range", "clip_sample": False, "prediction_type": "epsilon"}
    peer = diffusers.DDPMScheduler(20, trained_betas=PROCESS.betas, **options)
    peer.set_timesteps(20)
    raw = np.random.default_rng(0).uniform(-1, 1, (20, 4, 1, 2, 2))
    x_T = np.random.default_rng(1).normal(size=(4, 1, 2, 2))
    with jax.enable_x64(True):
        denoise = lambda x, t: (
            prediction.to_x0(
                jnp.tanh(x), x, jnp.asarray(PROCESS.alpha(t)), jnp.asarray(PROCESS.sigma(t)), predicts="eps"
            ),
            (jnp.asarray(raw)[t.astype(int) - 1] + 1) / 2,
        )
        plans = learned.plan(PROCESS, np.arange(20.0, -1, -1))
        draws = lambda k: learned._noise(KEY, jnp.asarray(k), jnp.asarray(x_T), None)
        ours = learned.sample(KEY, denoise, plans, jnp.asarray(x_T))
        noise = [torch.tensor(np.asarray(draws(k))) for k in range(20)]
    x = torch.tensor(x_T)
    import diffusers.schedulers.scheduling_ddpm as module

    for k in range(20):
        module.randn_tensor = lambda *args, **kwargs: noise[k]
        t = 19 - k
        output = torch.cat([torch.tanh(x), torch.tensor(raw[t])], dim=1)
        x = peer.step(output, t, x).prev_sample
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-4, atol=1e-5)


# --- networks and input ---


def test_split_makes_a_pair_of_twice_the_channels():
    y, v = variance.split(jnp.array([[1.0, 2.0, -1.0, 1.0]]))
    np.testing.assert_array_equal(y, [[1, 2]])
    np.testing.assert_array_equal(v, [[0, 1]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: variance.split(jnp.ones((2, 3))), "even number of channels"),
        (lambda: loss.hybrid(KEY, lambda x, t: x, PROCESS, X_0), "pair"),
        (lambda: loss.hybrid(KEY, lambda x, t: (x, x[:, :1]), PROCESS, X_0), r"returned \(20, 1\)"),
        (lambda: loss.hybrid(KEY, lambda x, t: (x[:, :1], x), PROCESS, X_0), r"returned \(20, 1\)"),
        (lambda: variance.ancestral(DDPM(1), jnp.ones(2)), "at least two steps"),
        (lambda: variance.as_denoiser(lambda x, t: (x, x), VP(), predicts="noise"), "'noise'"),
        (lambda: variance.as_denoiser(lambda x, t: x, VP())(X_0, 0.5), "pair"),
    ],
)
def test_learned_variance_says_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call()
