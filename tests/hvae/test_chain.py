"""The chain of latents against exact likelihoods, the VAE and the book's loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen_jax import hvae, likelihoods, vae
from gen_jax.hvae import chain
from tests.hvae.models import KEY, Linear, drawn, images, networks


def test_chain_with_its_posterior_has_the_exact_likelihood():
    """`p(x, z) / q(z | x) = p(x)` at every draw, so the weights do not vary, and the bound is met in the mean."""
    model, x = Linear(), jnp.asarray([[-1.0], [0.3], [2.0]])
    weights = jax.jit(lambda key: chain.log_weight(key, model.chain(), x))(KEY)
    np.testing.assert_allclose(weights, model.log_prob(x), rtol=1e-5)
    draws = jax.jit(jax.vmap(lambda key: hvae.elbo(key, model.chain(), x)))(jax.random.split(KEY, 5000))
    error = draws.value.std(0) / len(draws.value) ** 0.5
    assert (jnp.abs(draws.value.mean(0) - model.log_prob(x)) < 4 * error).all()
    np.testing.assert_allclose(draws.value, draws.reconstruction - draws.kl.sum(2), rtol=1e-4, atol=1e-4)


def test_bound_of_neighbours_is_lower_by_what_the_levels_know_of_each_other():
    """`a_l cov(z_l, z_{l+1} | z_{l-1}) / std_l^2` for each level but the last, with an exact posterior.

    It puts an independent `z_l'` in the place of `z_l` in `E log p(z_l | z_{l+1})`, and for Gaussians `E (z_l' - a
    z_{l+1} - b)^2 - E (z_l - a z_{l+1} - b)^2 = 2 a cov(z_l, z_{l+1})`.
    """
    model, x = Linear(), jnp.asarray([[-1.0], [0.3], [2.0]])
    slope = lambda i: float(
        (model.above(i, jnp.ones((1, 1))).mean - model.above(i, jnp.zeros((1, 1))).mean)[0, 0]
    )
    variance = lambda i: float(jnp.exp(2 * model.above(i, x).log_std[0, 0]))
    gap = sum(model.a[i] * slope(i) * variance(i - 1) / model.std[i] ** 2 for i in (1, 2))
    draw = jax.vmap(lambda key: hvae.elbo(key, model.chain(), x, terms="neighbours").value)
    draws = jax.jit(draw)(jax.random.split(KEY, 5000))
    error = draws.std(0) / len(draws) ** 0.5
    assert (jnp.abs(draws.mean(0) + gap - model.log_prob(x)) < 4 * error).all()
    assert gap > 20 * error.max()


@pytest.mark.parametrize("terms", ["sampled", "neighbours"])
def test_one_level_is_the_vae(terms):
    x, model = images(), networks(1, terms=terms)
    params = drawn(model, x)
    plain = vae.VAE(model.encoder[0], model.decoder[0], model.likelihood, 3)
    same = vae.Params(params.encoder[0], params.decoder[0])
    one, other = model.elbo(params, KEY, x), plain.elbo(same, KEY, x)
    np.testing.assert_allclose(one.value, other.value, rtol=1e-6)
    np.testing.assert_allclose(one.reconstruction, other.reconstruction, rtol=1e-6)
    np.testing.assert_allclose(one.kl[:, 0], other.kl, rtol=1e-5)
    np.testing.assert_allclose(
        model.decode(params, jnp.ones((4, 3))), plain.decode(same, jnp.ones((4, 3))), rtol=1e-6
    )


def test_the_books_loss_is_twice_its_bound():
    """Its `sum (x_hat - x)^2 - sum(1 + log s^2 - (mu - mu_p)^2 - s^2)`, written out for two levels."""
    x = images() / 2 + 0.2
    model = networks(2, likelihoods.Gaussian(squash=True), terms="neighbours")
    params = drawn(model, x)
    z_1, z_2 = model.encode(params, KEY, x)
    (mu_1, log_s_1), (mu_2, log_s_2) = (
        model.encoder[i].apply(params.encoder[i], z) for i, z in enumerate((x, z_1))
    )
    z_hat = model.decoder[1].apply(params.decoder[1], z_2)
    book = (
        jnp.square(model.decode(params, z_1) - x).sum((1, 2, 3))
        - (1 + 2 * log_s_1 - (mu_1 - z_hat) ** 2 - jnp.exp(2 * log_s_1)).sum(1)
        - (1 + 2 * log_s_2 - mu_2**2 - jnp.exp(2 * log_s_2)).sum(1)
    )
    constant = x[0].size * np.log(2 * np.pi)
    np.testing.assert_allclose(-2 * model.elbo(params, KEY, x).value - constant, book, rtol=1e-4)


def test_chain_has_the_right_derivatives():
    x, model = images(2), networks(2)
    check_grads(
        jax.jit(lambda params: model.elbo(params, KEY, x).value.mean()),
        (drawn(model, x),),
        order=1,
        modes=["rev"],
        rtol=0.05,
        atol=0.05,
    )
