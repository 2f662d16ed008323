"""Step 5: expectation maximisation for the Gaussian mixture, in log space, in bounded memory, on any number of devices.

    E   r_nk = p(z_n = k | x_n)                                                            (PRML Eq. 9.13)
    M   N_k = sum_n r_nk,   mean_k = sum_n r_nk x_n / N_k,
        cov_k = sum_n r_nk (x_n - mean_k)(x_n - mean_k)^T / N_k,   weights_k = N_k / N     (PRML Eqs. 9.24 to 9.27)

What passes from E to M is a sum over rows (`Statistics`). So rows may come in chunks, over devices, with weights or
in batches of a stream, and the numbers are the same. The sums are of differences from the means that the E-step
used, which EM moves less and less: nothing large cancels, in float32 as well.

    fit = em.fit(key, x, num_components=2)
    fit.params, fit.log_likelihood, fit.status
"""

from gen_jax.em.fitting import Fit as Fit
from gen_jax.em.fitting import Status as Status
from gen_jax.em.fitting import fit as fit
from gen_jax.em.steps import Statistics as Statistics
from gen_jax.em.steps import compile_step as compile_step
from gen_jax.em.steps import e_step as e_step
from gen_jax.em.steps import m_step as m_step
from gen_jax.em.steps import recentre as recentre
from gen_jax.em.steps import step as step
from gen_jax.em.steps import stepwise as stepwise
