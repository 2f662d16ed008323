"""Step 5: expectation maximisation of a Gaussian mixture: in log space, in bounded memory, on any number of devices.

    E   r_nk = p(z_n = k | x_n)                                                            (PRML Eq. 9.13)
    M   N_k = sum_n r_nk,   mean_k = sum_n r_nk x_n / N_k,
        cov_k = sum_n r_nk (x_n - mean_k)(x_n - mean_k)^T / N_k,   weights_k = N_k / N     (PRML Eqs. 9.24 to 9.27)

The M-step needs only sums over rows (`Statistics`). So the rows may be in chunks, on several devices, weighted, or in
the batches of a stream, with the same result. The sums are of differences from the means of the E-step. These change less
and less, so there is no cancellation of large numbers, even in float32.

    fit = em.fit(key, x, num_components=2)
    fit.params, fit.log_likelihood, fit.status
"""

from gen_jax.em.fitting import Fit, Status, fit
from gen_jax.em.steps import Statistics, compile_step, e_step, m_step, recentre, step, stepwise

__all__ = [
    "Fit",
    "Statistics",
    "Status",
    "compile_step",
    "e_step",
    "fit",
    "m_step",
    "recentre",
    "step",
    "stepwise",
]
