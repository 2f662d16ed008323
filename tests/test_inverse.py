"""Inverse problems where the answer is known: normal data and linear measurements, and mixtures given some coordinates.

Of normal data all is affine: the guided denoiser, a step, and so what a deterministic solver makes of noise. Running it
on the unit vectors gives that map, and the law of its samples without drawing any.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from jax.test_util import check_grads

from gen_jax import gmm, inverse, normal, samplers
from gen_jax.diffusion import oracle
from gen_jax.diffusion.process import DDPM, EDM, VE, VP, FlowMatching, at_log_snr
from gen_jax.samplers import times
from tests.samplers.test_stochastic import energy_distance

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)

# --- operators ---

KEEP = RNG.random((2, 4, 6, 3)) < 0.5
OPERATORS = {
    "mask": (inverse.Mask(KEEP), (2, 4, 6, 3)),
    "mask-of-all": (inverse.Mask(KEEP[:1, :, :, :1]), (2, 4, 6, 3)),
    "downsample": (inverse.Downsample(2), (2, 4, 6, 3)),
    "grayscale": (inverse.Grayscale(), (2, 4, 6, 3)),
    "grayscale-of-two": (inverse.Grayscale((0.5, -2.0)), (2, 3, 3, 2)),
    "matrix": (inverse.Matrix(RNG.normal(size=(3, 5))), (2, 5)),
}
each_operator = pytest.mark.parametrize(("operator", "shape"), OPERATORS.values(), ids=OPERATORS.keys())


def dot(a, b):
    return np.sum(np.asarray(a) * np.asarray(b))


@each_operator
def test_transpose_is_the_adjoint(operator, shape):
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=shape))
        y = jnp.asarray(RNG.normal(size=jax.eval_shape(operator.forward, x).shape))
        np.testing.assert_allclose(
            dot(operator.forward(x), y), dot(x, operator.transpose(y)), rtol=1e-12, atol=1e-12
        )


@each_operator
@pytest.mark.parametrize("noise_var", [0.0, 0.3])
def test_solve_is_the_inverse(operator, shape, noise_var):
    with jax.enable_x64(True):
        y = operator.forward(jnp.asarray(RNG.normal(size=shape)))
        system = lambda y: noise_var * y + 0.7 * operator.forward(operator.transpose(y))
        np.testing.assert_allclose(operator.solve(system(y), noise_var, 0.7), y, rtol=1e-9, atol=1e-12)


@each_operator
def test_operator_goes_through_jit_vmap_and_grad(operator, shape):
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    y = operator.forward(x)

    @jax.jit
    def solve(operator, y, noise_var):
        return operator.transpose(operator.solve(y, noise_var, 0.7))

    np.testing.assert_allclose(
        solve(operator, y, 0.3), operator.transpose(operator.solve(y, 0.3, 0.7)), rtol=1e-4, atol=1e-5
    )
    each = jax.vmap(lambda y: solve(operator, y, 0.3))(jnp.stack([y, 2 * y]))
    np.testing.assert_allclose(each[1], 2 * each[0], rtol=1e-4, atol=1e-5)
    check_grads(lambda y, s: solve(operator, y, s), (y, 0.3), order=1, modes=["rev"], rtol=0.02, atol=0.02)


# --- normal data: the exact answers, in numpy ---

MEAN = np.array([0.4, -0.3, 0.2])
COV = np.array([[0.9, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.3]])
A = np.array([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4]])
Y = np.array([0.8, -0.5])
V = 0.6
OPERATOR = inverse.Matrix(A)


def posterior(mean, cov, noise_std):
    """Mean and covariance of `x_0` given `Y`."""
    gain = cov @ A.T @ np.linalg.inv(A @ cov @ A.T + noise_std**2 * np.eye(2))
    return mean + gain @ (Y - A @ mean), cov - gain @ A @ cov


def gaussian(mean, cov, process):
    return oracle.gaussian(normal.MultivariateNormal(jnp.asarray(mean), jnp.asarray(cov)), process)


def law(denoise, process, steps, mean, cov):
    """Mean and covariance of samples at `t_min` that a deterministic solver makes of `x_T` with those of `x_0` given."""
    grid = times.log_snr(process, steps, final="stop", t_start=at_log_snr(process, np.array(-7.0)))
    plan = samplers.DPMSolverPP(order=3).plan(process, grid)
    rows = jnp.asarray(np.concatenate([np.zeros((1, len(mean))), np.eye(len(mean))]))
    out = np.asarray(jax.jit(lambda x: samplers.sample(KEY, denoise, plan, x))(rows))
    matrix, alpha, sigma = (out[1:] - out[0]).T, process.alpha(grid[0]), process.sigma(grid[0])
    start = alpha**2 * cov + sigma**2 * np.eye(len(mean))
    return out[0] + matrix @ (alpha * mean), matrix @ start @ matrix.T


def noised(process, mean, cov):
    """Mean and covariance of `x_t` at `t_min`."""
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    return alpha * mean, alpha**2 * cov + sigma**2 * np.eye(len(mean))


def ideal_flow(process, start_mean, start_cov, weight):
    """Mean and covariance at `t_min`, by scipy, of `dy / dr = (y - x0_hat) / r`, `y = x / alpha`, `r = sigma / alpha`.

    Here `C = r^2 COV (COV + r^2 I)^-1 = Cov(x_0 | x_t)`, `x0_hat = m + C A^T weight(r) (Y - A m)`, `m = E[x_0 | x_t]`.
    """
    eye = np.eye(3)

    def slope(log_r, state):
        r = np.exp(log_r)
        gain = COV @ np.linalg.inv(COV + r**2 * eye)
        linear, offset = gain, MEAN - gain @ MEAN
        pull = r**2 * gain @ A.T @ weight(r)
        offset, linear = offset + pull @ (Y - A @ offset), linear - pull @ A @ linear
        mean, root = state[:3], state[3:].reshape(3, 3)
        return np.concatenate([mean - linear @ mean - offset, (root - linear @ root).ravel()])

    ends = np.array([at_log_snr(process, np.array(-7.0)), process.t_min])
    alpha, r = process.alpha(ends), process.sigma(ends) / process.alpha(ends)
    root = np.linalg.cholesky(start_cov + r[0] ** 2 * eye)
    state = np.concatenate([start_mean, root.ravel()])
    out = scipy.integrate.solve_ivp(slope, np.log(r), state, rtol=1e-9, atol=1e-11, method="LSODA").y[:, -1]
    mean, root = out[:3], out[3:].reshape(3, 3)
    return alpha[1] * mean, alpha[1] ** 2 * root @ root.T


# --- PiGDM ---


@pytest.mark.parametrize("process", [VP(), EDM(), VE(), FlowMatching(), DDPM()], ids=repr)
@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_pigdm_of_isotropic_data_is_the_exact_posterior_denoiser(process, noise_std):
    """`E[x_0 | x_t, y]` by conditioning the joint law of `(x_0, x_t, y)`."""
    with jax.enable_x64(True):
        guided = jax.jit(
            inverse.pigdm(
                gaussian(MEAN, V * np.eye(3), process), process, OPERATOR, Y[None], noise_std, data_var=V
            )
        )
        x_t = RNG.normal(size=(5, 3))
        for t in np.array([1.0, 0.7, 0.3, 0.02]) * 0.99 * process.t_max:
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            both = np.concatenate([alpha * np.eye(3), A])
            noise = np.diag([sigma**2] * 3 + [noise_std**2] * 2)
            gain = V * both.T @ np.linalg.inv(V * both @ both.T + noise)
            seen = np.concatenate([x_t, np.tile(Y, (5, 1))], 1)
            exact = MEAN + (seen - both @ MEAN) @ gain.T
            np.testing.assert_allclose(guided(jnp.asarray(x_t), t), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_pigdm_of_isotropic_data_has_the_exact_posterior_as_its_law(noise_std):
    process = VP()
    with jax.enable_x64(True):
        den = gaussian(MEAN, V * np.eye(3), process)
        guided = inverse.pigdm(den, process, OPERATOR, Y[None], noise_std, data_var=V)
        exact = posterior(MEAN, V * np.eye(3), noise_std)
        found, expected = law(guided, process, 80, *exact), noised(process, *exact)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-4)
    np.testing.assert_allclose(found[1], expected[1], atol=2e-4)


@pytest.mark.slow  # in CI: the exact law, above
def test_pigdm_samples_of_a_stochastic_solver_have_the_exact_posterior_moments():
    process, n = VP(), 10_000
    guided = inverse.pigdm(
        gaussian(np.float32(MEAN), np.float32(V * np.eye(3)), process),
        process,
        OPERATOR,
        np.float32(Y[None]),
        0.3,
        data_var=V,
    )
    plan = samplers.SDEDPMSolverPP(2).plan(process, times.log_snr(process, 60))
    x_0 = jax.jit(lambda x: samplers.sample(KEY, guided, plan, x))(process.prior(jax.random.key(1), (n, 3)))
    mean, cov = posterior(MEAN, V * np.eye(3), 0.3)
    x = np.asarray(x_0, np.float64)
    z = (x.mean(0) - mean) / np.sqrt(np.diag(cov) / n)
    assert np.abs(z).max() < 5
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / n)  # of a sample covariance (Wishart)
    assert np.abs((np.cov(x.T) - cov) / spread).max() < 5


@each_operator
def test_pigdm_without_noise_fits_the_measurement_at_every_time(operator, shape):
    """Of isotropic data: `A E[x_0 | x_t, y] = y`."""
    process = VP()
    den = oracle.gaussian(normal.Normal(jnp.float32(0.2), jnp.float32(V**0.5)), process)
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    y = operator.forward(x[::-1])
    for t in (0.9, 0.1):
        x0_hat = inverse.pigdm(den, process, operator, y, data_var=V)(x, t)
        np.testing.assert_allclose(operator.forward(x0_hat), y, rtol=1e-4, atol=1e-4)


# --- what DPS and PiGDM get wrong, and by how much ---


@pytest.mark.parametrize("noise_std", [0.4, 1.0, 3.0])
def test_dps_has_the_variance_and_mean_of_its_closed_form(noise_std):
    """`x_0 ~ N(0, 1)`, `A = 1`, from `sigma = S` and 0 (or the law of `x_T`) by the flow, with `z = 1 / (s sqrt 2)`.

        variance   exp(-(1 - 1 / (1 + S^2)) / s^2)      < 1 / (1 + 1 / s^2), the exact one
        mean       2 z D(z) y in the limit of large S   > y / (1 + s^2),    the exact one

    with Dawson's function `D`, from `dx / du = x / 2u + x / 2 s^2 u^2 - y / 2 s^2 u`, `u = 1 + sigma^2`.
    """
    process, y = EDM(sigma_min=1e-3), 0.7
    with jax.enable_x64(True):
        operator = inverse.Matrix(np.eye(1))
        guided = inverse.dps(
            gaussian(np.zeros(1), np.eye(1), process), process, operator, jnp.full((1, 1), y), noise_std
        )
        plan = samplers.DPMSolverPP(order=3).plan(process, times.log_snr(process, 400))
        run = jax.jit(lambda x: samplers.sample(KEY, guided, plan, x))
        mean, one = np.asarray(run(jnp.array([[0.0], [1.0]])))[:, 0]
    u = 1 + process.sigma_max**2
    variance = (one - mean) ** 2 * u
    z, a = 1 / (noise_std * 2**0.5), u**-0.5
    dawson = scipy.special.dawsn
    expected = 2 * z * y * (dawson(z) - np.exp(z**2 * (a**2 - 1)) * dawson(z * a))
    np.testing.assert_allclose(variance, np.exp(-(1 - 1 / u) / noise_std**2), rtol=5e-3)
    np.testing.assert_allclose(mean, expected, rtol=5e-3)
    assert variance < 1 / (1 + 1 / noise_std**2)
    assert 2 * z * y * dawson(z) > y / (1 + noise_std**2)


S = 0.5
METHODS = {
    "dps": (lambda den, process: inverse.dps(den, process, OPERATOR, Y[None], S), lambda r: np.eye(2) / S**2),
    **{
        f"pigdm-{v}": (
            functools.partial(
                lambda v, den, process: inverse.pigdm(den, process, OPERATOR, Y[None], S, data_var=v), v
            ),
            functools.partial(
                lambda v, r: np.linalg.inv(S**2 * np.eye(2) + v * r**2 / (v + r**2) * A @ A.T), v
            ),
        )
        for v in (0.1, 1.5)
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_bias_of_guidance_is_that_of_its_closed_form(name):
    """DPS and a `data_var` too small are too sure of what was measured, one too large is not sure enough."""
    process, (make, weight) = VP(), METHODS[name]
    exact = posterior(MEAN, COV, S)
    with jax.enable_x64(True):
        mean, cov = law(make(gaussian(MEAN, COV, process), process), process, 160, *exact)
    expected = ideal_flow(process, *exact, weight)
    np.testing.assert_allclose(mean, expected[0], atol=2e-3)
    np.testing.assert_allclose(cov, expected[1], atol=2e-3)
    bias = np.linalg.eigvalsh(A @ (cov - noised(process, *exact)[1]) @ A.T)
    assert (bias > 5e-3).all() if name == "pigdm-1.5" else (bias < -5e-3).all(), bias


def mixture(process, dims=2):
    rng = np.random.default_rng(3)
    means = jnp.asarray(rng.normal(size=(3, dims)))
    return oracle.mixture(gmm.GMM(jnp.array([0.2, 0.5, 0.3]), means, jnp.full((3, dims), 0.1)), process)


def test_dps_adds_the_gradient_of_the_likelihood_of_x0_hat():
    """Of a denoiser that is not affine, by automatic differentiation of the density."""
    process, s, t = VP(), 0.4, 0.3
    with jax.enable_x64(True):
        den, operator = mixture(process), inverse.Matrix(np.array([[1.0, -0.5]]))
        x_t, y = jnp.asarray(RNG.normal(size=(6, 2))), jnp.asarray(RNG.normal(size=(6, 1)))
        log_p = lambda x: -jnp.sum((y - operator.forward(den(x, t))) ** 2) / (2 * s**2)
        expected = den(x_t, t) + process.sigma(t) ** 2 / process.alpha(t) * jax.jit(jax.grad(log_p))(x_t)
        np.testing.assert_allclose(
            jax.jit(inverse.dps(den, process, operator, y, s))(x_t, t), expected, rtol=1e-10
        )


def test_dps_by_step_size_is_the_papers_algorithm():
    """A step of DDPM, less `zeta' / |y - A x0_hat| grad |y - A x0_hat|^2` in `x_s` (Chung et al. 2023, Algorithm 1)."""
    process, zeta = DDPM(), 0.3
    betas = jnp.asarray(process.betas)
    size = lambda t: zeta * jnp.sqrt(1 - betas[t.astype(int) - 1]) / betas[t.astype(int) - 1]
    with jax.enable_x64(True):
        den, operator = mixture(process), inverse.Matrix(np.array([[1.0, -0.5]]))
        x_t, y = jnp.asarray(RNG.normal(size=(6, 2))), jnp.asarray(RNG.normal(size=(6, 1)))
        plan = samplers.DDPM().plan(process, np.array([300.0, 299.0]))
        one = lambda den: jax.jit(lambda x: samplers.sample(KEY, den, plan, x))(x_t)
        square = lambda x: jnp.sum((y - operator.forward(den(x, 300.0))) ** 2, axis=1)
        grad = jax.grad(lambda x: square(x).sum())(x_t)
        expected = one(den) - zeta / jnp.sqrt(square(x_t))[:, None] * grad
        guided = inverse.dps(den, process, operator, y, step_size=size)
        np.testing.assert_allclose(one(guided), expected, rtol=1e-5)
        fits = inverse.dps(den, process, operator, operator.forward(den(x_t, 300.0)), step_size=1.0)
        np.testing.assert_array_equal(fits(x_t, 300.0), den(x_t, 300.0))  # no residual, no step, no NaN


def test_guided_denoiser_is_finite_where_no_data_is_left():
    process = FlowMatching()
    den = mixture(process)
    x_t = jnp.ones((2, 2))
    guided = inverse.pigdm(den, process, inverse.Mask(np.array([[True, False]])), jnp.ones((1, 2)))
    np.testing.assert_array_equal(guided(x_t, 1.0), den(x_t, jnp.float32(1.0)))


def test_guidance_of_pytrees_takes_an_operator_of_ones_own():
    """Two arrays, of which the sum is measured, are one array of twice the length."""

    class Sum:
        def forward(self, x):
            return x["a"] + x["b"]

        def transpose(self, y):
            return {"a": y, "b": y}

        def solve(self, y, noise_var, prior_var):
            return y / (noise_var + 2 * prior_var)

    process, x = VP(), jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    den, y = mixture(process), jnp.ones((4, 1))
    tree = lambda x: {"a": x[:, :1], "b": x[:, 1:]}
    of_tree = lambda x, t: tree(den(jnp.concatenate([x["a"], x["b"]], 1), t))
    for method in (inverse.pigdm, inverse.dps):
        one = method(den, process, inverse.Matrix(np.ones((1, 2))), y, 0.5)(x, 0.4)
        other = method(of_tree, process, Sum(), y, 0.5)(tree(x), 0.4)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), tree(one), other)


def test_guided_sampling_is_compiled_once_and_takes_each_measurement_apart():
    process, traces = VP(), []
    den, plan = mixture(process), samplers.DDIM().plan(process, times.log_snr(process, 5))
    x_T = process.prior(KEY, (4, 2))

    @jax.jit
    def run(operator, y, noise_std, x_T):
        traces.append(1)
        return samplers.sample(KEY, inverse.pigdm(den, process, operator, y, noise_std), plan, x_T)

    mask = inverse.Mask(jnp.array([[True, False]]))
    y = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    first = run(mask, y, 0.1, x_T)
    assert not np.allclose(first, run(inverse.Mask(jnp.array([[False, True]])), 2 * y, 0.2, x_T))
    assert len(traces) == 1
    each = jax.vmap(lambda y: run(mask, y[None], 0.1, x_T[:1]))(y)
    np.testing.assert_allclose(each[0, 0], first[0], rtol=1e-5, atol=1e-6)


def test_what_a_mask_does_not_keep_is_never_used():
    process = VP()
    den, mask = mixture(process), inverse.Mask(np.array([[True, False]]))
    x_t = jnp.ones((3, 2))
    with jax.debug_nans(False):
        for options in ({"noise_std": 0.3}, {"step_size": 1.0}):
            of = lambda y: inverse.dps(den, process, mask, jnp.array([y]), **options)(x_t, 0.3)
            np.testing.assert_array_equal(of([0.5, np.nan]), of([0.5, 7.0]))
        of = lambda y: inverse.pigdm(den, process, mask, jnp.array([y]))(x_t, 0.3)
        np.testing.assert_array_equal(of([0.5, np.nan]), of([0.5, 7.0]))


# --- inpainting ---

MIXTURE = gmm.GMM(
    jnp.array([0.3, 0.4, 0.3]),
    jnp.array([[-0.9, 0.6, 0.2], [0.6, 0.5, -0.6], [0.1, -0.7, 0.5]]),
    jnp.full((3, 1), 0.12),
)
KNOWN = 0.9
MASK = np.array([[True, False, False]])


def inpainted(resample, steps, n, *, jump=1):
    """The two other coordinates, given that the first is `KNOWN`."""
    process = VP()
    den, plan = oracle.mixture(MIXTURE, process), samplers.DDPM().plan(process, times.log_snr(process, steps))
    x_0 = jnp.array([[KNOWN, 0.0, 0.0]])
    method = functools.partial(inverse.repaint, KEY, den, process, plan, resample=resample, jump=jump)
    run = jax.jit(lambda x_T: method(x_T, x_0, MASK))
    x = np.asarray(run(process.prior(jax.random.key(1), (n, 3))), np.float64)
    np.testing.assert_array_equal(x[:, 0], np.float32(KNOWN))
    return x[:, 1:]


def conditional(n):
    given = gmm.conditional(MIXTURE, [0], jnp.array([KNOWN]))
    return np.asarray(gmm.sample(jax.random.key(2), given, n)[0], np.float64)


@pytest.mark.slow  # 34 times the evaluations; in CI: its moments and its schedule, below
def test_repaint_is_the_nearer_to_the_exact_conditional_the_more_it_resamples(optimized):
    """Energy distances, of which 1,000 exact samples have about 0.001."""
    exact = conditional(20_000)
    replaced, few, many = (energy_distance(inpainted(r, 40, 1000), exact) for r in (1, 3, 30))
    assert replaced > 0.1
    assert replaced > 2 * few > 8 * many
    assert many < 0.004


@pytest.mark.slow
def test_repaint_is_exact_in_the_limit_of_repetitions_and_steps_and_replacement_is_not():
    """Each repetition repeats the bias of the solver's steps, too: with few steps many of them make it worse again."""
    exact = conditional(40_000)
    distance = lambda *args, **options: energy_distance(inpainted(*args, 4000, **options), exact)
    assert distance(100, 100) < 0.0008  # 4,000 exact samples have 0.0001 to 0.0005
    assert distance(1, 320) > 0.1
    assert distance(400, 40) > 2 * distance(40, 40)
    assert distance(10, 80, jump=8) < distance(1, 80) / 4


