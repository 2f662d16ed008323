"""Time grids: when a sampler asks the denoiser. `n` steps are `n + 1` strictly decreasing times, in float64.

    uniform         even in t                                      rounded for a discrete process
    quadratic       even in sqrt(t)                                rounded
    power           even in t^p
    beta            quantiles of a beta distribution, in t         rounded
    leading         every k-th of the times of a discrete process
    log_snr         even in log_snr_t
    exponential     even in a power of the part of the way in log_snr_t
    karras          even in (sigma_t / alpha_t)^(1 / rho)
    cosine          even in the angle arctan(sigma_t / alpha_t)
    interpolated    through a list of ratios sigma_t / alpha_t, such as a published one

The denoiser is asked at all of them but the last, and never below `process.t_min`, the least noise a network
has seen. How the grid ends is therefore a decision of its own, `final`:

    "zero"      the grid runs evenly to the data at t = 0; its last time but one is wherever that puts it
    "denoise"   the grid runs to t_end in n - 1 steps, and one last step goes from there to t = 0
    "stop"      the grid ends at t_end: samples keep its noise, solvers their order

`t_end` is `t_min` unless given. There sigma is about 0.01.

A step to `t = 0` returns the denoiser's `x0_hat` as it is, whatever the solver. A grid begins at `t_max`, the prior,
or at `t_start`, from data with the noise of that time, to edit them (SDEdit; Meng et al. 2022, Algorithm 1):

    grid = times.log_snr(process, 20, t_start=0.5)
    x_t = process.perturb(x_0, grid[0], eps)
    x_0 = samplers.sample(key, denoise, solver.plan(process, grid), x_t)

A grid of your own is any decreasing array: `solver.plan` checks it. A grid of `final="stop"` may be reversed, to run
from data to noise (`samplers`).

All grids take the same arguments, and some have more:

    process    the process
    n          number of steps
    final      how the grid ends
    t_start    where it begins; `t_max` by default
    t_end      the last time at which the denoiser is asked, for "denoise" and "stop"; `t_min` by default

and raise a ValueError for `n < 1`, an unknown `final`, one that the grid cannot have, or times that do not satisfy
`t_min <= t_end < t_start <= t_max`.
"""

from gen_jax.samplers.times.by_noise import cosine, exponential, interpolated, karras, log_snr
from gen_jax.samplers.times.by_time import beta, leading, power, quadratic, uniform
from gen_jax.samplers.times.grid import Grid

__all__ = [
    "Grid",
    "beta",
    "cosine",
    "exponential",
    "interpolated",
    "karras",
    "leading",
    "log_snr",
    "power",
    "quadratic",
    "uniform",
]
