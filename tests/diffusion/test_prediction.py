import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax import samplers
from gen_jax.diffusion import prediction
from gen_jax.diffusion.process import DDPM, EDM, VP, FlowMatching, LogSNR, at_log_snr
from gen_jax.samplers import times

PREDICTIONS = prediction.PREDICTIONS
levels = st.floats(1 / 16, 16.0, width=32)
each_prediction = pytest.mark.parametrize("predicts", PREDICTIONS)


def draw(seed, shape=(3, 4, 2)):
    return jax.random.normal(jax.random.key(seed), (2, *shape))


@each_prediction
@settings(max_examples=25, deadline=None)
@given(alpha=levels, sigma=levels, seed=st.integers(0, 1000))
def test_to_x0_of_the_target_is_the_data(predicts, alpha, sigma, seed):
    x_0, eps = draw(seed)
    alpha, sigma = jnp.float32(alpha), jnp.float32(sigma)
    x_t = alpha * x_0 + sigma * eps
    y = prediction.target(x_0, eps, alpha, sigma, predicts=predicts)
    size = (1 + sigma / alpha) * 1e-5  # what rounding of x_t is worth in x_0
    np.testing.assert_allclose(prediction.to_x0(y, x_t, alpha, sigma, predicts=predicts), x_0, atol=5 * size)


@each_prediction
@settings(max_examples=25, deadline=None)
@given(alpha=levels, sigma=levels, seed=st.integers(0, 1000))
def test_from_x0_inverts_to_x0(predicts, alpha, sigma, seed):
    x_t, x0_hat = draw(seed)
    alpha, sigma = jnp.float32(alpha), jnp.float32(sigma)
    y = prediction.from_x0(x0_hat, x_t, alpha, sigma, predicts=predicts)
    back = prediction.to_x0(y, x_t, alpha, sigma, predicts=predicts)
    np.testing.assert_allclose(back, x0_hat, rtol=1e-4, atol=1e-4 * (1 + 1 / float(alpha)))


@each_prediction
def test_from_x0_of_the_data_is_the_target(predicts):
    x_0, eps = draw(0)
    process, t = VP(), jnp.asarray([0.1, 0.5, 0.9])
    alpha, sigma = process.alpha(t), process.sigma(t)
    y = prediction.from_x0(x_0, process.perturb(x_0, t, eps), alpha, sigma, predicts=predicts)
    expected = prediction.target(x_0, eps, alpha, sigma, predicts=predicts)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@each_prediction
def test_error_ratio_is_that_of_the_errors(predicts):
    x_t, y = draw(1)
    error = draw(2)[0]
    alpha, sigma = jnp.float32(0.6), jnp.float32(1.7)
    both = [prediction.to_x0(y, x_t, alpha, sigma, predicts=predicts) for y in (y, y + error)]
    ratio = jnp.square(both[1] - both[0]).sum() / jnp.square(error).sum()
    expected = prediction.error_ratio(alpha, sigma, predicts=predicts)
    np.testing.assert_allclose(ratio, expected, rtol=1e-4)


def test_targets_are_those_of_the_papers():
    x_0, eps = draw(3)
    alpha, sigma = jnp.float32(0.8), jnp.float32(0.6)
    target = {p: prediction.target(x_0, eps, alpha, sigma, predicts=p) for p in PREDICTIONS}
    np.testing.assert_array_equal(target["eps"], eps)
    np.testing.assert_array_equal(target["x0"], x_0)
    np.testing.assert_allclose(target["v"], 0.8 * eps - 0.6 * x_0, rtol=1e-5, atol=1e-6)
    _, slope = jax.jvp(lambda t: FlowMatching().perturb(x_0, t, eps), (jnp.float32(0.4),), (jnp.float32(1),))
    np.testing.assert_allclose(target["velocity"], slope, rtol=1e-5, atol=1e-6)

    def log_q(x_t):  # the score is the gradient of log q(x_t | x_0)
        return -0.5 * jnp.square((x_t - alpha * x_0) / sigma).sum()

    np.testing.assert_allclose(
        target["score"], jax.grad(log_q)(alpha * x_0 + sigma * eps), rtol=1e-4, atol=1e-5
    )


