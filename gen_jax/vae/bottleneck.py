"""What lies between encoder and decoder of an autoencoder for latent diffusion: a little noise, or a rounding.

    gaussian(kl_weight)       z ~ q(z | x)                     kl_weight KL(q(z | x) || N(0, I))
    vector_quantised()        the nearest code of a codebook   commitment |z - z_q|^2
    finite_scalar(levels)     the nearest point of a grid      nothing

Each is a function of the encoder's output, made by one of these functions with its options; see `networks.quantize`.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from gen_jax import checks, keys
from gen_jax.likelihoods.base import as_float
from gen_jax.networks import quantize
from gen_jax.training import Aux
from gen_jax.training.state import Metrics
from gen_jax.types import Fraction, NotNegative
from gen_jax.vae.loss import Weight, weight_at
from gen_jax.vae.model import Posterior, kl_to_prior


class Passed(NamedTuple):
    """What the decoder gets, and what it costs."""

    z: Float[Array, "B h w L"]
    penalty: Float[Array, ""]
    """A part of the loss, in nats an image."""
    metrics: Metrics


Bottleneck: TypeAlias = Callable[[quantize.Codebook | None, Key[Array, ""], Posterior, Aux | None], Passed]
"""`(codebook, key, posterior, aux) -> Passed`."""


@checks.checked
def gaussian(kl_weight: Weight = 1.0) -> Bottleneck:
    """A draw of `q(z | x)`, for example `i` by `fold_in(key, i)`, at `kl_weight` times its divergence from `N(0, I)`.

    `kl_weight` has no unit: it multiplies the divergence in nats an image, summed over all numbers of the latent. 1 makes
    the loss minus the ELBO. A function of the step needs `make_step(..., aux=True)`. The metric is `kl`, without weight.
    """

    def run(
        book: quantize.Codebook | None, key: Key[Array, ""], posterior: Posterior, aux: Aux | None
    ) -> Passed:
        posterior = Posterior(*map(as_float, posterior))
        kl = kl_to_prior(posterior).sum((1, 2, 3)).mean()
        z = posterior.mean + jnp.exp(posterior.log_std) * keys.normal(key, posterior.mean.shape)
        return Passed(z, weight_at(kl_weight, aux) * kl, {"kl": kl})

    return run


@checks.checked
def vector_quantised(
    *,
    commitment: NotNegative = 0.25,
    decay: Annotated[float, checks.Range(0, 1, below=True)] = 0.99,
    dead: Fraction = 0.03,
) -> Bottleneck:
    """The nearest code, with the codebook of the parameters, which follows the encoder by moving averages.

        penalty = commitment sum |z - stop_gradient(z_q)|^2,    the sum over an image,     van den Oord et al. 2017, Eq. 3

    `decay` and `dead` are those of `quantize.update`. The codebook has to be trained by plain gradient descent with a
    rate of 1, as `latent.optimizer` does. Metrics: `perplexity` of the codes in the batch, and `codes_used`, the share
    of codes that occur in it.

    Raises:
        ValueError: the parameters have no codebook.
    """

    def run(
        book: quantize.Codebook | None, key: Key[Array, ""], posterior: Posterior, aux: Aux | None
    ) -> Passed:
        if book is None:
            raise ValueError(
                "expected parameters with a codebook: latent.Params(autoencoder, codebook=quantize.create(...))."
            )
        z = posterior.mean
        codes = jax.lax.stop_gradient(quantize.codes(book))
        indices = quantize.nearest(codes, jax.lax.stop_gradient(z))
        z_q = codes[indices]
        moved = quantize.update(key, book, z, indices, decay=decay, dead=dead)
        far = jnp.square(z - z_q).sum((1, 2, 3)).mean()
        share = keys.mean_over_devices(quantize.usage(indices, len(codes)))
        metrics = {
            "commitment": far,
            "perplexity": quantize.perplexity(share),
            "codes_used": (share > 0).mean(),
        }
        return Passed(
            quantize.straight_through(z, z_q), commitment * far + quantize.follow(book, moved), metrics
        )

    return run


@checks.checked
def finite_scalar(levels: quantize.Levels) -> Bottleneck:
    """Each number of the latent rounded to one of `levels` values, one level for each channel (`quantize.fsq`).

    Metrics: `perplexity` and `codes_used`, as of `vector_quantised`.
    """

    def run(
        book: quantize.Codebook | None, key: Key[Array, ""], posterior: Posterior, aux: Aux | None
    ) -> Passed:
        z, indices = quantize.fsq(posterior.mean, levels)
        num = len(quantize.fsq_codes(levels))
        share = keys.mean_over_devices(quantize.usage(indices, num))
        metrics = {"perplexity": quantize.perplexity(share), "codes_used": (share > 0).mean()}
        return Passed(z, jnp.zeros(()), metrics)

    return run
