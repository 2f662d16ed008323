"""What a network predicts, and how to make a denoiser out of it.

Given `x_t = alpha_t x_0 + sigma_t eps`, all predictions hold the same information in different coordinates:

    predicts   target y                       x0_hat
    "eps"      eps                            (x_t - sigma_t y) / alpha_t
    "x0"       x_0                            y
    "v"        alpha_t eps - sigma_t x_0      (alpha_t x_t - sigma_t y) / (alpha_t^2 + sigma_t^2)
    "score"    -eps / sigma_t                 (x_t + sigma_t^2 y) / alpha_t
    "velocity" eps - x_0                      (x_t - sigma_t y) / (alpha_t + sigma_t)

Each target is `y = a x_0 + b eps`, so `x0_hat = p x_t + q y`; the two tables below hold `a, b` and `p, q`. The same `q`
turns an error in `y` into one in `x_0`, which `loss` needs. Samplers know nothing of this: `as_denoiser` gives them
`denoise(x_t, t) -> x0_hat`, with `t` a scalar. Functions from denoisers to denoisers (`clipped`, guidance) work with
every prediction.
"""

from collections.abc import Callable
from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from gen_jax import checks
from gen_jax.diffusion import matching
from gen_jax.diffusion.asking import check_like
from gen_jax.diffusion.process import Process, Times, expand
from gen_jax.rows import flat
from gen_jax.types import Predicts as Predicts

PREDICTIONS = ("eps", "x0", "v", "score", "velocity")

Apply: TypeAlias = Callable[[PyTree, Shaped[Array, "B"]], PyTree]
"""A network with parameters and conditions bound: `(x_t [B, ...], t [B]) -> y`, of the shape of `x_t`."""

Denoiser: TypeAlias = Callable[[PyTree, Times], PyTree]
"""`(x_t [B, ...], t []) -> x0_hat`, of the shape of `x_t`: an estimate of `E[x_0 | x_t]`."""

Coefficient: TypeAlias = (
    Annotated[Float[Array | np.ndarray, ""], checks.Range(0)]
    | Annotated[Float[Array | np.ndarray, "B"], checks.Range(0)]
)
"""`alpha_t` or `sigma_t`: one for all rows, or one for each."""


@checks.checked
def check_predicts(predicts: str) -> None:
    """Raises a ValueError that names the choices, unless `predicts` is one of them."""
    if predicts not in PREDICTIONS:
        raise ValueError(
            f"predicts must be one of {', '.join(map(repr, PREDICTIONS))}; got {predicts!r}."
            f"{checks.nearest(predicts, PREDICTIONS)}"
        )


def _target_weights(alpha: Coefficient, sigma: Coefficient, predicts: Predicts) -> tuple[Array, Array]:
    """`a, b` of `y = a x_0 + b eps`."""
    check_predicts(predicts)
    alpha_t, sigma_t = jnp.asarray(alpha), jnp.asarray(sigma)
    zero, one = jnp.zeros_like(alpha_t), jnp.ones_like(alpha_t)
    return {
        "eps": lambda: (zero, one),
        "x0": lambda: (one, zero),
        "v": lambda: (-sigma_t, alpha_t),
        "score": lambda: (zero, -1 / sigma_t),
        "velocity": lambda: (-one, one),
    }[predicts]()


def _x0_weights(alpha: Coefficient, sigma: Coefficient, predicts: Predicts) -> tuple[Array, Array]:
    """`p, q` of `x0_hat = p x_t + q y`."""
    check_predicts(predicts)
    alpha_t, sigma_t = jnp.asarray(alpha), jnp.asarray(sigma)
    power = alpha_t**2 + sigma_t**2
    return {
        "eps": lambda: (1 / alpha_t, -sigma_t / alpha_t),
        "x0": lambda: (jnp.zeros_like(alpha_t), jnp.ones_like(alpha_t)),
        "v": lambda: (alpha_t / power, -sigma_t / power),
        "score": lambda: (1 / alpha_t, sigma_t**2 / alpha_t),
        "velocity": lambda: (1 / (alpha_t + sigma_t), -sigma_t / (alpha_t + sigma_t)),
    }[predicts]()


