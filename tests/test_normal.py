from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from gen_jax import normal
from gen_jax.normal import MultivariateNormal, Normal

KEY = jax.random.key(0)
BOOK = Path(__file__).resolve().parents[2] / "shared" / "data" / "book"
book = pytest.mark.skipif(not BOOK.exists(), reason="the book's files are not here")


def random_mvn(dims, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(dims, dims))
    return MultivariateNormal(
        jnp.asarray(rng.normal(size=dims), dtype), jnp.asarray(a @ a.T / dims + np.eye(dims) / 4, dtype)
    )


P, Q = Normal(jnp.asarray(1.5), jnp.asarray(0.7)), Normal(jnp.asarray(-0.3), jnp.asarray(2.0))
X = np.linspace(-5, 6, 50).astype(np.float32)


def as_scipy(params):
    if isinstance(params, Normal):
        return scipy.stats.norm(float(params.mean), float(params.std))
    return scipy.stats.multivariate_normal(np.float64(params.mean), np.float64(params.cov))


def test_log_prob_and_entropy_equal_scipy():
    np.testing.assert_allclose(normal.log_prob(P, X), as_scipy(P).logpdf(X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(normal.entropy(P), as_scipy(P).entropy(), rtol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 5, 20])
def test_log_prob_and_entropy_in_many_dimensions_equal_scipy(dims):
    params = random_mvn(dims)
    x = np.random.default_rng(1).normal(size=(3, 7, dims)).astype(np.float32) * 2
    np.testing.assert_allclose(
        normal.log_prob(params, x), as_scipy(params).logpdf(x).reshape(3, 7), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(normal.entropy(params), as_scipy(params).entropy(), rtol=1e-5)


def test_cdf_and_interval_equal_scipy_in_both_tails():
    np.testing.assert_allclose(normal.cdf(P, X), as_scipy(P).cdf(X), rtol=2e-5)
    np.testing.assert_allclose(normal.log_cdf(P, X - 20), as_scipy(P).logcdf(X - 20), rtol=1e-4)
    low, high = np.array([-1.0, 5.0, -np.inf, 6.0, -4.0]), np.array([2.0, 5.5, 0.0, np.inf, -3.5])
    exact = scipy.stats.norm(0, 1)
    standard = Normal(jnp.zeros(()), jnp.ones(()))
    expected = np.where(low > 0, exact.sf(low) - exact.sf(high), exact.cdf(high) - exact.cdf(low))
    np.testing.assert_allclose(normal.interval(standard, low, high), expected, rtol=1e-4)


def test_cdf_of_many_dimensions_says_what_to_do():
    with pytest.raises(ValueError, match="marginal"):
        normal.cdf(random_mvn(2), jnp.zeros(2))


def test_kl_equals_its_integral():
    x = np.linspace(-15, 15, 200_001)
    p, q = as_scipy(P), as_scipy(Q)
    expected = np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    np.testing.assert_allclose(normal.kl(P, Q), expected, rtol=1e-5)


def test_kl_in_many_dimensions_equals_numpy_and_is_zero_for_equals():
    p, q = random_mvn(6, 1), random_mvn(6, 2)
    (mp, cp), (mq, cq) = (tuple(map(np.float64, params)) for params in (p, q))
    inverse = np.linalg.inv(cq)
    expected = (
        np.trace(inverse @ cp)
        + (mq - mp) @ inverse @ (mq - mp)
        - 6
        + np.linalg.slogdet(cq)[1]
        - np.linalg.slogdet(cp)[1]
    ) / 2
    np.testing.assert_allclose(normal.kl(p, q), expected, rtol=1e-4)
    np.testing.assert_allclose(normal.kl(p, p), 0, atol=1e-5)
    with pytest.raises(ValueError, match="two of a kind"):
        normal.kl(P, q)


def test_sample_has_the_moments_and_does_not_depend_on_how_many():
    params = random_mvn(3)
    x = normal.sample(KEY, params, 200_000)
    np.testing.assert_allclose(x.mean(0), params.mean, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), params.cov, atol=0.03)
    np.testing.assert_allclose(normal.sample(KEY, params, 7), x[:7], rtol=1e-5, atol=1e-6)
    y = np.asarray(normal.sample(KEY, P, 20_000))
    assert scipy.stats.kstest(y, as_scipy(P).cdf).pvalue > 1e-3


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_fit_equals_numpy(unbiased, weighted, offset):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + offset).astype(np.float32)
    w = rng.uniform(0, 3, 500).astype(np.float32) if weighted else None
    weights = {} if w is None else {"aweights": np.float64(w)}
    params = normal.fit(x, weights=w, unbiased=unbiased)
    np.testing.assert_allclose(
        params.mean, np.average(np.float64(x), axis=0, weights=w), rtol=3e-7, atol=1e-5
    )
    np.testing.assert_allclose(
        params.cov, np.cov(np.float64(x).T, ddof=int(unbiased), **weights), rtol=1e-4, atol=1e-5
    )
    one = normal.fit(x[:, 0], weights=w, unbiased=unbiased)
    np.testing.assert_allclose(np.square(one.std), params.cov[0, 0], rtol=1e-5)
    np.testing.assert_allclose(one.mean, params.mean[0], rtol=1e-6)


