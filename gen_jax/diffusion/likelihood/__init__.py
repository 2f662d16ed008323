"""How likely data are under a diffusion model, in nats an example: a density, or a bound on one.

    ode_log_prob    the density of the probability-flow ODE, to a tolerance: the model as a deterministic sampler sees it
    vlb             the variational bound of the noising chain: the model as ancestral sampling sees it

Both take a denoiser and its process. They are of two models, which agree only where the denoiser is exact.
"""

from gen_jax.diffusion.likelihood.bound import Bound, vlb
from gen_jax.diffusion.likelihood.ode import EXACT_DIMS, NUM_PROBES, Density, ode, ode_log_prob
from gen_jax.likelihoods import discretized_log_prob

__all__ = [
    "EXACT_DIMS",
    "NUM_PROBES",
    "Bound",
    "Density",
    "discretized_log_prob",
    "ode",
    "ode_log_prob",
    "vlb",
]
