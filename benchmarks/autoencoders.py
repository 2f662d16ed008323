"""Bottlenecks of autoencoders, and further terms of their loss, compared on MNIST: makes AUTOENCODERS.md.

    python benchmarks/autoencoders.py                  # about ten minutes on two cores
    python benchmarks/autoencoders.py --only FSQ       # one row, printed

Each row trains `autoencoder_kl.mnist`, 28 x 28 pixels to 7 x 7 x 4 numbers, for as many steps, with a loss of
`vae.latent`. Said are, of 2,000 test images: peak signal-to-noise ratio; Frechet distance of the reconstructions in the
features of a classifier that was trained for it; nats of the latents; and of those that are quantised how many of the
codes are in use, and the perplexity of their use.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import PyTree
from pages import commit, machine, markdown, versions

from gen_jax import data, launch, metrics, training
from gen_jax.likelihoods import Gaussian
from gen_jax.networks import autoencoder_kl, quantize
from gen_jax.networks.classifier import Classifier
from gen_jax.networks.discriminator import PatchDiscriminator
from gen_jax.vae import critics, latent

NET = autoencoder_kl.mnist.build()
LEVELS = (8, 5, 5, 5)
CODES = 512
TESTED = 2000


class Variant(NamedTuple):
    """How a row is trained."""

    bottleneck: Any
    quantiser: Callable[[Any], Callable[[jax.Array], jax.Array]] | None = None
    """From the trained parameters to how latents are rounded."""
    perceptual: bool = False
    adversary: bool = False


def by_codebook(params: latent.Params) -> Callable[[jax.Array], jax.Array]:
    """The nearest code of the trained codebook."""
    codes = quantize.codes(params.codebook)
    return lambda z: codes[quantize.nearest(codes, z)]


VARIANTS = {
    "Gaussian": Variant(latent.gaussian(1.0)),
    "Gaussian, perceptual": Variant(latent.gaussian(1.0), perceptual=True),
    "Gaussian, discriminator": Variant(latent.gaussian(1.0), adversary=True),
    "VQ, 512 codes": Variant(latent.vector_quantised(), by_codebook),
    "FSQ, 8 x 5 x 5 x 5": Variant(
        latent.finite_scalar(LEVELS), lambda _: lambda z: quantize.fsq(z, LEVELS)[0]
    ),
}


@dataclass(frozen=True)
class Config:
    """Which rows."""

    only: str = ""
    """Those with this in their name, printed and not written."""
    steps: int = 400
    """Of each."""
    judge_steps: int = 1000
    """Of the classifier in whose features distances are, and whose features the perceptual term compares."""


def fit(variant: Variant, steps: int, classifier: Classifier, frozen: PyTree) -> latent.Params:
    """The parameters after so many steps of 64 images."""
    seen = critics.classifier_features(classifier)
    perceptual = critics.Perceptual(seen, 1000.0) if variant.perceptual else None
    critic = PatchDiscriminator((16, 32))
    adversary = critics.Adversary(critic, 0.5, start=steps // 4) if variant.adversary else None
    loss = latent.loss(
        NET, variant.bottleneck, likelihood=Gaussian(0.15), perceptual=perceptual, adversary=adversary
    )
    learn, schedule = training.muon(4e-3, num_steps=steps, warmup_steps=40, b2=0.99)
    rule = latent.optimizer(learn)
    key, image = jax.random.key(0), jnp.zeros((1, 28, 28, 1))
    book = variant.quantiser is by_codebook
    params = latent.Params(
        NET.init(key, image),
        quantize.create(key, CODES, 4) if book else None,
        critic.init(key, image) if variant.adversary else None,
    )
    state = training.fit(
        training.make_step(loss, rule, aux=True, ema_decay=0.99),
        lambda: training.TrainState.create(params, rule, jax.random.key(1)),
        data.batches(data.load("mnist", split="train"), 64, key=jax.random.key(2)),
        num_steps=steps,
        workdir=None,
        schedule=schedule,
        options=training.Options(progress=False),
        frozen=frozen if variant.perceptual else None,
    )
    return latent.Params(*jax.device_get(state.ema_params))


def row(
    name: str, variant: Variant, params: latent.Params, distance: Callable[[np.ndarray], float]
) -> list[str]:
    """The figures of a variant."""
    images = data.load("mnist", split="test")["image"][:TESTED]
    quantiser = None if variant.quantiser is None else variant.quantiser(params)
    drawn = latent.reconstruct(NET, params.autoencoder, images, quantiser=quantiser)
    figures = [f"{np.mean(metrics.psnr(images, drawn)):.1f}", f"{distance(drawn):.2f}"]
    if quantiser is None:
        return [name, *figures, f"{latent.statistics(NET, params.autoencoder, images).kl:.0f}", "", ""]
    z = latent.posterior(NET, params.autoencoder, data.to_unit(images)).mean
    codes = (
        quantize.codes(params.codebook) if variant.quantiser is by_codebook else quantize.fsq_codes(LEVELS)
    )
    share = quantize.usage(quantize.nearest(jnp.asarray(codes), quantiser(z)), len(codes))
    return [name, *figures, "", f"{(share > 0).mean():.0%}", f"{quantize.perplexity(share):.0f}"]


def main(config: Config) -> None:
    """Train the rows, print and write them."""
    sys.path.insert(0, str(launch.ROOT / "experiments"))
    import judging

    distance = judging.distance(launch.Data(), steps=config.judge_steps)
    assert distance is not None
    features = Classifier(10), training.load(launch.ROOT / "checkpoints/judge_mnist").params
    rows = [["", "PSNR, dB", "Fréchet distance", "KL, nats", "codes in use", "perplexity"]]
    for name, variant in VARIANTS.items():
        if config.only in name:
            rows.append(row(name, variant, fit(variant, config.steps, *features), distance))
            print(dict(zip(rows[0], rows[-1], strict=True)), flush=True)
    if config.only:
        return
    made = f"Made by `python benchmarks/autoencoders.py` from commit {commit()}, on {machine()}, with {versions('jax')}."
    page = f"# Autoencoders of MNIST\n\n{made} {config.steps} steps of 64 images each.\n\n{markdown(rows)}\n"
    (Path(__file__).parent / "AUTOENCODERS.md").write_text(page)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