def test_fit_with_whole_weights_is_fit_of_repeated_rows():
    x = np.random.default_rng(0).normal(size=(30, 2))
    w = np.random.default_rng(1).integers(0, 4, 30)
    a, b = normal.fit(x, weights=w), normal.fit(np.repeat(x, w, axis=0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), a, b)


def test_fit_is_where_the_gradient_of_the_likelihood_vanishes():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(200, 3)) @ np.diag([1.0, 2.0, 0.5]), jnp.float32)
    for data in (x, x[:, 0]):
        free = normal.unconstrain(normal.fit(data))
        gradient = jax.grad(lambda free, data=data: normal.log_prob(normal.constrain(free), data).mean())(
            free
        )
        for leaf in jax.tree.leaves(gradient):
            np.testing.assert_allclose(jnp.tril(leaf) if leaf.ndim == 2 else leaf, 0, atol=1e-5)


@pytest.mark.parametrize("params", [P, random_mvn(4)], ids=["one", "many"])
def test_constrain_is_the_inverse_of_unconstrain(params):
    again = normal.constrain(normal.unconstrain(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), again, params)


def test_score_is_the_gradient_of_log_prob():
    params = random_mvn(3)
    x = jnp.array([0.3, -1.0, 2.0])
    expected = -np.linalg.solve(np.float64(params.cov), np.float64(x - params.mean))
    np.testing.assert_allclose(jax.grad(lambda x: normal.log_prob(params, x))(x), expected, rtol=1e-4)
    with jax.enable_x64(True):
        for params in (random_mvn(3, dtype=jnp.float64), Normal(jnp.asarray(1.5), jnp.asarray(0.7))):
            check_grads(jax.jit(normal.log_prob), (params, jnp.array([0.3, -1.0, 2.0])), order=2)


def test_conditional_times_marginal_is_the_joint():
    params = random_mvn(5)
    x = jnp.asarray(np.random.default_rng(3).normal(size=5), jnp.float32)
    given = normal.conditional(params, (3, 0), x[jnp.array([3, 0])])
    joint = normal.log_prob(normal.marginal(params, (3, 0)), x[jnp.array([3, 0])]) + normal.log_prob(
        given, x[jnp.array([1, 2, 4])]
    )
    np.testing.assert_allclose(joint, normal.log_prob(params, x), rtol=1e-4)
    one = normal.marginal(params, 2)
    np.testing.assert_allclose([one.mean, one.std], [params.mean[2], np.sqrt(params.cov[2, 2])], rtol=1e-6)


def test_affine_moves_samples_as_it_moves_the_distribution():
    params, matrix = random_mvn(3), jnp.asarray(np.random.default_rng(5).normal(size=(2, 3)), jnp.float32)
    moved = normal.affine(params, matrix, jnp.array([1.0, -2.0]))
    x = normal.sample(KEY, params, 1000) @ matrix.T + jnp.array([[1.0, -2.0]])
    exact = np.float64(matrix) @ np.float64(params.cov) @ np.float64(matrix).T
    np.testing.assert_allclose(moved.cov, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x.mean(0), moved.mean, atol=0.2)
    half = normal.affine(params, 0.5)
    np.testing.assert_allclose(half.cov, params.cov / 4, rtol=1e-6)
    np.testing.assert_allclose(normal.affine(P, -2.0, 1.0), [1 - 2 * 1.5, 1.4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\[E, 3\]"):
        normal.affine(params, jnp.ones((3, 2)))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.ones((2, 2, 2)), {}, r"\[N\] or \[N, D\]"),
        (np.zeros((0, 2)), {}, "at least one row"),
        (np.array([1.0, np.nan, 2.0, np.inf]), {}, r"2 of 4 rows: 1, 3"),
        (np.array([[1.0, 2.0], [np.nan, 0.0], [3.0, 1.0]]), {}, r"1 of 3 rows: 1\."),
        (np.full(5, 3.0), {}, "constant over 5 rows"),
        (np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]), {}, r"columns \[1\] of x are constant"),
        (np.random.default_rng(0).normal(size=(3, 5)), {}, "singular"),
        (np.arange(12.0).reshape(6, 2), {}, "singular"),
        (np.arange(4.0), {"weights": np.ones(3)}, "one weight for each of 4"),
        (np.arange(4.0), {"weights": np.zeros(4)}, "at least one must be positive.* got 4 of them, all 0"),
        (np.arange(4.0), {"weights": np.array([1, -1, 1, 1])}, "not be negative, got -1 in 1 of 4 rows: 1"),
        (np.array([1e-30, 2e-30]), {}, "x spans 1e-30, .*variance would be 0. Scale x"),
        (np.float32([1e-30, 2e-30]), {}, "x spans 1e-30, .*variance would be 0. Scale x"),
        (np.array([1e-60, 2e-60]), {}, "x spans 1e-60, .*variance would be 0. Scale x"),
        (np.array([[0, 1e-30], [1, 2e-30], [2, 9e-30]]), {}, "column 1 of x spans 8e-30"),
        (np.array([1e39, 2e39]), {}, r"x spans 1e\+39, .*variance would be infinite. Scale x"),
        (np.float32([1e30, 2e30, 3e30]), {}, r"x spans 2e\+30, .*variance would be infinite"),
        (np.array([-1e308, 1e308]), {}, "x spans inf, .*variance would be infinite"),
        (np.float32(np.random.default_rng(0).normal(size=(64, 3)) * 1e25), {}, "column 0 of x .*infinite"),
    ],
)
def test_fit_refuses(x, options, message):
    with pytest.raises(ValueError, match=message):
        normal.fit(x, **options)


