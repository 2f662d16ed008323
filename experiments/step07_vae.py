"""Step 7: the variational autoencoder. An image is encoded as a few normal numbers; new numbers give new images.

    python experiments/step07_vae.py

trains the book's VAE on MNIST (embedded) for 30 epochs and leaves pictures, metrics and checkpoints in
checkpoints/step07_vae/. The same command goes on where an interrupted run stopped. Afterwards

    python experiments/step07_vae.py --sample-only --num 64 --seed 3

samples from the checkpoint. Other images: `--dataset NAME_OR_FOLDER`, with a `--workdir` of its own. Presets are in
experiments/configs/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import autoencoding
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from bounds import LIKELIHOODS, Arrays, Bounds, preparer, to_bytes

from gen_jax import checks, launch, plots, training, vae
from gen_jax.conditioning import Labels, Nothing
from gen_jax.networks import autoencoder
from gen_jax.types import Count, NotNegative

ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "silu": jax.nn.silu}


@checks.checked
@dataclass(frozen=True)
class Config(autoencoding.Config):
    """Train a VAE, or sample from one. The defaults shown are those of the preset."""

    workdir: Path = launch.ROOT / "checkpoints" / "step07_vae"
    """Where everything is written, and looked for when the run is resumed or sampled from."""

    network: Literal["mlp", "conv"] = "mlp"
    hidden: tuple[Count, ...] = (200,)
    """Widths of the encoder's hidden layers (mlp); the decoder has them in reverse."""
    channels: tuple[Count, ...] = (32, 64)
    """Channels after each halving of the image (conv)."""
    activation: Literal["relu", "tanh", "silu"] = "relu"
    latent: Count = 20
    """Numbers in a latent; with 2 the run draws a map of them, manifold.png."""
    labels: bool = False
    """Give both networks the labels. Each sample is then drawn for a label, written to labels.npy."""
    label: int | None = None
    """The label of all samples, for a model with labels (default: random labels)."""

    objective: Literal["elbo", "iwae", "dreg"] = "elbo"
    """The bound with one sample; with several; the same with doubly reparameterised gradients."""
    num_samples: Count = 50
    """Samples of an image in a step, with iwae and dreg."""
    gradient_samples: Count | None = None
    """How many of them are differentiated, drawn by their weights, with iwae and dreg (default: all)."""
    beta: NotNegative = 1.0
    """Weight of the KL, with elbo."""
    free_bits: NotNegative = 0.0
    """Nats of each number in the latent that are not penalised, with elbo."""

    training: autoencoding.Training = autoencoding.Training(learning_rate=3e-4)


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""
    from configs import step07

    return launch.parse(Config, args, presets=step07.PRESETS, description=__doc__)


def build(config: Config, shape: autoencoding.Shape, num_classes: int | None) -> vae.VAE:
    """The model for images of a shape; `num_classes` if it takes labels."""
    likelihood, activation = LIKELIHOODS[config.likelihood], ACTIVATIONS[config.activation]
    out, latent, channels = (*shape[:2], likelihood.outputs(shape[2])), config.latent, config.channels
    if config.network == "conv" and not channels:
        raise ValueError("--channels takes a number for each halving of the image, at least one.")
    encoder: nn.Module
    decoder: nn.Module
    if config.network == "mlp":
        encoder = autoencoder.MLPEncoder(latent, config.hidden, activation, num_classes)
        decoder = autoencoder.MLPDecoder(out, config.hidden[::-1], activation, num_classes)
    else:
        encoder = autoencoder.ConvEncoder(latent, channels, activation=activation, num_classes=num_classes)
        decoder = autoencoder.ConvDecoder(out, channels, activation=activation, num_classes=num_classes)
    return vae.VAE(encoder, decoder, likelihood, latent)


