"""Posterior sampling for linear operators: makes a denoiser given a measurement from a denoiser.

With an estimate `g` of `grad log p(y | x_t)`, the score given `y` is the score plus `g`, so the denoiser is

    x0_hat + sigma_t^2 / alpha_t g

At `alpha_t = 0` (the first time of `FlowMatching`) `x_t` is independent of `x_0`, and nothing is added.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree, Shaped

from gen_jax import checks
from gen_jax.diffusion import matching
from gen_jax.diffusion.asking import ask
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process, Times, expand
from gen_jax.inverse.operators import Operator
from gen_jax.rows import flat

Measured: TypeAlias = Shaped[Array | np.ndarray, "..."]
"""A measurement; what an operator leaves out of it may be NaN."""


@checks.checked
def dps(
    denoise: Denoiser,
    process: Process,
    operator: Operator,
    y: PyTree[Measured],
    noise_std: ArrayLike | None = None,
    *,
    step_size: ArrayLike | Callable[[Times], ArrayLike] | None = None,
) -> Denoiser:
    """Diffusion posterior sampling: the likelihood of `x0_hat`, with the gradient through the denoiser.

        noise_std    g = grad log N(y; A x0_hat(x_t), s^2 I) = 1 / s^2 J^T A^T (y - A x0_hat),   J = d x0_hat / d x_t
        step_size    g = -zeta / |y - A x0_hat| grad |y - A x0_hat|^2

    It replaces `x_0` by `x0_hat`, as if `Cov(x_0 | x_t)` were 0. So samples vary **less than the posterior**, and
    their mean is pulled too far, even past the measurement. For `x_0 ~ N(0, 1)` and `A = 1` the flow from pure noise
    ends at

        variance   exp(-1 / s^2)    instead of 1 / (1 + 1 / s^2)        at s = 1:  0.37 instead of 0.50
        mean       2 z D(z) y       instead of y / (1 + s^2)                       0.72 y instead of 0.50 y

    with `z = 1 / (s sqrt(2))` and Dawson's function `D`. For normal data `pigdm` corrects this. A small `s` makes the
    flow stiff, because `g` grows as `1 / s^2` even where `x_t` is noise: it needs a fine grid.

    The second form is the one used in the paper. There the step is taken in `x_s` after each step of DDPM; here it is
    a part of the score, for any solver. A step of DDPM from `t` to `t - 1` turns `zeta` into the paper's `zeta' =
    zeta beta_t / sqrt(1 - beta_t)`, so `step_size=lambda t: zeta' sqrt(1 - beta(t)) / beta(t)` gives Algorithm 1.

    Args:
        denoise: the denoiser of the data.
        process: gives `alpha_t` and `sigma_t`.
        operator: `A`.
        y: the measurement of each example, as `operator.forward` returns it, or `[1, ...]` for all.
        noise_std: `s`, in the unit of `y`; may be traced.
        step_size: `zeta`, instead of `noise_std`: a number or a function of `t`.

    Returns:
        The denoiser given `y`. When traced it raises a ValueError if `y` does not have the shape of
        `operator.forward(x_t)`.

    Raises:
        ValueError: both or neither of `noise_std` and `step_size` are given, `noise_std` is not positive, or `step_size`
            is negative.

    Source: Chung et al. 2023, Eqs. 11 and 16, Algorithm 1.
    """
    if noise_std is not None and step_size is None:
        _check_number(noise_std, "noise_std", zero=False)
        noise_var = jnp.square(noise_std)
        return _guided(
            denoise, process, operator, y, lambda residual, *_: operator.solve(residual, noise_var, 0.0)
        )
    if step_size is None or noise_std is not None:
        raise ValueError(
            f"expected one of noise_std and step_size, got {noise_std} and {step_size}: give the noise of y if it is "
            "known, else the paper's step size, about 1 for images."
        )
    if not callable(step_size):
        _check_number(step_size, "step_size")

    def weigh(residual: PyTree, t: Array, alpha_t: Array, sigma_t: Array) -> PyTree:
        size = step_size(t) if callable(step_size) else step_size
        return _normalised(operator.solve(residual, 1.0, 0.0), 2 * jnp.asarray(size))

    return _guided(denoise, process, operator, y, weigh)


@checks.checked
def pigdm(
    denoise: Denoiser,
    process: Process,
    operator: Operator,
    y: PyTree[Measured],
    noise_std: ArrayLike = 0.0,
    *,
    data_var: ArrayLike = 1.0,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: the likelihood of a normal `x_0` with mean `x0_hat`.

        p(x_0 | x_t) ~ N(x0_hat, r_t^2 I),      r_t^2 = v sigma_t^2 / (v alpha_t^2 + sigma_t^2)
        g = J^T A^T (s^2 I + r_t^2 A A^T)^-1 (y - A x0_hat),      J = d x0_hat / d x_t

    Exact for data `N(mean, v I)`, with any operator and any noise, also without noise. For other data `v`
    approximates the variance in the directions that `A` measures. If it is too small samples vary too little, if too
    large too much. Pixels in [-1, 1] have about 0.25; the paper takes 1.

    Algorithm 1 of the paper also multiplies `g` by `r_t^2`, in steps of DDIM. Here `g` is the formula above, for any
    solver.

    Args:
        denoise: the denoiser of the data.
        process: gives `alpha_t` and `sigma_t`.
        operator: `A`.
        y: the measurement of each example, as `operator.forward` returns it, or `[1, ...]` for all.
        noise_std: `s`, in the unit of `y`, or 0; may be traced.
        data_var: `v`, positive; may be traced.

    Returns:
        The denoiser given `y`. When traced it raises a ValueError if `y` does not have the shape of
        `operator.forward(x_t)`.

    Raises:
        ValueError: `noise_std` is negative, or `data_var` not positive.

    Source: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", Section 3.
    """
    _check_number(noise_std, "noise_std")
    _check_number(data_var, "data_var", zero=False)

    def weigh(residual: PyTree, t: Array, alpha_t: Array, sigma_t: Array) -> PyTree:
        signal, noise = jnp.square(alpha_t), jnp.square(sigma_t)
        prior_var = data_var * noise / (data_var * signal + noise)
        return operator.solve(residual, jnp.square(noise_std), prior_var)

    return _guided(denoise, process, operator, y, weigh)


