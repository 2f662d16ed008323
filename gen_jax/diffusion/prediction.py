"""What a network predicts, and how to make a denoiser out of it.

At a given `x_t = alpha_t x_0 + sigma_t eps` all predictions say the same thing in different coordinates:

    predicts   target y                       x0_hat
    "eps"      eps                            (x_t - sigma_t y) / alpha_t
    "x0"       x_0                            y
    "v"        alpha_t eps - sigma_t x_0      (alpha_t x_t - sigma_t y) / (alpha_t^2 + sigma_t^2)
    "score"    -eps / sigma_t                 (x_t + sigma_t^2 y) / alpha_t
    "velocity" eps - x_0                      (x_t - sigma_t y) / (alpha_t + sigma_t)

Each is `y = a x_0 + b eps`, and so `x0_hat = p x_t + q y`: the two tables below are all there is, and `q` is
also what turns an error in `y` into one in `x_0`, which is what `loss` needs. A sampler sees none of this. It
gets a denoiser, `denoise(x_t, t) -> x0_hat`, with `t` a scalar, from `as_denoiser`; what maps denoisers to
denoisers (`clipped`, guidance) works on all alike.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from gen_jax.diffusion.process import Process, expand
from gen_jax.types import Predicts

PREDICTIONS = ("eps", "x0", "v", "score", "velocity")

Apply: TypeAlias = Callable[[Any, Shaped[Array, "B"]], Any]
"""A network with its parameters and conditions bound: `(x_t [B, ...], t [B]) -> y`, of the shape of `x_t`."""

Denoiser: TypeAlias = Callable[[Any, Float[Array, ""]], Any]
"""`(x_t [B, ...], t []) -> x0_hat`, of the shape of `x_t`: an estimate of `E[x_0 | x_t]`."""

Levels: TypeAlias = Float[Array, ""] | Float[Array, "B"]
"""`alpha_t` or `sigma_t`: one for all, or one a row."""


def check_predicts(predicts: str) -> None:
    """Raises a ValueError that names the choices, unless `predicts` is one of them."""
    if predicts not in PREDICTIONS:
        raise ValueError(f"predicts must be one of {', '.join(map(repr, PREDICTIONS))}; got {predicts!r}.")


def _target_weights(alpha_t: Array, sigma_t: Array, predicts: Predicts) -> tuple[Array, Array]:
    """`a, b` of `y = a x_0 + b eps`."""
    check_predicts(predicts)
    zero, one = jnp.zeros_like(alpha_t), jnp.ones_like(alpha_t)
    return {
        "eps": lambda: (zero, one),
        "x0": lambda: (one, zero),
        "v": lambda: (-sigma_t, alpha_t),
        "score": lambda: (zero, -1 / sigma_t),
        "velocity": lambda: (-one, one),
    }[predicts]()


def _x0_weights(alpha_t: Array, sigma_t: Array, predicts: Predicts) -> tuple[Array, Array]:
    """`p, q` of `x0_hat = p x_t + q y`."""
    check_predicts(predicts)
    power = alpha_t**2 + sigma_t**2
    return {
        "eps": lambda: (1 / alpha_t, -sigma_t / alpha_t),
        "x0": lambda: (jnp.zeros_like(alpha_t), jnp.ones_like(alpha_t)),
        "v": lambda: (alpha_t / power, -sigma_t / power),
        "score": lambda: (1 / alpha_t, sigma_t**2 / alpha_t),
        "velocity": lambda: (1 / (alpha_t + sigma_t), -sigma_t / (alpha_t + sigma_t)),
    }[predicts]()


def target(
    x_0: Float[Array, "B *x"],
    eps: Float[Array, "B *x"],
    alpha_t: Levels,
    sigma_t: Levels,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "B *x"]:
    """What a network that `predicts` is trained to say at `x_t = alpha_t x_0 + sigma_t eps`.

    "eps": Ho et al. 2020, Eq. 12; "v": Salimans & Ho 2022, Section 4; "score": Song et al. 2021, Eq. 7; "velocity":
    Liu et al. 2023, Eq. 1, with time from data to noise: `dx_t / dt` of `process.FlowMatching`.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    a, b = _target_weights(alpha_t, sigma_t, predicts)
    return expand(a, x_0) * x_0 + expand(b, x_0) * eps


