"""Ancestral sampling with a learned variance: in every step, each element has noise of its own size.

    plans = samplers.learned.plan(proc, samplers.times.uniform(proc, 100))
    x_0 = samplers.learned.sample(key, variance.as_denoiser(apply, proc), plans, x_T)

`samplers.DDPM` has the same mean for both of its variances, so its two plans suffice. The deviation of the noise is
`n_posterior^(1 - v) n_beta^v`, where the network predicts `v` for each element beside `x0_hat`.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import checks, programs
from gen_jax.diffusion import matching
from gen_jax.diffusion.asking import check_like, check_pair
from gen_jax.diffusion.process import Process
from gen_jax.diffusion.variance import VarianceDenoiser
from gen_jax.samplers import multistep
from gen_jax.samplers.multistep import Plan
from gen_jax.samplers.solvers import DDPM, Times


class Plans(NamedTuple):
    """The mean of every step, and the two deviations that its noise lies between."""

    mean: Plan
    """Without noise."""
    low: Float[Array, "n"]
    """`sqrt(beta_tilde)`; 0 in a step to the data."""
    log_ratio: Float[Array, "n"]
    """`log(sqrt(beta) / sqrt(beta_tilde))`; 0 in a step to the data."""

    @staticmethod
    def made_by() -> str:
        """How one comes by plans."""
        return "samplers.learned.plan(process, times)"


@checks.checked
def plan(process: Process, times: Times) -> Plans:
    """Plans of the steps from `times[0]` to `times[-1]`; ValueError as of `samplers.DDPM().plan`."""
    low, high = (DDPM(variance).plan(process, times) for variance in ("posterior", "beta"))
    if low.noise is None or high.noise is None:  # one step, to the data
        return Plans(low, jnp.zeros_like(low.t), jnp.zeros_like(low.t))
    noisy = low.noise > 0
    log_ratio = jnp.where(noisy, jnp.log(jnp.where(noisy, high.noise, 1) / jnp.where(noisy, low.noise, 1)), 0)
    return Plans(low._replace(noise=None), low.noise, log_ratio)


@checks.checked
def sample(
    key: Key[Array, ""],
    denoise: VarianceDenoiser,
    plans: Plans,
    x_T: Annotated[Shaped[Array | np.ndarray, "B *x"], checks.Range()],
    *,
    index: multistep.Index | None = None,
) -> Float[Array, "B *x"]:
    """Follows `plans` from `x_T`, with `log n^2 = v log beta + (1 - v) log beta_tilde` (Nichol & Dhariwal 2021, Eq. 15).

    Noise is that of `samplers.sample`: with `v = 0` this is `samplers.DDPM("posterior")`, with `v = 1`
    `samplers.DDPM("beta")`. Steps between any two times of a longer chain are fine: the bounds are those of the step.

    Args:
        key: of the noise, as of `samplers.sample`.
        denoise: `(x_t [B, ...], t []) -> (x0_hat, v)`, from `variance.as_denoiser`.
        plans: from `plan`.
        x_T: the start, floating `[B, ...]`.
        index: numbers of the samples, as of `samplers.sample`.

    Raises:
        ValueError: as of `samplers.sample`.
    """
    multistep.check_state("x_T", x_T)
    matching.check_plan(plans.mean.t, plans.mean.levels, denoise)
    return programs.run(_follower, denoise, (), key, plans, x_T, index)


def _follower(denoise: VarianceDenoiser) -> Callable[..., Array]:
    """`(key, plans, x_T, index) -> x_0`."""

    def follow(key: Key[Array, ""], plans: Plans, x_T: Array, index: Int[Array, "B"] | None) -> Array:
        def body(state: multistep.State, _: None) -> tuple[multistep.State, None]:
            k = state.step
            x0_hat, v = check_pair(denoise(state.x, plans.mean.t[k]))
            check_like(v, state.x, "the denoiser (as v)")
            after, _ = multistep.step(key, lambda x, t: x0_hat, plans.mean, state, index=index)
            low, log_ratio = (column[k].astype(after.x.dtype) for column in (plans.low, plans.log_ratio))
            n = low * jnp.exp(v.astype(after.x.dtype) * log_ratio)
            return after._replace(x=after.x + n * multistep.noise(key, k, state.x, index)), None

        state, _ = jax.lax.scan(body, multistep.init(plans.mean, x_T), length=plans.mean.num_steps)
        x_0: Array = multistep.finalize(state)
        return x_0.astype(x_T.dtype)

    return follow
