"""The autoencoder of latent diffusion as a VAE: its loss, its optimizer, and the scale of its latents.

    net = autoencoder_kl.mnist.build()
    params = latent.Params(net.init(key, x))
    loss = latent.loss(net, latent.gaussian(kl_weight=1.0))             # of batches {"image": uint8 [B, H, W, C]}
    step = training.make_step(loss, optimizer)
    ...
    scale, shift = latent.measure(net, params.autoencoder, images)      # x_0 = (z - shift) scale has mean 0, deviation 1

It is the VAE of step 7 with a map of latents in place of a vector, and with a divergence that is weighed so little that
hardly anything of the image is lost: what the latents are distributed like is left to the diffusion model.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Key, PyTree, UInt8

from gen_jax import checks, programs
from gen_jax.data.transforms import to_uint8, to_unit
from gen_jax.likelihoods import Gaussian, Likelihood
from gen_jax.likelihoods.base import as_float
from gen_jax.networks.quantize import Codebook
from gen_jax.training import Aux, Loss
from gen_jax.training.state import Metrics
from gen_jax.types import Count
from gen_jax.vae.bottleneck import Bottleneck, finite_scalar, gaussian, vector_quantised
from gen_jax.vae.critics import (
    Adversary,
    Perceptual,
    adaptive_weight,
    feature_distance,
    found,
    hinge,
    replaced,
)
from gen_jax.vae.loss import Prepare, prepared
from gen_jax.vae.model import Posterior, kl_to_prior

__all__ = [
    "Adversary",
    "Params",
    "Perceptual",
    "Statistics",
    "finite_scalar",
    "gaussian",
    "loss",
    "measure",
    "optimizer",
    "posterior",
    "reconstruct",
    "statistics",
    "vector_quantised",
]


LIKELIHOOD = Gaussian(0.05)
"""Of images in [-1, 1]: the deviation is that of errors at a PSNR of 32 dB."""


class Params(NamedTuple):
    """Everything that is trained; None for what there is not."""

    autoencoder: PyTree
    codebook: Codebook | None = None
    discriminator: PyTree | None = None


@checks.checked
def loss(
    net: nn.Module,
    bottleneck: Bottleneck,
    *,
    likelihood: Likelihood = LIKELIHOOD,
    perceptual: Perceptual | None = None,
    adversary: Adversary | None = None,
    prepare: Prepare | None = None,
) -> Loss:
    """The loss of an autoencoder in nats an image, mean over a batch, for `training.make_step`.

        -log p(x | z) + penalty(z) + perceptual + adversarial,      z by the bottleneck of the encoder's output

    With `gaussian(beta)` and nothing else it is that of `vae.loss` with this `beta`. For a `Gaussian(sigma)`, `sigma`
    sets what a squared error costs: `|x - x_hat|^2 / (2 sigma^2)`, for `x` in [-1, 1].

    The result is `loss_fn(params: Params, key, batch, aux=None)`, of batches `{"image": uint8 [B, H, W, C]}`. Metrics:
    `reconstruction` (mean log-likelihood of an image, nats), `mse` of images in [-1, 1], and those of the terms.

    A discriminator and the autoencoder are trained by one gradient: each of the two terms is differentiated by the
    parameters of one of them alone. Every network can have its own optimizer, see `optimizer`.

    Args:
        net: `apply(params, x, method="encode") -> (mean, log_variance)` and `apply(params, z, method="decode")`, such as
            `networks.autoencoder_kl`.
        bottleneck: `gaussian`, `vector_quantised` or `finite_scalar`.
        likelihood: of the image given the decoder's output.
        perceptual, adversary: further terms.
        prepare: `(key, image) -> x`; by default `data.to_unit`.

    Raises:
        ValueError: a term needs `aux`, or parameters that are not there.
    """

    def loss_fn(
        params: Params, key: Key[Array, ""], batch: Mapping[str, Array], aux: Aux | None = None
    ) -> tuple[Array, Metrics]:
        key_prepare, key_z = jax.random.split(key)
        x = prepared(key_prepare, batch, (lambda _, image: to_unit(image)) if prepare is None else prepare)
        passed = bottleneck(params.codebook, key_z, posterior(net, params.autoencoder, x), aux)

        def error(out: Array) -> tuple[Array, Metrics]:
            log_prob, picture = likelihood.log_prob(out, x).mean(), likelihood.mean(out)
            metrics = {"reconstruction": log_prob, "mse": jnp.square(picture - x).mean()}
            if perceptual is None:
                return -log_prob, metrics
            frozen = _needed(aux, "a perceptual term").frozen
            apart = feature_distance(perceptual.features(frozen, picture), perceptual.features(frozen, x))
            return perceptual.weight * apart.mean() - log_prob, metrics | {"perceptual": apart.mean()}

        decode = lambda tree, z: cast(Array, net.apply(tree, z, method="decode"))
        out = decode(params.autoencoder, passed.z)
        value, metrics = error(out)
        value, metrics = value + passed.penalty, metrics | passed.metrics
        if adversary is None:
            return value, metrics
        more, of_game = _game(adversary, params, decode, passed.z, error, likelihood.mean, x, out, aux)
        return value + more, metrics | of_game

    return loss_fn


def _game(
    adversary: Adversary,
    params: Params,
    decode: Callable[[PyTree, Array], Array],
    z: Array,
    error: Callable[[Array], tuple[Array, Metrics]],
    picture: Callable[[Array], Array],
    x: Array,
    out: Array,
    aux: Aux | None,
) -> tuple[Array, Metrics]:
    """The two terms of decoder and discriminator."""
    if params.discriminator is None:
        raise ValueError(
            "expected parameters with a discriminator: latent.Params(autoencoder, discriminator=...)."
        )
    fixed = jax.lax.stop_gradient
    logits = lambda tree, x: cast(Array, adversary.net.apply(tree, x))
    fools = lambda out: -logits(fixed(params.discriminator), picture(out)).mean()
    judge = lambda x: logits(params.discriminator, fixed(x))
    frozen, z = fixed((params.autoencoder, z))
    _, pull = jax.vjp(
        lambda kernel: decode(replaced(frozen, adversary.last, kernel), z), found(frozen, adversary.last)
    )
    by_error, by_game = (pull(jax.grad(f)(fixed(out))) for f in (lambda out: error(out)[0], fools))
    weight = fixed(adaptive_weight(by_error, by_game))
    real, drawn = judge(x), judge(picture(out))
    playing = jnp.ones(()) if adversary.start == 0 else _needed(aux, "start").step >= adversary.start
    generator, discriminator = fools(out), hinge(real, drawn)
    metrics = {
        "generator": generator,
        "discriminator": discriminator,
        "adaptive_weight": weight,
        "logit_real": real.mean(),
        "logit_drawn": drawn.mean(),
    }
    return playing * (adversary.weight * weight * generator + discriminator), metrics


@checks.checked
def posterior(net: nn.Module, params: PyTree, x: Float[Array, "B H W C"]) -> Posterior:
    """`q(z | x)` of the parameters of an autoencoder, for images in [-1, 1]; in float32 or better."""
    checks.tree("params", params)
    checks.some("x", x)
    checks.within("x", x, -1.01, 1.01)
    found = cast("tuple[Array, Array]", net.apply(params, x, method="encode"))
    mean, log_variance = map(as_float, found)
    return Posterior(mean, log_variance / 2)


def _needed(aux: Aux | None, what: str) -> Aux:
    if aux is None:
        raise ValueError(f"{what} needs the step or frozen weights: train with make_step(..., aux=True).")
    return aux


@checks.checked
def optimizer(
    autoencoder: optax.GradientTransformation, discriminator: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """One optimizer of `Params`: each network has its own, with its own clipping, and a codebook follows its averages.

    By default the discriminator has that of the autoencoder.
    """
    label = lambda tree, name: jax.tree.map(lambda _: name, tree)
    labels = lambda params: Params(
        *(label(tree, name) for tree, name in zip(params, Params._fields, strict=True))
    )
    rules = {
        "autoencoder": autoencoder,
        "codebook": optax.sgd(1.0),
        "discriminator": autoencoder if discriminator is None else discriminator,
    }
    return optax.transforms.partition(rules, labels)


class Statistics(NamedTuple):
    """Of the latents of a data set, drawn from `q(z | x)`."""

    mean: Float[np.ndarray, "L"]
    """By channel."""
    std: Float[np.ndarray, "L"]
    """By channel, of all numbers about their mean."""
    noise: Float[np.ndarray, "L"]
    """By channel, root mean square of the deviation of `q(z | x)`: what of `std` is noise."""
    kl: float
    """`KL(q(z | x) || N(0, I))` in nats, mean over images."""


@checks.checked
def statistics(
    net: nn.Module, params: PyTree, images: UInt8[np.ndarray | Array, "N H W C"], *, batch_size: Count = 128
) -> Statistics:
    """Mean and deviation of the latents of images, by channel, and the KL in nats an image.

    var z = var_x mean(x) + E_x exp(log_variance(x)),     exactly, without draws
    """

    checks.tree("params", params)
    checks.some("images", images)
    sums = lambda image: programs.run(_sums, net, (), params, image)
    parts = list(_in_batches(sums, images, batch_size))
    mean, square, noise, kl = (np.concatenate(x).astype(np.float64).mean(0) for x in zip(*parts, strict=True))
    return Statistics(mean, np.sqrt(square - np.square(mean) + noise), np.sqrt(noise), float(kl))


@checks.checked
def measure(
    net: nn.Module,
    params: PyTree,
    images: UInt8[np.ndarray | Array, "N H W C"],
    *,
    noise: bool = True,
    batch_size: Count = 128,
) -> tuple[float, float]:
    """`(scale, shift)` with which `x_0 = (z - shift) scale` has mean 0 and deviation 1 over all images and channels.

    For the codec of a latent model. `z` is drawn from `q(z | x)`, or with `noise=False` its mean. A constant shift of a
    channel counts as deviation. Source: Rombach et al. 2022, Appendix G (scale).
    """
    found = statistics(net, params, images, batch_size=batch_size)
    shift = found.mean.mean()
    variance = np.square(found.std) + np.square(found.mean - shift)
    variance = variance.mean() - (0 if noise else np.square(found.noise).mean())
    return float(1 / np.sqrt(variance)), float(shift)


@checks.checked
def reconstruct(
    net: nn.Module,
    params: PyTree,
    images: UInt8[np.ndarray | Array, "N H W C"],
    *,
    quantiser: Callable[[Array], Array] | None = None,
    batch_size: Count = 128,
) -> UInt8[np.ndarray, "N H W D"]:
    """The decoded means of `q(z | x)` as 8-bit images: what is left of images in an autoencoder, without noise.

    Where latents are quantised, `quantiser` is how: `lambda z: quantize.fsq(z, levels)[0]`, for example.
    """

    checks.tree("params", params)
    checks.some("images", images)
    again = lambda image: programs.run(_again, net, (quantiser,), params, image)
    return np.concatenate([part for (part,) in _in_batches(again, images, batch_size)])


def _sums(net: nn.Module) -> Callable[[PyTree, Array], tuple[Array, ...]]:
    """`(params, image)` to the means of `z`, `z^2` and its variance over pixels, and the KL."""

    def sums(params: PyTree, image: Array) -> tuple[Array, ...]:
        mean, log_std = found = posterior(net, params, to_unit(image))
        kl = kl_to_prior(found).sum((1, 2, 3))
        return mean.mean((1, 2)), jnp.square(mean).mean((1, 2)), jnp.exp(2 * log_std).mean((1, 2)), kl

    return sums


def _again(
    net: nn.Module, quantiser: Callable[[Array], Array] | None
) -> Callable[[PyTree, Array], tuple[Array]]:
    """`(params, image)` to the image that is decoded."""

    def again(params: PyTree, image: Array) -> tuple[Array]:
        z = posterior(net, params, to_unit(image)).mean
        z = z if quantiser is None else quantiser(z)
        return (to_uint8(cast(Array, net.apply(params, z, method="decode"))),)

    return again


def _in_batches(
    f: Callable[[Array], tuple[Array, ...]], images: np.ndarray | Array, size: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """`f` of batches of one size; the last is filled up with its first row, and what comes of that left out."""
    size = min(size, len(images))
    for start in range(0, len(images), size):
        rows = np.asarray(images[start : start + size])
        filled = np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])
        yield tuple(np.asarray(out)[: len(rows)] for out in f(jnp.asarray(filled)))