def to_x0(
    prediction: Float[Array, "B *x"],
    x_t: Float[Array, "B *x"],
    alpha_t: Levels,
    sigma_t: Levels,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "B *x"]:
    """Estimate of `x_0` that a prediction amounts to (the table above), in float32 or better.

    Ill-conditioned where `alpha_t` is small, for "eps" and "score": at `alpha_t = 0` they say nothing about
    `x_0`.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    p, q = _x0_weights(alpha_t, sigma_t, predicts)
    return expand(p, x_t) * x_t + expand(q, x_t) * prediction


def from_x0(
    x0_hat: Float[Array, "B *x"],
    x_t: Float[Array, "B *x"],
    alpha_t: Levels,
    sigma_t: Levels,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "B *x"]:
    """Prediction that an estimate of `x_0` amounts to, in float32 or better: the inverse of `to_x0`.

    It is the target at `x0_hat` and `eps_hat = (x_t - alpha_t x0_hat) / sigma_t`, so `sigma_t` must not be 0,
    except for "x0".

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    p, q = _x0_weights(alpha_t, sigma_t, predicts)
    return (x0_hat - expand(p, x_t) * x_t) / expand(q, x_t)


def error_ratio(alpha_t: Levels, sigma_t: Levels, *, predicts: Predicts = "eps") -> Levels:
    """What an error of 1 in the prediction is in `x_0`: `q^2 = |x_0 - x0_hat|^2 / |y - y_hat|^2`.

    "eps": `sigma_t^2 / alpha_t^2`; "x0": 1; "v": `sigma_t^2 / (alpha_t^2 + sigma_t^2)^2`; "score":
    `sigma_t^4 / alpha_t^2`; "velocity": `sigma_t^2 / (alpha_t + sigma_t)^2`.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    return jnp.square(_x0_weights(alpha_t, sigma_t, predicts)[1])


def as_denoiser(
    apply: Apply,
    process: Process,
    *,
    predicts: Predicts = "eps",
    time: Callable[[Array], Array] | None = None,
) -> Denoiser:
    """Makes a denoiser out of a network: `denoise(x_t, t) = to_x0(apply(x_t, time(t)), x_t, alpha_t, sigma_t)`.

    A network need not count time as the process does; `time` says how it counts.

        network                                            process           time
        trained with this process                          the same          None
        steps 0..T-1 (diffusers, OpenAI, Ho et al.)        DDPM              t - 1
        the same, as integers (a table of embeddings)      DDPM              jnp.round(t - 1).astype(int)
        steps 0..T-1                                       VP, LogSNR, ...   at_log_snr(ddpm, process.log_snr(t)) - 1
        VP's t in [0, 1]                                   DDPM              at_log_snr(vp, process.log_snr(t))
        1000 t (SD3, Flux)                                 FlowMatching      1000 * t
        the log signal-to-noise ratio (VDM)                any               process.log_snr(t)

    `process.at_log_snr(other, process.log_snr(t))` is the time at which `other` has the same noise: a network trained
    with one variance-preserving process serves any other. `t / 1000` of `DDPM()` is about that of `VP()`, its limit. A
    grid between the integers that a table knows is fine, too: rounding costs little next to a step.

    Args:
        apply: `(x_t [B, ...], time(t) [B]) -> y`, a network with parameters and conditions bound. `x_t` may be any
            pytree of arrays `[B, ...]`; `y` is the same. A network in bfloat16 is fine: what leaves the
            denoiser is in float32 or better.
        process: what `alpha_t` and `sigma_t` are.
        predicts: what `y` is, one of `PREDICTIONS`.
        time: `t [] -> []`, what the network is given for the process's `t`, in any dtype; None is `t` itself.

    Returns:
        `denoise(x_t [B, ...], t []) -> x0_hat [B, ...]`. It raises a ValueError, when traced, if the
        network's output does not look like `x_t`, or `time(t)` is not a scalar.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    check_predicts(predicts)

    def denoise(x_t: Any, t: Shaped[Array, ""] | float | int) -> Any:
        t = jnp.asarray(t)
        batch = jax.tree.leaves(x_t)[0].shape[0]
        asked = t if time is None else jnp.asarray(time(t))
        if asked.shape:
            raise ValueError(
                f"time must map a scalar to a scalar, like lambda t: t - 1; got the shape {asked.shape}."
            )
        y = apply(x_t, jnp.broadcast_to(asked, (batch,)))
        check_like(y, x_t, "the network")
        alpha_t, sigma_t = jnp.asarray(process.alpha(t)), jnp.asarray(process.sigma(t))
        return jax.tree.map(lambda y, x: to_x0(y, x, alpha_t, sigma_t, predicts=predicts), y, x_t)

    return denoise


