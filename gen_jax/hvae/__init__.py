"""Step 8: the hierarchical VAE, a VAE with a latent of its latent, and so on: `L` levels `z_1, ..., z_L`.

chain       x -> z_1 -> z_2 -> ... and back, each level linked to its neighbours: the book's model (HVAE), and the bound
bridge      the chain whose encoder only adds noise: a diffusion model, step 9
ladder      bottom-up features, then a latent at every level top-down: trains well with many levels (Ladder)
objective   the training loss: KL warm-up, free bits, KL balancing

A level is one of the latents; level 0 in the code is `z_1`, the one nearest the data.

model = hvae.HVAE((MLPEncoder(20), MLPEncoder(20)), (MLPDecoder((28, 28, 1)), MLP((100, 20))), Bernoulli(), (20, 20))
model = hvae.Ladder(networks.ladder.Ladder((28, 28, 1), 1, stages, patch=28), Bernoulli())
params = model.init(key, x)
model.elbo(params, key, x)                          # .value [B], .reconstruction [B], .kl [B, L], nats
model.sample(key, params, 64, levels=2)             # draw the top two levels, the others at their means
step = training.make_step(hvae.loss(model, free_bits=0.1), optimizer)
"""

from gen_jax.hvae.bridge import diffusion_chain
from gen_jax.hvae.chain import Chain, elbo, infer
from gen_jax.hvae.gaussian import Gaussian
from gen_jax.hvae.ladder import Ladder, Network
from gen_jax.hvae.markov import HVAE, Params
from gen_jax.hvae.objective import balanced, iwae_loss, loss, objective

__all__ = [
    "HVAE",
    "Chain",
    "Gaussian",
    "Ladder",
    "Network",
    "Params",
    "balanced",
    "diffusion_chain",
    "elbo",
    "infer",
    "iwae_loss",
    "loss",
    "objective",
]
