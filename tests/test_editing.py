"""Editing on data whose denoiser is exact: nothing forgotten at little noise, all at much, and there and back again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gen_jax import editing, gmm, samplers
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import DDPM, EDM, VP, FlowMatching
from gen_jax.samplers import times

KEY = jax.random.key(0)
MIXTURE = gmm.GMM(
    jnp.array([0.4, 0.6]), jnp.array([[-1.0, 0.5], [0.8, -0.3]]), jnp.array([[0.1, 0.2], [0.3, 0.05]])
)


def data(n, seed=1):
    return gmm.sample(jax.random.key(seed), MIXTURE, n)[0]


# --- SDEdit ---


@pytest.mark.parametrize("process", [VP(), DDPM(), EDM(), FlowMatching()], ids=repr)
def test_sdedit_from_hardly_any_noise_returns_the_data(process):
    x_0 = data(200)
    plan = samplers.DDIM().plan(process, np.array([1.5 * process.t_min, process.t_min, 0.0]))
    den = oracle.mixture(MIXTURE, process)
    edited = jax.jit(lambda x: editing.sdedit(KEY, den, process, plan, x))(x_0)
    assert np.abs(edited - x_0).max() < 6 * process.sigma(1.5 * process.t_min)


def test_sdedit_keeps_less_the_more_noise_and_always_gives_data():
    process, n = VP(), 4000
    x_0, den = data(n), oracle.mixture(MIXTURE, process)
    run = jax.jit(lambda plan: editing.sdedit(KEY, den, process, plan, x_0))
    kept = []
    for t_start in (0.1, 0.4, 1.0):
        grid = times.log_snr(process, 80, t_start=t_start)
        edited = np.asarray(run(samplers.SDEDPMSolverPP(2).plan(process, grid)))
        kept.append(np.corrcoef(edited[:, 0], x_0[:, 0])[0, 1])
        assert scipy.stats.ks_2samp(edited[:, 0], data(n, 2)[:, 0]).pvalue > 1e-3
    assert kept[0] > kept[1] > kept[2]
    assert kept[0] > 0.7
    assert abs(kept[2]) < 5 / n**0.5


def test_sdedit_is_the_noise_of_its_time_and_then_sampling():
    """A denoiser that returns what it is given, in a step to the data: what comes out is the noised data."""
    process, x_0 = VP(), {"a": data(3000), "b": data(3000, 2)[:, :, None]}
    plan = samplers.DDIM().plan(process, np.array([0.5, 0.0]))
    x_t = editing.sdedit(KEY, lambda x, t: x, process, plan, x_0)
    alpha, sigma = process.alpha(0.5), process.sigma(0.5)
    noise = jax.tree.map(lambda x_t, x: np.ravel((x_t - alpha * x) / sigma), x_t, x_0)
    for z in noise.values():
        assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise["a"], noise["b"])[0, 1]) < 5 / 6000**0.5


def test_sdedit_of_a_sample_does_not_depend_on_its_batch():
    process, x_0 = VP(), data(6)
    plan = samplers.DDPM().plan(process, times.log_snr(process, 4, t_start=0.5))
    run = lambda x, i: editing.sdedit(KEY, oracle.mixture(MIXTURE, process), process, plan, x, index=i)
    np.testing.assert_allclose(run(x_0, None)[4:], run(x_0[4:], jnp.arange(4, 6)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("times_of", "message"),
    [
        ([0.1, 0.3, 0.4], "run from a time in"),
        ([0.9, 0.5, 0.0], "run from a time in .0.001, 0.5. of this process"),
    ],
)
def test_sdedit_refuses_plans_of_other_directions_and_processes(times_of, message):
    process = FlowMatching()
    plan = samplers.DDIM().plan(process, np.array(times_of))
    short = VP(t_min=1e-3) if times_of[0] < 0.5 else EDM(sigma_min=1e-3, sigma_max=0.5)
    with pytest.raises(ValueError, match=message):
        editing.sdedit(KEY, lambda x, t: x, short, plan, jnp.zeros((1, 2)))
    plan = samplers.DDIM().plan(process, np.array([0.4, 0.0]))
    with pytest.raises(ValueError, match="floating"):
        editing.sdedit(KEY, lambda x, t: x, process, plan, jnp.zeros((1, 2), int))


# --- encoding ---


@pytest.mark.parametrize(("solver", "order"), [(samplers.DDIM(), 1), (samplers.DPMSolverPP(order=2), 2)])
def test_decode_returns_what_was_encoded_the_nearer_the_more_steps(solver, order):
    process, x_0 = VP(), {"x": data(100)}
    den = oracle.mixture(MIXTURE, process)
    of_tree = lambda x, t: {"x": den(x["x"], t)}

    def error(steps):
        grid = times.log_snr(process, steps, final="stop")
        there = editing.encode(of_tree, process, solver, grid, x_0)
        return jnp.sqrt(
            jnp.square(editing.decode(of_tree, process, solver, grid, there)["x"] - x_0["x"]).mean()
        )

    coarse, fine = error(50), error(200)
    assert coarse < 0.1
    assert fine < coarse / 4**order * 1.5


def test_encoded_data_are_prior_noise():
    process, n = VP(), 4000
    grid = times.log_snr(process, 60, final="stop")
    den = oracle.mixture(MIXTURE, process)
    x_T = np.asarray(
        jax.jit(lambda x: editing.encode(den, process, samplers.DPMSolverPP(), grid, x))(data(n))
    )
    for column in x_T.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("solver", "grid", "message"),
    [
        (samplers.DDPM(), [1.0, 0.5], "solver must be deterministic"),
        (samplers.DDIM(), [1.0, 0.5, 0.0], 'not to 0.*final="stop"'),
        (samplers.DDIM(), [0.5, 1.0], "decreasing times"),
        (samplers.DDIM(), [0.5], "at least 2 decreasing times"),
        (samplers.DDIM(), [2.0, 0.5], "must lie in"),
    ],
)
def test_encode_and_decode_refuse_what_cannot_be_undone(solver, grid, message):
    for way in (editing.encode, editing.decode):
        if way is editing.encode and isinstance(solver, samplers.DDPM):
            message = "noise"
        with pytest.raises(ValueError, match=message):
            way(lambda x, t: x, VP(), solver, np.array(grid), jnp.zeros((1, 2)))


# --- interpolation ---


def test_interpolation_begins_and_ends_at_its_ends_and_keeps_the_norm():
    with jax.enable_x64(True):
        a, b = (jax.random.normal(key, (5, 4, 3)) for key in jax.random.split(KEY))
        norm = lambda x: jnp.sqrt(jnp.square(x).sum((1, 2)))
        b = b * (norm(a) / norm(b))[:, None, None]
        np.testing.assert_allclose(editing.interpolate(a, b, 0.0), a, rtol=1e-12)
        np.testing.assert_allclose(editing.interpolate(a, b, 1.0), b, rtol=1e-12, atol=1e-12)
        weights = jnp.linspace(0.1, 0.9, 5)
        each = editing.interpolate(a, b, weights)
        np.testing.assert_allclose(norm(each), norm(a), rtol=1e-12)
        angle = lambda x, y: jnp.arccos((x * y).sum((1, 2)) / norm(x) / norm(y))
        np.testing.assert_allclose(angle(a, each), weights * angle(a, b), rtol=1e-10)
        tree = editing.interpolate({"a": a[:, :1], "b": a[:, 1:]}, {"a": b[:, :1], "b": b[:, 1:]}, weights)
        np.testing.assert_allclose(jnp.concatenate([tree["a"], tree["b"]], 1), each, rtol=1e-12)


def test_interpolation_of_neighbours_is_the_straight_line():
    a = jax.random.normal(KEY, (3, 50))
    np.testing.assert_allclose(editing.interpolate(a, a, 0.3), a, rtol=1e-6)
    b = a + 1e-3 * jax.random.normal(jax.random.key(1), (3, 50))
    np.testing.assert_allclose(editing.interpolate(a, b, 0.25), 0.75 * a + 0.25 * b, atol=1e-5)
    for other in (a, b):
        assert np.isfinite(jax.grad(lambda x: editing.interpolate(x, other, 0.3).sum())(a)).all()


def test_interpolated_noise_has_the_law_of_noise():
    """Norms of images' size follow chi, halfway, too, where the straight line has half of the variance."""
    n, d = 400, 784
    a, b = (jax.random.normal(key, (n, d)) for key in jax.random.split(KEY))
    middle = np.asarray(jax.jit(editing.interpolate)(a, b, 0.5))
    assert scipy.stats.kstest(middle.ravel(), "norm").pvalue > 1e-3
    square = np.square(middle).sum(1)
    assert abs(square.mean() - d) < 5 * (2 * d / n) ** 0.5
    assert abs(np.square((a + b) / 2).sum(1).mean() - d / 2) < 5 * (d / 2 / n) ** 0.5


@pytest.mark.parametrize(
    ("x_b", "weight", "message"),
    [
        (jnp.zeros((2, 4)), 0.5, "must have the same structure"),
        (jnp.zeros((2, 3)), jnp.zeros(5), r"weight must be a number or one per example, \(2,\)"),
    ],
)
def test_interpolation_refuses_what_does_not_fit(x_b, weight, message):
    with pytest.raises(ValueError, match=message):
        editing.interpolate(jnp.ones((2, 3)), x_b, weight)