@each_prediction
@pytest.mark.parametrize("process", [DDPM(), VP(), EDM(), FlowMatching()], ids=str)
def test_as_denoiser_of_a_perfect_network_is_perfect(process, predicts):
    x_0, eps = draw(4)
    t = process.snap(0.3 * process.t_max)

    def apply(x, t):
        assert t.shape == (3,)
        return prediction.target(x_0, eps, process.alpha(t), process.sigma(t), predicts=predicts)

    denoise = prediction.as_denoiser(apply, process, predicts=predicts)
    x_t = process.perturb(x_0, t, eps)
    atol = 1e-4 * max(1, float(process.sigma(t) / process.alpha(t)))
    np.testing.assert_allclose(jax.jit(denoise)(x_t, t), x_0, rtol=1e-4, atol=atol)


def test_as_denoiser_takes_pytrees():
    denoise = prediction.as_denoiser(lambda x, t: x, VP(), predicts="x0")
    x_t = {"a": jnp.ones((2, 3)), "b": jnp.zeros((2, 4, 4))}
    jax.tree.map(np.testing.assert_array_equal, denoise(x_t, 0.5), x_t)


def test_as_denoiser_of_a_bfloat16_network_is_float32():
    denoise = prediction.as_denoiser(lambda x, t: x.astype(jnp.bfloat16), VP(), predicts="v")
    assert denoise(jnp.ones((2, 3)), 0.5).dtype == jnp.float32


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda x, t: jnp.concatenate([x, x], -1), r"network .*\(2, 3\).*returned \(2, 6\)"),
        (lambda x, t: x.astype(int), "floating-point.*int32"),
        (lambda x, t: (x, x), r"pytree.*returned PyTreeDef\(\(\*, \*\)\)"),
    ],
)
def test_as_denoiser_says_what_the_network_returned(apply, words):
    denoise = jax.jit(prediction.as_denoiser(apply, VP()))
    with pytest.raises(ValueError, match=words):
        denoise(jnp.ones((2, 3)), 0.5)


# --- networks that count time in their own way ---

MU, S = 0.7, 0.4  # the data are N(MU, S^2) in every dimension
COSINE = VP(schedule="cosine")
COUNTS = {  # the process that samples, and how a DDPM() network's steps 0..999 follow from its time
    "ddpm": (DDPM(), lambda t: t - 1),
    "vp": (VP(), lambda t: 1000 * t - 1),
    "cosine": (COSINE, lambda t: at_log_snr(DDPM(), COSINE.log_snr(t)) - 1),
}


