"""Train a Stable Diffusion further, on pictures of your own: all of its U-Net, or a LoRA of it.

    python experiments/finetune_stable_diffusion.py --weights stable-diffusion-v1-5 --dataset photos --lora-rank 8

takes a folder as diffusers writes it, or a `.safetensors` file with `--config FOLDER`, and a folder of pictures with a
text file for each (a.png, a.txt), or with metadata.jsonl. Latents and texts are encoded once and kept. It leaves what
step 9 leaves, samples_before.png and samples.png for the same prompts, and

    lora.safetensors     with --lora-rank: for `load_lora_weights` of diffusers, for web UIs, and for gen_jax
    model_STEPS/         else: a folder that `pretrained.load`, `gen-jax sample` and diffusers read

The same command goes on where an interrupted run stopped.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import jax
import pictures
from jaxtyping import PyTree
from recipes import Recipe

from gen_jax import captions, checks, data, generate, latent, launch, paths, plots, pretrained, training
from gen_jax.codec import Latents
from gen_jax.conditioning import Text
from gen_jax.data.fitted import placed
from gen_jax.diffusion import loss
from gen_jax.generate import Weights
from gen_jax.model import Model, to_dict
from gen_jax.networks.unet import UNetConfig
from gen_jax.pretrained import lora_writing
from gen_jax.text.prompts import Encoded
from gen_jax.training import Options, lora
from gen_jax.types import Count, Fraction, NotNegative, Positive, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Train a Stable Diffusion further, or draw with what was trained."""

    weights: Path = launch.ROOT / "stable-diffusion-v1-5"
    """The model: a folder with model_index.json, or one file."""
    config: Path | None = None
    """For one file: a folder with what it does not say, such as the vocabulary (`pretrained.load`)."""
    predicts: Literal["eps", "v"] | None = None
    """What the network says, where the file does not say it."""
    workdir: Path = launch.ROOT / "checkpoints" / "finetune_stable_diffusion"
    seed: Seed = 0
    lora_rank: Count | None = None
    """Columns of the factors that are learned of each map of the attentions; default: the whole U-Net is learned."""
    lora_alpha: Positive | None = None
    """What is added is alpha / rank times the product of the factors (default: the rank, so once)."""
    text_dropout: Fraction = 0.1
    """Share of the images whose caption is hidden from the network, without which guidance is forgotten."""
    weighting: Literal["simple", "min_snr"] = "min_snr"
    """Weights of the loss: none, or min(SNR, gamma) (Hang et al. 2023)."""
    min_snr_gamma: Positive = 5.0
    offset_noise: NotNegative = 0.0
    """Of a number that is added to the noise of a whole channel, 0.05 to 0.1; learns darker and brighter pictures."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic, and of weights that are not trained; those that are, losses and averages stay in float32."""
    remat: bool = False
    """Trade a third more computation for far less memory."""
    data: launch.Data = launch.Data("photos", image_size=512)
    training: launch.Training = launch.Training(
        steps=1000, batch_size=4, optimizer="adam", learning_rate=1e-5, ema_decay=0.999
    )
    run: Options = Options(steps_per_call=1, log_every=10, checkpoint_every=500, keep=1)
    sampling: launch.Sampling = launch.Sampling(num=4)

    @property
    def scale(self) -> float:
        """Of the product of a LoRA's factors."""
        return 1.0 if self.lora_alpha is None else self.lora_alpha / (self.lora_rank or 1)


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def load(config: Config, image_shape: tuple[int, int, int]) -> tuple[Model, Weights]:
    """The model for images of this size, and its weights in the memory of the host.

    ValueError for a network that sees more than noise.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        model, weights = pretrained.load(config.weights, config=config.config, predicts=config.predicts)
    if model.beside:
        raise ValueError(f"{config.weights} is a model for inpainting, which is not trained here.")
    network = dataclasses.replace(cast(UNetConfig, model.network), dtype=config.dtype, remat=config.remat)
    return dataclasses.replace(model.at(*image_shape[:2]), network=network), weights


def encode(
    config: Config, model: Model, weights: Weights, source: data.Source
) -> tuple[data.Source, Encoded]:
    """The latents of images and what the encoders say of captions, kept in the workdir; and what they say of no text."""
    condition = cast(Text, model.condition)
    if condition.sizes:
        source = placed(source)
    coded = latent.encode_all(
        cast(Latents, model.codec), weights["autoencoder"], source, config.workdir / "latents", batch_size=8
    )
    told = captions.encode_all(condition, weights["text"], coded, config.workdir / "captions")
    return told, captions.empty(condition, weights["text"])


def make_loss(model: Model, config: Config) -> training.Loss:
    """`loss(params, key, batch, aux)`: the error of the network's prediction at random times."""
    network = model.network.build()
    condition = dataclasses.replace(cast(Text, model.condition), dropout=config.text_dropout)
    weighting = loss.min_snr(config.min_snr_gamma) if config.weighting == "min_snr" else loss.simple

    def loss_fn(params, key, batch, aux):
        key_text, key_latent, key_loss = jax.random.split(key, 3)
        whole = lora.merge(aux.frozen["network"], params, config.scale) if config.lora_rank else params
        asked = captions.of_batch(condition, key_text, batch, aux.frozen["empty"])
        told = condition.tell(None, asked)
        return loss.denoising(
            key_loss,
            lambda x_t, t: network.apply(whole, x_t, t, *told),
            model.process,
            model.codec.encode(batch, key=key_latent),
            predicts=model.predicts,
            weighting=weighting,
            offset_noise=config.offset_noise,
        )

    return loss_fn


