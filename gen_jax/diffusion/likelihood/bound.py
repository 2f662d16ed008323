"""The variational bound of a diffusion model: an upper bound on `-log p(x)` in three terms.

    -log p(x) <= KL(q(x_T | x) || N(0, sigma_T^2 I))                        prior
                 + sum_i KL(q(x_s | x_t, x) || q(x_s | x_t, x0_hat))        diffusion
                 + E[-log p(x | x_{t_min})]                                 reconstruction

(Kingma et al. 2021, Eqs. 11 and 12.) A KL of the second term is `1/2 (SNR_s - SNR_t) |x - x0_hat(x_t, t)|^2`
(Eq. 13): a Riemann sum of the error over the signal-to-noise ratio, taken where the error is larger. More steps
make it smaller, and its limit is the integral (Eq. 18)

    1/2 int_{SNR_T}^{SNR_{t_min}} E |x - x0_hat|^2 dSNR

With the exact denoiser and `t_min -> 0` the limit is `-log p(x)` in the mean over data.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import keys
from gen_jax.diffusion.prediction import Denoiser, check_like
from gen_jax.diffusion.process import DDPM, Process, at_log_snr
from gen_jax.likelihoods import discretized_log_prob
from gen_jax.types import Reconstruction

_CONTINUOUS_SAMPLES = 128


class Bound(NamedTuple):
    """The terms of an upper bound on `-log p(x)`, in nats, summed over dimensions."""

    prior: Float[Array, "B"]
    """What the last time still knows of `x`."""
    diffusion: Float[Array, "B"]
    """What the denoiser's errors cost on the way."""
    reconstruction: Float[Array, "B"]
    """What `x` costs given its least noisy version: a density's may be negative."""

    @property
    def nats(self) -> Float[Array, "B"]:
        """The bound: the sum of the terms."""
        return self.prior + self.diffusion + self.reconstruction

    def bits_per_dim(self, *shape: int, bin_width: float = 1.0) -> Float[Array, "B"]:
        """The bound in bits per dimension of the original 8-bit data: `nats / (D log 2) - log2(bin_width)`.

        Args:
            shape: of an example, or `D`: `bits_per_dim(*x.shape[1:])`, `bits_per_dim(784)`.
            bin_width: 1 where the bound is of a probability ("discretized": `x = byte / 127.5 - 1`). Where it is of
                a density ("gaussian"), the distance in `x` between neighbouring bytes, 2 / 255 or, for `x = 2
                (byte + u) / 256 - 1`, 2 / 256; it then bounds the discrete code length if `u` is uniform noise
                (Theis et al. 2016, Section 3.1).

        Raises:
            ValueError: no positive shape, or a `bin_width` that is not positive.
        """
        dims = math.prod(shape)
        if not shape or dims < 1 or not bin_width > 0:
            raise ValueError(
                f"expected the shape of an example and bin_width > 0, got {shape} and {bin_width}."
            )
        return self.nats / (dims * math.log(2)) - math.log2(bin_width)


