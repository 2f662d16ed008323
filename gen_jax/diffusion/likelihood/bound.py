"""The variational bound of a diffusion model: an upper bound on `-log p(x)` in three terms.

    -log p(x) <= KL(q(x_T | x) || N(0, sigma_T^2 I))                        prior
                 + sum_i KL(q(x_s | x_t, x) || q(x_s | x_t, x0_hat))        diffusion
                 + E[-log p(x | x_{t_min})]                                 reconstruction

(Kingma et al. 2021, Eqs. 11 and 12.) A KL in the second term is `1/2 (SNR_s - SNR_t) |x - x0_hat(x_t, t)|^2` (Eq.
13). Their sum is an upper Riemann sum of the error over the signal-to-noise ratio: the error is taken at the noisier
end of each step. It decreases with more steps, to the integral (Eq. 18)

    1/2 int_{SNR_T}^{SNR_{t_min}} E |x - x0_hat|^2 dSNR

With the exact denoiser and `t_min -> 0` its mean over data is that of `-log p(x)`.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from gen_jax import checks, keys, programs
from gen_jax.diffusion import asking, matching
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import DDPM, Process, at_log_snr
from gen_jax.likelihoods import discretized_log_prob
from gen_jax.rows import flat
from gen_jax.types import Count, Reconstruction

_CONTINUOUS_SAMPLES = 128


class Bound(NamedTuple):
    """The terms of an upper bound on `-log p(x)`, in nats, summed over dimensions."""

    prior: Float[Array, "B"]
    """What `x_T` still contains of `x`."""
    diffusion: Float[Array, "B"]
    """What the errors of the denoiser cost."""
    reconstruction: Float[Array, "B"]
    """What `x` costs given `x_t` at the smallest noise; negative for a density, possibly."""

    @property
    def nats(self) -> Float[Array, "B"]:
        """The bound: the sum of the terms."""
        return self.prior + self.diffusion + self.reconstruction

    @checks.checked
    def bits_per_dim(self, *shape: int, bin_width: float = 1.0) -> Float[Array, "B"]:
        """The bound in bits per dimension of the original 8-bit data: `nats / (D log 2) - log2(bin_width)`.

        Args:
            shape: of an example, or `D`: `bits_per_dim(*x.shape[1:])`, `bits_per_dim(784)`.
            bin_width: 1 for a probability ("discretized", `x = byte / 127.5 - 1`). For a density ("gaussian") the
                distance in `x` between neighbouring bytes: 2 / 255, or 2 / 256 for `x = 2 (byte + u) / 256 - 1`. With
                uniform noise `u` the latter bounds the discrete code length (Theis et al. 2016, Section 3.1).

        Raises:
            ValueError: the shape or `bin_width` is not positive.
        """
        dims = math.prod(shape)
        if not shape or dims < 1 or not bin_width > 0:
            raise ValueError(
                f"expected the shape of an example and bin_width > 0, got {shape} and {bin_width}."
            )
        return self.nats / (dims * math.log(2)) - math.log2(bin_width)


@checks.checked
def vlb(
    key: Key[Array, ""],
    denoise: Denoiser,
    process: Process,
    x: Annotated[Shaped[Array | np.ndarray, "B *x"], checks.Range()],
    *,
    times: Annotated[Shaped[Array | np.ndarray, "nodes"], checks.Range()] | None = None,
    num_steps: Count | None = None,
    num_samples: Count | None = None,
    reconstruction: Reconstruction = "gaussian",
    bins: int = 256,
    index: Int[Array | np.ndarray, "B"] | None = None,
) -> Bound:
    """Variational bound on `-log p(x)`: an unbiased estimate of each term of the formula at the top of this file.

    The chain of steps is that of `times`, or `num_steps` steps even in `log_snr`. By default it is all `T` steps of a
    `DDPM` (Ho et al. 2020, Eq. 5), and for other processes infinitely many steps, the integral.

    Args:
        key: for the noise and, with `num_samples`, the times. Each example has its own noise (`gen_jax.keys`), so its
            bound does not depend on the batch. Times are the same for all examples.
        denoise: `(x_t [B, ...], t []) -> x0_hat`, with parameters and labels bound.
        process: the process of the denoiser.
        x: data `[B, ...]`, floating.
        times: decreasing times in [t_min, t_max]. The first is the time of the prior, the last that of the
            reconstruction. `samplers.times.uniform(process, n, final="stop")` makes such a grid.
        num_steps: instead of `times`.
        num_samples: number of terms to draw instead of summing all. They are stratified, with probabilities proportional
            to `log((1 + SNR_s) / (1 + SNR_t))`, which makes the terms equal for standard normal data. For the integral
            the default is 128.
        reconstruction: "gaussian", the density `N(x; x0_hat, (sigma / alpha)^2)`, for continuous data; or "discretized",
            its integral over the bin of a value (`discretized_log_prob`), for `x = byte / 127.5 - 1`.
        bins: with "discretized", the number of evenly spaced values in [-1, 1].
        index: numbers `i` of the examples, `0..B-1` by default. To compute examples 64..127 alone:
            `index=jnp.arange(64, 128)`.

    Raises:
        ValueError: `x` is not floating; times that do not decrease or are outside [t_min, t_max]; both `times` and
            `num_steps`; `num_steps` with an infinite `log_snr(t_max)`; an unknown reconstruction; or the output of the
            denoiser has another shape than `x_t`.
    """
    checks.floating("x", x)
    checks.choice("reconstruction", reconstruction, ("gaussian", "discretized"))
    matching.check(denoise, process)
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    options = process, num_samples, reconstruction, bins
    return programs.run(_bounder, denoise, options, key, x, _grid(process, times, num_steps), index)


def _bounder(
    denoise: Denoiser, process: Process, num_samples: int | None, reconstruction: Reconstruction, bins: int
) -> Callable[..., Bound]:
    """`(key, x, grid, index) -> Bound`."""

    def bound(
        key: Key[Array, ""],
        x: Float[Array, "B *x"],
        grid: Float[Array, "nodes"] | None,
        index: Int[Array | np.ndarray, "B"] | None,
    ) -> Bound:
        key_t, key_eps, key_last = jax.random.split(key, 3)
        first, last = (process.t_max, process.t_min) if grid is None else (grid[0], grid[-1])
        first, last = jnp.asarray(first, x.dtype), jnp.asarray(last, x.dtype)

        def x0_error(key: Key[Array, ""], t: Float[Array, ""]) -> Float[Array, "B *x"]:
            x_t = process.perturb(x, t, keys.normal(key, x.shape, index).astype(x.dtype))
            x0_hat: Array = asking.ask(denoise, x_t, t)
            return x - x0_hat.astype(x.dtype)

        def add(total: Float[Array, "B"], term: tuple[Array, Array, Array]) -> tuple[Float[Array, "B"], None]:
            k, t, weight = term
            return total + weight / 2 * _sum_of_squares(x0_error(jax.random.fold_in(key_eps, k), t)), None

        # prior
        prior = jnp.exp(jnp.asarray(process.log_snr(first), x.dtype)) / 2 * _sum_of_squares(x)
        # diffusion
        t, weight = (
            _integral(key_t, process, num_samples)
            if grid is None
            else _sum(key_t, process, grid, num_samples)
        )
        terms = jnp.arange(len(t)), t.astype(x.dtype), weight.astype(x.dtype)
        diffusion, _ = jax.lax.scan(add, jnp.zeros(len(x), x.dtype), terms)
        # reconstruction
        log_snr, error = jnp.asarray(process.log_snr(last), x.dtype), x0_error(key_last, last)
        if reconstruction == "gaussian":
            each = (jnp.exp(log_snr) * jnp.square(error) - log_snr + math.log(2 * math.pi)) / 2
        else:
            each = -discretized_log_prob(x, x - error, jnp.exp(-log_snr / 2), bins)
        return Bound(prior, diffusion, flat(each).sum(1))

    return bound


def _grid(process: Process, times: np.ndarray | Array | None, num_steps: int | None) -> Array | None:
    """The times of the chain; None for infinitely many steps."""
    if times is not None and num_steps is not None:
        raise ValueError("Give times or num_steps, not both.")
    if times is not None:
        return jnp.asarray(_checked_times(process, times))
    if num_steps is None:
        return jnp.arange(process.num_steps, 0.0, -1.0) if isinstance(process, DDPM) else None
    ends = jnp.asarray([process.t_max, process.t_min])
    with jax.ensure_compile_time_eval():  # concrete values, unless the process has traced parameters
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
    """Times and weights of the terms `(SNR_s - SNR_t) |x - x0_hat|^2`, all or drawn (Kingma et al. 2021, Eq. 13)."""
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
    """Times and weights of an estimate of `int |x - x0_hat|^2 dSNR`, with times even in `log(1 + SNR)`.

    The weight is `dSNR / dlog(1 + SNR) = 1 + SNR`. It needs no derivative with respect to time, which only labels the
    noise level (Kingma et al. 2021, Section 5.1).
    """
    n = _CONTINUOUS_SAMPLES if num_samples is None else num_samples
    low, high = jax.nn.softplus(jnp.asarray(process.log_snr(jnp.asarray([process.t_max, process.t_min]))))
    at = _stratified(key, low, high, n)
    t = jnp.asarray(at_log_snr(process, at + jnp.log(-jnp.expm1(-at))))
    return t, (high - low) / n * (1 + jnp.exp(jnp.asarray(process.log_snr(t))))


def _stratified(key: Key[Array, ""], low: Array, high: Array, n: int) -> Float[Array, "n"]:
    """One uniform draw from each of `n` equal parts of [low, high], in order."""
    return low + (high - low) * (jnp.arange(n) + jax.random.uniform(key, (n,))) / n


def _sum_of_squares(x: Float[Array, "B *x"]) -> Float[Array, "B"]:
    return flat(jnp.square(x)).sum(1)


def _checked_times(process: Process, times: Shaped[Array | np.ndarray, "nodes"]) -> np.ndarray:
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) < 0).all():
        raise ValueError(f"times must be at least 2 strictly decreasing numbers, got {times}.")
    slack = 1e-6  # a grid may have been float32
    if times[0] > process.t_max * (1 + slack) or times[-1] < process.t_min * (1 - slack):
        raise ValueError(
            f"times must lie in [{process.t_min:g}, {process.t_max:g}], got {times[0]:g} to {times[-1]:g}: the bound "
            'ends with noise, where x is reconstructed, as grids of samplers do with final="stop".'
        )
    return times
