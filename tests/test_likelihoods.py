import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

from gen_jax import likelihoods
from gen_jax.likelihoods import Bernoulli, DiscretizedGaussian, DiscretizedLogistic, Gaussian, LogisticMixture

KEY = jax.random.key(0)
VALUES = np.arange(256) / 255
FAMILIES = {
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(0.7),
    "gaussian squashed": Gaussian(squash=True),
    "gaussian learned": Gaussian(None),
    "discretized gaussian": DiscretizedGaussian(32),
    "discretized logistic": DiscretizedLogistic(32),
    "mixture": LogisticMixture(2, 32),
    "mixture of each channel": LogisticMixture(2, 32, coupled=False),
}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def values(family):
    return 2 if family == Bernoulli() else getattr(family, "bins", 256)


def outputs(family, *shape, seed=0, scale=1.0):
    """A decoder's output for data of a shape, and data on the grid of the family's values."""
    rng = np.random.default_rng(seed)
    out = scale * rng.normal(size=(*shape[:-1], family.outputs(shape[-1])))
    x = rng.integers(0, values(family), shape) / (values(family) - 1)
    return jnp.asarray(out, jnp.float32), jnp.asarray(x, jnp.float32)


@each_family
def test_of_outputs_with_nan_no_sample_looks_like_one(family):
    """In compiled code, where it is not known: each output on its own."""
    out, _ = outputs(family, 1, 2, 1)
    draw = jax.jit(family.sample)
    with jax.debug_nans(False):
        for i in range(out.shape[-1]):
            pixels = np.asarray(draw(KEY, out.at[0, 0, i].set(jnp.nan)))[0, :, 0]
            needed = not isinstance(family, LogisticMixture) or i < family.components
            assert np.isnan(pixels[0]) or not needed  # of a component that is not drawn nothing is needed
            assert np.isfinite(pixels[1])
        assert np.isnan(draw(KEY, jnp.full_like(out, jnp.nan))).all()


def test_bernoulli_and_gaussian_equal_scipy():
    out, x = outputs(Bernoulli(), 4, 3, 2, scale=3)
    expected = scipy.stats.bernoulli.logpmf(np.float64(x), scipy.special.expit(np.float64(out))).sum((1, 2))
    np.testing.assert_allclose(Bernoulli().log_prob(out, x), expected, rtol=1e-5)
    expected = scipy.stats.norm.logpdf(np.float64(x), np.float64(out), 0.7).sum((1, 2))
    np.testing.assert_allclose(Gaussian(0.7).log_prob(out, x), expected, rtol=1e-5)
    expected = scipy.stats.norm.logpdf(np.float64(x), scipy.special.expit(np.float64(out))).sum((1, 2))
    np.testing.assert_allclose(Gaussian(squash=True).log_prob(out, x), expected, rtol=1e-5)
    both, x = outputs(Gaussian(None), 4, 3, 2)
    mean, log_sigma = np.split(np.float64(both), 2, -1)
    expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_sigma) + Gaussian().floor).sum((1, 2))
    np.testing.assert_allclose(Gaussian(None).log_prob(both, x), expected, rtol=1e-5)


def test_bernoulli_of_grey_values_is_the_mean_over_their_bits():
    logits, x = jnp.array([[1.5, -0.3]]), jnp.array([[0.2, 0.9]])
    expected = 0.0
    for bits in itertools.product([0, 1], repeat=2):
        weight = np.prod([p if bit else 1 - p for p, bit in zip(np.asarray(x[0]), bits, strict=True)])
        expected += weight * Bernoulli().log_prob(logits, jnp.array([bits], jnp.float32))[0]
    np.testing.assert_allclose(Bernoulli().log_prob(logits, x)[0], expected, rtol=1e-6)


