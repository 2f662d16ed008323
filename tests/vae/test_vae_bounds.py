"""The bounds of a VAE against probabilistic PCA, quadrature, Monte Carlo and scipy."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from gen_jax import keys, likelihoods, vae
from tests.vae.models import KEY, exact_log_prob, images, network


class Affine(nn.Module):
    """A decoder `z -> W z + b`, or an encoder of fixed deviation."""

    features: int
    deviation: bool = False

    @nn.compact
    def __call__(self, x):
        mean = nn.Dense(self.features, name="map")(x)
        if not self.deviation:
            return mean
        log_std = self.param("log_std", nn.initializers.zeros, (self.features,))
        return mean, jnp.broadcast_to(log_std[None], mean.shape)


@functools.cache
def pca():
    """A linear VAE whose encoder is the exact posterior, data, and scikit-learn's model of the same parameters.

    With orthogonal columns in `W` (as at the maximum of the likelihood; Tipping & Bishop 1999, Eq. 7) the posterior
    `N(M^-1 W^T (x - b), sigma^2 M^-1)`, `M = W^T W + sigma^2 I`, has a diagonal covariance.
    """
    rng = np.random.default_rng(0)
    dims, latent = 5, 2
    x = rng.normal(size=(200, latent)) @ rng.normal(size=(latent, dims)) * 1.5 + rng.normal(size=dims)
    x = x + 0.5 * rng.normal(size=x.shape)
    centre, cov = x.mean(0), np.cov(x.T, ddof=1)
    values, vectors = np.linalg.eigh(cov)
    values, vectors = values[::-1], vectors[:, ::-1]
    sigma2 = values[latent:].mean()
    w = vectors[:, :latent] * np.sqrt(values[:latent] - sigma2)
    m = (w**2).sum(0) + sigma2
    model = vae.VAE(
        Affine(latent, deviation=True), Affine(dims), likelihoods.Gaussian(float(np.sqrt(sigma2))), latent
    )
    kernel = (w / m).astype(np.float32)
    encoder = {
        "map": {"kernel": kernel, "bias": np.float32(-centre @ (w / m))},
        "log_std": np.float32(np.log(sigma2 / m) / 2),
    }
    decoder = {"map": {"kernel": np.float32(w.T), "bias": np.float32(centre)}}
    params = jax.tree.map(jnp.asarray, vae.Params({"params": encoder}, {"params": decoder}))
    exact = scipy.stats.multivariate_normal(centre, w @ w.T + sigma2 * np.eye(dims)).logpdf(x)
    return model, params, x, exact


def test_linear_vae_with_its_posterior_is_probabilistic_pca():
    """Each importance weight is `p(x)` itself; the ELBO is so in the mean over noise, and the PCA of scikit-learn."""
    model, params, x, exact = pca()
    batch = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(
        jax.jit(lambda p: model.iwae(p, KEY, batch, 3))(params), exact, rtol=1e-5, atol=2e-4
    )
    elbos = jax.jit(jax.vmap(lambda k: model.elbo(params, k, batch).value))(jax.random.split(KEY, 2000))
    error = np.float64(elbos).std(0) / 2000**0.5
    assert (np.abs(np.float64(elbos).mean(0) - exact) < 5 * error).all()
    pca_of = pytest.importorskip("sklearn.decomposition").PCA(2).fit(x)
    np.testing.assert_allclose(pca_of.score(x), exact.mean(), rtol=1e-6)


def test_dreg_has_no_noise_where_the_posterior_is_exact():
    """`log w` does not depend on `z`, so the encoder has nothing to gain from any sample; the plain gradient is noise."""
    model, params, x, _ = pca()
    batch = {"image": jnp.asarray(x[:8], jnp.float32)}
    losses = [vae.iwae_loss(model, 4, doubly_reparameterised=dreg) for dreg in (True, False)]
    grads = jax.jit(lambda p: [jax.grad(lambda p: loss(p, KEY, batch)[0])(p).encoder for loss in losses])
    dreg, plain = (max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(g)) for g in grads(params))
    assert dreg < 1e-4
    assert plain > 1e-2


def test_bounds_rise_with_samples_and_stay_under_the_quadrature():
    """ELBO <= IWAE-2 <= IWAE-20 <= log p(x), in the mean over noise: each by more than its error."""
    model, params = network(hidden=(5,))
    x, exact, many = images(), exact_log_prob(), 1000

    @jax.jit
    @jax.vmap
    def bounds(key):
        return [
            model.elbo(params, key, x).value,
            model.iwae(params, key, x, 2),
            model.iwae(params, key, x, 20),
        ]

    each = [np.float64(b).mean(1) for b in bounds(jax.random.split(KEY, many))] + [
        np.full(many, exact.mean())
    ]
    for lower, upper in itertools.pairwise(each):
        gain = upper - lower
        assert gain.mean() > 4 * gain.std() / many**0.5


def test_log_prob_meets_the_quadrature():
    """With a posterior near the prior, as importance weights of a narrow one have no variance to go by."""
    model, params = network(hidden=(5,))
    params = params._replace(encoder=jax.tree.map(lambda a: 0.2 * a, params.encoder))
    got = jax.jit(lambda p: model.log_prob(p, KEY, images(), 20_000))(params)
    np.testing.assert_allclose(got, exact_log_prob(), atol=0.05)


def test_chunks_and_devices_change_nothing():
    """Samples and examples in turn, in another order, and on eight devices: the same numbers."""
    model, params = network()
    x, index = images(16), jnp.arange(16)
    whole = jax.jit(lambda p: model.iwae(p, KEY, x, 30))(params)
    chunked = jax.jit(lambda x, index: model.log_prob(params, KEY, x, 30, index=index, chunk=10))
    np.testing.assert_allclose(chunked(x, index), whole, rtol=1e-5)
    np.testing.assert_allclose(chunked(x[::-1], index[::-1])[::-1], whole, rtol=1e-5)
    mesh = Mesh(np.array(jax.devices()), (keys.AXIS,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec(keys.AXIS)))
    compiled = jax.jit(lambda x: model.log_prob(params, KEY, x, 30, chunk=80)).lower(sharded).compile()
    np.testing.assert_allclose(compiled(sharded), whole, rtol=1e-5)
    assert len(jax.devices()) == 8
    assert "all-gather" not in compiled.as_text(), "a device decodes its own share"


def test_iwae_in_chunks_has_the_same_gradient():
    model, params = network()
    x = images(4)
    bound = lambda p, chunk: model.iwae(p, KEY, x, 11, chunk=chunk).mean()
    whole, parts = (
        jax.jit(jax.value_and_grad(lambda p, c=chunk: bound(p, c)))(params) for chunk in (None, 12)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, parts)


def test_kl_equals_monte_carlo_and_scipy():
    mean, log_std = jnp.array([[0.3, -2.0, 0.0]]), jnp.array([[-1.0, 0.4, 0.0]])
    kl = np.asarray(vae.kl_to_prior(vae.Posterior(mean, log_std)))[0]
    q = scipy.stats.norm(np.float64(mean)[0], np.exp(np.float64(log_std))[0])
    z = q.rvs((200_000, 3), random_state=0)
    ratio = q.logpdf(z) - scipy.stats.norm.logpdf(z)
    np.testing.assert_allclose(kl, ratio.mean(0), atol=0.02)
    assert kl[2] == 0


def test_elbo_has_the_right_gradient():
    """With its noise held fixed; and the loss's terms are those of the bound."""
    model, params = network()
    x = images(3)
    bound = jax.jit(lambda p: model.elbo(p, KEY, x))
    check_grads(
        lambda p: bound(p).value.mean(), (params,), order=1, modes=["rev"], rtol=0.02, atol=0.02, eps=1e-2
    )
    value, metrics = jax.jit(lambda p, key: vae.loss(model)(p, key, {"image": x}))(params, KEY)
    elbo = jax.jit(lambda p: model.elbo(p, jax.random.split(KEY)[1], x))(params)
    np.testing.assert_allclose(-value, elbo.value.mean(), rtol=1e-5)
    for name, term in {"elbo": elbo.value, "reconstruction": elbo.reconstruction, "kl": elbo.kl}.items():
        np.testing.assert_allclose(metrics[name], term.mean(), rtol=1e-5)