def make_loss(model: vae.VAE, config: Config) -> training.Loss:
    """The ELBO, or a bound of several samples; with the book's likelihood it reports the book's loss as well."""
    prepare = preparer(config.binarize)
    if config.objective != "elbo":
        return vae.iwae_loss(
            model,
            config.num_samples,
            doubly_reparameterised=config.objective == "dreg",
            gradient_samples=config.gradient_samples,
            prepare=prepare,
        )
    beta = optax.linear_schedule(0.0, config.beta, config.kl_warmup) if config.kl_warmup else config.beta
    elbo = vae.loss(model, beta=beta, free_bits=config.free_bits, prepare=prepare)
    return autoencoding.with_book_loss(elbo, config.likelihood)


def bounds(model: vae.VAE, config: Config) -> Bounds:
    """The terms of the ELBO, and the importance-weighted bound."""

    def figures(params, key, batch, index):
        x, label = batch["image"], batch.get("label")
        key_elbo, key_iwae = jax.random.split(key)
        elbo = model.elbo(params, key_elbo, x, label, index=index)
        log_prob = model.log_prob(params, key_iwae, x, config.test_samples, label, index=index)
        terms = {"elbo": elbo.value, "reconstruction": elbo.reconstruction, "kl": elbo.kl}
        return terms | {"log_prob": log_prob}

    return figures


def sampler(
    model: vae.VAE, config: Config, num_classes: int | None
) -> tuple[autoencoding.Draw, jax.Array | None]:
    """Means of `p(x | z)` for random latents, and the labels that they are drawn for."""
    key_x, key_label = jax.random.split(jax.random.key(config.seed))
    condition = Nothing() if num_classes is None else Labels(num_classes)
    labels = condition.choose(key_label, np.arange(config.num), config.label)

    def draw(params: vae.Params, rows: jax.Array) -> jax.Array:
        label = None if labels is None else labels[rows]
        return model.sample(key_x, params, len(rows), label, mean=True, index=rows)

    return draw, labels


def save_figures(config: Config, model: vae.VAE, params: vae.Params, test: Arrays) -> None:
    """loss.png, reconstructions.png, interpolation.png, and manifold.png of a latent of two numbers."""
    several = None if config.objective == "elbo" else f"bound of {config.num_samples} samples"
    autoencoding.save_terms(config.workdir, config, several)
    images, x = test["image"][:32], jnp.asarray(test["image"][:32] / 255, jnp.float32)
    label = jnp.asarray(test["label"][:32]) if "label" in test else None
    rebuilt = to_bytes(jax.jit(model.reconstruct)(params, x, label))
    autoencoding.save_pairs(config.workdir / "reconstructions.png", images, rebuilt)
    first = None if label is None else label[:8]
    line = jax.jit(lambda params, a, b: model.interpolate(params, a, b, 10, first))(params, x[:8], x[8:16])
    strips = to_bytes(line)
    path = config.workdir / "interpolation.png"
    plots.save_grid(path, strips.reshape(-1, *strips.shape[2:]), columns=strips.shape[1])
    if config.latent == 2:
        save_manifold(config.workdir / "manifold.png", model, params, None if label is None else label[:1])


def save_manifold(
    path: Path, model: vae.VAE, params: vae.Params, label: jax.Array | None, side: int = 20
) -> None:
    """The decoded latents at even quantiles of both numbers (Kingma & Welling 2014, Figure 4)."""
    line = scipy.stats.norm.ppf((np.arange(side) + 0.5) / side)
    z = jnp.asarray([(x, y) for y in line[::-1] for x in line], jnp.float32)
    label = None if label is None else jnp.broadcast_to(label, len(z))
    plots.save_grid(path, to_bytes(jax.jit(model.decode)(params, z, label)), columns=side, scale=1)


EXPERIMENT = autoencoding.Experiment(
    name="step07_vae",
    build=build,
    make_loss=make_loss,
    make_optimizer=lambda config: config.training.make_optimizer(iterations=4),
    restore=lambda params: vae.Params(**params) if isinstance(params, dict) else params,
    bounds=bounds,
    sampler=sampler,
    save_figures=save_figures,
    free=("label",),
)
draw_samples = EXPERIMENT.draw_samples


def main(config: Config) -> dict[str, object]:
    """Train (or go on training), test and sample, or sample alone."""
    return EXPERIMENT.main(config, labels=config.labels)


if __name__ == "__main__":
    launch.run(__file__)
