"""How likely data are under a diffusion model, in nats per example: a density, or a bound on it.

    ode_log_prob    the density of samples of the probability-flow ODE, to a tolerance
    vlb             the variational bound for samples of the reverse chain, as of ancestral sampling

Both take a denoiser and its process. The two models differ, unless the denoiser is exact.
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
