"""The Fréchet distance against closed forms and scipy's matrix root; principal axes against scikit-learn's."""

import functools

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import sklearn.decomposition

from gen_jax import metrics
from gen_jax.metrics import Moments


def drawn(seed, dims=6, scale=1.0):
    """Moments of a random normal of full rank."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dims, dims))
    return Moments(scale * rng.normal(size=dims), scale**2 * factor @ factor.T)


def rotation(seed, dims=6):
    return scipy.stats.ortho_group(dims, seed=seed).rvs()


def by_matrix_root(a, b):
    """Heusel et al. 2017, Eq. 6, as it is written."""
    root = scipy.linalg.sqrtm(a.cov @ b.cov).real
    return np.square(a.mean - b.mean).sum() + np.trace(a.cov + b.cov - 2 * root)


def of_diagonals(a, b):
    """Two normals with common axes: their deviations differ along each."""
    return np.square(np.sqrt(a) - np.sqrt(b)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_frechet_distance_is_that_of_the_matrix_root(seed):
    a, b = drawn(seed), drawn(seed + 100, scale=3.0)
    np.testing.assert_allclose(metrics.frechet_distance(a, b), by_matrix_root(a, b), rtol=1e-9)


def test_frechet_distance_to_itself_is_zero():
    a = drawn(0, dims=50)
    assert 0 <= metrics.frechet_distance(a, a) < 1e-24 * np.trace(a.cov)


def test_frechet_distance_in_one_dimension_is_that_of_means_and_deviations():
    a, b = Moments(np.array([1.0]), np.array([[4.0]])), Moments(np.array([-2.0]), np.array([[0.25]]))
    np.testing.assert_allclose(metrics.frechet_distance(a, b), 3.0**2 + 1.5**2, rtol=1e-14)


@pytest.mark.parametrize("turned", [False, True])
def test_frechet_distance_of_commuting_covariances_is_that_of_their_deviations(turned):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 6))
    axes = rotation(1) if turned else np.eye(6)
    covs = [axes * values @ axes.T for values in (a, b)]
    distance = metrics.frechet_distance(*(Moments(np.zeros(6), cov) for cov in covs))
    np.testing.assert_allclose(distance, of_diagonals(a, b), rtol=1e-12)


def test_frechet_distance_holds_its_digits_between_close_normals():
    a = np.linspace(1, 2, 6)
    b, axes = a * (1 + 1e-8), rotation(2)
    covs = [axes * values @ axes.T for values in (a, b)]
    distance = metrics.frechet_distance(*(Moments(np.zeros(6), cov) for cov in covs))
    np.testing.assert_allclose(
        distance, of_diagonals(a, b), rtol=1e-5
    )  # tr(...) itself has no digit of 1e-16


def test_frechet_distance_takes_covariances_without_full_rank():
    a, point = drawn(3), Moments(np.ones(6), np.zeros((6, 6)))
    expected = np.square(a.mean - 1).sum() + np.trace(a.cov)
    np.testing.assert_allclose(metrics.frechet_distance(a, point), expected, rtol=1e-12)
    x, y = np.zeros((6, 6)), np.zeros((6, 6))
    x[0, 0], y[1, 1] = 4.0, 9.0  # on different lines: nothing can be matched
    zero = np.zeros(6)
    np.testing.assert_allclose(metrics.frechet_distance(Moments(zero, x), Moments(zero, y)), 13.0)


def test_frechet_distance_is_symmetric_and_does_not_depend_on_the_axes():
    a, b, axes = drawn(4), drawn(5), rotation(6)
    turn = lambda m: Moments(axes @ m.mean + 7.0, axes @ m.cov @ axes.T)
    expected = metrics.frechet_distance(a, b)
    np.testing.assert_allclose(metrics.frechet_distance(b, a), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.frechet_distance(turn(a), turn(b)), expected, rtol=1e-12)


def test_frechet_distance_names_features_that_differ():
    with pytest.raises(ValueError, match=r"b\.mean must be .* D = 6 of a\.mean, got .*\(5,\)"):
        metrics.frechet_distance(drawn(0), drawn(0, dims=5))


def test_moments_are_numpys_in_float64():
    x = (1e4 + np.random.default_rng(0).normal(size=(50, 3))).astype(np.float32)
    found = metrics.moments(x)
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.cov, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("bad", [np.ones((1, 3)), np.array([[1.0, 2.0], [np.nan, 0.0]])])
def test_moments_refuse_what_has_none(bad):
    with pytest.raises(ValueError, match="features must be"):
        metrics.moments(bad)


def blocks(x, ends):
    """Its tallies, of the rows between these ends."""
    return [metrics.tally(part) for part in np.split(x, ends)]


@pytest.mark.parametrize("ends", [[1], [2, 3, 5], [100], list(range(1, 200))], ids=len)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_blocks_are_those_of_all_at_once(ends, offset):
    """In any order, far from zero too, where sums of squares would have lost every digit."""
    x = offset + np.random.default_rng(0).normal(size=(200, 5)) * np.arange(1, 6)
    for parts in (blocks(x, ends), blocks(x, ends)[::-1]):
        found = metrics.settle(functools.reduce(metrics.join, parts))
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(found.cov, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)


def test_frechet_distance_of_blocks_is_that_of_all_at_once():
    """To 1e-10 of itself; the moments are of 8-bit images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (600, 36)).astype(np.uint8)
    others = np.clip(images.astype(int) + rng.integers(-3, 9, images.shape), 0, 255).astype(np.uint8)
    streamed = (
        metrics.settle(functools.reduce(metrics.join, blocks(x, [7, 300, 301]))) for x in (images, others)
    )
    at_once = (metrics.moments(x) for x in (images, others))
    expected = metrics.frechet_distance(*at_once)
    assert expected > 1
    np.testing.assert_allclose(metrics.frechet_distance(*streamed), expected, rtol=1e-10)