def test_gaussian_sigma_has_a_floor():
    """A pixel that never varies: the density is that of the floor, not infinite."""
    out, x = jnp.array([[0.25, -1e4]]), jnp.array([[0.25]])
    expected = scipy.stats.norm.logpdf(0, 0, 1 / 512)
    np.testing.assert_allclose(Gaussian(None).log_prob(out, x)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "law"),
    [(DiscretizedGaussian(), scipy.stats.norm), (DiscretizedLogistic(), scipy.stats.logistic)],
    ids=["gaussian", "logistic"],
)
def test_discretized_probabilities_are_differences_of_the_cdf(family, law):
    log_prob = jax.jit(family.log_prob)
    edges = np.concatenate([[-np.inf], (VALUES[1:] + VALUES[:-1]) - 1, [np.inf]])
    for mean, log_scale in [(0.1, -1.0), (-1.2, -2.0), (0.9, -4.0), (3.0, -1.0)]:
        out = jnp.full((256, 1), mean, jnp.float32), jnp.full((256, 1), log_scale, jnp.float32)
        got = np.float64(log_prob(jnp.concatenate(out, 1), jnp.asarray(VALUES[:, None], jnp.float32)))
        np.testing.assert_allclose(
            np.exp(got), np.diff(law.cdf(edges, mean, np.exp(log_scale))), rtol=3e-4, atol=1e-7
        )
        np.testing.assert_allclose(np.exp(got).sum(), 1, rtol=1e-4)


def test_discretized_logistic_keeps_its_digits_far_out():
    """`log(sigmoid(b) - sigmoid(a))` 100 to 2000 scales below the mean is `b + log(1 - e^(a - b))`, to rounding."""
    x, mean = 2 * VALUES[1:200:20] - 1, 1.0
    for log_scale in (-4.0, -7.0):
        got = jax.jit(likelihoods.discretized_logistic_log_prob)(
            jnp.float32(x), jnp.full(len(x), mean), jnp.full(len(x), log_scale)
        )
        scale, h = np.exp(np.float64(log_scale)), 1 / 255
        a, b = (x - mean - h) / scale, (x - mean + h) / scale
        expected = b - np.log1p(np.exp(b)) - np.log1p(np.exp(a)) + np.log(-np.expm1(a - b))
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("bins", [2, 5])
def test_mixture_of_coupled_channels_sums_to_one(bins):
    """Over all colours of a pixel; and equals the mixture written out."""
    family = LogisticMixture(3, bins=bins)
    colours = np.array(list(itertools.product(np.arange(bins) / (bins - 1), repeat=3)))
    out = np.random.default_rng(0).normal(size=family.outputs(3))
    rows = jnp.broadcast_to(jnp.float32(out), (len(colours), len(out)))
    got = np.float64(jax.jit(family.log_prob)(rows, jnp.float32(colours)))
    np.testing.assert_allclose(np.exp(got).sum(), 1, rtol=1e-5)

    logits, means, log_scales, couplings = np.split(out.reshape(10, 3), [1, 4, 7])
    y, couplings, expected = 2 * colours - 1, np.tanh(couplings), 0.0
    for k, weight in enumerate(scipy.special.softmax(logits[0])):
        centre = np.stack(
            [
                np.full(len(y), means[0, k]),
                means[1, k] + couplings[0, k] * y[:, 0],
                means[2, k] + couplings[1, k] * y[:, 0] + couplings[2, k] * y[:, 1],
            ],
            axis=1,
        )
        h = 1 / (bins - 1)
        low, high = np.where(y > -1 + h, y - h, -np.inf), np.where(y < 1 - h, y + h, np.inf)
        cdf = lambda at, c=centre, k=k: scipy.stats.logistic.cdf(at, c, np.exp(log_scales[:, k]))
        expected = expected + weight * (cdf(high) - cdf(low)).prod(1)
    np.testing.assert_allclose(np.exp(got), expected, rtol=1e-4)


def test_mixture_of_one_component_is_the_logistic():
    """Of one channel, or of channels that are not coupled: the logit of the only component says nothing."""
    out, x = outputs(DiscretizedLogistic(), 4, 5, 2)
    logit = jnp.ones((4, 5, 2))
    family = LogisticMixture(1, coupled=False)
    np.testing.assert_allclose(
        jax.jit(family.log_prob)(jnp.concatenate([logit, out], -1), x),
        DiscretizedLogistic().log_prob(out, x),
        rtol=1e-6,
    )


