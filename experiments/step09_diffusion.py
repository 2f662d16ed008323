"""Step 9: a diffusion model. Noise is added to an image little by little; a network learns to take it away.

    python experiments/step09_diffusion.py

trains on MNIST (embedded) and leaves pictures, metrics and checkpoints in checkpoints/step09_diffusion/. The same
command goes on where an interrupted run stopped. Afterwards

    python experiments/step09_diffusion.py --sample-only --num 64 --solver ddim --nfe 20 --seed 3
    gen-jax sample checkpoints/step09_diffusion --num 16 --out digits.png

sample from the checkpoint. Other pictures: `--dataset NAME_OR_FOLDER`, with a `--workdir` of its own. Presets are in
experiments/configs/.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import pictures
import tyro
from recipes import Recipe

from gen_jax import checks, data, launch, training
from gen_jax.codec import Pixels
from gen_jax.conditioning import Labels, Nothing
from gen_jax.diffusion import loss, process
from gen_jax.model import Model, Sampling, to_dict
from gen_jax.networks import unet
from gen_jax.training import Options
from gen_jax.types import Decay, Fraction, Number, Positive, Seed

PROCESSES: dict[str, process.Process] = {
    "ddpm_linear": process.DDPM(schedule="linear"),
    "ddpm_cosine": process.DDPM(schedule="cosine"),
    "vp": process.VP(),
}


@checks.checked
@dataclass(frozen=True)
class Config:
    """Train a diffusion model, or sample from one. The defaults shown are those of the preset."""

    preset: str = "mnist_small"
    """Network and training: mnist_small, mnist_best, mnist, cifar10, or cifar10_16, _64 and _256 for slices of so many
    TPUs, see experiments/configs/."""
    workdir: Path = launch.ROOT / "checkpoints" / "step09_diffusion"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    seed: Seed = 0
    """Of parameters, data order and noise; with --sample-only, of the samples."""

    network: Annotated[unet.UNetConfig, tyro.conf.Suppress] = unet.mnist_small
    """The network of the preset, before --dropout, --dtype and --remat."""
    defaults: Annotated[Sampling, tyro.conf.Suppress] = Sampling("ddpm", 50, 2.0)
    """How the model is sampled, unless --solver, --nfe or --guidance say otherwise."""
    dropout: Decay = 0.0
    """Dropout rate inside the network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; parameters, losses and samplers stay in float32."""
    remat: bool = False
    """Trade a third more computation for far less memory."""

    process: Literal["ddpm_linear", "ddpm_cosine", "vp"] = "ddpm_cosine"
    """How noise is added."""
    predicts: Literal["eps", "x0", "v"] = "v"
    """What the network says."""
    weighting: Literal["simple", "snr", "min_snr"] = "simple"
    """Weights of the loss."""
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    """At which times to train; logit_normal dwells on the noisy middle, where it is decided what is in the picture."""
    times_mean: Number = 0.8
    """Of the logit of t / t_max, with logit_normal; larger is noisier."""
    times_std: Positive = 1.0
    flip: bool = False
    """Mirror every other image; for things that have no left and right."""
    labels: bool = False
    """Learn from the labels too. Each sample is then drawn for a label of its own, written to labels.npy."""
    label_dropout: Fraction = 0.1
    """Share of the images whose label is hidden from the network, without which there is no guidance."""

    data: launch.Data = launch.Data()
    training: launch.Training = launch.Training()
    run: Options = Options(log_every=50, checkpoint_every=500)
    sampling: launch.Sampling = launch.Sampling()


def parse(
    args: Sequence[str] | None = None,
    presets: Mapping[str, Config] | None = None,
    description: str | None = __doc__,
) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""
    from configs import step09

    return launch.parse(Config, args, presets=presets or step09.PRESETS, description=description)


def make_model(config: Config, info: data.Info) -> Model:
    """The description of what is trained: everything that sampling has to know."""
    if config.labels and info.num_classes is None:
        raise ValueError(
            f"{info.name} has no labels: take data that have, or train a model that knows none, by step09_diffusion.py "
            "--no-labels."
        )
    proc, classes = PROCESSES[config.process], info.num_classes if config.labels else None
    asked = {k: getattr(config.sampling, k) for k in ("solver", "nfe", "guidance")}
    return Model(
        network=dataclasses.replace(
            config.network,
            time_scale=1000 / proc.t_max,
            num_classes=classes,
            dropout=config.dropout,
            dtype=config.dtype,
            remat=config.remat,
        ),
        process=proc,
        predicts=config.predicts,
        condition=Nothing()
        if classes is None
        else Labels(classes, config.label_dropout, info.class_names or ()),
        codec=Pixels(info.image_shape),
        sampling=dataclasses.replace(
            config.defaults,
            guide_step=max(config.training.steps // 5, 1) if classes is None else None,
            **{name: value for name, value in asked.items() if value is not None},
        ),
    )


def make_loss(model: Model, config: Config) -> training.state.Loss:
    """`loss(params, key, batch)`: the error of the network's prediction at random times."""
    network = model.network.build()
    weighting = {"simple": loss.simple, "snr": loss.snr, "min_snr": loss.min_snr()}[config.weighting]
    times = {
        "uniform": loss.stratified,
        "logit_normal": loss.logit_normal(config.times_mean, config.times_std),
    }[config.times]
    objective = functools.partial(
        loss.denoising, predicts=model.predicts, weighting=weighting, time_sampling=times
    )

    def loss_fn(params, key, batch, aux=None):
        key_flip, key_dropout, key_cond, key_loss = jax.random.split(key, 4)
        weights = model.parts(params) | (aux.frozen if aux else {})
        x_0 = model.codec.encode(batch, weights.get("autoencoder"), jax.random.fold_in(key, 4))
        x_0 = data.flip(key_flip, x_0) if config.flip else x_0
        told = model.condition.tell(weights.get("text"), model.condition.of_batch(key_cond, batch))
        predict = lambda x_t, t: network.apply(
            weights["network"], x_t, t, *told, rngs={"dropout": key_dropout}
        )
        return objective(key_loss, predict, model.process, x_0)

    return loss_fn