def vlb(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    x: Shaped[Array, "B *x"],
    *,
    times: Shaped[Array | np.ndarray, "nodes"] | None = None,
    num_steps: int | None = None,
    num_samples: int | None = None,
    reconstruction: Reconstruction = "gaussian",
    bins: int = 256,
    index: Int[Array, "B"] | None = None,
) -> Bound:
    """Variational bound on `-log p(x)`, an unbiased estimate of each of its terms (the module's formulas).

    Which chain of steps it is the bound of: that of `times`; of `num_steps` steps even in `log_snr`; or, by default,
    all `T` steps of a `DDPM` (Ho et al. 2020, Eq. 5) and of any other process infinitely many, the integral.

    Args:
        key: of noise and, where terms are drawn, of times. Example `i` gets noise of its own (`gen_jax.keys`), so
            its bound does not depend on the batch; times are the same for all.
        denoise: `(x_t [B, ...], t []) -> x0_hat`, with parameters and labels bound.
        process: the process the denoiser belongs to.
        x: data `[B, ...]`, floating.
        times: decreasing times in [t_min, t_max]: the first is where the prior is compared, the last where `x` is
            reconstructed. `samplers.times.uniform(process, n, final="stop")` makes one.
        num_steps: in place of `times`.
        num_samples: how many terms to draw instead of summing all, stratified and as likely as `log((1 + SNR_s) / (1
            + SNR_t))`: of standard normal data the terms are then alike. Of the integral, 128 by default.
        reconstruction: "gaussian", the density `N(x; x0_hat, (sigma / alpha)^2)`, for continuous data, or
            "discretized", its integral over the bin of a value (`discretized_log_prob`), for `x = byte / 127.5 - 1`.
        bins: with "discretized", the number of evenly spaced values in [-1, 1].
        index: numbers `i` of the examples, `0..B-1` by default: examples 64..127 by themselves are
            `index=jnp.arange(64, 128)`.

    Raises:
        ValueError: `x` is not floating; times that do not decrease or leave the process; both of `times` and
            `num_steps`; `num_steps` where `log_snr(t_max)` is not finite; an unknown reconstruction; or the
            denoiser's output does not look like `x_t`.
    """
    _check(x, reconstruction, num_steps, num_samples)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    key_t, key_eps, key_last = jax.random.split(key, 3)
    grid = _grid(process, times, num_steps)
    first, last = (process.t_max, process.t_min) if grid is None else (grid[0], grid[-1])
    first, last = jnp.asarray(first, x.dtype), jnp.asarray(last, x.dtype)

    def x0_error(key: Key[Array, ""], t: Float[Array, ""]) -> Float[Array, "B *x"]:
        x_t = process.perturb(x, t, keys.normal(key, x.shape, index).astype(x.dtype))
        x0_hat = denoise(x_t, t)
        check_like(x0_hat, x, "the denoiser")
        return x - x0_hat.astype(x.dtype)

    def add(total: Float[Array, "B"], term: tuple[Array, Array, Array]) -> tuple[Float[Array, "B"], None]:
        k, t, weight = term
        return total + weight / 2 * _sum_of_squares(x0_error(jax.random.fold_in(key_eps, k), t)), None

    # prior
    prior = jnp.exp(jnp.asarray(process.log_snr(first), x.dtype)) / 2 * _sum_of_squares(x)
    # diffusion
    t, weight = (
        _integral(key_t, process, num_samples) if grid is None else _sum(key_t, process, grid, num_samples)
    )
    terms = jnp.arange(len(t)), t.astype(x.dtype), weight.astype(x.dtype)
    diffusion, _ = jax.lax.scan(add, jnp.zeros(len(x), x.dtype), terms)
    # reconstruction
    log_snr, error = jnp.asarray(process.log_snr(last), x.dtype), x0_error(key_last, last)
    if reconstruction == "gaussian":
        each = (jnp.exp(log_snr) * jnp.square(error) - log_snr + math.log(2 * math.pi)) / 2
    else:
        each = -discretized_log_prob(x, x - error, jnp.exp(-log_snr / 2), bins)
    return Bound(prior, diffusion, each.reshape(len(x), -1).sum(1))


def _grid(process: Process, times: np.ndarray | Array | None, num_steps: int | None) -> Array | None:
    """The times of the chain; None for infinitely many."""
    if times is not None and num_steps is not None:
        raise ValueError("Give times or num_steps, not both.")
    if times is not None:
        return jnp.asarray(_checked_times(process, times))
    if num_steps is None:
        return jnp.arange(process.num_steps, 0.0, -1.0) if isinstance(process, DDPM) else None
    ends = jnp.asarray([process.t_max, process.t_min])
    with jax.ensure_compile_time_eval():  # a process without traced parameters can be looked at
        log_snr = jnp.asarray(process.log_snr(ends))
    if not isinstance(log_snr, jax.core.Tracer) and not np.isfinite(log_snr).all():
        raise ValueError(
            f"log_snr must be finite at t_max and t_min, got {log_snr[0]} and {log_snr[1]}: give times, such as "
            'samplers.times.uniform(process, n, final="stop").'
        )
    inner = at_log_snr(process, jnp.linspace(log_snr[0], log_snr[1], num_steps + 1)[1:-1])
    return jnp.concatenate([ends[:1], inner, ends[1:]])