def test_regularization_gives_degenerate_data_a_density():
    x = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    params = normal.fit(x, regularization=0.1)
    np.testing.assert_allclose(params.cov, [[2 / 3 + 0.1, 0], [0, 0.1]], atol=1e-6)
    assert np.isfinite(normal.log_prob(params, x)).all()


def test_fit_and_log_prob_under_jit_and_vmap():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50, 2)), jnp.float32)
    many = jax.jit(jax.vmap(normal.fit))(x)
    one = normal.fit(x[2])
    np.testing.assert_allclose(many.cov[2], one.cov, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(normal.log_prob)(many, x)[2], normal.log_prob(one, x[2]), rtol=1e-5)


@book
def test_fit_of_the_books_heights():
    x = np.loadtxt(BOOK / "height.txt")
    with jax.enable_x64(True):
        params = normal.fit(x)
        np.testing.assert_allclose([params.mean, params.std], [172.7025085, 4.8301675], rtol=0, atol=6e-8)
        np.testing.assert_allclose(normal.log_prob(params, x).mean(), -2.9938197, atol=6e-8)
        np.testing.assert_allclose(normal.cdf(params, 160.0), 0.0042714, atol=6e-8)
        np.testing.assert_allclose(normal.interval(params, 180.0, np.inf), 0.0654177, atol=6e-8)


@book
def test_fit_of_the_books_heights_and_weights():
    x = np.loadtxt(BOOK / "height_weight.txt")
    with jax.enable_x64(True):
        params = normal.fit(x)
        np.testing.assert_allclose(params.mean, [172.7025085, 57.6422088], rtol=0, atol=6e-8)
        cov = [[23.3305178, 12.8468509], [12.8468509, 27.9754680]]
        np.testing.assert_allclose(params.cov, cov, rtol=0, atol=6e-8)
        np.testing.assert_allclose(normal.log_prob(params, x).mean(), -5.9326664, atol=6e-8)


def test_sample_takes_numbers_of_python():
    key = jax.random.key(0)
    drawn = normal.sample(key, normal.Normal(2.0, 0.5), 5)
    np.testing.assert_array_equal(drawn, normal.sample(key, normal.Normal(jnp.array(2.0), jnp.array(0.5)), 5))


@pytest.mark.parametrize("shape", [(5, 1), (), (3,), (4, 3), (2, 1)])
def test_log_prob_of_vectors_stretches_none(shape):
    params = normal.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    for call in (normal.log_prob, jax.jit(normal.log_prob)):
        with pytest.raises(ValueError, match=r"x must be vectors \[..., 2\], as params.mean is"):
            call(params, np.zeros(shape))


@pytest.mark.parametrize("index", [7, 3, -4, np.int64(3)])
def test_marginal_of_a_variable_that_is_not_there(index):
    params = normal.MultivariateNormal(jnp.arange(3.0), jnp.diag(jnp.arange(1.0, 4.0)))
    with pytest.raises(ValueError, match="dims must be different indices of 3 variables"):
        normal.marginal(params, index)
    np.testing.assert_allclose(normal.marginal(params, np.int64(-1)), [2.0, 3**0.5], rtol=1e-6)


def test_indices_are_no_mask():
    params = normal.MultivariateNormal(jnp.arange(3.0), jnp.diag(jnp.arange(1.0, 4.0)))
    with pytest.raises(ValueError, match=r"got a mask of 3 variables: take np.flatnonzero\(mask\)"):
        normal.conditional(params, np.array([False, True, False]), [0.0])


def test_interval_begins_before_it_ends():
    params = normal.Normal(0.0, 1.0)
    with pytest.raises(ValueError, match="low must be at most high, got 1 and 0"):
        normal.interval(params, [0.0, 1.0], [1.0, 0.0])
    assert normal.interval(params, 1.0, 1.0) == 0