def recipe(config: Config, model: Model, source: data.Source, *, aux: bool = False) -> Recipe:
    """What `training.fit` does to a model; with `aux` its step takes weights that are not trained."""
    t = config.training
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    optimizer, schedule = t.make_optimizer()
    return Recipe(
        t.make_step(make_loss(model, config), optimizer, aux=aux),
        lambda: training.TrainState.create(
            model.init(key_params), optimizer, key_steps, ema=t.ema_decay is not None
        ),
        pictures.feed(source, t.batch_size, key_data, model.condition, model.codec),
        schedule,
    )


def train(config: Config, experiment: str = "step09_diffusion") -> dict[str, object]:
    """Train to the end, or to the end of what is left; returns the figures."""
    source = config.data.source()
    return learn(config, make_model(config, source.info()), source, experiment)


def learn(
    config: Config,
    model: Model,
    source: data.Source,
    experiment: str,
    frozen: Mapping[str, object] | None = None,
    texts: Sequence[str] | None = None,
    may_change: Sequence[str] = (),
) -> dict[str, object]:
    """Train a model on a source.

    `frozen` are weights that it has beside those that are learned, `texts` are shown, and the options `may_change` may
    be other ones when the run resumes.
    """
    t = config.training
    pictures.check(model, config.seed, config.sampling, t.batch_size, source)
    early = model.sampling.guide_step
    grids = pictures.SampleGrids(
        config.workdir, model, config.seed, config.sampling, frozen=frozen, texts=texts
    )
    made = recipe(config, model, source, aux=frozen is not None)
    state = training.fit(
        made.step,
        made.state,
        made.batches,
        num_steps=t.steps,
        workdir=config.workdir,
        config=launch.record(experiment, config, model=to_dict(model)),
        may_change=launch.may_change(*may_change),
        schedule=made.schedule,
        options=dataclasses.replace(
            config.run,
            sample_every=config.run.sample_every or max(t.steps // 5, 1),
            keep_from=(*config.run.keep_from, *([] if early is None else [early])),
        ),
        callbacks=[grids],
        frozen=frozen,
    )
    return {
        "steps": int(state.step),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "batch_size": t.batch_size,
    }


def main(config: Config, experiment: str = "step09_diffusion") -> dict[str, object]:
    """Train (or go on training) and sample, or sample alone."""
    launch.start(config.training.batch_size)
    config = launch.resolved(config)
    if config.sampling.sample_only:
        pictures.draw(config.workdir, config.seed, config.sampling)
        return {}
    began = time.perf_counter()
    summary = train(config, experiment)
    trained = time.perf_counter()
    summary |= pictures.draw(config.workdir, config.seed, config.sampling)
    if jax.process_index() == 0:
        source = config.data.source()
        images = np.stack([source[i]["image"] for i in range(3)])
        pictures.save_forward(config.workdir / "forward.png", make_model(config, source.info()), images)
        summary |= pictures.save_loss(config.workdir, f"error of {config.predicts}")
    summary |= {"seconds_here": trained - began, "seconds_of_sampling": time.perf_counter() - trained}
    again = f"python experiments/{experiment}.py --sample-only --workdir {config.workdir} --num 64 --solver ddim --nfe 20"
    lines = [
        f"sample again: {again} --seed 3",
        f"or: gen-jax sample {config.workdir} --num 16 --out samples.png",
    ]
    return launch.finish(config.workdir, summary, lines=lines)


if __name__ == "__main__":
    launch.run(__file__)