@checks.checked
def target(
    x_0: Float[Array, "B *x"],
    eps: Float[Array, "B *x"],
    alpha_t: Coefficient,
    sigma_t: Coefficient,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "B *x"]:
    """The target of a network that `predicts`, at `x_t = alpha_t x_0 + sigma_t eps`.

    "eps": Ho et al. 2020, Eq. 12; "v": Salimans & Ho 2022, Section 4; "score": Song et al. 2021, Eq. 7; "velocity":
    Liu et al. 2023, Eq. 1, with time from data to noise: `dx_t / dt` of `process.FlowMatching`.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    a, b = _target_weights(alpha_t, sigma_t, predicts)
    return expand(a, x_0) * x_0 + expand(b, x_0) * eps


@checks.checked
def to_x0(
    prediction: Float[Array, "B *x"],
    x_t: Float[Array, "B *x"],
    alpha_t: Coefficient,
    sigma_t: Coefficient,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "B *x"]:
    """The estimate of `x_0` that a prediction implies (the table above), in float32 or better.

    For "eps" and "score" it is ill-conditioned where `alpha_t` is small: at `alpha_t = 0` they do not determine `x_0`.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`; or `alpha_t` is known to be 0, and `predicts` is one of those.
    """
    check_predicts(predicts)
    if predicts in ("eps", "score"):
        checks.within("alpha_t", alpha_t, 0, above=True)
    return _to_x0(prediction, x_t, alpha_t, sigma_t, predicts)


def _to_x0(
    prediction: Array, x_t: Array, alpha_t: Coefficient, sigma_t: Coefficient, predicts: Predicts
) -> Array:
    p, q = _x0_weights(alpha_t, sigma_t, predicts)
    return expand(p, x_t) * x_t + expand(q, x_t) * prediction


@checks.checked
def from_x0(
    x0_hat: Float[Array, "B *x"],
    x_t: Float[Array, "B *x"],
    alpha_t: Coefficient,
    sigma_t: Coefficient,
    *,
    predicts: Predicts = "eps",
) -> Float[Array, "B *x"]:
    """The prediction that an estimate of `x_0` implies, in float32 or better: the inverse of `to_x0`.

    It is the target of `x0_hat` and `eps_hat = (x_t - alpha_t x0_hat) / sigma_t`. Except for "x0", `sigma_t` must not
    be 0.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`; or `sigma_t` is known to be 0, and `predicts` is not "x0".
    """
    check_predicts(predicts)
    if predicts != "x0":
        checks.within("sigma_t", sigma_t, 0, above=True)
        a, b = _target_weights(alpha_t, sigma_t, predicts)
        eps_hat = (x_t - expand(alpha_t, x_t) * x0_hat) / expand(sigma_t, x_t)
        return expand(a, x_t) * x0_hat + expand(b, x_t) * eps_hat
    return x0_hat


@checks.checked
def error_ratio(
    alpha_t: Coefficient, sigma_t: Coefficient, *, predicts: Predicts = "eps"
) -> Float[Array, ""] | Float[Array, "B"]:
    """The squared error in `x_0` for a squared error of 1 in the prediction, `q^2 = |x_0 - x0_hat|^2 / |y - y_hat|^2`.

    "eps": `sigma_t^2 / alpha_t^2`; "x0": 1; "v": `sigma_t^2 / (alpha_t^2 + sigma_t^2)^2`; "score":
    `sigma_t^4 / alpha_t^2`; "velocity": `sigma_t^2 / (alpha_t + sigma_t)^2`. Of "eps" and "score" it is infinite at
    `alpha_t = 0`.

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    return jnp.square(_x0_weights(alpha_t, sigma_t, predicts)[1])


@checks.checked
def as_denoiser(
    apply: Apply,
    process: Process,
    *,
    predicts: Predicts = "eps",
    time: Callable[[Array], Array] | None = None,
) -> Denoiser:
    """Makes a denoiser from a network: `denoise(x_t, t) = to_x0(apply(x_t, time(t)), x_t, alpha_t, sigma_t)`.

    A network may measure time differently from the process; `time` converts.

        network                                            process           time
        trained with this process                          the same          None
        steps 0..T-1 (diffusers, OpenAI, Ho et al.)        DDPM              t - 1
        the same, as integers (a table of embeddings)      DDPM              jnp.round(t - 1).astype(int)
        steps 0..T-1                                       VP, LogSNR, ...   at_log_snr(ddpm, process.log_snr(t)) - 1
        VP's t in [0, 1]                                   DDPM              at_log_snr(vp, process.log_snr(t))
        1000 t (SD3, Flux)                                 FlowMatching      1000 * t
        the log signal-to-noise ratio (VDM)                any               process.log_snr(t)

    `process.at_log_snr(other, process.log_snr(t))` is the time at which `other` has the same noise. So a network
    trained with one variance-preserving process can be used with any other. `t / 1000` of `DDPM()` is about the same
    time of `VP()`, its limit. With a table of embeddings a grid between integers is fine: rounding costs little next
    to a step.

    Args:
        apply: `(x_t [B, ...], time(t) [B]) -> y`, a network with parameters and conditions bound. `x_t` may be any
            pytree of arrays `[B, ...]`, and `y` has the same structure. The network may be in bfloat16: the denoiser
            returns float32 or better.
        process: gives `alpha_t` and `sigma_t`.
        predicts: what `y` is, one of `PREDICTIONS`.
        time: `t [] -> []`, from the process's time to the network's, in any dtype; None keeps `t`.

    Returns:
        `denoise(x_t [B, ...], t []) -> x0_hat [B, ...]`, which knows its process (`diffusion.matching`). When traced it
        raises a ValueError if the network's output has another structure, shape or dtype than `x_t`, or if `t` or
        `time(t)` is not a scalar; and where `alpha_t` is known to be 0, if `predicts` is "eps" or "score", which do not
        determine `x_0` there (inside `jit` `x0_hat` is NaN).

    Raises:
        ValueError: `predicts` is not one of `PREDICTIONS`.
    """
    check_predicts(predicts)

    def denoise(x_t: PyTree, t: Times) -> PyTree:
        if np.ndim(t):
            raise ValueError(f"t must be one time of all samples, a scalar; got the shape {np.shape(t)}.")
        _check_signal(process, t, predicts)
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
        return jax.tree.map(lambda y, x: _to_x0(y, x, alpha_t, sigma_t, predicts), y, x_t)

    return matching.mark(denoise, process, predicts)