def recipe(config: Config, model: Model, network: PyTree, source: data.Source) -> Recipe:
    """What `training.fit` does; its state is made of `network`, `fit(start_from=...)`, or of its shapes."""
    t = config.training
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    optimizer, schedule = t.make_optimizer()

    def state(*given: PyTree) -> training.TrainState:
        params = lora.init(key_params, network, config.lora_rank) if config.lora_rank else given[0]
        return training.TrainState.create(params, optimizer, key_steps, ema=t.ema_decay is not None)

    numbers = lambda batch: {k: x for k, x in batch.items() if k != "label"}
    batches = data.batches(source, t.batch_size, key=key_data, transform=numbers)
    return Recipe(t.make_step(make_loss(model, config), optimizer, aux=True), state, batches, schedule)


def learn(config: Config, model: Model, weights: Weights, source: data.Source, empty: Encoded) -> PyTree:
    """Train to the end; returns the averaged parameters in the memory of the host."""
    shapes = jax.eval_shape(lambda: weights["network"])
    made, frozen = recipe(config, model, shapes, source), {"empty": empty}
    if config.lora_rank:
        frozen["network"] = jax.tree.map(lambda x: x.astype(config.dtype), weights["network"])
    state = training.fit(
        made.step,
        made.state,
        made.batches,
        num_steps=config.training.steps,
        workdir=config.workdir,
        config=launch.record(
            "finetune_stable_diffusion", config, network=to_dict(model.network), predicts=model.predicts
        ),
        may_change=launch.may_change("config"),
        schedule=made.schedule,
        options=config.run,
        frozen=frozen,
        start_from=None if config.lora_rank else weights["network"],
    )
    return training.on_host(state.params if state.ema_params is None else state.ema_params)


def draw(config: Config, model: Model, weights: Weights, texts: Sequence[str], file: str) -> None:
    """A sample for each text, from the same noise each time."""
    s = config.sampling
    asked = {name: getattr(s, name) for name in ("negative_prompt", "solver", "nfe", "guidance")}
    images, _ = generate.sample(
        *(model, weights, jax.random.key(config.seed), len(texts)),
        prompt=list(texts),
        shared=True,
        **cast(Any, asked),
    )
    launch.save(config.workdir / f"{file}.npy", images)
    plots.save_captioned(config.workdir / f"{file}.png", images, texts)


def trained(config: Config, weights: Weights, params: PyTree) -> Weights:
    """The weights with what was learned."""
    network = lora.merge(weights["network"], params, config.scale) if config.lora_rank else params
    return {**weights, "network": network}


def save(config: Config, model: Model, weights: Weights, params: PyTree) -> Path:
    """What diffusers and web UIs read; returns where it is."""
    if config.lora_rank:
        path, xl = config.workdir / "lora.safetensors", bool(cast(Text, model.condition).sizes)
        alpha = config.scale * config.lora_rank
        with paths.writing(path) as file:
            lora_writing.write(file, params, weights["network"], alpha=alpha, xl=xl)
        return path
    path = config.workdir / f"model_{config.training.steps}"
    if not path.exists():
        with paths.writing(path) as folder:
            pretrained.save(folder, model, trained(config, weights, params))
    return path


def main(config: Config) -> dict[str, object]:
    """Train (or go on training), draw and save; or draw alone."""
    launch.start(config.training.batch_size)
    config = launch.resolved(config)
    began, source = time.perf_counter(), config.data.source()
    if not source.info().has_text:
        raise ValueError(f"{config.data.dataset} has no captions: a.txt for a.png, or metadata.jsonl.")
    model, weights = load(config, source.info().image_shape)
    pictures.check(model, config.seed, config.sampling, config.training.batch_size, source)
    num = min(config.sampling.num, len(source))
    texts = config.sampling.texts() or [str(source[i]["text"]) for i in range(num)]
    if config.sampling.sample_only:
        found = trained(config, weights, training.load(config.workdir).params)
        draw(config, model, found, texts, "samples")
        return {}
    told, empty = encode(config, model, weights, source)
    if not (config.workdir / "samples_before.png").exists():
        draw(config, model, weights, texts, "samples_before")
    coded = time.perf_counter()
    params = learn(config, model, weights, told, empty)
    summary: dict[str, object] = {"seconds_of_encoding": coded - began}
    draw(config, model, trained(config, weights, params), texts, "samples")
    if jax.process_index() == 0:
        path = save(config, model, weights, params)
        summary |= pictures.save_loss(config.workdir, f"error of {model.predicts}")
        summary |= {"steps": config.training.steps, "batch_size": config.training.batch_size}
        summary |= {"parameters": sum(x.size for x in jax.tree.leaves(params)), "saved": str(path)}
    return launch.finish(config.workdir, summary)


if __name__ == "__main__":
    launch.run(__file__)
