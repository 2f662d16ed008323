"""Step 10: latent diffusion. The model of step 9 in the latents of an autoencoder, and what that saves.

    python experiments/step10_latent_diffusion.py

trains on MNIST (embedded): an autoencoder, 28 x 28 pixels to 7 x 7 x 4 numbers; a diffusion model of these numbers; then
the model of step 9, of pixels, for as long as both took. checkpoints/step10_latent_diffusion/ then holds what step 9
leaves; autoencoder/, with reconstructions.png; pixels/, the other run; and pixel_latent.png, which compares them at
equal evaluations: Fréchet distance to test images, seconds of sampling, FLOPs of an evaluation. All figures are in
summary.json. The same command goes on where an interrupted run stopped. Afterwards

    python experiments/step10_latent_diffusion.py --sample-only --num 64 --solver dpmpp --nfe 10
    gen-jax sample checkpoints/step10_latent_diffusion --num 16 --out digits.png

sample from the checkpoint. `--labels` learns from the labels too, `--no-compare` leaves the comparison out. Other
pictures: `--dataset NAME_OR_FOLDER`, with a `--workdir` of its own; 4 must divide their sides, or `--image-size`.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import judging
import latents
import numpy as np
import pictures
import recipes
import step09_diffusion as step09
import tyro
from jaxtyping import PyTree

from gen_jax import checks, data, generate, launch, plots, pretrained, samplers, training
from gen_jax.codec import Codec
from gen_jax.model import Model, Sampling
from gen_jax.networks import autoencoder_kl, unet
from gen_jax.types import Count

PIXELS = "pixels"
"""The directory of the run that latents are compared with."""


@checks.checked
@dataclass(frozen=True)
class Config(step09.Config):
    """Train a diffusion model of latents, or sample from one. The defaults shown are those of the preset."""

    preset: str = "mnist"
    """Networks and training, see experiments/configs/."""
    workdir: Path = launch.ROOT / "checkpoints" / "step10_latent_diffusion"
    network: Annotated[unet.UNetConfig, tyro.conf.Suppress] = unet.UNetConfig()
    autoencoder: Annotated[autoencoder_kl.AutoencoderKLConfig, tyro.conf.Suppress] = autoencoder_kl.mnist
    defaults: Annotated[Sampling, tyro.conf.Suppress] = Sampling("unipc", 20, 2.0)
    coding: launch.Autoencoding = launch.Autoencoding()
    compare: bool = True
    """Train the model of step 9 for as long, and compare."""
    pixel_steps: Count | None = None
    """Updates of it (default: as many as take the time of the autoencoder and of the model of latents)."""
    judged: Count = 2000
    """Samples of each that are compared with test images, without guidance."""
    judge_steps: Count = 1000
    """Of training the classifier whose features are compared, once a data set."""
    judge_dir: Path | None = None
    """Where it is kept (default: checkpoints/judge_DATASET)."""


class Side(NamedTuple):
    """Samples of a trained model, and what was measured of it."""

    images: np.ndarray
    figures: dict[str, float]


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""
    from configs import step10_latent_diffusion as configs

    return launch.parse(Config, args, presets=configs.PRESETS, description=__doc__)


def make_model(config: Config, info: data.Info, codec: Codec) -> Model:
    """The description of what is trained: step 9's, but for what the network sees."""
    return dataclasses.replace(step09.make_model(config, info), codec=codec)


def of_channels(config: Config, channels: int) -> Config:
    """The configuration for images of so many channels."""
    fitted = dataclasses.replace(config.autoencoder, in_channels=channels, out_channels=channels)
    return dataclasses.replace(config, autoencoder=fitted)


def of_pixels(config: Config, steps: int) -> step09.Config:
    """The run of step 9 that latents are compared with: its default network and training."""
    from configs import step09 as configs

    base = next(iter(configs.PRESETS.values()))
    return dataclasses.replace(
        base,
        workdir=config.workdir / PIXELS,
        seed=config.seed,
        defaults=config.defaults,
        flip=config.flip,
        labels=config.labels,
        label_dropout=config.label_dropout,
        data=config.data,
        training=dataclasses.replace(base.training, steps=steps),
        run=config.run,
    )


