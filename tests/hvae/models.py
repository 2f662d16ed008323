"""Small hierarchical VAEs for the tests, and a chain with exact posteriors."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from gen_jax import hvae, likelihoods
from gen_jax.hvae import gaussian
from gen_jax.networks import autoencoder, ladder
from gen_jax.networks.mlp import MLP
from tests.networks.drawn import parameters

KEY = jax.random.key(0)
SHAPE = (7, 6, 1)


def images(n=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (n, *SHAPE)), jnp.float32)


def drawn_gaussian(rng, shape=(3, 4)):
    return hvae.Gaussian(
        jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)
    )


class Linear:
    """`z_3 ~ N(0, 1)`, `z_{l-1} = a z_l + b + noise`: every posterior is a Gaussian, and so is `p(x)`."""

    a, b, std = (
        (0.8, -1.3, 0.6),
        (0.5, -0.2, 1.0),
        (0.7, 0.4, 0.9),
    )  # of x given z_1, z_1 given z_2, z_2 given z_3

    def __init__(self):
        mean, variance = [0.0], [1.0]
        for a, b, std in zip(self.a[::-1], self.b[::-1], self.std[::-1], strict=True):
            mean.insert(0, a * mean[0] + b)
            variance.insert(0, a**2 * variance[0] + std**2)
        self.mean, self.variance = mean, variance

    def below(self, level, z):
        """`p(z_{level} | z_{level + 1})`, with `z_0 = x`."""
        return hvae.Gaussian(self.a[level] * z + self.b[level], jnp.full((1, 1), np.log(self.std[level])))

    def above(self, level, z):
        """`p(z_{level + 1} | z_level)`, by Bayes' rule."""
        variance = 1 / (1 / self.variance[level + 1] + (self.a[level] / self.std[level]) ** 2)
        known = self.mean[level + 1] / self.variance[level + 1]
        mean = variance * (known + self.a[level] * (z - self.b[level]) / self.std[level] ** 2)
        return hvae.Gaussian(mean, jnp.full((1, 1), np.log(variance) / 2))

    def chain(self):
        return hvae.Chain(
            tuple(lambda z, i=i: self.above(i, z) for i in range(3)),
            tuple(lambda z, i=i: self.below(i, z) for i in (1, 2)),
            gaussian.standard,
            lambda z, x: gaussian.log_prob(self.below(0, z), x),
        )

    def log_prob(self, x):
        return scipy.stats.norm(self.mean[0], self.variance[0] ** 0.5).logpdf(np.asarray(x)[:, 0])


def networks(levels, likelihood=None, **options):
    likelihood = likelihood or likelihoods.Bernoulli()
    sizes = (3, 2, 2)[:levels]
    return hvae.HVAE(
        tuple(autoencoder.MLPEncoder(n, (8,)) for n in sizes),
        (autoencoder.MLPDecoder(SHAPE, (8,)), *(MLP((8, n)) for n in sizes[:-1])),
        likelihood,
        sizes,
        **options,
    )


def drawn(model, x):
    """Parameters of a chain, without an `init` to compile."""
    up = [
        parameters(net, z)
        for net, z in zip(model.encoder, [x, *(jnp.zeros((1, n)) for n in model.latent)], strict=False)
    ]
    down = [
        parameters(net, jnp.zeros((1, n)), seed=2) for net, n in zip(model.decoder, model.latent, strict=True)
    ]
    return hvae.Params(tuple(up), tuple(down))


def small(merge="residual"):
    """Three levels at two resolutions, of an image that no patch and no halving divides."""
    stages = (ladder.Stage(6, (3, 2)), ladder.Stage(5, (2,), halvings=1, hidden=4))
    return hvae.Ladder(ladder.Ladder(SHAPE, 1, stages, patch=2), likelihoods.Bernoulli(), merge)


def flat(merge="residual", latents=(3, 2, 2), width=8):
    """A ladder of multilayer perceptrons."""
    net = ladder.Ladder(SHAPE, 1, (ladder.Stage(width, latents),), patch=7)
    return hvae.Ladder(net, likelihoods.Bernoulli(), merge)
