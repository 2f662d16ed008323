"""Calls of `likelihoods`, `vae` and `hvae`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gen_jax import hvae, likelihoods, vae
from gen_jax.diffusion import process
from gen_jax.networks.autoencoder import MLPDecoder, MLPEncoder
from gen_jax.networks.mlp import MLP
from gen_jax.training import Aux
from gen_jax.vae import latent
from tests.api.walk import call


class Small(nn.Module):
    """An autoencoder with a latent for each pixel."""

    def setup(self):
        self.into, self.back = nn.Dense(4), nn.Dense(1)

    def __call__(self, x):
        return self.decode(self.encode(x)[0])

    def encode(self, x):
        return jnp.split(self.into(x), 2, axis=-1)

    def decode(self, z):
        return self.back(z)


KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SHAPE = (3, 2, 1)
BITS = likelihoods.Bernoulli()
VAE = vae.VAE(MLPEncoder(2, ()), MLPDecoder(SHAPE, ()), BITS, 2)
HVAE = hvae.HVAE((MLPEncoder(2, ()), MLPEncoder(2, ())), (MLPDecoder(SHAPE, ()), MLP((2,))), BITS, (2, 2))
IMAGES = jnp.asarray(RNG.integers(0, 2, (4, *SHAPE)), jnp.float32)
X = jnp.asarray(RNG.uniform(-1, 1, (3, 4)), jnp.float32)
KL = jnp.asarray(RNG.uniform(0, 1, (3, 4)), jnp.float32)
BOUND = vae.Elbo.of(-KL[:, 0], KL)
CHAIN = HVAE.as_chain(HVAE.init(KEY, IMAGES))
WARM = optax.linear_schedule(0.0, 1.0, 10)
AUX = Aux(jnp.asarray(3), None, None)
NET = Small()
PARAMS = NET.init(KEY, jnp.zeros((1, 4, 4, 1)))
BYTES = RNG.integers(0, 256, (3, 4, 4, 1)).astype(np.uint8)
UNIT = jnp.asarray(BYTES / 127.5 - 1, jnp.float32)
UNREAD = ("aux: ema_params: another object", "aux: frozen: another object")
LIKELIHOODS = {
    "discretized_log_prob": call(X, X + 0.1, jnp.exp(X), 16),
    "discretized_logistic_log_prob": call(X, X + 0.1, X, 16),
}
LATENT = {
    "finite_scalar": call((5, 3)),
    "gaussian": call(0.5),
    "vector_quantised": call(commitment=0.25, decay=0.9, dead=0.03),
    "loss": call(NET, latent.gaussian()),
    "measure": call(NET, PARAMS, BYTES, noise=True, batch_size=2),
    "optimizer": call(optax.adam(1e-3), optax.adam(1e-3)),
    "posterior": call(NET, PARAMS, UNIT),
    "reconstruct": call(NET, PARAMS, BYTES, quantiser=jnp.round, batch_size=2),
    "statistics": call(NET, PARAMS, BYTES, batch_size=2),
}
OF_VAE = {
    "free_bits_kl": call(KL, 0.1),
    "iwae_loss": call(VAE, 3, doubly_reparameterised=False, gradient_samples=2, chunk=4),
    "kl_to_prior": call(vae.Posterior(X, X)),
    "loss": call(VAE, beta=0.5, free_bits=0.1),
    "systematic_resampling": call(jnp.asarray(0.3), KL[0], 3),
    "weight_at": (call(0.5, AUX, free=UNREAD), call(WARM, AUX, free=(*UNREAD, "beta: a number"))),
    "loss.prepared": call(KEY, {"image": UNIT}, None),
    **{f"latent.{name}": example for name, example in LATENT.items()},
}
OF_HVAE = {
    "balanced": call(BOUND, np.array([1.0, 2.0, 3.0, 4.0], np.float32)),
    "diffusion_chain": call(lambda x, t: x, process.VP(), np.array([0.9, 0.5, 0.1])),
    "elbo": call(KEY, CHAIN, IMAGES, terms="sampled", index=jnp.arange(4)),
    "infer": call(KEY, CHAIN, IMAGES, index=jnp.arange(4)),
    "iwae_loss": call(HVAE, 3),
    "loss": call(HVAE, beta=0.5, free_bits=0.1, balance=WARM, scale=2.0),
    "objective": call(BOUND, beta=0.5, free_bits=0.1, balance=np.ones(4, np.float32)),
}
EXAMPLES = {
    **{f"likelihoods.{name}": example for name, example in LIKELIHOODS.items()},
    **{f"vae.{name}": example for name, example in OF_VAE.items()},
    **{f"hvae.{name}": example for name, example in OF_HVAE.items()},
}
