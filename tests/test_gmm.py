import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

from gen_jax import gmm, normal
from tests.marks import slow

KEY = jax.random.key(0)
each_structure = pytest.mark.parametrize("structure", gmm.COVARIANCES)


def random_gmm(structure="full", components=3, dims=2, seed=0, spread=3.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(components, dims, dims))
    matrices = a @ a.swapaxes(1, 2) / dims + np.eye(dims) / 4
    covs = {
        "full": matrices,
        "tied": matrices[:1],
        "diagonal": rng.uniform(0.3, 2, (components, dims)),
        "spherical": rng.uniform(0.3, 2, (components, 1)),
    }[structure]
    weights = rng.dirichlet(np.full(components, 3.0))
    means = spread * rng.normal(size=(components, dims))
    return gmm.GMM(*(jnp.asarray(array, jnp.float32) for array in (weights, means, covs)))


def matrices(params):
    """The covariances as matrices [K, D, D], float64."""
    components, dims = params.means.shape
    covs = np.float64(params.covs)
    if covs.ndim == 3:
        return np.broadcast_to(covs, (components, dims, dims))
    return np.stack([np.diag(np.broadcast_to(c, dims)) for c in covs])


def scipy_log_joint(params, x):
    each = [
        scipy.stats.multivariate_normal(mean, cov).logpdf(x) + np.log(weight)
        for weight, mean, cov in zip(*map(np.float64, params[:2]), matrices(params), strict=True)
    ]
    return np.stack(each, axis=-1)


@each_structure
@pytest.mark.parametrize("far", [1e12, 1e20, 1e30])
def test_responsibilities_far_out_are_those_of_float64(structure, far):
    """Where all densities are 0; the components differ in their covariance, or else in nothing that has digits there."""
    params = random_gmm(structure)
    x = np.float32(far) * np.float32([[1, 0], [0, -1], [1, 1], [-1, 2]])
    joint = scipy_log_joint(params, np.float64(x))
    expected = scipy.special.softmax(joint, axis=1)
    if structure == "tied":
        expected = np.broadcast_to(params.weights, expected.shape)
    shares = gmm.responsibilities(params, x)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


@each_structure
def test_conditional_far_out_is_a_mixture(structure):
    params, x = random_gmm(structure, dims=3), np.float32([1e30, -2e30])
    found = gmm.conditional(params, [0, 2], x)
    weights = gmm.responsibilities(gmm.marginal(params, [0, 2]), x[None])[0]
    np.testing.assert_array_equal(found.weights, weights)
    assert np.isfinite(found.means).all()
    with pytest.raises(ValueError, match=r"dims must leave one of 3 variables free, got \[0, 1, 2\]"):
        gmm.conditional(params, [0, 1, 2], np.zeros(3))


def test_far_out_a_component_without_weight_has_no_share():
    params = random_gmm("spherical")._replace(
        weights=jnp.float32([0.0, 0.5, 0.5]), covs=jnp.float32([[9.0], [1.0], [4.0]])
    )
    np.testing.assert_array_equal(gmm.responsibilities(params, np.float32([[1e30, 1e30]])), [[0, 0, 1]])


@each_structure
@pytest.mark.parametrize("dims", [2, 5])
def test_log_prob_and_responsibilities_equal_scipy(structure, dims):
    params = random_gmm(structure, dims=dims)
    x = np.random.default_rng(1).normal(size=(20, dims)).astype(np.float32) * 3
    joint = scipy_log_joint(params, np.float64(x))
    np.testing.assert_allclose(
        gmm.log_prob(params, x), scipy.special.logsumexp(joint, axis=1), rtol=1e-4, atol=1e-4
    )
    shares = gmm.responsibilities(params, x)
    np.testing.assert_allclose(shares, scipy.special.softmax(joint, axis=1), atol=1e-4)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
    assert gmm.structure(params) == structure


def test_log_prob_keeps_its_digits_far_from_the_origin():
    params = random_gmm("full", dims=3)
    x = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    offset = jnp.full(
        (1, 3), 8192.0
    )  # a power of two: adding it to these numbers rounds them, and both alike
    moved = params._replace(means=params.means + offset)
    back = params._replace(means=moved.means - offset)
    np.testing.assert_allclose(
        gmm.log_prob(moved, x + offset), gmm.log_prob(back, (x + offset) - offset), rtol=2e-5, atol=1e-3
    )