def times(config: Config, model: Model, encoded: latents.Encoded, source: data.Source) -> dict[str, float]:
    """Seconds of a step of each training, and of encoding the data set; measured once, and kept in WORKDIR/times.json."""
    file = config.workdir / "times.json"
    if file.exists():
        kept: dict[str, float] = json.loads(file.read_text())
        return kept
    pixels, frozen = of_pixels(config, 1000), {"autoencoder": encoded.params}
    made = {
        "autoencoder_step": (latents.recipe(config, source), None),
        "latent_step": (step09.recipe(config, model, encoded.source, aux=True), frozen),
        "pixel_step": (step09.recipe(pixels, step09.make_model(pixels, source.info()), source), None),
    }
    found = {name: recipes.seconds_a_step(*each, config.run.parallel) for name, each in made.items()}
    found["encoding"] = latents.seconds(encoded, source)
    launch.save(file, found)
    training.wait_for_all()
    return dict(json.loads(file.read_text()))  # those of process 0


def equal_steps(config: Config, found: dict[str, float]) -> int:
    """Updates of the model of pixels in the time of the autoencoder, of encoding and of the model of latents.

    Without the time of compiling, of which there is one more for latents.
    """
    spent = (
        config.coding.autoencoder_steps * found["autoencoder_step"]
        + found["encoding"]
        + config.training.steps * found["latent_step"]
    )
    return 10 * max(round(spent / found["pixel_step"] / 10), 1)


def flops(model: Model, weights: generate.Weights) -> dict[str, float]:
    """Floating-point operations of one evaluation of the network, and of decoding, for one sample."""
    net, x, t = model.network.build(), jnp.zeros((1, *model.codec.shape)), jnp.zeros(1)
    evaluate = lambda params, x: net.apply(params, x, t)
    decode = lambda params, x: model.codec.decode(x, params)
    return {
        "flops_of_evaluation": training.cost.flops(evaluate, weights["network"], x),
        "flops_of_decoding": training.cost.flops(decode, weights.get("autoencoder"), x),
    }


def measure(config: Config, workdirs: dict[str, Path], distance: latents.Distance | None) -> dict[str, Side]:
    """Samples of both by the same solver, without guidance, and how long they take."""
    key, asked, num = jax.random.key(config.seed + 1), config.sampling, min(config.judged, generate.CHUNK)
    sides, calls = {}, {}
    for name, workdir in workdirs.items():
        model, loaded, _, step = pretrained.load_run(workdir)
        weights = {part: tree for part, tree in loaded.items() if part != "guide"}
        images, _ = generate.sample(
            model, weights, key, config.judged, solver=asked.solver, nfe=asked.nfe, guidance=1.0, shared=True
        )
        figures = {"steps": float(step), **flops(model, weights)}
        last = recipes.last_figures(workdir)
        figures |= {name: last[name] for name in ("seconds_of_training",) if name in last}
        if distance is not None:
            figures["frechet_distance"] = distance(images)
        sides[name] = Side(images, figures)
        calls[name] = sampling(model, weights, key, num, generate.plan(model, asked.solver, asked.nfe))
    for name, seconds in recipes.seconds(calls).items():
        sides[name].figures["seconds_a_sample"] = seconds / num
    return sides


def sampling(
    model: Model, weights: generate.Weights, key: jax.Array, num: int, plan: samplers.Plan
) -> Callable[[], PyTree]:
    """The compiled sampler of so many samples, as `generate.sample` calls it, with weights on the devices."""
    draw = generate.sampler(model, generate.local_mesh(num))
    placed, index, cond = draw.place(weights), np.arange(num), generate.choose(model, key, np.arange(num))
    return lambda: draw(placed, key, plan, index, cond)


