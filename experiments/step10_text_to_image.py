"""Step 10: text to image. A diffusion model of latents reads what it is to draw: all that Stable Diffusion has, in small.

    python experiments/step10_text_to_image.py

trains on captioned scenes (drawn from the embedded MNIST) in half an hour on two cores: first an autoencoder, then in
its latents a U-Net, together with a text encoder to which it attends. checkpoints/step10_text_to_image/ then holds what
step 9 leaves, captions.json (what the samples were drawn for), and captions.png, guidance.png, attention.png,
interpolation.png and negative.png. Afterwards

    python experiments/step10_text_to_image.py --sample-only --prompt "a large red seven above a small blue three"
    gen-jax sample checkpoints/step10_text_to_image --prompt "a small green zero" --num 8 --out zeros.png

draw from the checkpoint in seconds; `--prompts FILE` takes a prompt a line. Other pictures with captions: a folder of
images with a text file for each, `--dataset FOLDER --image-size 48`.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import latents
import pictures
import prompting
import step09_diffusion as step09
import tyro

from gen_jax import checks, data, generate, launch, pretrained, text
from gen_jax.conditioning import Reader, Text
from gen_jax.data.protocol import read, stack
from gen_jax.evaluation import scenes
from gen_jax.model import Model, Sampling
from gen_jax.networks import autoencoder_kl, unet
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.pretrained import Run
from gen_jax.types import Count, Fraction, Size


@checks.checked
@dataclass(frozen=True)
class Config(step09.Config):
    """Train a model that draws what a text says, or draw with it. The defaults shown are those of the preset."""

    preset: str = "scenes"
    """Network and training, see experiments/configs/."""
    workdir: Path = launch.ROOT / "checkpoints" / "step10_text_to_image"
    network: Annotated[unet.UNetConfig, tyro.conf.Suppress] = unet.UNetConfig()
    autoencoder: Annotated[autoencoder_kl.AutoencoderKLConfig, tyro.conf.Suppress] = autoencoder_kl.scenes
    defaults: Annotated[Sampling, tyro.conf.Suppress] = Sampling("unipc", 20, 3.0)
    text_features: Count = 128
    """Width of the text encoder."""
    text_layers: Count = 2
    text_length: Count = 16
    """Tokens that are read of a caption, start and end included."""
    text_merges: Size = 1000
    """Tokens for words and parts of words that are learned from the captions, at most."""
    text_dropout: Fraction = 0.1
    """Share of the images whose caption is hidden from the network, without which there is no guidance."""
    data: launch.Data = launch.Data("scenes")
    coding: launch.Autoencoding = launch.Autoencoding()
    judged: Size = 1000
    """Captions of test scenes that are drawn and read back at the end, where the data are scenes."""


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""
    from configs import step10_text_to_image as configs

    return launch.parse(Config, args, presets=configs.PRESETS, description=__doc__)


def captions(source: data.Source, num: int) -> list[str]:
    """The first captions of a source; ValueError where images have none, which names some of them."""
    if not source.info().has_text:
        raise ValueError(
            f"{source.info().name} has no captions, from which a model could learn to read. A folder has them in a text "
            "file for each image (a.png, a.txt), or in metadata.jsonl."
        )
    checks.whole("num", num, "caption")
    return list(stack(read(source, range(min(num, len(source)))))["text"])


def test_captions(config: Config, num: int) -> list[str]:
    """Captions that are drawn unless others are asked for: of test images, where there are such."""
    return captions(config.data.test_source(), num)


def make_model(config: Config, source: data.Source) -> Model:
    """The description of what is trained, but for the scale of the latents."""
    tokenizer = text.train(captions(source, 5000), num_merges=config.text_merges, length=config.text_length)
    encoder = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        width=config.text_features,
        layers=config.text_layers,
        heads=max(config.text_features // 32, 1),
        hidden=4 * config.text_features,
        length=config.text_length,
    )
    reads = dataclasses.replace(config.network, context_features=config.text_features)
    model = step09.make_model(dataclasses.replace(config, network=reads), source.info())
    return dataclasses.replace(
        model,
        condition=Text((Reader(tokenizer, encoder),), config.text_dropout),
        codec=latents.describe(config, source),
        sampling=dataclasses.replace(model.sampling, guide_step=None),
    )


def judge(config: Config, run: Run) -> dict[str, object]:
    """What is right in images for captions of test scenes, object by object, and in real images for the same ones."""
    asked = test_captions(config, config.judged)
    images, _ = generate.sample(
        run.model, run.weights, jax.random.key(config.seed + 1), len(asked), prompt=asked, shared=True
    )
    reads = scenes.train()
    found, real = scenes.score(reads, images, asked), scenes.ceiling(reads, asked)
    launch.say(scenes.table(found, real))
    return {"found": scenes.as_dict(found), "real": scenes.as_dict(real)}


def main(config: Config) -> dict[str, object]:
    """Train (or go on training) and draw, or draw alone."""
    launch.start(config.training.batch_size)
    config = launch.resolved(config)
    texts = test_captions(config, config.sampling.num)
    if config.sampling.sample_only:
        pictures.draw(config.workdir, config.seed, config.sampling, texts)
        return {}
    began = time.perf_counter()
    source = config.data.source()
    model = make_model(config, source)
    pictures.check(model, config.seed, config.sampling, config.training.batch_size, source)
    latents.check(config, source)  # all before any training
    encoded = latents.encode(config, source)
    model, frozen = dataclasses.replace(model, codec=encoded.codec), {"autoencoder": encoded.params}
    coded = time.perf_counter()
    summary = step09.learn(
        config, model, encoded.source, "step10_text_to_image", frozen, texts, may_change=("judged",)
    )
    trained = time.perf_counter()
    summary |= pictures.draw(config.workdir, config.seed, config.sampling, texts)
    run = pretrained.load_run(config.workdir)
    if jax.process_index() == 0:
        summary |= pictures.save_loss(config.workdir, f"error of {config.predicts}")
        prompting.save_all(config.workdir, run, texts, config.seed)
    if config.data.dataset == "scenes" and config.judged:
        summary["scenes"] = judge(config, run)
    summary |= {
        "seconds_of_autoencoder": coded - began,
        "seconds_here": trained - began,
        "seconds_of_sampling": time.perf_counter() - trained,
    }
    lines = [f'draw again: gen-jax sample {config.workdir} --prompt "{texts[0]}" --num 8 --out samples.png']
    return launch.finish(config.workdir, summary, lines=lines)


if __name__ == "__main__":
    launch.run(__file__)
