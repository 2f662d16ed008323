"""The training loss: minus the bound, with KL warm-up, free bits and KL balancing against posterior collapse."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Key, Num, PyTree

from gen_jax import checks, keys
from gen_jax.training import Aux, Loss
from gen_jax.types import Count, NotNegative, Positive
from gen_jax.vae import Elbo, Prepare, weight_at
from gen_jax.vae.loss import Weight, prepared

_MIN_KL = 1e-2
"""Added to each KL by `balanced`, in nats, so that a level without any KL keeps a positive weight."""


@runtime_checkable
class Model(Protocol):
    """A hierarchical VAE: `HVAE` or `Ladder`."""

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]:
        """Shape of the latent at each level."""

    def elbo(self, params: PyTree, key: Key[Array, ""], x: Num[Array, "B *x"]) -> Elbo:
        """The bound, with `kl [B, L]`."""

    def iwae(
        self, params: PyTree, key: Key[Array, ""], x: Num[Array, "B *x"], num_samples: int
    ) -> Float[Array, "B"]:
        """The bound of several draws."""


@checks.checked
def loss(
    model: Model,
    *,
    beta: Weight = 1.0,
    free_bits: NotNegative = 0.0,
    balance: optax.Schedule | None = None,
    scale: Positive = 1.0,
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
        x = prepared(key_x, batch, prepare)
        bound = model.elbo(params, key_z, x)
        share = None if balance is None else weight_at(balance, aux)
        weights = None if share is None else 1 + share * (balanced(bound, sizes) - 1)
        value = objective(bound, beta=weight_at(beta, aux), free_bits=free_bits, balance=weights)
        kl = bound.kl.mean(0)
        metrics = {"elbo": bound.value.mean(), "reconstruction": bound.reconstruction.mean(), "kl": kl.sum()}
        return scale * value, metrics | {f"kl_{i + 1}": kl[i] for i in range(len(sizes))}

    return loss_fn


@checks.checked
def iwae_loss(model: Model, num_samples: Count, *, prepare: Prepare | None = None) -> Loss:
    """Minus the IWAE bound of `num_samples` draws in nats, mean over a batch: to finish a training with.

    The batch and `prepare` are those of `loss`; the metric is `iwae`.
    """

    def loss_fn(
        params: PyTree, key: Key[Array, ""], batch: Mapping[str, Array], aux: Aux | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key_x, key_z = jax.random.split(key)
        x = prepared(key_x, batch, prepare)
        bound = model.iwae(params, key_z, x, num_samples).mean()
        return -bound, {"iwae": bound}

    return loss_fn


@checks.checked
def objective(
    bound: Elbo,
    *,
    beta: Annotated[ArrayLike, checks.Range(0)] = 1.0,
    free_bits: Annotated[ArrayLike, checks.Range(0)] = 0.0,
    balance: Annotated[Float[Array | np.ndarray, "L"], checks.Range(0)] | None = None,
) -> Float[Array, ""]:
    """The mean over the batch of `-reconstruction + beta sum_l gamma_l max(free_bits, KL_l)`.

    Args:
        bound: with `kl [B, L]`.
        beta: weight of the KLs: 1 for the bound, less during warm-up.
        free_bits: nats of each level that are not penalised, a number or `[L]`. `KL_l` is the mean over the global batch
            (Kingma et al. 2016, Eq. 15).
        balance: the weights `gamma_l` of the levels (see `balanced`); None for 1.

    Raises ValueError for negative weights or free bits, or another number of them than levels.
    """
    levels = bound.kl.shape[1:]
    checks.some("bound", bound.kl)
    for name, given in (("beta", beta), ("free_bits", free_bits), ("balance", balance)):
        if given is not None and np.shape(given) not in ((), () if name == "beta" else levels):
            raise ValueError(
                f"{name} must have the shape {levels}, one for each level, got {np.shape(given)}."
            )
    free = jnp.broadcast_to(jnp.asarray(free_bits, bound.kl.dtype), bound.kl.shape[1:])
    kl = bound.kl.mean(0)
    paid = jnp.where(keys.mean_over_devices(kl) > free, kl, free)
    weight = 1.0 if balance is None else jnp.asarray(balance, kl.dtype)
    return jnp.asarray(beta * (weight * paid).sum() - bound.reconstruction.mean())


@checks.checked
def balanced(
    bound: Elbo, sizes: Annotated[Float[Array | np.ndarray, "L"], checks.Range(0, above=True)]
) -> Float[Array, "L"]:
    """Weights for KL balancing: larger for levels with a large KL, so that all levels stay in use.

        gamma_l = L (KL_l / s_l) / sum_k (KL_k / s_k)

    with `KL_l` the mean over the batch and `s_l` the size of the latent at level `l`. No gradient passes through them.
    Use them during warm-up only: with these weights the objective is not a bound.

    Source: Vahdat & Kautz 2020, Appendix A, with the division by the size as in NVlabs/NVAE, issue 26.
    """
    checks.some("bound", bound.kl)
    if bound.kl.shape[1:] != np.shape(sizes):
        raise ValueError(
            f"sizes must be {bound.kl.shape[1:]}, one for each level of the bound, got {np.shape(sizes)}."
        )
    share = (keys.mean_over_devices(bound.kl.mean(0)) + _MIN_KL) / jnp.asarray(sizes, bound.kl.dtype)
    return jax.lax.stop_gradient(share / share.mean())