def test_a_tally_of_nothing_changes_nothing_and_one_example_has_no_covariance():
    one, none = metrics.tally(np.ones((1, 3))), metrics.Tally(0, np.zeros(3), np.zeros((3, 3)))
    for both in (metrics.join(one, none), metrics.join(none, one)):
        np.testing.assert_array_equal(both.mean, one.mean)
        np.testing.assert_array_equal(both.scatter, one.scatter)
    with pytest.raises(ValueError, match="at least 2 examples, got 1"):
        metrics.settle(one)
    with pytest.raises(ValueError, match="got two without any"):
        metrics.join(none, none)


@pytest.mark.parametrize("shape", [(200, 12), (10, 4, 5, 1)])
def test_principal_axes_are_those_of_scikit_learn(shape):
    x = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 3, shape[1]).reshape(
        -1, *[1] * (len(shape) - 2)
    )
    rows = x.reshape(len(x), -1)
    axes, peer = metrics.principal(x, 4), sklearn.decomposition.PCA(4, svd_solver="full").fit(rows)
    np.testing.assert_allclose(
        axes.explained_variance_ratio, peer.explained_variance_ratio_.sum(), rtol=1e-10
    )
    np.testing.assert_allclose(np.abs(peer.components_ @ axes.directions), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(
        np.abs(metrics.project(axes, x)), np.abs(peer.transform(rows)), rtol=1e-7, atol=1e-8
    )


def test_principal_and_project_name_sizes_that_do_not_fit():
    x = np.random.default_rng(0).normal(size=(20, 3, 2))
    with pytest.raises(ValueError, match="from 1 to 5 for 20 examples of 6 numbers, got 6"):
        metrics.principal(x, 6)
    with pytest.raises(ValueError, match="examples of 6 numbers"):
        metrics.project(metrics.principal(x, 2), np.ones((4, 5)))


def test_psnr_is_that_of_its_formula():
    """Of constant errors: an error of 1/10 of the peak is 20 dB, half as much 6.02 dB more."""
    images = np.random.default_rng(0).integers(0, 200, (3, 4, 5, 1)).astype(np.uint8)
    others = images + np.array([51, 25, 1], np.uint8)[:, None, None, None]
    found = metrics.psnr(images, others)
    np.testing.assert_allclose(found, 20 * np.log10(255 / np.array([51, 25, 1])), rtol=1e-12)
    np.testing.assert_allclose(
        metrics.psnr(images / 127.5 - 1, others / 127.5 - 1, peak=2.0), found, rtol=1e-9
    )
    np.testing.assert_array_equal(metrics.psnr(images[:1], images[:1]), [np.inf])


def test_psnr_is_that_of_scikit_image():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3)).astype(np.uint8)
    expected = [skimage.peak_signal_noise_ratio(x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.psnr(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "peak", "message"),
    [((3, 4), 255.0, "others must be .* N = 2 of images"), ((2, 4), 0.0, "peak must be above 0, got 0")],
)
def test_psnr_says_what_does_not_fit(shape, peak, message):
    with pytest.raises(ValueError, match=message):
        metrics.psnr(np.zeros((2, 4)), np.zeros(shape), peak=peak)


def test_psnr_of_floats_needs_its_peak():
    images = np.random.default_rng(0).random((4, 8, 8, 1))
    with pytest.raises(ValueError, match=r"got 255 and images of floats up to .*give peak=1"):
        metrics.psnr(images, images[::-1])
    assert metrics.psnr(images, images[::-1], peak=1.0).max() < 10