N = 20_000


@functools.cache
def sampler(family):
    """Compiled once: samples of `N` examples, one pixel of two colours each."""
    return jax.jit(family.sample)


@functools.cache
def drawn(family):
    """An output, and samples of it: `N` examples that differ in their noise alone."""
    out, _ = outputs(family, 1, 2, seed=3, scale=0.2)
    scales = slice(2, None) if isinstance(family, DiscretizedGaussian | DiscretizedLogistic) else slice(0, 0)
    if isinstance(family, LogisticMixture):
        scales = slice(6, 10) if family.coupled else slice(8, None)
    out = out.at[:, scales].add(-3.0)  # narrow, so that the ends cut nothing off
    rows = jnp.broadcast_to(out, (N, out.shape[1]))
    return out, np.asarray(sampler(family)(KEY, rows, jnp.arange(N)))


@each_family
def test_sample_has_the_probabilities_of_log_prob(family):
    """Shares of 4 x 4 blocks of colours; moments where the data are continuous."""
    out, x = drawn(family)
    assert x.shape == (N, 2)
    if isinstance(family, Gaussian):
        sigma = family.floor + np.exp(np.asarray(out)[0, 2:]) if family.sigma is None else family.sigma
        np.testing.assert_allclose(x.std(0), np.broadcast_to(sigma, 2), rtol=0.03)
        return
    steps = values(family) - 1
    width = -(-values(family) // 4)
    grid = np.array(list(itertools.product(np.arange(steps + 1) / steps, repeat=2)))
    rows = jnp.broadcast_to(out, (len(grid), out.shape[1]))
    block = lambda x: (np.round(x * steps) // width).astype(int) @ [4, 1]
    each = np.exp(jax.jit(family.log_prob)(rows, jnp.float32(grid)))
    expected = np.bincount(block(grid), weights=each, minlength=16)
    np.testing.assert_allclose(expected.sum(), 1, rtol=1e-3)
    shares = np.bincount(block(x), minlength=16) / N
    np.testing.assert_allclose(shares, expected, atol=4 * (0.25 / N) ** 0.5)


@each_family
def test_mean_is_that_of_samples(family):
    out, x = drawn(family)
    np.testing.assert_allclose(x.mean(0), family.mean(out)[0], atol=5 * float(x.std()) / N**0.5 + 1e-3)


@each_family
def test_sample_depends_on_the_example_alone(family):
    out, x = drawn(family)
    rows = jnp.broadcast_to(out, (N, out.shape[1]))
    again = sampler(family)(KEY, rows, jnp.arange(N)[::-1])
    np.testing.assert_array_equal(again[::-1], x)


@pytest.mark.parametrize("name", ["gaussian learned", "discretized logistic", "mixture"])
def test_log_prob_has_the_right_gradient_and_is_float32_at_least(name):
    family = FAMILIES[name]
    out, x = outputs(family, 2, 2, 3)
    total = jax.jit(lambda out: family.log_prob(out, x).sum())
    check_grads(total, (out,), order=1, modes=["rev"], rtol=0.02, atol=0.02, eps=1e-2)
    out = jax.ShapeDtypeStruct(out.shape, jnp.bfloat16)
    assert jax.eval_shape(family.log_prob, out, x).dtype == jnp.float32


@each_family
def test_log_prob_says_which_shape_it_wants(family):
    out, x = outputs(family, 2, 3, 2)
    with pytest.raises(ValueError, match=r"outputs|means"):
        jax.eval_shape(family.log_prob, out[..., 1:], x)


def test_bad_options():
    with pytest.raises(ValueError, match="sigma must be above 0, got 0"):
        Gaussian(0.0)
    with pytest.raises(ValueError, match="bins must be at least 2"):
        DiscretizedLogistic(bins=1)
    with pytest.raises(ValueError, match="components"):
        LogisticMixture(0)