def save_comparison(path: Path, sides: dict[str, Side], test: np.ndarray, drawn: np.ndarray) -> None:
    """pixel_latent.png: samples of both, test images above their reconstructions, and the figures as bars."""
    bars = {
        "frechet_distance": ("Fréchet distance", 1.0),
        "seconds_a_sample": ("milliseconds a sample", 1e3),
        "flops_of_evaluation": ("MFLOP an evaluation", 1e-6),
    }
    bars = {name: bar for name, bar in bars.items() if all(name in side.figures for side in sides.values())}
    with plots.figure(path, width=10, height=7, nrows=2, ncols=3) as axes:
        grids = {f"by a model of {name}s": side.images[:64] for name, side in sides.items()}
        pairs = np.stack(
            [test[:32].reshape(4, 8, *test.shape[1:]), drawn[:32].reshape(4, 8, *test.shape[1:])], 1
        )
        grids["test images above their reconstructions"] = pairs.reshape(-1, *test.shape[1:])
        for axis, (title, images) in zip(axes[0], grids.items(), strict=True):
            axis.imshow(plots.tile(images, 8).squeeze(), cmap="gray", vmin=0, vmax=255)
            axis.set_title(title, fontsize=10)
            axis.axis("off")
        for axis in axes[1, len(bars) :]:
            axis.axis("off")
        for axis, (name, (title, unit)) in zip(axes[1], bars.items(), strict=False):
            shown = axis.bar(list(sides), [unit * side.figures[name] for side in sides.values()], width=0.6)
            axis.bar_label(shown, fmt="%.3g")
            axis.set_title(title, fontsize=10)


def compare(
    config: Config,
    model: Model,
    encoded: latents.Encoded,
    source: data.Source,
    distance: latents.Distance | None,
) -> dict[str, object]:
    """The model of step 9 for as long, and the figures of both."""
    found: dict[str, object] = {}
    if (steps := config.pixel_steps) is None:
        found["seconds"] = measured = times(config, model, encoded, source)
        steps = equal_steps(config, measured)
    pixels = of_pixels(config, steps)
    step09.learn(pixels, step09.make_model(pixels, source.info()), source, "step09_diffusion")
    sides = measure(config, {"pixel": pixels.workdir, "latent": config.workdir}, distance)
    if distance is not None:
        found["frechet_distance_of_training_images"] = distance(latents.images(source, config.judged))
    if jax.process_index() == 0:
        test = latents.test_images(config.data, 32)
        net = config.autoencoder.build()
        drawn = latents.autoencoding.reconstruct(net, encoded.params, test)
        save_comparison(config.workdir / "pixel_latent.png", sides, test, drawn)
    found |= {name: side.figures for name, side in sides.items()}
    ratio = lambda name: sides["latent"].figures[name] / sides["pixel"].figures[name]
    return found | {"sampling_time_of_pixels": ratio("seconds_a_sample")}


def main(config: Config) -> dict[str, object]:
    """Train (or go on training), sample and compare, or sample alone."""
    launch.start(config.training.batch_size)
    config = launch.resolved(config)
    if config.sampling.sample_only:
        pictures.draw(config.workdir, config.seed, config.sampling)
        return {}
    began, source = time.perf_counter(), config.data.source()
    config = of_channels(config, source.info().image_shape[-1])
    planned = make_model(config, source.info(), latents.describe(config, source))
    pictures.check(planned, config.seed, config.sampling, config.training.batch_size, source)
    latents.check(config, source)  # all before any training
    distance = (
        judging.distance(config.data, steps=config.judge_steps, workdir=config.judge_dir)
        if config.compare
        else None
    )
    encoded = latents.encode(config, source, distance)
    model, coded = make_model(config, source.info(), encoded.codec), time.perf_counter()
    frozen = {"autoencoder": encoded.params}
    later = ("compare", "pixel_steps", "judged", "judge_steps", "judge_dir")
    experiment = "step10_latent_diffusion"
    summary = step09.learn(config, model, encoded.source, experiment, frozen, may_change=later)
    trained = time.perf_counter()
    summary |= pictures.draw(config.workdir, config.seed, config.sampling)
    summary["autoencoder"] = encoded.figures
    if jax.process_index() == 0:
        images = latents.images(source, 3)
        pictures.save_forward(config.workdir / "forward.png", model, images, encoded.params)
        summary |= pictures.save_loss(config.workdir, f"error of {config.predicts}")
    if config.compare:
        summary |= compare(config, model, encoded, source, distance)
    summary |= {
        "seconds_of_autoencoder": coded - began,
        "seconds_here": trained - began,
        "seconds_of_the_rest": time.perf_counter() - trained,
    }
    again = f"python experiments/step10_latent_diffusion.py --sample-only --workdir {config.workdir} --num 64"
    lines = [
        f"sample again: {again} --seed 3",
        f"or: gen-jax sample {config.workdir} --num 16 --out samples.png",
    ]
    return launch.finish(config.workdir, summary, lines=lines)


if __name__ == "__main__":
    launch.run(__file__)
