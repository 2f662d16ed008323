"""Posterior sampling for linear operators: a denoiser and a measurement make a denoiser given that measurement.

With `g` an estimate of `grad log p(y | x_t)` in `x_t`, the score is `s + g`, and so the denoiser

    x0_hat + sigma_t^2 / alpha_t g

At `alpha_t = 0` (the first time of `FlowMatching`) `x_t` says nothing of `x_0`, its gradient is 0, and the denoiser is
returned as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process, expand
from gen_jax.inverse.operators import Operator


def dps(
    denoise: Denoiser,
    process: Process,
    operator: Operator,
    y: Any,
    noise_std: ArrayLike | None = None,
    *,
    step_size: ArrayLike | Callable[[Any], Any] | None = None,
) -> Denoiser:
    """Diffusion posterior sampling: the likelihood of `x0_hat`, by the gradient through the denoiser.

        noise_std    g = grad log N(y; A x0_hat(x_t), s^2 I) = 1 / s^2 J^T A^T (y - A x0_hat),   J = d x0_hat / d x_t
        step_size    g = -zeta / |y - A x0_hat| grad |y - A x0_hat|^2

    It takes `x_0` for `x0_hat`, that is `Cov(x_0 | x_t)` for 0, so samples scatter **less than the posterior** and are
    pulled too far, even past the measurement. Of `x_0 ~ N(0, 1)` and `A = 1` the flow from pure noise ends at

        variance   exp(-1 / s^2)    instead of 1 / (1 + 1 / s^2)        at s = 1:  0.37 instead of 0.50
        mean       2 z D(z) y       instead of y / (1 + s^2)                       0.72 y instead of 0.50 y

    with `z = 1 / (s sqrt(2))` and Dawson's function `D`. `pigdm` mends that for normal data. Small `s` makes it stiff:
    `g` grows as `1 / s^2` even where `x_t` is noise, and a grid has to be fine to follow.

    The second form is the paper's practice. There the step is taken in `x_s` after each step of DDPM; here it is in the
    score, which any solver follows. A step of DDPM from `t` to `t - 1` turns `zeta` into the paper's `zeta' = zeta beta_t
    / sqrt(1 - beta_t)`: `step_size=lambda t: zeta' sqrt(1 - beta(t)) / beta(t)` is Algorithm 1 itself.

    Args:
        denoise: the denoiser of the data.
        process: what `alpha_t` and `sigma_t` are.
        operator: `A`.
        y: the measurement of each example, as `operator.forward` returns it, or `[1, ...]` for all.
        noise_std: `s`, in the unit of `y`; may be traced.
        step_size: `zeta` in its place, a number or a function of `t`.

    Returns:
        The denoiser. When traced it raises a ValueError if `y` has not the shape of `operator.forward(x_t)`.

    Raises:
        ValueError: not one of `noise_std` and `step_size`, `noise_std` not positive, or a negative `step_size`.

    Source: Chung et al. 2023, Eqs. 11 and 16, Algorithm 1.
    """
    if (noise_std is None) == (step_size is None):
        raise ValueError(
            f"Expected one of noise_std and step_size, got {noise_std} and {step_size}: the noise of y where it is "
            "known, or the paper's step size, about 1 for images."
        )
    if noise_std is not None:
        _check_number(noise_std, "noise_std", zero=False)
        noise_var = jnp.square(noise_std)
        weigh = lambda residual, t, levels: operator.solve(residual, noise_var, 0.0)
    else:
        if not callable(step_size):
            _check_number(step_size, "step_size")
        size: Any = step_size if callable(step_size) else lambda t: step_size
        weigh = lambda residual, t, levels: _normalised(operator.solve(residual, 1.0, 0.0), 2 * size(t))
    return _guided(denoise, process, operator, y, weigh)


def pigdm(
    denoise: Denoiser,
    process: Process,
    operator: Operator,
    y: Any,
    noise_std: ArrayLike = 0.0,
    *,
    data_var: ArrayLike = 1.0,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: the likelihood of a normal `x_0` about `x0_hat`.

        p(x_0 | x_t) ~ N(x0_hat, r_t^2 I),      r_t^2 = v sigma_t^2 / (v alpha_t^2 + sigma_t^2)
        g = J^T A^T (s^2 I + r_t^2 A A^T)^-1 (y - A x0_hat),      J = d x0_hat / d x_t

    Exact for data `N(mean, v I)`, of any operator and noise, none included. Otherwise `v` stands for the variance of the
    data in the directions that `A` measures: too small a `v` makes samples too sure of themselves, too large a one too
    unsure. Pixels in [-1, 1] have about 0.25, the paper takes 1.

    The paper's Algorithm 1 multiplies `g` by `r_t^2` besides, in the steps of DDIM; here it is the score of the formula
    above, for any solver.

    Args:
        denoise: the denoiser of the data.
        process: what `alpha_t` and `sigma_t` are.
        operator: `A`.
        y: the measurement of each example, as `operator.forward` returns it, or `[1, ...]` for all.
        noise_std: `s`, in the unit of `y`, or 0; may be traced.
        data_var: `v`, positive; may be traced.

    Returns:
        The denoiser. When traced it raises a ValueError if `y` has not the shape of `operator.forward(x_t)`.

    Raises:
        ValueError: `noise_std` is negative, or `data_var` not positive.

    Source: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", Section 3.
    """
    _check_number(noise_std, "noise_std")
    _check_number(data_var, "data_var", zero=False)

    def weigh(residual: Any, t: Any, levels: tuple[Any, Any]) -> Any:
        signal, noise = (jnp.square(level) for level in levels)
        prior_var = data_var * noise / (data_var * signal + noise)
        return operator.solve(residual, jnp.square(noise_std), prior_var)

    return _guided(denoise, process, operator, y, weigh)