@each_structure
def test_sample_has_the_moments(structure):
    params = random_gmm(structure)
    x, z = gmm.sample(KEY, params, 100_000)
    shares = np.bincount(z, minlength=3) / len(z)
    np.testing.assert_allclose(shares, params.weights, atol=0.01)
    for k, cov in enumerate(matrices(params)):
        rows = np.asarray(x)[np.asarray(z) == k]
        np.testing.assert_allclose(rows.mean(0), params.means[k], atol=0.06)
        np.testing.assert_allclose(np.cov(rows.T), cov, atol=0.1)
    few, _ = gmm.sample(KEY, params, 5)
    np.testing.assert_allclose(few, x[:5], rtol=1e-5)


@each_structure
def test_diffuse_is_the_mixture_with_noise_added(structure):
    params, alpha, sigma = random_gmm(structure), 0.6, 0.8
    noised = gmm.diffuse(params, alpha, sigma)
    assert gmm.structure(noised) == structure
    np.testing.assert_allclose(
        matrices(noised), alpha**2 * matrices(params) + sigma**2 * np.eye(2), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(noised.means, alpha * params.means, rtol=1e-6)


@each_structure
def test_conditional_times_marginal_is_the_joint(structure):
    params = random_gmm(structure, dims=4)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4)), jnp.float32)
    given = gmm.conditional(params, (2, 0), x[0, jnp.array([2, 0])])
    joint = gmm.log_prob(gmm.marginal(params, (2, 0)), x[:, jnp.array([2, 0])]) + gmm.log_prob(
        given, x[:, jnp.array([1, 3])]
    )
    np.testing.assert_allclose(joint, gmm.log_prob(params, x), rtol=1e-4)


def test_one_component_is_the_normal():
    one = random_gmm("full", components=1, dims=3)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(9, 3)), jnp.float32)
    same = normal.MultivariateNormal(one.means[0], one.covs[0])
    np.testing.assert_allclose(gmm.log_prob(one, x), normal.log_prob(same, x), rtol=1e-5)


@each_structure
def test_criteria_and_parameters_equal_scikit_learn(structure):
    mixture = pytest.importorskip("sklearn.mixture")
    params = random_gmm(structure)
    x = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32) * 3
    name = {"diagonal": "diag"}.get(structure, structure)
    same = mixture.GaussianMixture(3, covariance_type=name)
    same.weights_, same.means_, same.covariances_ = map(np.float64, params)
    if structure in ("tied", "spherical"):
        same.covariances_ = same.covariances_[0] if structure == "tied" else same.covariances_[:, 0]
    same.precisions_cholesky_ = mixture._gaussian_mixture._compute_precision_cholesky(same.covariances_, name)
    np.testing.assert_allclose(gmm.bic(params, x), same.bic(np.float64(x)), rtol=1e-5)
    np.testing.assert_allclose(gmm.aic(params, x), same.aic(np.float64(x)), rtol=1e-5)
    np.testing.assert_allclose(
        gmm.log_prob(params, x), same.score_samples(np.float64(x)), rtol=1e-4, atol=1e-4
    )


@each_structure
def test_constrain_is_the_inverse_of_unconstrain(structure):
    params = random_gmm(structure)
    again = gmm.constrain(gmm.unconstrain(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, params)


@pytest.mark.parametrize("structure", slow(gmm.COVARIANCES, but=("full", "tied")))
def test_log_prob_has_the_right_derivatives(structure):
    free = gmm.unconstrain(random_gmm(structure))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)), jnp.float32)
    check_grads(
        jax.jit(lambda free, x: gmm.log_prob(gmm.constrain(free), x).mean()),
        (free, x),
        order=2 if structure == "full" else 1,
        rtol=0.03,
        atol=0.03,
    )


def test_aic_and_bic_need_a_row():
    for criterion in (gmm.aic, gmm.bic):
        with pytest.raises(ValueError, match="x must have at least one row"):
            criterion(random_gmm(), np.zeros((0, 2)))


def test_diffuse_is_to_one_time():
    for pair in ((jnp.ones(3), 0.5), (0.5, jnp.ones(3))):
        with pytest.raises(ValueError, match=r"(alpha|sigma) must be a number, got an array float32 \(3,\)"):
            gmm.diffuse(random_gmm(), *pair)
