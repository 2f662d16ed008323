"""Step 7: the variational autoencoder, `z ~ N(0, I)`, `x ~ p(x | z)`, and a network that guesses `z` from `x`.

The mixture of step 4 with infinitely many components, and EM (step 5) with one change: the E-step's exact posterior is
out of reach, so an encoder `q(z | x) = N(mean(x), diag(std(x)^2))` stands in for it and both are trained on one bound,

    log p(x) >= ELBO(x) = E_q[log p(x | z)] - KL(q(z | x) || p(z))                    Kingma & Welling 2014, Eq. 3

    model = vae.VAE(MLPEncoder(20), MLPDecoder((28, 28, 1)), likelihoods.Bernoulli(), latent=20)
    params = model.init(key, x)
    model.elbo(params, key, x).value              # [B] nats, one sample of z
    model.iwae(params, key, x, 50)                # [B] nats, tighter with more samples
    model.log_prob(params, key, x)                # [B] nats, 5000 samples: the figure that papers report
    step = training.make_step(vae.loss(model), optimizer)

Each number says which bound it is; noise for example `i` comes from `fold_in(key, i)`, so none depends on the batch, on
chunks or on devices.
"""

from gen_jax.vae.loss import Prepare, iwae_loss, loss, spent_bits, systematic, weight_at
from gen_jax.vae.model import VAE, Elbo, Params, Posterior, kl_to_prior

__all__ = [
    "VAE",
    "Elbo",
    "Params",
    "Posterior",
    "Prepare",
    "iwae_loss",
    "kl_to_prior",
    "loss",
    "spent_bits",
    "systematic",
    "weight_at",
]