def perfect_eps(process, x_t, t):
    """What a network trained without error on N(MU, S^2) says of the noise."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha, sigma = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
    return sigma * (x_t - alpha * MU) / (alpha**2 * S**2 + sigma**2)


def flowed(process, x_t, t, s):
    """The exact probability flow of N(MU, S^2) from t to s."""
    alpha, sigma = process.alpha(np.array([t, s])), process.sigma(np.array([t, s]))
    std = np.hypot(alpha * S, sigma)
    return alpha[1] * MU + std[1] / std[0] * (x_t - alpha[0] * MU)


def sampled(process, time, apply, n=25):
    denoise = prediction.as_denoiser(apply, process, time=time)
    grid = times.log_snr(process, n, final="stop")
    x_T = np.linspace(-2, 2, 9, dtype=np.float32)[:, None]
    x_0 = jax.jit(lambda plan, x: samplers.sample(jax.random.key(0), denoise, plan, x))(
        samplers.DPMSolverPP(order=2).plan(process, grid), x_T
    )
    return x_0, flowed(process, x_T, grid[0], grid[-1])


@pytest.mark.parametrize("name", COUNTS)
def test_network_of_discrete_time_samples_on_another_process(name):
    """A table of 1000 entries, looked up at rounded times, with DPM-Solver++ between them."""
    process, count = COUNTS[name]
    entries = jnp.arange(1.0, 1001.0)

    def by_table(x_t, i):
        assert jnp.issubdtype(i.dtype, jnp.integer)
        assert i.shape == (9,)
        return perfect_eps(DDPM(), x_t, entries[i])

    np.testing.assert_allclose(
        *sampled(process, lambda t: jnp.round(count(t)).astype(int), by_table), atol=0.03
    )


def test_network_of_continuous_time_samples_on_a_discrete_process():
    got = sampled(DDPM(), lambda t: t / 1000, lambda x_t, t: perfect_eps(VP(), x_t, t))
    np.testing.assert_allclose(*got, atol=0.03)


def test_network_is_given_time_as_it_counts():
    seen = []

    def apply(x_t, t):
        seen.append(t)
        return x_t

    process = LogSNR(lambda t: 10 - 20 * t)
    for time in (None, lambda t: 1000 * t, process.log_snr, lambda t: jnp.round(999 * t).astype(jnp.int32)):
        prediction.as_denoiser(apply, process, time=time)(jnp.ones((2, 3)), 0.25)
    np.testing.assert_allclose(jnp.stack(seen), [[0.25] * 2, [250] * 2, [5] * 2, [250] * 2], rtol=1e-6)
    assert [t.dtype.name for t in seen] == ["float32", "float32", "float32", "int32"]
    with pytest.raises(ValueError, match=r"scalar.*got the shape \(1,\)"):
        prediction.as_denoiser(apply, process, time=lambda t: t[None])(jnp.ones((2, 3)), 0.25)


def test_unknown_prediction_names_the_choices():
    with pytest.raises(ValueError, match=r"'eps', 'x0', 'v', 'score', 'velocity'; got 'epsilon'"):
        prediction.as_denoiser(lambda x, t: x, VP(), predicts="epsilon")
    one = jnp.ones(())
    for convert in (prediction.target, prediction.to_x0, prediction.from_x0):
        with pytest.raises(ValueError, match="'noise'"):
            convert(jnp.ones((2, 3)), jnp.ones((2, 3)), one, one, predicts="noise")


def test_clipped_clips_the_estimate():
    denoise = prediction.clipped(lambda x, t: {"a": 3 * x}, low=-1.0, high=2.0)
    np.testing.assert_array_equal(denoise(jnp.asarray([-1.0, 0.5, 1.0]), 0.5)["a"], [-1.0, 1.5, 2.0])
    with pytest.raises(ValueError, match="low < high"):
        prediction.clipped(denoise, low=1.0, high=-1.0)


def test_edm_preconditioning_has_unit_variance_in_and_out():
    """What the network gets and what it has to say, for data of the stated deviation, at every noise (Eqs. 113-117)."""
    process, seen = EDM(), {}
    x_0, eps = draw(5, (20_000, 1))
    x_0 = 0.5 * x_0
    for sigma in (0.01, 0.3, 5.0, 60.0):
        t = jnp.float32(sigma)
        x_t = process.perturb(x_0, t, eps)

        def network(x, c_noise):
            seen.update(x=x, c_noise=c_noise)
            return jnp.zeros_like(x)

        rows = jnp.full(len(x_0), t)
        skip = prediction.edm_preconditioned(network, process, sigma_data=0.5)(x_t, rows)
        one = prediction.edm_preconditioned(lambda x, c: jnp.ones_like(x), process, sigma_data=0.5)(x_t, rows)
        target = (x_0 - skip) / (one - skip)
        np.testing.assert_allclose([seen["x"].std(), target.std()], 1, rtol=0.02)
        np.testing.assert_allclose(seen["c_noise"], np.log(sigma) / 4, rtol=1e-5)
        cross = jnp.mean(target * seen["x"])
        np.testing.assert_allclose(cross, 0, atol=0.03)  # the part that is known already is in the skip
    with pytest.raises(ValueError, match="sigma_data"):
        prediction.edm_preconditioned(network, process, sigma_data=0.0)


def test_dynamic_threshold_brings_each_example_into_range():
    x = jnp.stack([jnp.linspace(-0.5, 0.5, 101), jnp.linspace(-4, 4, 101)])
    y = prediction.dynamic_threshold(lambda x, t: {"a": x}, quantile=0.9)(x, 0.5)["a"]
    np.testing.assert_array_equal(y[0], x[0])
    s = np.quantile(np.abs(x[1]), 0.9)
    np.testing.assert_allclose(y[1], np.clip(x[1], -s, s) / s, rtol=1e-6)
    with pytest.raises(ValueError, match="quantile"):
        prediction.dynamic_threshold(lambda x, t: x, quantile=0.0)
