"""Importance sampling of `log p(x)`: draws of the latents with weights `w = p(x, z) / q(z | x)`, whose mean is `p(x)`."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from gen_jax import keys, programs
from gen_jax.likelihoods import Likelihood
from gen_jax.vae import importance
from gen_jax.vae.model import check

LogWeight = Callable[[Key[Array, ""]], Float[Array, "B"]]
"""`key -> log w` of each example, for one draw."""


@runtime_checkable
class Model(Protocol):
    """A model whose draws have weights."""

    @property
    def likelihood(self) -> Likelihood:
        """Of the data."""
        ...

    def log_weight(self, params: Any, x: Array, index: Array | None) -> LogWeight:
        """Of draws of the latents of `x`."""
        ...


def iwae(
    log_weight: LogWeight, key: Key[Array, ""], num_samples: int, *, sample_chunk: int | None = None
) -> Float[Array, "B"]:
    """`log 1/k sum_s w_s`, whose mean is a lower bound that rises to `log p(x)` with `k` (Burda et al. 2016, Eq. 8).

    Draw `s` has the key `fold_in(key, s)`, whatever their number. They are made `sample_chunk` at a time (default: all at
    once), and recomputed for the gradient.

    Raises ValueError unless `num_samples` and `sample_chunk` are at least 1.
    """
    size = num_samples if sample_chunk is None else min(sample_chunk, num_samples)
    if size < 1:
        raise ValueError(
            f"num_samples and sample_chunk must be at least 1, got {num_samples} and {sample_chunk}."
        )
    log_weights = jax.vmap(lambda s: log_weight(jax.random.fold_in(key, s)))
    return importance.mean_weight(log_weights, num_samples, size)


def of_model(
    model: Model, params: PyTree, key: Key[Array, ""], x: Array, index: Array | None, *options: int | None
) -> Float[Array, "B"]:
    """`iwae` of a model with the options `num_samples` and `sample_chunk`; with a third, so many examples at a time."""
    check(model.likelihood, x)
    if not len(x):
        return jnp.zeros(0)
    index = keys.example_index(len(x))[0] if index is None else index
    return programs.run(_estimate, model, options, params, key, x, index)


def _estimate(
    model: Model, num_samples: int, sample_chunk: int | None, chunk: int | None = None
) -> Callable[..., Float[Array, "B"]]:
    """`(params, key, x, index) -> [B]`."""

    def estimate(params: PyTree, key: Key[Array, ""], x: Array, index: Array) -> Float[Array, "B"]:
        one = lambda x, index: iwae(
            model.log_weight(params, x, index), key, num_samples, sample_chunk=sample_chunk
        )
        return one(x, index) if chunk is None else importance.in_chunks(one, chunk, x, index)

    return estimate