def _guided(
    denoise: Denoiser,
    process: Process,
    operator: Operator,
    y: PyTree,
    weigh: Callable[[PyTree, Array, Array, Array], PyTree],
) -> Denoiser:
    """`x0_hat + sigma_t^2 / alpha_t J^T A^T weigh(y - A x0_hat, t, alpha_t, sigma_t)`."""

    def guided(x_t: PyTree, t: Times) -> PyTree:
        t = jnp.asarray(t)
        alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
        x0_hat, pull = jax.vjp(lambda x: ask(denoise, x, t), x_t)
        measured = operator.forward(x0_hat)
        _check_measurement(y, measured)
        residual = jax.tree.map(lambda y, m: jnp.asarray(y, m.dtype) - m, y, measured)
        back = operator.transpose(weigh(residual, t, alpha_t, sigma_t))
        (g,) = pull(jax.tree.map(lambda b, x: b.astype(x.dtype), back, x0_hat))
        scale = jnp.where(alpha_t > 0, jnp.square(sigma_t) / jnp.where(alpha_t > 0, alpha_t, 1), 0)
        return jax.tree.map(lambda x, g: x + scale.astype(x.dtype) * g, x0_hat, g)

    matching.check(denoise, process)
    y = _known(operator, y)
    return matching.as_those(guided, denoise)


def _known(operator: Operator, y: PyTree) -> PyTree:
    """`y` with 0 for NaN where the operator does not measure; ValueError for NaN or infinity where it does."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(y)):
        return y
    wrong = jax.tree.map(lambda leaf: 1 - np.isfinite(np.asarray(leaf, np.float32)).astype(np.float32), y)
    if not any(leaf.any() for leaf in jax.tree.leaves(wrong)):
        return y
    with jax.ensure_compile_time_eval():  # linear, and 0 for what is not measured
        used = jax.tree.leaves(operator.solve(jax.tree.map(jnp.asarray, wrong), 1.0, 1.0))
    if any(not isinstance(u, jax.core.Tracer) and np.asarray(u).any() for u in used):
        raise ValueError(
            "y must be finite where the operator measures, but it has NaN or infinite values there."
        )
    return jax.tree.map(lambda leaf, w: np.where(w, 0, np.asarray(leaf)), y, wrong)


def _normalised(residual: PyTree, size: ArrayLike) -> PyTree:
    """`size residual / |residual|` of each example; 0 where the residual is 0."""
    squares = [flat(jnp.square(r)).sum(1) for r in jax.tree.leaves(residual)]
    square = sum(squares[1:], squares[0])
    weight = jnp.where(square > 0, size / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return jax.tree.map(lambda r: expand(weight, r) * r, residual)


def _check_measurement(y: PyTree, measured: PyTree) -> None:
    """Raises a ValueError unless `y` has the shapes of `measured`, or those for a batch of 1."""
    got, want = (jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), tree) for tree in (y, measured))
    same_tree = str(jax.tree.structure(y)) == str(jax.tree.structure(measured))
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(measured), strict=False)
    if not same_tree or any(jnp.shape(a) not in (m.shape, (1, *m.shape[1:])) for a, m in pairs):
        raise ValueError(
            f"y must have the shape of operator.forward(x_t), {want}, or 1 in place of the batch; got {got}: "
            "y = operator.forward(x) for examples of the shape of x_t."
        )


def _check_number(value: ArrayLike, name: str, *, zero: bool = True) -> None:
    """Raises a ValueError unless `value` is one positive number, or 0 if `zero`. Traced values are not checked."""
    if jnp.shape(value):
        raise ValueError(f"{name} must be one number for all examples, got the shape {jnp.shape(value)}.")
    if not isinstance(value, jax.core.Tracer) and not (
        np.isfinite(value) and (np.asarray(value) >= 0 if zero else np.asarray(value) > 0)
    ):
        advice = "" if zero or name != "noise_std" else ": without noise take pigdm, or a step_size"
        raise ValueError(f"{name} must be {'at least 0' if zero else 'positive'}, got {value}{advice}.")
