"""The training loss: minus the bound, with KL warm-up, free bits and KL balancing against posterior collapse."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from gen_jax import keys
from gen_jax.training import Aux, Loss
from gen_jax.vae import Elbo, Prepare, weight_at

_MIN_KL = 1e-2
"""Added to each KL by `balanced`, in nats, so that a level without any KL keeps a positive weight."""


@runtime_checkable
class Model(Protocol):
    """A hierarchical VAE: `HVAE` or `Ladder`."""

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of the latent at each level."""

    def elbo(self, params: PyTree, key: Key[Array, ""], x: Float[Array, "B *x"]) -> Elbo:
        """The bound, with `kl [B, L]`."""

    def iwae(
        self, params: PyTree, key: Key[Array, ""], x: Float[Array, "B *x"], num_samples: int
    ) -> Float[Array, "B"]:
        """The bound of several draws."""


def loss(
    model: Model,
    *,
    beta: float | optax.Schedule = 1.0,
    free_bits: float = 0.0,
    balance: optax.Schedule | None = None,
    scale: float = 1.0,
    prepare: Prepare | None = None,
) -> Loss:
    """Minus the ELBO in nats, mean over a batch, as a loss for `training.make_step`.

    The result is `loss_fn(params, key, batch, aux=None)`, where `batch` is `{"image": [B, ...]}`. Its metrics are
    `elbo` (the bound itself, whatever the options), `reconstruction`, `kl`, and `kl_1`, `kl_2`, ... of the levels, the
    level nearest the data first.

    Args:
        model: to be trained.
        beta: weight of the KLs, or a function of the step. KL warm-up (Sonderby et al. 2016, Section 2.3) is
            `optax.linear_schedule(0.0, 1.0, num_steps)` with `make_step(..., aux=True)`.
        free_bits: nats of each level that are not penalised (`objective`).
        balance: function of the step, from 1 for the weights of `balanced` to 0 for equal weights.
        scale: factor of the loss, 2 for the book's.
        prepare: `(key, image) -> x`, such as `data.binarize`: bytes of the data set to data of the likelihood.

    Raises:
        ValueError: `beta` or `balance` depends on the step, and the loss is called without one.
    """
    sizes = np.array([np.prod(shape) for shape in model.latent_shapes], np.float32)

    def loss_fn(
        params: PyTree, key: Key[Array, ""], batch: Mapping[str, Array], aux: Aux | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key_x, key_z = jax.random.split(key)
        x = batch["image"] if prepare is None else prepare(key_x, batch["image"])
        bound = model.elbo(params, key_z, x)
        share = None if balance is None else weight_at(balance, aux)
        weights = None if share is None else 1 + share * (balanced(bound, sizes) - 1)
        value = objective(bound, beta=weight_at(beta, aux), free_bits=free_bits, balance=weights)
        kl = bound.kl.mean(0)
        metrics = {"elbo": bound.value.mean(), "reconstruction": bound.reconstruction.mean(), "kl": kl.sum()}
        return scale * value, metrics | {f"kl_{i + 1}": kl[i] for i in range(len(sizes))}

    return loss_fn


def iwae_loss(model: Model, num_samples: int, *, prepare: Prepare | None = None) -> Loss:
    """Minus the IWAE bound of `num_samples` draws in nats, mean over a batch: to finish a training with.

    The batch and `prepare` are those of `loss`; the metric is `iwae`.
    """

    def loss_fn(
        params: PyTree, key: Key[Array, ""], batch: Mapping[str, Array], aux: Aux | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key_x, key_z = jax.random.split(key)
        x = batch["image"] if prepare is None else prepare(key_x, batch["image"])
        bound = model.iwae(params, key_z, x, num_samples).mean()
        return -bound, {"iwae": bound}

    return loss_fn


def objective(
    bound: Elbo,
    *,
    beta: ArrayLike = 1.0,
    free_bits: ArrayLike = 0.0,
    balance: Float[Array | np.ndarray, "L"] | None = None,
) -> Float[Array, ""]:
    """The mean over the batch of `-reconstruction + beta sum_l gamma_l max(free_bits, KL_l)`.

    Args:
        bound: with `kl [B, L]`.
        beta: weight of the KLs: 1 for the bound, less during warm-up.
        free_bits: nats of each level that are not penalised, a number or `[L]`. `KL_l` is the mean over the global batch
            (Kingma et al. 2016, Eq. 15).
        balance: the weights `gamma_l` of the levels (see `balanced`); None for 1.

    Raises ValueError for negative free bits.
    """
    if not isinstance(free_bits, jax.core.Tracer) and np.any(np.asarray(free_bits) < 0):
        raise ValueError(f"free_bits must be at least 0 nats, got {free_bits}.")
    free = jnp.broadcast_to(jnp.asarray(free_bits, bound.kl.dtype), bound.kl.shape[1:])
    kl = bound.kl.mean(0)
    paid = jnp.where(keys.mean_over_devices(kl) > free, kl, free)
    weight = 1.0 if balance is None else jnp.asarray(balance, kl.dtype)
    return jnp.asarray(beta * (weight * paid).sum() - bound.reconstruction.mean())


def balanced(bound: Elbo, sizes: Float[Array | np.ndarray, "L"]) -> Float[Array, "L"]:
    """Weights for KL balancing: larger for levels with a large KL, so that all levels stay in use.

        gamma_l = L (KL_l / s_l) / sum_k (KL_k / s_k)

    with `KL_l` the mean over the batch and `s_l` the size of the latent at level `l`. No gradient passes through them.
    Use them during warm-up only: with these weights the objective is not a bound.

    Source: Vahdat & Kautz 2020, Appendix A, with the division by the size as in NVlabs/NVAE, issue 26.
    """
    share = (keys.mean_over_devices(bound.kl.mean(0)) + _MIN_KL) / jnp.asarray(sizes, bound.kl.dtype)
    return jax.lax.stop_gradient(share / share.mean())
