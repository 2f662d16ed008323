"""Small VAEs for the tests, and the exact likelihood of one of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from jax.sharding import Mesh

from gen_jax import keys, likelihoods, vae
from gen_jax.networks.autoencoder import MLPDecoder, MLPEncoder

KEY = jax.random.key(0)
SHAPE = (3, 2, 1)
ONE = Mesh(np.array(jax.devices()[:1]), (keys.AXIS,))


def network(latent=2, likelihood=None, num_classes=None, hidden=()):
    """A small model of bits and parameters for it, drawn in numpy; the decoder's are large, to tell latents apart."""
    likelihood = likelihoods.Bernoulli() if likelihood is None else likelihood
    out = (*SHAPE[:-1], likelihood.outputs(SHAPE[-1]))
    options = {"hidden": hidden, "activation": jnp.tanh, "num_classes": num_classes}
    model = vae.VAE(MLPEncoder(latent, **options), MLPDecoder(out, **options), likelihood, latent)
    label = None if num_classes is None else jnp.zeros(1, jnp.int32)
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, *SHAPE)), label)
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(rng.normal(size=a.shape) * (1.0 if len(a.shape) > 1 else 0.3), jnp.float32)
    return model, jax.tree.map(draw, shapes)


def images(n=6, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (n, *SHAPE)), jnp.float32)


@functools.cache
def exact_log_prob():
    """`log p(x)` of `images()` under `network()`, by a grid over the latent: float64, in numpy but for the decoder."""
    model, params = network(hidden=(5,))
    line = np.linspace(-7, 7, 141)
    z = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    logits = np.float64(jax.jit(model.out)(params, jnp.float32(z))).reshape(len(z), -1)
    x = np.float64(images()).reshape(-1, logits.shape[1])
    log_lik = x @ -np.logaddexp(0, -logits).T + (1 - x) @ -np.logaddexp(0, logits).T
    log_prior = scipy.stats.norm.logpdf(z).sum(1)
    return scipy.special.logsumexp(log_lik + log_prior + 2 * np.log(line[1] - line[0]), axis=1)