def edm_preconditioned(network: Apply, process: Process, *, sigma_data: float = 0.5) -> Apply:
    """A network that predicts "x0" out of one whose input and target have unit variance at every noise level.

        x0_hat = c_skip x + c_out network(c_in x, c_noise),      x = x_t / alpha_t,   s = sigma_t / alpha_t
        c_skip = d^2 / (s^2 + d^2),   c_out = s d / sqrt(s^2 + d^2),   c_in = 1 / sqrt(s^2 + d^2),   c_noise = log(s) / 4

    with `d = sigma_data` (Karras et al. 2022, Table 1 and Eq. 7). Train it with `predicts="x0"` and
    `loss.edm(sigma_data)`, sample from `as_denoiser(..., predicts="x0")`.

    Args:
        network: `(x [B, ...], c_noise [B]) -> F`, with parameters and conditions bound.
        process: what `alpha_t` and `sigma_t` are; the paper's is `process.EDM()`.
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: `sigma_data` is not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}; images in [-1, 1] have about 0.5.")

    def apply(x_t: Any, t: Float[Array, "B"]) -> Any:
        alpha_t = jnp.asarray(process.alpha(t))
        s = jnp.asarray(process.sigma(t)) / alpha_t
        norm = jnp.sqrt(s**2 + sigma_data**2)
        scaled = lambda c: jax.tree.map(lambda x: expand(c, x) * x, x_t)
        y = network(scaled(1 / (alpha_t * norm)), jnp.log(s) / 4)
        check_like(y, x_t, "the network")
        skip, out = scaled(sigma_data**2 / (alpha_t * norm**2)), s * sigma_data / norm
        return jax.tree.map(lambda a, b: a + expand(out, b) * b, skip, y)

    return apply


def dynamic_threshold(denoise: Denoiser, quantile: float = 0.995) -> Denoiser:
    """Denoiser whose `x0_hat` is clipped to [-s, s] and divided by `s`, an example at a time.

    `s` is the `quantile` of `|x0_hat|` over an example, or 1 where that is less (Saharia et al. 2022, Section 2.3). For
    data in [-1, 1] under strong guidance.

    Raises:
        ValueError: `quantile` outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}; the paper's value is 0.995.")

    def threshold(x: Array) -> Array:
        s = jnp.quantile(jnp.abs(x).reshape(len(x), -1), quantile, axis=1)
        s = expand(jnp.maximum(s, 1), x)
        return jnp.clip(x, -s, s) / s

    return lambda x_t, t: jax.tree.map(threshold, denoise(x_t, t))


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Denoiser whose `x0_hat` is clipped to [low, high], the range of the data.

    Static thresholding (Saharia et al. 2022, Section 2.3).

    Raises:
        ValueError: `low >= high`.
    """
    if not low < high:
        raise ValueError(f"expected low < high, got low={low} and high={high}.")
    return lambda x_t, t: jax.tree.map(lambda x: jnp.clip(x, low, high), denoise(x_t, t))


def check_like(y: PyTree, x: PyTree, who: str) -> None:
    """Raises a ValueError that says what `who` returned, unless it is floating and of the shape of `x`."""
    got_tree, want_tree = str(jax.tree.structure(y)), str(jax.tree.structure(x))
    if got_tree != want_tree:
        raise ValueError(f"{who} must return what it is given, a pytree {want_tree}; it returned {got_tree}.")
    for got, want in zip(jax.tree.leaves(y), jax.tree.leaves(x), strict=True):
        if jnp.shape(got) != jnp.shape(want):
            raise ValueError(
                f"{who} must return the shape of x_t, {jnp.shape(want)}; it returned {jnp.shape(got)}. "
                "If it has more channels (a learned variance, say), return those of the prediction alone."
            )
        if not jnp.issubdtype(jnp.result_type(got), jnp.floating):
            raise ValueError(
                f"{who} must return floating-point numbers, like x_t ({want.dtype}); "
                f"it returned {jnp.result_type(got)}."
            )
