"""The weight of guidance: a number, one a sample, or a function of the time."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from gen_jax.diffusion.process import Process

Schedule: TypeAlias = Callable[[Any], Any]
Weight: TypeAlias = ArrayLike | Num[Array, "B"] | Num[np.ndarray, "B"] | Schedule
"""A number, one a sample `[B]`, or `t [] ->` one of these; numbers may be traced."""


def at(weight: Weight, t: Any, x_t: Any) -> Callable[[Array], Array]:
    """`weight` at a time, as a function of an array `[B, ...]` of `x_t`: in its number of axes, to multiply it by.

    Raises ValueError for a weight that is neither one number nor `B`.
    """
    value = jnp.asarray(weight(t) if callable(weight) else weight)
    batch = jax.tree.leaves(x_t)[0].shape[0]
    if value.shape not in ((), (batch,)):
        raise ValueError(
            f"expected a weight of one number, or one for each of the {batch} samples, got {value.shape}."
        )
    return lambda x: value.astype(x.dtype).reshape(value.shape + (1,) * (x.ndim - 1 if value.ndim else 0))


def interval(
    weight: Weight, process: Process, low: float | int | Num[Array, ""], high: float | int | Num[Array, ""]
) -> Schedule:
    """`weight` at times in [low, high], and 1, no guidance, outside (Kynkaanniemi et al. 2024, Section 3).

    They find guidance harmful at high noise and needless at low. Their interval is one of `sigma / alpha`:
    `process.at_log_snr(proc, -2 * np.log(level))` is its time.

    Args:
        weight: inside.
        process: what the times are of.
        low, high: its ends; may be traced.

    Raises:
        ValueError: `0 <= low < high <= t_max` does not hold (of numbers that are not traced).
    """
    traced = isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer)
    if not traced and not 0 <= low < high <= process.t_max:
        raise ValueError(
            f"expected an interval inside the process, 0 <= low < high <= {process.t_max:g}, got {low:g} and {high:g}."
        )

    def weight_at(t: Any) -> Float[Array, "..."]:
        value = jnp.asarray(weight(t) if callable(weight) else weight, jnp.float32)
        return jnp.where((t >= low) & (t <= high), value, 1.0)

    return weight_at


def plus_plus(scale: ArrayLike, process: Process, times: Float[Array | np.ndarray, "nodes"]) -> Schedule:
    """The weight with which `classifier_free` and `DDIM()` on these `times` are CFG++ (Chung et al. 2025, Algorithm 2).

    CFG++ takes the guided `x0_hat = u + scale (c - u)` and the noise of the unconditional estimate `u`,

        x_s = alpha_s (u + scale (c - u)) + sigma_s (x_t - alpha_t u) / sigma_t

    which is the step of DDIM with the weight `scale / (1 - (alpha_t sigma_s) / (alpha_s sigma_t))`: large in small steps
    and at high noise, and `scale` in the step to the data. (It holds of the weight 0 to 1 that it stays near the data.)

    Args:
        scale: of the paper, `lambda` in [0, 1], or one a sample; may be traced.
        process: what `alpha_t` and `sigma_t` are.
        times: the grid of the plan; the weight at a time is that of the step which begins nearest to it.

    Raises:
        ValueError: `times` are not at least two that decrease.
    """
    nodes = np.asarray(times, np.float64)
    if nodes.ndim != 1 or len(nodes) < 2 or not (np.diff(nodes) < 0).all():
        raise ValueError(f"expected the decreasing times of a plan, at least two, got {nodes}.")
    with jax.ensure_compile_time_eval():
        alpha, sigma = (np.asarray(f(nodes), np.float64) for f in (process.alpha, process.sigma))
    step = 1 - alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    starts, steps = jnp.asarray(nodes[:-1], jnp.float32), jnp.asarray(step, jnp.float32)
    return lambda t: jnp.asarray(scale) / steps[jnp.argmin(jnp.abs(starts - t))]
