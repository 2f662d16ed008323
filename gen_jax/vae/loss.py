"""The training losses of a VAE, for `training.make_step`."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, Num, PyTree

from gen_jax import checks, keys, programs
from gen_jax.likelihoods.base import as_float
from gen_jax.rows import flat
from gen_jax.training import Aux, Loss
from gen_jax.types import Count, NotNegative, Size
from gen_jax.vae.model import VAE, Params, Posterior, kl_to_prior

Prepare: TypeAlias = Callable[[Key[Array, ""], Num[Array, "B *x"]], Float[Array, "B *x"]]
"""`(key, image) -> x`, from images of the data set to data of the likelihood."""

Weight: TypeAlias = NotNegative | optax.Schedule
"""A number, or a function of the step."""


@checks.checked
def loss(
    model: VAE,
    *,
    beta: Weight = 1.0,
    free_bits: NotNegative = 0.0,
    prepare: Prepare | None = None,
) -> Loss:
    """Minus the ELBO in nats, mean over a batch, as a loss for `training.make_step`.

        mean_i -log p(x_i | z_i) + beta KL_i,     with free bits  KL -> sum_j max(free_bits, mean_i KL_ij)

    The result is `loss_fn(params, key, batch, aux=None)`, where `batch` is `{"image": [B, ...]}`, and has a "label" for
    networks with labels. Its metrics are `elbo` (the bound itself, whatever the options), `reconstruction` and `kl`.

    Args:
        model: to be trained.
        beta: weight of the KL (Higgins et al. 2017, Eq. 4), or a function of the step. KL warm-up is
            `optax.linear_schedule(0.0, 1.0, num_steps)` with `make_step(..., aux=True)`.
        free_bits: nats of each number in the latent that are not penalised (Kingma et al. 2016, Eq. 15, with one number
            in each group).
        prepare: `(key, image) -> x`, such as `data.binarize`: bytes of the data set to data of the likelihood.

    Raises:
        ValueError: `beta` depends on the step, and the loss is called without one.
    """

    def loss_fn(
        params: Params, key: Key[Array, ""], batch: Mapping[str, Array], aux: Aux | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key, x, label = _inputs(key, batch, prepare)
        posterior = model.encode(params, x, label)
        z = model.latents(posterior, keys.normal(key, posterior.mean.shape)[:, None])[:, 0]
        reconstruction = model.likelihood.log_prob(model.out(params, z, label), x).mean()
        kl = kl_to_prior(posterior)
        value = weight_at(beta, aux) * free_bits_kl(kl, free_bits) - reconstruction
        kl = flat(kl).sum(1).mean()
        return value, {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}

    return loss_fn


@checks.checked
def iwae_loss(
    model: VAE,
    num_samples: Count,
    *,
    doubly_reparameterised: bool = False,
    gradient_samples: Count | None = None,
    prepare: Prepare | None = None,
    chunk: Count | None = None,
) -> Loss:
    """Minus the IWAE bound in nats, mean over a batch, as a loss for `training.make_step`.

        decoder   sum_i v_i d log w_i,    v = softmax(log w)                                Burda et al. 2016, Eq. 13
        encoder   the same, or with `doubly_reparameterised` (DReG; Tucker et al. 2019, Eq. 8)
                  sum_i v_i^2 (d log w_i / d z_i) d z_i

    Both are unbiased. The signal-to-noise ratio of the plain encoder gradient falls with the number of samples (Rainforth
    et al. 2018). That of DReG rises, and DReG has no noise if `q` is exact. `model`, `prepare` and the batch are those of
    `loss`; the metric is `iwae`. `chunk` is that of `VAE.iwae`; the plain gradient over all samples uses it too.

    With `gradient_samples = m` the sum is estimated without bias by the mean over `m` samples drawn with the
    probabilities `v` (Burda et al. 2016, Section 3; systematic resampling, Kitagawa 1996). Only those are differentiated,
    so a step with 50 samples takes little more time than decoding them. They are decoded `chunk` at a time, by default as
    many as give an output of 4 MiB, which fits in a cache.

    Raises ValueError unless `1 <= gradient_samples <= num_samples`, and where `chunk` is less than 1.
    """
    if gradient_samples is not None and gradient_samples > num_samples:
        raise ValueError(
            f"gradient_samples must be from 1 to num_samples = {num_samples}, got {gradient_samples}; "
            "None differentiates all."
        )

    def loss_fn(
        params: Params, key: Key[Array, ""], batch: Mapping[str, Array], aux: Aux | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key, x, label = _inputs(key, batch, prepare)
        if gradient_samples is not None:
            draws = num_samples, gradient_samples
            size = model.chunk_for(params, label, 2**20) if chunk is None else chunk
            options = draws, doubly_reparameterised, size
            bound = programs.run(_resampled, model, options, params, key, x, label).mean()
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
    def bound(
        decoder: PyTree, z: Array, posterior: Posterior
    ) -> tuple[Array, Callable[[Array], tuple[PyTree, Array, Posterior]]]:
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
    model: VAE, draws: tuple[int, int], doubly_reparameterised: bool, chunk: int
) -> Callable[..., Float[Array, "B"]]:
    """`(params, key, x, label)` to the IWAE bound of `draws[0]` samples, with the gradient of `draws[1]` of them."""
    return lambda params, key, x, label: _bound(
        model, params, key, x, label, draws, doubly_reparameterised, chunk
    )


def _bound(
    model: VAE,
    params: Params,
    key: Array,
    x: Array,
    label: Array | None,
    draws: tuple[int, int],
    doubly_reparameterised: bool,
    chunk: int,
) -> Float[Array, "B"]:
    """The bound, by arguments."""
    posterior = model.encode(params, x, label)
    z = model.latents(posterior, model.noise(key, len(x), jnp.arange(draws[0]), None))
    decoder, of, drawn = jax.lax.stop_gradient((params.decoder, posterior, z.swapaxes(0, 1)))
    weigh = lambda z_s: model.log_weights(decoder, z_s[:, None], of, x, label)[:, 0]
    log_w = jax.lax.map(weigh, drawn, batch_size=max(1, chunk // len(x))).T
    v = jax.nn.softmax(log_w, axis=1)
    each = keys.per_example(key, len(x))  # fold_in(each, s) for s < draws[0] is the noise
    u = jax.vmap(lambda key_i: jax.random.uniform(jax.random.fold_in(key_i, draws[0])))(each)
    chosen = jax.vmap(systematic_resampling, (0, 0, None))(u, v, draws[1])
    pick = jax.vmap(lambda values, rows: values[rows])
    z = pick(z, chosen)
    if doubly_reparameterised:
        fixed = jax.lax.stop_gradient(z)
        z = fixed + pick(v, chosen).reshape(*chosen.shape, *[1] * len(model.latent_shape)) * (z - fixed)
        posterior = jax.lax.stop_gradient(posterior)
    gain = model.log_weights(params.decoder, z, posterior, x, label).mean(1)
    return jax.nn.logsumexp(log_w, axis=1) - math.log(draws[0]) + gain - jax.lax.stop_gradient(gain)


@checks.checked
def systematic_resampling(
    u: Annotated[Float[Array, ""], checks.Range(0, 1)],
    v: Annotated[Float[Array, "k"], checks.Range(0)],
    m: Size,
) -> Int[Array, "m"]:
    """`m` indices below `k` drawn with probabilities in proportion to `v`, from one uniform number `u` on [0, 1).

    Index `i` is drawn `floor(m v_i)` or `ceil(m v_i)` times, `m v_i` times in the mean. Source: Kitagawa 1996, Appendix.
    """
    ends = jnp.cumsum(v)
    checks.within("the sum of v", v.sum(), 0, above=True)
    return jnp.searchsorted(ends / ends[-1], (u + jnp.arange(m)) / m, side="right").clip(0, len(v) - 1)


@checks.checked
def free_bits_kl(kl: Float[Array, "B *L"], free_bits: NotNegative = 0.0) -> Float[Array, ""]:
    """`sum_j max(free_bits, mean_i kl_ij)`, the mean over the global batch (Kingma et al. 2016, Eq. 15), in nats."""
    checks.some("kl", kl)
    mean = as_float(kl).mean(0)
    if free_bits == 0:
        return mean.sum()
    return jnp.where(keys.mean_over_devices(mean) > free_bits, mean, free_bits).sum()


@checks.checked
def weight_at(beta: Weight, aux: Aux | None) -> Array | float:
    """`beta`, evaluated at the step of `aux` if it is a function of the step."""
    if not callable(beta):
        return beta
    if aux is None:
        raise ValueError("beta is a function of the step: train with make_step(..., aux=True).")
    return jnp.asarray(beta(aux.step))


def _inputs(
    key: Array, batch: Mapping[str, Array], prepare: Prepare | None
) -> tuple[Array, Array, Array | None]:
    """The key of the noise, the data and the labels of a batch."""
    key_prepare, key = jax.random.split(key)
    x = prepared(key_prepare, batch, prepare)
    return key, x, batch.get("label")


@checks.checked
def prepared(key: Key[Array, ""], batch: Mapping[str, Array], prepare: Prepare | None) -> Array:
    """The data of a batch. ValueError where it has no images, or none."""
    if "image" not in batch:
        raise ValueError(f'expected a batch with images under "image", got {checks.came(batch)}.')
    checks.some("the batch's image", batch["image"])
    return batch["image"] if prepare is None else prepare(key, batch["image"])
