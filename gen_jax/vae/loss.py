"""What a VAE is trained on, as losses for `training.make_step`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax import keys
from gen_jax.vae.model import VAE, Params, Posterior, kl_to_prior

Schedule = Callable[[Any], Any]
"""`step -> weight`."""
Prepare = Callable[[Any, Any], Any]
"""`(key, image) -> x`: what the data set holds as what the likelihood takes."""


def loss(
    model: VAE,
    *,
    beta: float | Schedule = 1.0,
    free_bits: float = 0.0,
    prepare: Prepare | None = None,
) -> Callable[..., Any]:
    """Minus the ELBO in nats, mean over a batch, as a loss for `training.make_step`.

        mean_i -log p(x_i | z_i) + beta KL_i,     with free bits  KL -> sum_j max(free_bits, mean_i KL_ij)

    The result is `loss_fn(params, key, batch, step=None)`, where `batch` is `{"image": [B, ...]}`, with a "label" where
    the networks take one. Its metrics are `elbo`, the bound itself whatever the options, `reconstruction` and `kl`.

    Args:
        model: what is trained.
        beta: weight of the KL (Higgins et al. 2017, Eq. 4), or a function of the step: KL warm-up is
            `optax.linear_schedule(0.0, 1.0, num_steps)` with `make_step(..., step_in_loss=True)`.
        free_bits: nats that each number in the latent may cost at least without being pushed lower (Kingma et al. 2016,
            Eq. 15, a group for each).
        prepare: `(key, image) -> x`: bytes as the likelihood takes them, such as `data.binarize`.

    Raises:
        ValueError: `beta` depends on the step, and the loss is called without one.
    """

    def loss_fn(
        params: Params, key: Key[Array, ""], batch: Any, step: Int[Array, ""] | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key, x, label = _inputs(key, batch, prepare)
        posterior = model.encode(params, x, label)
        z = model.latents(posterior, keys.normal(key, posterior.mean.shape)[:, None])[:, 0]
        reconstruction = model.likelihood.log_prob(model.out(params, z, label), x).mean()
        kl = kl_to_prior(posterior)
        value = weight_at(beta, step) * spent_bits(kl, free_bits) - reconstruction
        kl = kl.reshape(len(x), -1).sum(1).mean()
        return value, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    return loss_fn


def iwae_loss(
    model: VAE,
    num_samples: int,
    *,
    doubly_reparameterised: bool = False,
    gradient_samples: int | None = None,
    prepare: Prepare | None = None,
    chunk: int | None = None,
) -> Callable[..., Any]:
    """Minus the IWAE bound in nats, mean over a batch, as a loss for `training.make_step`.

        decoder   sum_i v_i d log w_i,    v = softmax(log w)                                Burda et al. 2016, Eq. 13
        encoder   the same, or with `doubly_reparameterised` (DReG; Tucker et al. 2019, Eq. 8)
                  sum_i v_i^2 (d log w_i / d z_i) d z_i

    Both are unbiased. The plain encoder gradient drowns in noise as samples are added (Rainforth et al. 2018); DReG has
    less noise with more of them, and none at all where `q` is exact. `model`, `prepare` and the batch are as of `loss`;
    the metric is `iwae`. `chunk` is that of `VAE.iwae`, and of the plain gradient over all samples.

    With `gradient_samples = m` the sum is estimated, without a bias, by the mean over `m` samples that are drawn with
    the probabilities `v` (Burda et al. 2016, Section 3; systematic resampling, Kitagawa 1996): only they are
    differentiated, so that a step of 50 samples costs little more than decoding them: `chunk` at once, by default as
    many as make the decoder's output 4 MiB, which stays in a cache.

    Raises ValueError unless `1 <= gradient_samples <= num_samples`.
    """
    if gradient_samples is not None and not 1 <= gradient_samples <= num_samples:
        raise ValueError(
            f"gradient_samples must be from 1 to num_samples = {num_samples}, got {gradient_samples}; "
            "None differentiates all."
        )

    def loss_fn(
        params: Params, key: Key[Array, ""], batch: Any, step: Int[Array, ""] | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key, x, label = _inputs(key, batch, prepare)
        if gradient_samples is not None:
            draws, size = (num_samples, gradient_samples), chunk or model.at_once(params, label, 2**20)
            bound = _resampled(model, params, key, x, draws, label, doubly_reparameterised, size).mean()
        elif doubly_reparameterised:
            bound = _dreg(model, params, key, x, num_samples, label).mean()
        else:
            bound = model.iwae(params, key, x, num_samples, label, chunk=chunk).mean()
        return -bound, {"iwae": bound}

    return loss_fn


def _dreg(
    model: VAE, params: Params, key: Array, x: Array, num_samples: int, label: Array | None
) -> Float[Array, "B"]:
    """The IWAE bound with the gradients of DReG."""
    posterior = model.encode(params, x, label)
    z = model.latents(posterior, model.noise(key, len(x), jnp.arange(num_samples), None))

    @jax.custom_gradient
    def bound(decoder: PyTree, z: Array, posterior: Posterior) -> Any:
        log_weights = lambda decoder, z: model.log_weights(decoder, z, posterior, x, label)
        log_w, pull = jax.vjp(log_weights, decoder, z)
        v = jax.nn.softmax(log_w, axis=1)

        def gradient(g: Array) -> tuple[PyTree, Array, Posterior]:
            d_decoder, d_z = pull(g[:, None] * v)
            d_z = d_z * v.reshape(*v.shape, *[1] * len(model.latent_shape))
            return d_decoder, d_z, jax.tree.map(jnp.zeros_like, posterior)

        return jax.nn.logsumexp(log_w, axis=1) - math.log(num_samples), gradient

    return bound(params.decoder, z, posterior)


def _resampled(
    model: VAE,
    params: Params,
    key: Array,
    x: Array,
    draws: tuple[int, int],
    label: Array | None,
    doubly_reparameterised: bool,
    chunk: int,
) -> Float[Array, "B"]:
    """The IWAE bound of `draws[0]` samples, with the gradient of `draws[1]` of them."""
    posterior = model.encode(params, x, label)
    z = model.latents(posterior, model.noise(key, len(x), jnp.arange(draws[0]), None))
    decoder, of, drawn = jax.lax.stop_gradient((params.decoder, posterior, z.swapaxes(0, 1)))
    weigh = lambda z_s: model.log_weights(decoder, z_s[:, None], of, x, label)[:, 0]
    log_w = jax.lax.map(weigh, drawn, batch_size=max(1, chunk // len(x))).T
    v = jax.nn.softmax(log_w, axis=1)
    each = keys.per_example(key, len(x))  # whose first draws[0] children are of the noise
    u = jax.vmap(lambda key_i: jax.random.uniform(jax.random.fold_in(key_i, draws[0])))(each)
    chosen = jax.vmap(systematic, (0, 0, None))(u, v, draws[1])
    pick = jax.vmap(lambda values, rows: values[rows])
    z = pick(z, chosen)
    if doubly_reparameterised:
        fixed = jax.lax.stop_gradient(z)
        z = fixed + pick(v, chosen).reshape(*chosen.shape, *[1] * len(model.latent_shape)) * (z - fixed)
        posterior = jax.lax.stop_gradient(posterior)
    gain = model.log_weights(params.decoder, z, posterior, x, label).mean(1)
    return jax.nn.logsumexp(log_w, axis=1) - math.log(draws[0]) + gain - jax.lax.stop_gradient(gain)


def systematic(u: Float[Array, ""], v: Float[Array, "k"], m: int) -> Int[Array, "m"]:
    """`m` of `k` things with probabilities `v`, the `i`-th one `m v_i` times in the mean over `u` uniform on [0, 1).

    It is drawn `floor(m v_i)` or `ceil(m v_i)` times. Source: systematic resampling, Kitagawa 1996, Appendix.
    """
    ends = jnp.cumsum(v)
    return jnp.searchsorted(ends / ends[-1], (u + jnp.arange(m)) / m, side="right").clip(0, len(v) - 1)


def spent_bits(kl: Float[Array, "B *L"], free_bits: float = 0.0) -> Float[Array, ""]:
    """`sum_j max(free_bits, mean_i kl_ij)`, the mean over the global batch (Kingma et al. 2016, Eq. 15), in nats."""
    mean = kl.mean(0)
    if free_bits == 0:
        return mean.sum()
    return jnp.where(keys.mean_over_devices(mean) > free_bits, mean, free_bits).sum()


def weight_at(beta: float | Schedule, step: Int[Array, ""] | None) -> Any:
    """`beta`, at a step where it is a function of one."""
    if not callable(beta):
        return beta
    if step is None:
        raise ValueError("beta is a function of the step: train with make_step(..., step_in_loss=True).")
    return beta(step)


def _inputs(key: Array, batch: Any, prepare: Prepare | None) -> tuple[Array, Array, Array | None]:
    """Key of the noise, data and labels of a batch."""
    key_prepare, key = jax.random.split(key)
    x = batch["image"] if prepare is None else prepare(key_prepare, batch["image"])
    return key, x, batch.get("label")