def _check_signal(process: Process, t: Times, predicts: Predicts) -> None:
    """ValueError at a time without signal of which the network says nothing, where the time is on the host."""
    if predicts not in ("eps", "score") or isinstance(t, jax.core.Tracer):
        return
    if isinstance(t, jax.Array) and t.platform() != "cpu":
        return
    alpha_t = process.alpha(np.asarray(t))
    if not isinstance(alpha_t, jax.core.Tracer) and np.asarray(alpha_t) == 0:
        raise ValueError(matching.undetermined(predicts, float(t)))


@checks.checked
def without_output(process: Process, *, predicts: Predicts = "eps") -> Denoiser:
    """The part `p x_t` of `x0_hat = p x_t + q y` that is not the network's: the denoiser of one that says 0.

    ValueError for another prediction than one of `PREDICTIONS`.
    """
    return as_denoiser(lambda x_t, t: jax.tree.map(jnp.zeros_like, x_t), process, predicts=predicts)


@checks.checked
def edm_preconditioned(network: Apply, process: Process, *, sigma_data: float = 0.5) -> Apply:
    """A network that predicts "x0", made from one whose input and target have unit variance at every noise level.

        x0_hat = c_skip x + c_out network(c_in x, c_noise),      x = x_t / alpha_t,   s = sigma_t / alpha_t
        c_skip = d^2 / (s^2 + d^2),   c_out = s d / sqrt(s^2 + d^2),   c_in = 1 / sqrt(s^2 + d^2),   c_noise = log(s) / 4

    with `d = sigma_data` (Karras et al. 2022, Table 1 and Eq. 7). Train it with `predicts="x0"` and
    `loss.edm(sigma_data)`, sample from `as_denoiser(..., predicts="x0")`.

    Args:
        network: `(x [B, ...], c_noise [B]) -> F`, with parameters and conditions bound.
        process: gives `alpha_t` and `sigma_t`; the paper's is `process.EDM()`.
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: `sigma_data` is not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}; images in [-1, 1] have about 0.5.")

    def apply(x_t: PyTree, t: Float[Array, "B"]) -> PyTree:
        alpha_t = jnp.asarray(process.alpha(t))
        s = jnp.asarray(process.sigma(t)) / alpha_t
        norm = jnp.sqrt(s**2 + sigma_data**2)

        def scaled(c: Array) -> PyTree:
            return jax.tree.map(lambda x: expand(c, x) * x, x_t)

        y = network(scaled(1 / (alpha_t * norm)), jnp.log(s) / 4)
        check_like(y, x_t, "the network")
        skip, out = scaled(sigma_data**2 / (alpha_t * norm**2)), s * sigma_data / norm
        return jax.tree.map(lambda a, b: a + expand(out, b) * b, skip, y)

    return apply


@checks.checked
def dynamic_threshold(denoise: Denoiser, quantile: float = 0.995) -> Denoiser:
    """Denoiser whose `x0_hat` is clipped to [-s, s] and divided by `s`, with one `s` per example.

    `s` is the `quantile` of `|x0_hat|` over the example, and at least 1 (Saharia et al. 2022, Section 2.3). For data in
    [-1, 1] under strong guidance.

    Raises:
        ValueError: `quantile` outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}; the paper's value is 0.995.")

    def threshold(x: Array) -> Array:
        s = jnp.quantile(flat(jnp.abs(x)), quantile, axis=1)
        s = expand(jnp.maximum(s, 1), x)
        return jnp.clip(x, -s, s) / s

    return matching.as_those(lambda x_t, t: jax.tree.map(threshold, denoise(x_t, t)), denoise)


@checks.checked
def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Denoiser whose `x0_hat` is clipped to [low, high], the range of the data.

    Static thresholding (Saharia et al. 2022, Section 2.3).

    Raises:
        ValueError: `low >= high`.
    """
    if not low < high:
        raise ValueError(f"expected low < high, got low={low} and high={high}.")
    return matching.as_those(
        lambda x_t, t: jax.tree.map(lambda x: jnp.clip(x, low, high), denoise(x_t, t)), denoise
    )