def test_replacement_is_repaint_without_resampling_and_ends_at_the_known_pixels():
    process, n = VP(), 4
    plan = samplers.DDIM(0.5).plan(process, times.log_snr(process, 6))
    x_T = process.prior(KEY, (n, 4, 4, 1))
    x_0 = jnp.asarray(RNG.normal(size=x_T.shape), jnp.float32)
    mask = RNG.random((1, 4, 4, 1)) < 0.5
    args = (KEY, oracle.gaussian(normal.Normal(jnp.float32(0), jnp.float32(1)), process), process, plan, x_T)
    x = inverse.replacement(*args, x_0, mask)
    np.testing.assert_array_equal(x, inverse.repaint(*args, x_0, mask, resample=1))
    np.testing.assert_array_equal(jnp.where(mask, x, x_0), x_0)
    assert (np.abs(x - x_0) > 1e-3)[:, ~mask[0]].all()
    with jax.debug_nans(False):
        unknown = jnp.where(mask, x_0, jnp.nan)
        np.testing.assert_array_equal(inverse.replacement(*args, unknown, mask), x)
    nothing, tree = np.zeros((1, 4, 4, 1), bool), lambda x: {"a": x}
    free = inverse.replacement(*args, x_0, nothing)
    assert np.isfinite(free).all()
    of_tree = lambda x, t: tree(args[1](x["a"], t))
    whole = inverse.replacement(KEY, of_tree, process, plan, tree(x_T), tree(x_0), tree(~nothing))
    np.testing.assert_array_equal(whole["a"], x_0)