def _guided(
    denoise: Denoiser, process: Process, operator: Operator, y: Any, weigh: Callable[[Any, Any, Any], Any]
) -> Denoiser:
    """`x0_hat + sigma_t^2 / alpha_t J^T A^T weigh(y - A x0_hat, t, (alpha_t, sigma_t))`."""

    def guided(x_t: Any, t: Any) -> Any:
        t = jnp.asarray(t)
        alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
        x0_hat, pull = jax.vjp(lambda x: denoise(x, t), x_t)
        measured = operator.forward(x0_hat)
        _check_measurement(y, measured)
        residual = jax.tree.map(lambda y, m: jnp.asarray(y, m.dtype) - m, y, measured)
        back = operator.transpose(weigh(residual, t, (alpha_t, sigma_t)))
        (g,) = pull(jax.tree.map(lambda b, x: b.astype(x.dtype), back, x0_hat))
        scale = jnp.where(alpha_t > 0, jnp.square(sigma_t) / jnp.where(alpha_t > 0, alpha_t, 1), 0)
        return jax.tree.map(lambda x, g: x + scale.astype(x.dtype) * g, x0_hat, g)

    return guided


def _normalised(residual: Any, size: Any) -> Any:
    """`size residual / |residual|`, an example at a time; 0 where there is none."""
    squares = [jnp.square(r).reshape(len(r), -1).sum(1) for r in jax.tree.leaves(residual)]
    square = sum(squares[1:], squares[0])
    weight = jnp.where(square > 0, size / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return jax.tree.map(lambda r: expand(weight, r) * r, residual)


def _check_measurement(y: Any, measured: Any) -> None:
    """Raises a ValueError unless `y` looks like what the operator returns, or like that of one example."""
    got, want = (jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree) for tree in (y, measured))
    same_tree = str(jax.tree.structure(y)) == str(jax.tree.structure(measured))
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(measured), strict=False)
    if not same_tree or any(jnp.shape(a) not in (m.shape, (1, *m.shape[1:])) for a, m in pairs):
        raise ValueError(
            f"y must have the shape of what operator.forward makes of x_t, {want}, or 1 in place of the batch; got "
            f"{got}: y = operator.forward(x) of examples of the shape of x_t."
        )


def _check_number(value: Any, name: str, *, zero: bool = True) -> None:
    """Raises a ValueError unless `value` is one number that is not negative, nor 0 unless so said; traced, it may be."""
    if jnp.shape(value):
        raise ValueError(f"{name} must be one number for all examples, got the shape {jnp.shape(value)}.")
    if not isinstance(value, jax.core.Tracer) and not (
        np.asarray(value) >= 0 if zero else np.asarray(value) > 0
    ):
        advice = "" if zero or name != "noise_std" else ": without noise take pigdm, or a step_size"
        raise ValueError(f"{name} must be {'at least 0' if zero else 'positive'}, got {value}{advice}.")
