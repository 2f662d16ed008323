"""What is minimised: the bound with its sign changed, and what keeps levels from falling silent on the way there."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree

from gen_jax import keys
from gen_jax.vae import Elbo, Prepare, Schedule, weight_at

_SILENT = 1e-2
"""Added to a KL before its share is taken, in nats: a level that says nothing is not then free of all cost."""


@runtime_checkable
class Model(Protocol):
    """What can be trained here: `HVAE`, `Ladder`."""

    @property
    def latent_shapes(self) -> Any:
        """Shape of the latent of each level."""

    def elbo(self, params: Any, key: Any, x: Any) -> Elbo:
        """The bound, `kl [B, L]`."""

    def iwae(self, params: Any, key: Any, x: Any, num_samples: int) -> Any:
        """The bound of several draws."""


def loss(
    model: Model,
    *,
    beta: float | Schedule = 1.0,
    free_bits: float = 0.0,
    balance: Schedule | None = None,
    scale: float = 1.0,
    prepare: Prepare | None = None,
) -> Callable[..., Any]:
    """Minus the ELBO in nats, mean over a batch, as a loss for `training.make_step`.

    The result is `loss_fn(params, key, batch, step=None)`, where `batch` is `{"image": [B, ...]}`. Its metrics are
    `elbo`, the bound itself whatever the options, `reconstruction`, `kl` and `kl_1`, `kl_2`, ... of each level, `kl_1`
    nearest the data.

    Args:
        model: what is trained.
        beta: weight of the KLs, or a function of the step: warm-up (Sonderby et al. 2016, Section 2.3) is
            `optax.linear_schedule(0.0, 1.0, num_steps)` with `make_step(..., step_in_loss=True)`.
        free_bits: nats that each level may say for nothing (`objective`).
        balance: from 1, `balanced` weights of the levels, to 0, none, as a function of the step.
        scale: factor of the loss: 2 for the book's.
        prepare: `(key, image) -> x`: bytes as the likelihood takes them, such as `data.binarize`.

    Raises:
        ValueError: `beta` or `balance` depends on the step, and the loss is called without one.
    """
    sizes = np.array([np.prod(shape) for shape in model.latent_shapes], np.float32)

    def loss_fn(
        params: PyTree, key: Key[Array, ""], batch: Any, step: Int[Array, ""] | None = None
    ) -> tuple[Array, dict[str, Array]]:
        key_x, key_z = jax.random.split(key)
        x = batch["image"] if prepare is None else prepare(key_x, batch["image"])
        bound = model.elbo(params, key_z, x)
        share = None if balance is None else weight_at(balance, step)
        weights = None if share is None else 1 + share * (balanced(bound, sizes) - 1)
        value = objective(bound, beta=weight_at(beta, step), free_bits=free_bits, balance=weights)
        kl = bound.kl.mean(0)
        metrics = {"elbo": bound.value.mean(), "reconstruction": bound.reconstruction.mean(), "kl": kl.sum()}
        return scale * value, metrics | {f"kl_{i + 1}": kl[i] for i in range(len(sizes))}

    return loss_fn


def iwae_loss(model: Model, num_samples: int, *, prepare: Prepare | None = None) -> Callable[..., Any]:
    """Minus the IWAE bound of `num_samples` draws in nats, mean over a batch: for the last part of a training.

    The batch and `prepare` are as of `loss`; the metric is `iwae`.
    """

    def loss_fn(
        params: PyTree, key: Key[Array, ""], batch: Any, step: Int[Array, ""] | None = None
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
        bound: `kl [B, L]`.
        beta: weight of the KLs: 1 for the bound, less while it warms up.
        free_bits: nats a level may say for nothing, a number or `[L]`. `KL_l` is the mean over the batch, of all devices,
            so a level that says more of one example and less of another pays for neither (Kingma et al. 2016, Eq. 15).
        balance: `gamma_l = balance_l`, the weights of the levels (see `balanced`); None for 1.

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
    """Weights that tax the levels that say much and spare those that say little, so that all are put to use.

        gamma_l = L (KL_l / s_l) / sum_k (KL_k / s_k)

    with `KL_l` the mean over the batch, `s_l` the numbers in the latent of level `l`; nothing is differentiated through
    them. For the time of warm-up only: a bound it is not.

    Source: Vahdat & Kautz 2020, Appendix A, with the division by the size that its authors meant (NVlabs/NVAE, issue 26).
    """
    share = (keys.mean_over_devices(bound.kl.mean(0)) + _SILENT) / jnp.asarray(sizes, bound.kl.dtype)
    return jax.lax.stop_gradient(share / share.mean())
