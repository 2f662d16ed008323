"""How data become noise: `x_t = alpha_t x_0 + sigma_t eps`, with data at `t = 0` and noise at `t = t_max`.

A process is a frozen dataclass with `alpha(t)`, `sigma(t)` and the range of times at which a network is trained. All else
(`log_snr`, `perturb`, `prior`, `times`) follows from these, and is overridden where a better formula is known. For a
process of your own take `Schedule(alpha, sigma)`, or subclass `Process` to override more.

Three times matter. `t = 0` is the data: `alpha = 1`, `sigma = 0`, `log_snr = inf`. `t_min > 0` has the smallest noise at
which a network is trained, so samplers call it at no smaller time. `t_max` is the prior.

    DDPM            t = 0, 1, ..., T        alpha^2 + sigma^2 = 1, from betas
    VP, LogSNR      t in [0, 1]             alpha^2 + sigma^2 = 1, from beta(t) or any log_snr(t)
    SubVP           t in [0, 1]             sigma = 1 - alpha^2
    VE              t in [0, 1]             alpha = 1, sigma geometric in t
    EDM             t in [0, 80]            alpha = 1, sigma = t
    FlowMatching    t in [0, 1]             alpha = 1 - t, sigma = t
    Schedule                                any two functions alpha, sigma

Functions of time take arrays of jax or numpy, and return arrays of the same library, in float32 or better. Numpy's
float64 stays float64: the coefficients of samplers are computed so. A time outside [0, t_max] is a ValueError where its
value is known; inside `jit` it is not.

Derivatives by time are finite from `t_min` to `t_max`, both ends included, with one exception: where `alpha = 0` at
`t_max` (`FlowMatching`, `DDPM(zero_terminal_snr=True)`), `log_snr` is minus infinity and has no derivative. At `t = 0`
`log_snr` is infinite, and where `alpha^2 + sigma^2 = 1`, `sigma` grows as `sqrt(t)`, so that its derivative is infinite.
"""

from gen_jax.diffusion.process.base import Process, Times, Values, at_log_snr, expand
from gen_jax.diffusion.process.continuous import EDM, VE, VP, FlowMatching, SubVP
from gen_jax.diffusion.process.custom import LogSNR, Schedule
from gen_jax.diffusion.process.discrete import DDPM

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "FlowMatching",
    "LogSNR",
    "Process",
    "Schedule",
    "SubVP",
    "Times",
    "Values",
    "at_log_snr",
    "expand",
]
