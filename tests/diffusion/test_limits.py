"""Where one factor is 0 and another infinite: the limits, by closed form or in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import gmm, samplers
from gen_jax.diffusion import loss, oracle, prediction
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, LogSNR, SubVP
from tests.marks import slow

KEY = jax.random.key(0)
AT_THE_END = {"ddpm": DDPM(20, beta_max=0.5, zero_terminal_snr=True), "flow": FlowMatching(t_min=0.5)}
WEIGHTINGS = {  # ours, and as a function of SNR
    "snr": (loss.snr, lambda snr: snr),
    "min_snr": (loss.min_snr(5.0), lambda snr: min(snr, 5.0)),
    "p2": (loss.p2(1.5, 2.0), lambda snr: snr / (2.0 + snr) ** 1.5),
    "sigmoid": (loss.sigmoid(1.0), lambda snr: snr / (1 + snr * np.exp(-1.0))),
}
RATIO = {  # |x_0 - x0_hat|^2 / |y - y_hat|^2 at sigma = 1
    "eps": lambda alpha: 1 / alpha**2,
    "x0": lambda alpha: 1.0,
    "v": lambda alpha: 1 / (alpha**2 + 1) ** 2,
    "score": lambda alpha: 1 / alpha**2,
    "velocity": lambda alpha: 1 / (alpha + 1) ** 2,
}


@pytest.mark.parametrize("process", AT_THE_END.values(), ids=AT_THE_END)
@pytest.mark.parametrize("predicts", RATIO)
@pytest.mark.parametrize("name", slow(WEIGHTINGS, but=("snr", "min_snr")))
def test_weights_at_zero_snr_are_their_limits(process, predicts, name):
    ours, of_snr = WEIGHTINGS[name]
    x_0 = jax.random.normal(KEY, (4, 3))
    value, metrics = jax.jit(
        lambda x_0: loss.denoising(
            KEY,
            lambda x_t, t: jnp.zeros_like(x_t),
            process,
            x_0,
            predicts=predicts,
            weighting=ours,
            time_sampling=lambda key, n: jnp.ones(n),
        )
    )(x_0)
    alpha = 1e-9  # of float64
    limit = of_snr(alpha**2) * RATIO[predicts](alpha)
    np.testing.assert_allclose(value, limit * metrics["mse"], rtol=1e-4, atol=1e-12)


def test_a_weight_that_has_no_limit_is_infinite():
    for predicts, infinite in (("eps", True), ("v", False)):
        value, _ = loss.denoising(
            KEY,
            lambda x_t, t: jnp.zeros_like(x_t),
            FlowMatching(t_min=0.5),
            jnp.ones((2, 2)),
            predicts=predicts,
            weighting=loss.edm(0.5),
            time_sampling=lambda key, n: jnp.ones(n),
        )
        assert np.isinf(value) == infinite


def test_a_bound_that_is_infinite_is_refused():
    process = AT_THE_END["ddpm"]
    pair = lambda x_t, t: (jnp.zeros_like(x_t), jnp.zeros_like(x_t))
    for call in (
        lambda: loss.variational(KEY, lambda x_t, t: x_t, process, jnp.ones((2, 2)), predicts="eps"),
        lambda: loss.hybrid(KEY, pair, process, jnp.ones((2, 2)), predicts="score"),
    ):
        with pytest.raises(ValueError, match=r"predicts='(eps|score)' says nothing about x_0 at t = 20"):
            call()


@pytest.mark.parametrize("process", AT_THE_END.values(), ids=AT_THE_END)
@pytest.mark.parametrize("predicts", ["eps", "score"])
def test_noise_alone_does_not_determine_the_data(process, predicts):
    denoise = prediction.as_denoiser(lambda x_t, t: x_t, process, predicts=predicts)
    x_T = jnp.ones((2, 3))
    words = f"predicts='{predicts}' says nothing about x_0 at t = .*alpha = 0.*t_start"
    for t in (process.t_max, jnp.asarray(process.t_max)):
        with pytest.raises(ValueError, match=words):
            denoise(x_T, t)
    plan = samplers.DDIM().plan(process, samplers.times.uniform(process, 4, final="denoise"))
    with pytest.raises(ValueError, match=words):
        samplers.sample(KEY, denoise, plan, x_T)
    with jax.debug_nans(False):  # not known: no plausible number
        assert not jnp.isfinite(jax.jit(denoise)(x_T, process.t_max)).any()
    with pytest.raises(ValueError, match="alpha_t must be above 0"):
        prediction.to_x0(x_T, x_T, jnp.zeros(()), jnp.ones(()), predicts=predicts)
    with pytest.raises(ValueError, match="sigma_t must be above 0"):
        prediction.from_x0(x_T, x_T, jnp.ones(()), jnp.zeros(()), predicts=predicts)


PROCESSES = {
    "ddpm": DDPM(20, beta_max=0.5),
    "ddpm_cosine": DDPM(20, "cosine"),
    "ddpm_zero_snr": DDPM(20, beta_max=0.5, zero_terminal_snr=True),
    "vp": VP(),
    "vp_cosine": VP(schedule="cosine"),
    "sub_vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "log_snr": LogSNR(lambda t: 12 - 22 * t),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_derivatives_at_both_ends_are_those_of_one_side(name):
    process = PROCESSES[name]
    for t, step in ((process.t_min, 1e-6), (process.t_max, -1e-6)):
        h = step * (process.t_max - process.t_min if t > 1 else process.t_min)
        for of in ("alpha", "sigma", "log_snr"):
            f = getattr(process, of)
            here, there = f(np.float64(t)), f(np.float64(t + h))
            if np.isfinite(here):
                derivative = jax.grad(lambda t, f=f: jnp.asarray(f(t)))(jnp.float32(t))
                np.testing.assert_allclose(derivative, (there - here) / h, rtol=5e-3, atol=1e-5, err_msg=of)


def test_alpha_falls_to_zero_in_a_line():
    process = PROCESSES["ddpm_zero_snr"]
    assert process.alpha(np.array(20.0)) == 0
    assert process.sigma(np.array(20.0)) == 1
    np.testing.assert_allclose(jax.grad(process.alpha)(20.0), -process.alpha(np.array(19.0)), rtol=1e-6)
    np.testing.assert_allclose(process.sigma(np.float32(19.0)), process.sigma(np.float64(19.0)), rtol=1e-6)


# --- oracles ---

POINTS = np.array([[0.0, 0.0], [3.0, 1.0], [-2.0, 5.0]], np.float32)
NEAR = np.array([[0.4, -0.2], [2.0, 1.5], [-2.0, 5.0]], np.float32)


@pytest.mark.parametrize("covs", [np.zeros((3, 1)), np.zeros((3, 2, 2))], ids=["spherical", "full"])
def test_without_noise_the_mean_given_x_is_the_nearest_point(covs):
    weights = jnp.array([0.2, 0.5, 0.3])
    den = oracle.mixture(gmm.GMM(weights, jnp.asarray(POINTS), jnp.asarray(covs, jnp.float32)), VP())
    np.testing.assert_allclose(den(jnp.asarray(NEAR), 0.0), POINTS, atol=1e-6)
    np.testing.assert_allclose(den.posterior(jnp.asarray(NEAR), 0.0), np.eye(3), atol=1e-6)
    of_data = oracle.empirical(POINTS, VP(), weights=weights)
    np.testing.assert_allclose(of_data(jnp.asarray(NEAR), 0.0), POINTS, atol=1e-6)
    point = oracle.Gaussian(jnp.array(2.0), jnp.array(0.0), VP())
    np.testing.assert_allclose(point(jnp.asarray(NEAR), 0.0), np.full((3, 2), 2.0))


def test_without_noise_data_of_some_extent_are_themselves():
    den = oracle.mixture(gmm.GMM(jnp.array([0.4, 0.6]), jnp.asarray(POINTS[:2]), jnp.ones((2, 1))), VP())
    np.testing.assert_allclose(den(jnp.asarray(NEAR), 0.0), NEAR, atol=1e-6)


def test_what_has_no_weight_does_not_count():
    some = gmm.GMM(jnp.array([0.4, 0.6]), jnp.asarray(POINTS[:2]), jnp.ones((2, 1)))
    more = gmm.GMM(jnp.array([0.4, 0.6, 0.0]), jnp.asarray(POINTS), jnp.ones((3, 1)))
    x, t = jnp.asarray(NEAR), 0.3
    for name in ("__call__", "score", "log_prob"):
        of = lambda params, name=name: getattr(oracle.mixture(params, VP()), name)(x, t)
        np.testing.assert_allclose(of(more), of(some), rtol=1e-5, atol=1e-6)
    few = oracle.empirical(POINTS[:2], VP(), weights=np.array([2.0, 1.0]))
    np.testing.assert_allclose(
        oracle.empirical(POINTS, VP(), weights=np.array([2.0, 1.0, 0.0]))(x, t), few(x, t), rtol=1e-5
    )
    with pytest.raises(ValueError, match="weights must not all be 0"):
        oracle.empirical(POINTS, VP(), weights=np.zeros(3))
    with pytest.raises(ValueError, match="weights must be at least 0, got -1 in 1 of 3 rows: 1"):
        oracle.empirical(POINTS, VP(), weights=np.array([1.0, -1.0, 1.0]))


@pytest.mark.parametrize(
    "den",
    [
        oracle.mixture(
            gmm.GMM(jnp.array([0.4, 0.6]), jnp.asarray(POINTS[:2]), jnp.ones((2, 1))),
            VP(),
            labels=np.array([1, 4]),
        ),
        oracle.empirical(POINTS, VP(), labels=np.array([1, 4, 4])),
    ],
    ids=["mixture", "empirical"],
)
def test_a_label_that_nothing_has_is_named(den):
    for label in (7, np.array(7), jnp.array(7)):
        with pytest.raises(ValueError, match="label must be one of the labels, 1, 4; got 7"):
            den.given(label)
    x, t = jnp.asarray(NEAR), 0.3
    np.testing.assert_allclose(
        jax.jit(lambda label: den.given(label)(x, t))(4), den.given(4)(x, t), rtol=1e-5
    )