@pytest.mark.slow  # in CI: its schedule and its law with DDPM, below
@pytest.mark.parametrize(
    "solver",
    [
        samplers.EulerAncestral(),
        pytest.param(samplers.PredictorCorrector(samplers.DDPM(), snr=0.05), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_repaint_takes_every_plan_that_remembers_nothing(solver):
    """Of independent coordinates the known one changes nothing: the other has its own law, whatever the solver."""
    process, n = VP(), 2000
    den = oracle.gaussian(normal.Normal(jnp.float32(0.5), jnp.float32(1.0)), process)
    plan = solver.plan(process, times.log_snr(process, 30))
    run = jax.jit(lambda x: inverse.repaint(KEY, den, process, plan, x, jnp.full((1, 2), 3.0), MASK[:, :2]))
    x = np.asarray(run(process.prior(jax.random.key(1), (n, 2))))
    np.testing.assert_array_equal(x[:, 0], 3.0)
    assert abs(x[:, 1].mean() - 0.5) < 0.05 + 5 / n**0.5
    assert abs(x[:, 1].std() - 1) < 0.1 + 5 / (2 * n) ** 0.5


@pytest.mark.parametrize(("n", "resample", "jump"), [(7, 3, 1), (10, 2, 3), (5, 4, 5), (1, 3, 1), (9, 1, 2)])
def test_repaint_asks_at_the_times_of_the_authors_schedule(n, resample, jump):
    """Their walk (`get_schedule_jump`): down by one, and at every `jump`-th time `resample - 1` times up by `jump`."""
    jumps = {t: resample - 1 for t in range(0, n - jump, jump)}
    t, expected = n, []
    while t >= 1:
        t -= 1
        expected.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            expected.pop()
            t += jump + 1
    expected = [n - 1 - t for t in expected]  # rows of the plan
    process, asked = VP(), []
    plan = samplers.DDPM().plan(process, times.log_snr(process, n, final="denoise" if n > 1 else "stop"))

    def denoise(x, t):
        jax.debug.callback(lambda t: asked.append(float(t)), t, ordered=True)
        return x

    x = jnp.ones((1, 2))
    out = inverse.repaint(KEY, denoise, process, plan, x, x, MASK[:, :2], resample=resample, jump=jump)
    jax.block_until_ready(out)
    jax.effects_barrier()
    np.testing.assert_allclose(asked, np.asarray(plan.t)[expected])
    assert len(asked) == n + (resample - 1) * jump * ((n - 1) // jump)


@pytest.mark.parametrize("process", [VP(), FlowMatching(), EDM()], ids=repr)
def test_jumps_back_have_the_law_of_the_forward_process(process):
    """A denoiser that knows the one data point: at every time, jumped to or not, the state is `alpha x_0 + sigma eps`."""
    point = jnp.array([[0.7, -0.4]])
    plan = samplers.DDPM().plan(process, times.cosine(process, 6, final="denoise"))
    seen = []

    def denoise(x, t):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(x), float(t))), x, t, ordered=True)
        return jnp.broadcast_to(point, x.shape)

    n, none = 4000, np.array([[False, False]])
    x_T = process.perturb(jnp.tile(point, (n, 1)), plan.t[0], jax.random.normal(KEY, (n, 2)))
    jax.block_until_ready(inverse.repaint(KEY, denoise, process, plan, x_T, point, none, resample=2, jump=2))
    jax.effects_barrier()
    assert len(seen) == 6 + 4
    for x, t in seen:
        z = (x - process.alpha(t) * np.asarray(point)) / process.sigma(t)
        assert np.abs(z.mean(0)).max() < 5 / n**0.5
        assert np.abs(z.var(0) - 1).max() < 5 * (2 / n) ** 0.5


def test_repaint_of_a_sample_depends_on_its_number_alone_and_is_compiled_once():
    process, traces = VP(), []
    den, plan = mixture(process), samplers.DDPM().plan(process, times.log_snr(process, 4))

    @jax.jit
    def run(x_T, x_0, mask, index):
        traces.append(1)
        return inverse.repaint(KEY, den, process, plan, x_T, x_0, mask, resample=2, index=index)

    x_T = process.prior(jax.random.key(1), (6, 2))
    x_0 = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)
    mask = jnp.array([[True, False]] * 6)
    whole = run(x_T, x_0, mask, jnp.arange(6))
    np.testing.assert_array_equal(run(x_T, 2 * x_0, ~mask, jnp.arange(6))[:, 1], 2 * x_0[:, 1])
    assert len(traces) == 1
    part = run(x_T[4:], x_0[4:], mask[4:], jnp.arange(4, 6))
    np.testing.assert_allclose(part, whole[4:], rtol=1e-5, atol=1e-6)