def _sum(
    key: Key[Array, ""], process: Process, grid: Float[Array, "nodes"], num_samples: int | None
) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
    """Times and weights of the terms `(SNR_s - SNR_t) |x - x0_hat|^2`, all or as drawn (Kingma et al. 2021, Eq. 13)."""
    log_snr = jnp.asarray(process.log_snr(grid))
    drop = -jnp.exp(log_snr[1:]) * jnp.expm1(log_snr[:-1] - log_snr[1:])
    if num_samples is None or len(grid) == 1:
        return grid[:-1], drop
    axis = jax.nn.softplus(log_snr)
    at = _stratified(key, axis[0], axis[-1], num_samples)
    i = jnp.clip(jnp.searchsorted(axis, at, side="right") - 1, 0, len(drop) - 1)
    chance = num_samples * (axis[i + 1] - axis[i]) / (axis[-1] - axis[0])
    return grid[i], drop[i] / chance


def _integral(
    key: Key[Array, ""], process: Process, num_samples: int | None
) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
    """Times and weights whose sum is an estimate of `int |x - x0_hat|^2 dSNR`: even in `log(1 + SNR)`.

    The weight of a time is `dSNR / dlog(1 + SNR) = 1 + SNR`: no derivative with respect to time, which is only a name
    for the noise level here (Kingma et al. 2021, Section 5.1).
    """
    n = _CONTINUOUS_SAMPLES if num_samples is None else num_samples
    low, high = jax.nn.softplus(jnp.asarray(process.log_snr(jnp.asarray([process.t_max, process.t_min]))))
    at = _stratified(key, low, high, n)
    t = jnp.asarray(at_log_snr(process, at + jnp.log(-jnp.expm1(-at))))
    return t, (high - low) / n * (1 + jnp.exp(jnp.asarray(process.log_snr(t))))


def _stratified(key: Key[Array, ""], low: Array, high: Array, n: int) -> Float[Array, "n"]:
    """A uniform draw in each of `n` equal parts of [low, high], in order."""
    return low + (high - low) * (jnp.arange(n) + jax.random.uniform(key, (n,))) / n


def _sum_of_squares(x: Float[Array, "B *x"]) -> Float[Array, "B"]:
    return jnp.square(x).reshape(len(x), -1).sum(1)


def _checked_times(process: Process, times: Shaped[Array | np.ndarray, "nodes"]) -> np.ndarray:
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) < 0).all():
        raise ValueError(f"times must be at least 2 strictly decreasing numbers, got {times}.")
    slack = 1e-6  # a grid may have been float32
    if times[0] > process.t_max * (1 + slack) or times[-1] < process.t_min * (1 - slack):
        raise ValueError(
            f"times must lie in [{process.t_min:g}, {process.t_max:g}], got {times[0]:g} to {times[-1]:g}: the bound "
            'ends where x is reconstructed, with noise. A sampler\'s grid does so with final="stop".'
        )
    return times


def _check(x: Array, reconstruction: str, num_steps: int | None, num_samples: int | None) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating-point, got {x.dtype}. For bytes: x / 127.5 - 1.")
    if reconstruction not in ("gaussian", "discretized"):
        raise ValueError(f'reconstruction must be "gaussian" or "discretized", got {reconstruction!r}.')
    for name, number in (("num_steps", num_steps), ("num_samples", num_samples)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
