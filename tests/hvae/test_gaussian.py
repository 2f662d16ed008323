"""The Gaussian of a level against scipy, and the rules that merge two."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from gen_jax import hvae, vae
from gen_jax.hvae import gaussian
from tests.hvae.models import KEY, drawn_gaussian


def test_log_prob_equals_scipy():
    rng = np.random.default_rng(0)
    p, z = drawn_gaussian(rng), jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    expected = scipy.stats.norm(p.mean, np.exp(p.log_std)).logpdf(z).sum(1)
    np.testing.assert_allclose(gaussian.log_prob(p, z), expected, rtol=1e-5)


def test_kl_is_the_mean_of_the_log_ratio():
    rng = np.random.default_rng(0)
    q, p = drawn_gaussian(rng), drawn_gaussian(rng)
    z = jax.vmap(lambda key: gaussian.sample(key, q))(jax.random.split(KEY, 40_000))
    ratios = jax.vmap(lambda z: gaussian.log_prob(q, z) - gaussian.log_prob(p, z))(z)
    error = ratios.std(0) / len(ratios) ** 0.5
    assert (jnp.abs(ratios.mean(0) - gaussian.kl(q, p)) < 4 * error).all()
    np.testing.assert_array_equal(gaussian.kl(q, q), 0)


def test_kl_to_the_standard_normal_is_that_of_the_vae():
    q = drawn_gaussian(np.random.default_rng(0))
    same = vae.kl_to_prior(vae.Posterior(*q)).sum(1)
    np.testing.assert_allclose(gaussian.kl(q, gaussian.standard(q.mean)), same, rtol=1e-6)


def test_precision_is_the_product_of_the_densities():
    rng = np.random.default_rng(0)
    p, e = drawn_gaussian(rng, (2, 1)), drawn_gaussian(rng, (2, 1))
    z = np.linspace(-12, 12, 20_001)
    for i in range(2):
        density = np.prod([scipy.stats.norm(g.mean[i], np.exp(g.log_std[i])).pdf(z) for g in (p, e)], axis=0)
        mean = (z * density).sum() / density.sum()
        std = (((z - mean) ** 2 * density).sum() / density.sum()) ** 0.5
        q = gaussian.precision(p, e)
        np.testing.assert_allclose([q.mean[i, 0], np.exp(q.log_std[i, 0])], [mean, std], rtol=1e-4)


def test_merges_in_their_limits():
    """Evidence that says nothing leaves the prior; evidence that says all takes its place."""
    rng = np.random.default_rng(0)
    p, e = drawn_gaussian(rng), drawn_gaussian(rng)
    nothing, everything = (
        e._replace(log_std=jnp.full((3, 4), 40.0)),
        e._replace(log_std=jnp.full((3, 4), -40.0)),
    )
    for found, expected in (
        (gaussian.precision(p, nothing), p),
        (gaussian.precision(p, everything), everything),
        (gaussian.residual(p, hvae.Gaussian(jnp.zeros((3, 4)), jnp.zeros((3, 4)))), p),
        (gaussian.concat(p, e), e),
    ):
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.log_std, expected.log_std, rtol=1e-5, atol=1e-6)


def test_residual_kl_is_the_formula_of_nvae():
    """`(d_mean^2 / std_p^2 + d_std^2 - log d_std^2 - 1) / 2` (Vahdat & Kautz 2020, Eq. 2)."""
    rng = np.random.default_rng(0)
    p, change = drawn_gaussian(rng), drawn_gaussian(rng)
    variance = np.exp(2 * np.float64(change.log_std))
    terms = (change.mean / np.exp(p.log_std)) ** 2 + variance - np.log(variance) - 1
    np.testing.assert_allclose(gaussian.kl(gaussian.residual(p, change), p), terms.sum(1) / 2, rtol=1e-5)


def test_bounded_deviations_stay_within_the_bound_and_are_themselves_near_zero():
    raw = jnp.asarray([[-1e6, -1e-3, 0.0, 1e-3, 1e6]])
    found = gaussian.bounded(raw, raw, 5.0).log_std
    np.testing.assert_allclose(found, [[-5, -1e-3, 0, 1e-3, 5]], rtol=1e-6)
