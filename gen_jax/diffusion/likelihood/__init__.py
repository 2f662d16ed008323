"""How likely data are under a diffusion model: `vlb`, an upper bound on `-log p(x)`."""

from gen_jax.diffusion.likelihood.bound import Bound, vlb
from gen_jax.diffusion.likelihood.decoder import discretized_log_prob

__all__ = ["Bound", "discretized_log_prob", "vlb"]
