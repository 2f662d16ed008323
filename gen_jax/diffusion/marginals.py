"""What a process is at given times, in float64 on the host: what coefficients of solvers and likelihoods are made of."""

from typing import Annotated, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from gen_jax import checks
from gen_jax.diffusion.process import Process


class Marginals(NamedTuple):
    """`q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I)` at `n` times."""

    time: Float[np.ndarray, "n"]
    alpha: Float[np.ndarray, "n"]
    sigma: Float[np.ndarray, "n"]
    log_snr: Annotated[Float[np.ndarray, "n"], checks.Range(finite=False)]


@checks.checked
def marginals(process: Process, times: Float[np.ndarray, "n"]) -> Marginals:
    """`alpha`, `sigma` and `log_snr` at `times`, in float64 even where the process is written in jax.numpy."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        alpha, sigma, log_snr = (
            np.asarray(f(times), np.float64) for f in (process.alpha, process.sigma, process.log_snr)
        )
    return Marginals(times, alpha, sigma, log_snr)
