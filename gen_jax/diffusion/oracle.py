"""Exact denoisers, of data whose distribution is known: the outputs of a perfect network.

    E[x_0 | x_t] = (x_t + sigma_t^2 grad log p_t(x_t)) / alpha_t        (Tweedie; Efron 2011, Eq. 2.8)

A Gaussian mixture with noise is a Gaussian mixture (`gmm.diffuse`), so its denoiser, score, log-density and posterior
over components have closed forms at every time. Each oracle is a denoiser, `oracle(x_t, t) -> x0_hat`, with methods for
the rest:

    den = oracle.mixture(params, proc)
    samplers.sample(key, den, plan, x_T)      # all error is the solver's
    den.log_prob(x_t, t), den.score(x_t, t), den.posterior(x_t, t)

Rows of `x_t [B, ...]` are data points; further axes are flattened. `t` is a scalar. At `t = 0` the denoiser and the
posterior are their limits, also of data that are points, which have no density there: `log_prob` and `score` are not
finite. Oracles are pytrees: pass them through `jit`, `vmap` and `grad`, or close over them.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Shaped

from gen_jax import checks
from gen_jax import normal as _normal
from gen_jax.diffusion.process import Process
from gen_jax.diffusion.process.base import Time
from gen_jax.gmm import GMM
from gen_jax.rows import flat

_LOG_2PI = float(np.log(2 * np.pi))
_PRECISION = jax.lax.Precision.HIGHEST
_LEAST = 1e-20
"""A variance as good as none, for the limit of the posterior of points."""
_CHUNK = 256
"""Number of data points that `Empirical` compares with at once."""

_pytree = partial(jax.tree_util.register_dataclass, meta_fields=["process"])


@partial(_pytree, data_fields=["log_weights", "means", "vectors", "values", "labels"])
@dataclass(frozen=True)
class Mixture:
    """The exact denoiser of data from a Gaussian mixture, by the eigenvectors of its covariances.

    With `cov_k = U_k diag(v_k) U_k^T` the noised covariance is `U_k diag(alpha_t^2 v_k + sigma_t^2) U_k^T` at every
    time, and the denoiser of a component is

        mean_k + U_k diag(alpha_t v_k / (alpha_t^2 v_k + sigma_t^2)) U_k^T (x_t - alpha_t mean_k)

    No matrix is factorised at a time step, and nothing is divided by `alpha_t` or `sigma_t`. A covariance may be singular
    or 0.
    """

    log_weights: Float[Array, "K"]
    means: Float[Array, "K D"]
    vectors: Float[Array, "#K D D"] | None
    """Eigenvectors in columns; None for diagonal covariances."""
    values: Float[Array, "#K #D"]
    """Eigenvalues."""
    labels: Int[Array, "K"]
    """The class of each component."""
    process: Process

    def __call__(self, x_t: Float[Array, "B *x"], t: ArrayLike) -> Float[Array, "B *x"]:
        """`E[x_0 | x_t]`."""
        alpha_t, variance, z = self._along_axes(x_t, t, _LEAST)
        each = self.means[None] + self._back(z * (alpha_t * self.values / variance)[None])
        return self._expected(variance, z, each).reshape(x_t.shape)

    @checks.checked_in_loops
    def score(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B *x"]:
        """`grad log p_t(x_t)`."""
        _, variance, z = self._along_axes(x_t, t)
        return self._expected(variance, z, -self._back(z / variance[None])).reshape(x_t.shape)

    @checks.checked_in_loops
    def log_prob(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B"]:
        """`log p_t(x_t)` in nats."""
        _, variance, z = self._along_axes(x_t, t)
        return jax.nn.logsumexp(self._log_joint(variance, z), axis=-1)

    @checks.checked_in_loops
    def posterior(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B K"]:
        """`p(z = k | x_t)`."""
        _, variance, z = self._along_axes(x_t, t, _LEAST)
        return jax.nn.softmax(self._log_joint(variance, z), axis=-1)

    @checks.checked_in_loops
    def log_class(
        self, x_t: Float[Array, "B *x"], t: Time, label: Int[Array | np.ndarray, "B"]
    ) -> Float[Array, "B"]:
        """`log p(y = label | x_t)`, one label per row: the exact noise-conditional classifier.

        ValueError for a label that no component has; minus infinity where that is not known.
        """
        _check_label(label, self.labels)
        _, variance, z = self._along_axes(x_t, t)
        log_joint = self._log_joint(variance, z)
        member = self.labels[None] == label[:, None]
        return jax.nn.logsumexp(log_joint, axis=-1, where=member) - jax.nn.logsumexp(log_joint, axis=-1)

    @checks.checked
    def given(self, label: int | Int[Array | np.ndarray, ""]) -> "Mixture":
        """The oracle of the data of one class, from the components with that label. `label` may be traced.

        ValueError for a label that no component has; NaN where that is not known.
        """
        _check_label(label, self.labels)
        log_weights = jnp.where(self.labels == label, self.log_weights, -jnp.inf)
        return replace(self, log_weights=jax.nn.log_softmax(log_weights))

    def _along_axes(
        self, x_t: Float[Array, "B *x"], t: ArrayLike, least: float = 0.0
    ) -> tuple[Float[Array, ""], Float[Array, "#K #D"], Float[Array, "B K D"]]:
        """`alpha_t`, the noised variances along the axes of each component, and the differences from its mean."""
        rows = _rows(x_t, self.means.shape[1])
        alpha_t, sigma_t = _coefficients(self.process, t)
        variance = jnp.maximum(jnp.square(alpha_t) * self.values + jnp.square(sigma_t), least)
        z = rows[:, None] - alpha_t * self.means[None]
        if self.vectors is not None:
            z = jnp.matmul(z[:, :, None], self.vectors[None], precision=_PRECISION)[:, :, 0]
        return alpha_t, variance, z

    def _back(self, z: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        if self.vectors is None:
            return z
        return jnp.matmul(z[:, :, None], self.vectors.swapaxes(1, 2)[None], precision=_PRECISION)[:, :, 0]

    def _log_joint(self, variance: Float[Array, "#K #D"], z: Float[Array, "B K D"]) -> Float[Array, "B K"]:
        """`log p(z = k, x_t)`."""
        dims = z.shape[-1]
        log_det = jnp.log(variance).sum(-1) * (dims // variance.shape[-1])
        squares = (jnp.square(z) / variance[None]).sum(-1)
        return self.log_weights[None] - (squares + log_det[None] + dims * _LOG_2PI) / 2

    def _expected(
        self, variance: Float[Array, "#K #D"], z: Float[Array, "B K D"], each: Float[Array, "B K D"]
    ) -> Float[Array, "B D"]:
        """The mean of `each` over components, given `x_t`."""
        posterior = jax.nn.softmax(self._log_joint(variance, z), axis=-1)
        return jnp.einsum("bk,bkd->bd", posterior, each, precision=_PRECISION)


@partial(_pytree, data_fields=["mean", "variance"])
@dataclass(frozen=True)
class Gaussian:
    """The exact denoiser of independent normal numbers, in data `[B, ...]` of any shape."""

    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    process: Process

    def __call__(self, x_t: Float[Array, "B *x"], t: ArrayLike) -> Float[Array, "B *x"]:
        """`E[x_0 | x_t] = mean + alpha_t v (x_t - alpha_t mean) / (alpha_t^2 v + sigma_t^2)`."""
        alpha_t, mean, noised = self._noised(x_t, t)
        return mean + alpha_t * self.variance / jnp.maximum(noised, _LEAST) * (x_t - alpha_t * mean)

    @checks.checked_in_loops
    def score(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B *x"]:
        """`grad log p_t(x_t)`."""
        alpha_t, mean, noised = self._noised(x_t, t)
        return -(x_t - alpha_t * mean) / noised

    @checks.checked_in_loops
    def log_prob(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B"]:
        """`log p_t(x_t)` in nats."""
        alpha_t, mean, noised = self._noised(x_t, t)
        each = jnp.square(x_t - alpha_t * mean) / noised + jnp.log(noised) + _LOG_2PI
        return -flat(each).sum(-1) / 2

    def _noised(
        self, x_t: Float[Array, "B *x"], t: ArrayLike
    ) -> tuple[Float[Array, ""], Float[Array, "B *x"], Float[Array, "B *x"]]:
        """`alpha_t`, the mean of `x_0` and the variance of `x_t`."""
        alpha_t, sigma_t = _coefficients(self.process, t)
        noised = jnp.square(alpha_t) * self.variance + jnp.square(sigma_t)
        return alpha_t, jnp.broadcast_to(self.mean, x_t.shape), jnp.broadcast_to(noised, x_t.shape)


@partial(_pytree, data_fields=["data", "log_weights", "labels"])
@dataclass(frozen=True)
class Empirical:
    """The exact denoiser of a finite set of data points with weights: the optimum of a network that memorises them.

        E[x_0 | x_t] = sum_i softmax_i(log w_i - |x_t - alpha_t x_i|^2 / (2 sigma_t^2)) x_i

    Distances are computed from differences, not from expanded squares, to be accurate at small noise. Points are taken in
    chunks with a running maximum, so temporary memory does not grow with their number.
    """

    data: Float[Array, "N D"]
    log_weights: Float[Array, "N"]
    labels: Int[Array, "N"]
    process: Process

    def __call__(self, x_t: Float[Array, "B *x"], t: ArrayLike) -> Float[Array, "B *x"]:
        """`E[x_0 | x_t]`."""
        return self._softmax(x_t, t)[1].reshape(x_t.shape)

    @checks.checked_in_loops
    def score(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B *x"]:
        """`grad log p_t(x_t)`."""
        alpha_t, sigma_t = _coefficients(self.process, t)
        return (alpha_t * self(x_t, t) - x_t) / jnp.square(sigma_t)

    @checks.checked_in_loops
    def log_prob(self, x_t: Float[Array, "B *x"], t: Time) -> Float[Array, "B"]:
        """`log p_t(x_t)` in nats."""
        _, sigma_t = _coefficients(self.process, t)
        return self._softmax(x_t, t)[0] - self.data.shape[1] * (jnp.log(sigma_t) + _LOG_2PI / 2)

    @checks.checked
    def given(self, label: int | Int[Array | np.ndarray, ""]) -> "Empirical":
        """The oracle of the data of one class. `label` may be traced.

        ValueError for a label that no point has; NaN where that is not known.
        """
        _check_label(label, self.labels)
        log_weights = jnp.where(self.labels == label, self.log_weights, -jnp.inf)
        return replace(self, log_weights=jax.nn.log_softmax(log_weights))

    def _softmax(
        self, x_t: Float[Array, "B *x"], t: ArrayLike
    ) -> tuple[Float[Array, "B"], Float[Array, "B D"]]:
        """`logsumexp_i` of the logits above, and the mean of the data under their softmax."""
        rows = _rows(x_t, self.data.shape[1])
        found: tuple[Array, Array] = _softmax_mean(
            self.data, self.log_weights, rows, *_coefficients(self.process, t)
        )
        return found


@jax.jit
def _softmax_mean(
    data: Float[Array, "N D"],
    of_points: Float[Array, "N"],
    rows: Float[Array, "B D"],
    alpha_t: Float[Array, ""],
    sigma_t: Float[Array, ""],
) -> tuple[Float[Array, "B"], Float[Array, "B D"]]:
    """`logsumexp` of `log_w_i - |x_t - alpha_t x_i|^2 / (2 sigma_t^2)`, and the mean of the data under the softmax."""
    size = len(data)
    chunk = min(_CHUNK, size)

    def add(i: Int[Array, ""], carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, mean = carry
        start = jnp.minimum(i * chunk, size - chunk)  # the last chunk may overlap the one before
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=chunk)
        points, log_weights = part(data), part(of_points)
        log_weights = jnp.where(start + jnp.arange(chunk) < i * chunk, -jnp.inf, log_weights)
        distance = jnp.square(rows[:, None] - alpha_t * points[None]).sum(-1)
        logits = log_weights[None] - distance / jnp.maximum(2 * jnp.square(sigma_t), _LEAST)
        # any shift gives the same result; the derivative of a maximum is 0 / 0 where XLA rounds the logits twice
        above = jax.lax.stop_gradient(jnp.maximum(highest, logits.max(1)))
        finite = jnp.where(jnp.isfinite(above), above, 0)
        scale, p = jnp.exp(highest - finite), jnp.exp(logits - finite[:, None])
        total = total * scale + p.sum(1)
        return above, total, mean * scale[:, None] + jnp.matmul(p, points, precision=_PRECISION)

    zeros = jnp.zeros(len(rows), rows.dtype)
    start = zeros - jnp.inf, zeros, jnp.zeros_like(rows)
    highest, total, mean = jax.lax.fori_loop(0, -(-size // chunk), add, start)
    return highest + jnp.log(total), mean / total[:, None]


class _Points(NamedTuple):
    """Of a `GMM`, with covariances that may be singular, or 0."""

    weights: Annotated[Float[Array, "K"], checks.Probabilities()]
    means: Float[Array, "K D"]
    covs: (
        Annotated[Float[Array, "#K D D"], checks.Covariance(semi=True)]
        | Annotated[Float[Array, "K #D"], checks.Range(0)]
    )


@checks.checked
def mixture(
    params: Annotated[GMM, checks.FieldsAs(_Points)],
    process: Process,
    *,
    labels: Int[Array | np.ndarray, "K"] | None = None,
) -> Mixture:
    """The exact denoiser of data from a mixture, with any covariances; `labels` are the classes of its components."""
    labels = jnp.arange(len(params.weights)) if labels is None else jnp.asarray(labels)
    vectors, values = None, params.covs
    if params.covs.ndim == 3:
        values, vectors = jnp.linalg.eigh(params.covs)
        values = jnp.maximum(values, 0)
    return Mixture(jnp.log(params.weights), params.means, vectors, values, labels, process)


@checks.checked
def gaussian(params: _normal.Params, process: Process) -> Mixture | Gaussian:
    """The exact denoiser of normal data: `Normal` for every number, or `MultivariateNormal` for rows."""
    match params:
        case _normal.Normal(mean, std):
            return Gaussian(jnp.asarray(mean), jnp.square(std), process)
        case _normal.MultivariateNormal(mean, cov):
            return mixture(GMM(jnp.ones(1, mean.dtype), mean[None], cov[None]), process)


@checks.checked
def empirical(
    data: Annotated[Shaped[Array | np.ndarray, "N ..."], checks.Range()],
    process: Process,
    *,
    weights: Annotated[Float[Array | np.ndarray, "N"], checks.Range(0)] | None = None,
    labels: Int[Array | np.ndarray, "N"] | None = None,
) -> Empirical:
    """The exact denoiser of the data points `data [N, ...]`, with `labels [N]` for `given`.

    `weights [N]` are not negative, and one at least is positive; by default all are 1.
    """
    checks.floating("data", data)
    data = jnp.asarray(data)
    if data.ndim < 2 or not data.size:
        raise ValueError(f"data must have the shape [N, ...] and at least one point, got {data.shape}.")
    weights = jnp.ones(len(data), data.dtype) if weights is None else jnp.asarray(weights, data.dtype)
    labels = jnp.zeros(len(data), jnp.int32) if labels is None else jnp.asarray(labels)
    if not isinstance(weights, jax.core.Tracer) and not np.asarray(weights).any():
        raise ValueError("weights must not all be 0: leave them out for points that count alike.")
    return Empirical(data.reshape(len(data), -1), jnp.log(weights / weights.sum()), labels, process)


def _check_label(label: ArrayLike, labels: Array) -> None:
    """ValueError for a label that is known not to be there."""
    if isinstance(label, jax.core.Tracer) or isinstance(labels, jax.core.Tracer):
        return
    known, asked = np.unique(np.asarray(labels)), np.unique(np.asarray(label))
    if strange := sorted(set(asked.tolist()) - set(known.tolist())):
        shown = ", ".join(map(str, known[:20])) + (", ..." if len(known) > 20 else "")
        raise ValueError(f"label must be one of the labels, {shown}; got {strange[0]}.")


def _rows(x_t: Array, dims: int) -> Array:
    rows = flat(x_t)
    if rows.shape[1] != dims:
        raise ValueError(f"Expected data of {dims} numbers a row, got x_t of shape {x_t.shape}.")
    return rows


def _coefficients(process: Process, t: ArrayLike) -> tuple[Array, Array]:
    """`alpha_t` and `sigma_t`."""
    return jnp.asarray(process.alpha(jnp.asarray(t))), jnp.asarray(process.sigma(jnp.asarray(t)))