# --- bad input ---


def uses(operator, shape):
    return lambda: operator.forward(jnp.ones(shape))


def guides(method, *args, y=(2, 3), **options):
    process = VP()
    identity = lambda x, t: x
    return lambda: method(identity, process, inverse.Matrix(np.eye(3)), jnp.ones(y), *args, **options)(
        jnp.ones((2, 3)), 0.5
    )


def paints(*, solver=None, grid=(0.9, 0.5, 0.1), x_0=(2, 3), mask=None, of=None, **options):
    process = VP()
    plan = (solver or samplers.DDPM()).plan(of or process, np.array(grid))
    mask = np.ones((1, 3), bool) if mask is None else mask
    x_0 = jnp.ones(x_0) if isinstance(x_0, tuple) else x_0
    return lambda: inverse.repaint(KEY, lambda x, t: x, process, plan, jnp.ones((2, 3)), x_0, mask, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (uses(inverse.Mask(np.ones((1, 3))), (2, 3)), "must be bool.*got float.*mask > 0.5"),
        (uses(inverse.Mask(np.ones(3, bool)), (2, 3)), r"shape of the data, \(2, 3\).*got \(3,\)"),
        (
            uses(inverse.Mask(np.ones((1, 4), bool)), (2, 3)),
            r"such as \(1, 3\) for one mask for all.*got \(1, 4\)",
        ),
        (uses(inverse.Downsample(3), (1, 6, 8, 1)), "factor must divide.*got factor 3 and images of 6 x 8"),
        (lambda: inverse.Downsample(0), "factor must be.*at least 1, got 0"),
        (uses(inverse.Grayscale(), (1, 4, 4, 1)), "3 channels.*one weight per channel"),
        (lambda: inverse.Grayscale((0.0, 0.0)), "must not all be 0"),
        (uses(inverse.Matrix(np.ones((2, 3))), (1, 4)), r"rows of 3 numbers.*got \(1, 4\)"),
        (guides(inverse.dps, 0.1, y=(2, 4)), r"y must have the shape.*\(2, 3\).*got \(2, 4\)"),
        (guides(inverse.pigdm, 0.1, y=(3,)), r"y must have the shape.*\(2, 3\).*got \(3,\)"),
        (guides(inverse.pigdm, -0.1), "noise_std must be at least 0, got -0.1"),
        (guides(inverse.pigdm, np.array([0.1, 0.2])), "noise_std must be one number"),
        (guides(inverse.pigdm, data_var=0.0), "data_var must be positive, got 0.0"),
        (guides(inverse.dps, 0.0), "noise_std must be positive, got 0.0.*pigdm, or a step_size"),
        (guides(inverse.dps, step_size=-1.0), "step_size must be at least 0"),
        (guides(inverse.dps), "one of noise_std and step_size, got None and None"),
        (guides(inverse.dps, 0.1, step_size=1.0), "one of noise_std and step_size, got 0.1 and 1.0"),
        (
            paints(solver=samplers.DPMSolverPP(order=2)),
            r"one-step solver, such as DDPM\(\).*uses 2 evaluations",
        ),
        (paints(solver=samplers.Heun()), "one-step solver"),
        (paints(solver=samplers.DDIM(), grid=(0.1, 0.5, 0.9)), "from noise to data.*do not reverse"),
        (
            paints(of=EDM(), grid=(40.0, 0.5, 0.0)),
            r"made for this process, with times in \[0.001, 1\]; got 40",
        ),
        (paints(resample=0), "resample must be at least 1"),
        (paints(jump=3), r"jump must be in \[1, 2\], the steps of the plan; got 3"),
        (paints(mask=np.ones((1, 3))), "must be bool"),
        (paints(mask=np.ones((2, 4), bool)), r"shape of the data, \(2, 3\).*got \(2, 4\)"),
        (paints(mask={"a": np.ones((1, 3), bool)}), "mask must be a pytree like x_T"),
        (paints(x_0=(2, 4)), r"x_0 must be floating-point data of the shape of x_T, \(2, 3\).*\(2, 4\)"),
        (paints(x_0=np.ones((2, 3), np.uint8)), "x_0 must be floating-point.*uint8.*127.5"),
    ],
)
def test_bad_input_is_refused_with_advice(call, message):
    with pytest.raises(ValueError, match=message):
        call()
