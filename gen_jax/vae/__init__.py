"""Step 7: the variational autoencoder, `z ~ N(0, I)`, `x ~ p(x | z)`, and an encoder `q(z | x)` for the posterior.

It is the mixture of step 4 with infinitely many components. The exact posterior of the E-step (step 5) is intractable, so
an encoder `q(z | x) = N(mean(x), diag(std(x)^2))` approximates it, and encoder and decoder are trained on one bound,

    log p(x) >= ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z))                    Kingma & Welling 2014, Eq. 3

    model = vae.VAE(MLPEncoder(20), MLPDecoder((28, 28, 1)), likelihoods.Bernoulli(), latent=20)
    params = model.init(key, x)
    model.elbo(params, key, x).value              # [B] nats, one sample of z
    model.iwae(params, key, x, 50)                # [B] nats, tighter with more samples
    model.log_prob(params, key, x)                # [B] nats, 5000 samples, as papers report it
    step = training.make_step(vae.loss(model), optimizer)

`vae.latent` trains the autoencoder of latent diffusion (step 10) by the same bound.

The noise of example `i` comes from `fold_in(key, i)`, so no result depends on the batch, the chunks or the devices.
"""

from gen_jax.vae import latent
from gen_jax.vae.loss import (
    Prepare,
    free_bits_kl,
    iwae_loss,
    loss,
    systematic_resampling,
    weight_at,
)
from gen_jax.vae.model import VAE, Elbo, Params, Posterior, kl_to_prior

__all__ = [
    "VAE",
    "Elbo",
    "Params",
    "Posterior",
    "Prepare",
    "free_bits_kl",
    "iwae_loss",
    "kl_to_prior",
    "latent",
    "loss",
    "systematic_resampling",
    "weight_at",
]
