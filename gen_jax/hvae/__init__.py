"""Step 8: the hierarchical VAE, whose latent has a latent of its own, and so on up.

chain       x -> z_1 -> z_2 -> ... and back, neighbours only: the book's model (HVAE), and the bound of any such chain
bridge      the chain whose encoder only adds noise: a diffusion model, step 9
ladder      up without a draw, down with one at every level: what works with many levels (Ladder)
objective   what is minimised: warm-up, free bits, balance of the levels

model = hvae.HVAE((MLPEncoder(20), MLPEncoder(20)), (MLPDecoder((28, 28, 1)), MLP((100, 20))), Bernoulli(), (20, 20))
model = hvae.Ladder(networks.ladder.Ladder((28, 28, 1), 1, stages, patch=28), Bernoulli())
params = model.init(key, x)
model.elbo(params, key, x)                          # .value [B], .reconstruction [B], .kl [B, L], nats
model.sample(key, params, 64, levels=2)             # what the top two levels decide
step = training.make_step(hvae.loss(model, free_bits=0.1), optimizer)
"""

from gen_jax.hvae.bridge import diffusion_chain
from gen_jax.hvae.chain import Chain, climb, elbo
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
    "climb",
    "diffusion_chain",
    "elbo",
    "iwae_loss",
    "loss",
    "objective",
]
