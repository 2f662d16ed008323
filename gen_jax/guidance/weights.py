"""The weight of guidance: a number, one per sample, or a function of the time."""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from gen_jax import checks
from gen_jax.diffusion.process import Process, Times

Constant: TypeAlias = Annotated[
    float | Num[Array | np.ndarray, ""] | Num[Array | np.ndarray, "B"], checks.Range()
]
WeightFunction: TypeAlias = Callable[[Times], Constant]
Moment: TypeAlias = Annotated[float | Num[Array | np.ndarray, ""], checks.Range(0)]
Weight: TypeAlias = Constant | WeightFunction
"""A number, one per sample `[B]`, or a function from `t []` to one of these; numbers may be traced."""


def at(weight: Weight, t: Times, x_t: PyTree) -> Callable[[Array], Array]:
    """`weight` at a time, as a function: from an array `[B, ...]` of `x_t` to a factor of its rank and dtype.

    Raises:
        ValueError: the weight is neither one number nor `B`.
    """
    value = jnp.asarray(weight(t) if callable(weight) else weight)
    batch = jax.tree.leaves(x_t)[0].shape[0]
    if value.shape not in ((), (batch,)):
        raise ValueError(
            f"weight must be one number, or one for each of the {batch} samples; got the shape {value.shape}."
        )
    return lambda x: value.astype(x.dtype).reshape(value.shape + (1,) * (x.ndim - 1 if value.ndim else 0))


@checks.checked
def interval(weight: Weight, process: Process, low: Moment, high: Moment) -> WeightFunction:
    """`weight` at times in [low, high], and 1, no guidance, outside (Kynkaanniemi et al. 2024, Section 3).

    In their experiments guidance is harmful at high noise and unnecessary at low noise. Their interval is one of `sigma /
    alpha`; `process.at_log_snr(proc, -2 * np.log(ratio))` is the time of a ratio.

    Args:
        weight: inside the interval.
        process: the process of the times.
        low: smallest time of the interval; may be traced.
        high: largest time of the interval; may be traced.

    Raises:
        ValueError: `0 <= low < high <= t_max` does not hold (checked unless traced).
    """
    traced = isinstance(low, jax.core.Tracer) or isinstance(high, jax.core.Tracer)
    if not traced and not 0 <= low < high <= process.t_max:
        raise ValueError(
            f"low and high must be an interval of the process, 0 <= low < high <= {process.t_max:g}; got {low:g} and "
            f"{high:g}."
        )

    def weight_at(t: Times) -> Float[Array, "..."]:
        value = jnp.asarray(weight(t) if callable(weight) else weight, jnp.float32)
        return jnp.where((t >= low) & (t <= high), value, 1.0)

    return weight_at


@checks.checked
def cfg_plus_plus(
    scale: Annotated[ArrayLike, checks.Range()], process: Process, times: Float[Array | np.ndarray, "nodes"]
) -> WeightFunction:
    """The weight for CFG++ with `classifier_free` and `DDIM()` on these `times` (Chung et al. 2025, Algorithm 2).

    CFG++ takes the guided `x0_hat = u + scale (c - u)` and the noise of the unconditional estimate `u`,

        x_s = alpha_s (u + scale (c - u)) + sigma_s (x_t - alpha_t u) / sigma_t

    This is a step of DDIM with the weight `scale / (1 - (alpha_t sigma_s) / (alpha_s sigma_t))`, which is large for small
    steps and high noise, and equals `scale` in the step to the data.

    Args:
        scale: the paper's `lambda` in [0, 1], one number or one per sample; may be traced.
        process: gives `alpha_t` and `sigma_t`.
        times: the grid of the plan. The weight at a time is that of the nearest time at which a step begins.

    Raises:
        ValueError: `times` are not at least two decreasing numbers.
    """
    nodes = np.asarray(times, np.float64)
    if nodes.ndim != 1 or len(nodes) < 2 or not (np.diff(nodes) < 0).all():
        raise ValueError(f"times must be the decreasing times of a plan, at least two; got {nodes}.")
    if not process.t_min * (1 - 1e-6) <= nodes[-2] or nodes[0] > process.t_max * (1 + 1e-6) or nodes[-1] < 0:
        raise ValueError(
            f"times must be those of a plan of this process, in [{process.t_min:g}, {process.t_max:g}] but for the last; "
            f"got {nodes[0]:g}, ..., {nodes[-1]:g}."
        )
    with jax.ensure_compile_time_eval():
        alpha, sigma = (np.asarray(f(nodes), np.float64) for f in (process.alpha, process.sigma))
    step = 1 - alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    starts, steps = jnp.asarray(nodes[:-1], jnp.float32), jnp.asarray(step, jnp.float32)
    return lambda t: jnp.asarray(scale) / steps[jnp.argmin(jnp.abs(starts - t))]
