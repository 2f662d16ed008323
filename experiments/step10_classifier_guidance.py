"""Step 10: classifier guidance. A network that knows no labels, led by a classifier of noised images.

    python experiments/step09_diffusion.py             # once: trains the network
    python experiments/step10_classifier_guidance.py

trains the classifier on images with all amounts of noise (three minutes on two cores) and leaves in
checkpoints/step10_classifier_guidance/

    loss.png        its cross-entropy and accuracy over all times
    accuracy.png    what it still reads, against the noise
    classes.png     samples for each class, led there by its gradient
    weights.png     the same noise at several weights

and samples.npy, labels.npy, summary.json. The same command goes on where an interrupted run stopped; `--sample-only`
draws from the checkpoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pictures
from jaxtyping import Array, Float, Int, PyTree, UInt8

from gen_jax import (
    checks,
    conditioning,
    data,
    generate,
    guidance,
    launch,
    plots,
    pretrained,
    samplers,
    training,
)
from gen_jax.conditioning import Labels
from gen_jax.diffusion import process
from gen_jax.model import to_dict
from gen_jax.networks.classifier import Classifier
from gen_jax.pretrained import Run
from gen_jax.training import Options
from gen_jax.types import Count, Number, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Train a classifier of noised images and lead a checkpoint of step 9 by it."""

    checkpoint: Path = launch.ROOT / "checkpoints" / "step09_diffusion"
    """The --workdir of a run of step09_diffusion."""
    workdir: Path = launch.ROOT / "checkpoints" / "step10_classifier_guidance"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    training: launch.Training = launch.Training(1000, 128, learning_rate=5e-3, ema_decay=0.99)
    channels: tuple[Count, ...] = (32, 64, 128)
    """Of the classifier, at each resolution."""
    weights: tuple[Number, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Of weights.png."""
    run: Options = Options(log_every=50, checkpoint_every=500)
    sampling: launch.Sampling = launch.Sampling(num=100, solver="unipc", nfe=25, guidance=2.0)
    seed: Seed = 0


def train(config: Config, run: Run) -> None:
    """Train the classifier to the end, or to the end of what is left."""
    source = data.source(str(run.options["dataset"]), data_dir=config.data_dir)
    num_classes, class_names = source.info().num_classes, source.info().class_names
    if not config.channels:
        raise ValueError("--channels takes a number for each resolution, at least one.")
    if num_classes is None:
        raise ValueError(f"{run.options['dataset']} has no labels, so there is no class to lead to.")
    asked_labels(config, conditioning.Labels(num_classes, names=tuple(class_names or ())))
    generate.plan(run.model, config.sampling.solver, config.sampling.nfe)
    net = Classifier(num_classes, tuple(config.channels), time_scale=1000 / run.model.process.t_max)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    optimizer, schedule = config.training.make_optimizer()
    prepare = lambda key, image: run.model.codec.encode({"image": image})
    loss = guidance.classifier_loss(
        cast("Callable[..., Array]", net.apply), run.model.process, prepare=prepare
    )
    example = jnp.zeros((1, *run.model.codec.shape)), jnp.zeros(1)
    training.fit(
        config.training.make_step(loss, optimizer),
        lambda: training.TrainState.create(net.init(key_params, *example), optimizer, key_steps),
        pictures.feed(source, config.training.batch_size, key_data, Labels(num_classes)),
        num_steps=config.training.steps,
        workdir=config.workdir,
        config=launch.record(
            "step10_classifier_guidance",
            config,
            num_classes=num_classes,
            class_names=class_names,
            leads=to_dict(run.model),
        ),
        may_change=(*launch.may_change("weights", "checkpoint"), "class_names"),
        schedule=schedule,
        options=config.run,
    )


class Led(NamedTuple):
    """A diffusion model and the trained classifier that leads it."""

    run: Run
    classifier: Classifier
    params: PyTree
    labels: conditioning.Labels
    """What the classifier tells apart."""

    def draw(
        self, config: Config
    ) -> Callable[[Int[np.ndarray, "n"], float, Int[np.ndarray, "n"]], UInt8[np.ndarray, "n H W C"]]:
        """`draw(label, weight, index)`, compiled once for all labels and weights; parameters are arguments."""
        model = self.run.model
        plan = generate.plan(model, config.sampling.solver, config.sampling.nfe)

        @jax.jit
        def program(
            weights: PyTree, params: PyTree, label: Array, weight: Array, index: Array
        ) -> UInt8[Array, "n H W C"]:
            key_prior, key_noise = jax.random.split(jax.random.key(config.seed))
            x_T = model.process.prior(key_prior, (len(index), *model.codec.shape), index=index)
            classify = lambda x_t, t: _apply(self.classifier, params, x_t, t)
            plain = generate.denoiser(model, weights)
            led = guidance.classifier(plain, guidance.log_class(classify, label), model.process, weight)
            x_0 = samplers.sample(key_noise, model.codec.bound(led), plan, x_T, index=index)
            return model.codec.decode(x_0)

        weights = {"network": self.run.weights["network"]}
        return lambda label, weight, index: np.asarray(
            program(weights, self.params, np.int32(label), np.float32(weight), index)
        )

    def logits(self, x: Float[Array, "B H W C"], t: Float[Array, ""]) -> Float[Array, "B K"]:
        """What the classifier says of noised images at a time."""
        return _apply(self.classifier, self.params, x, t)


@jax.jit(static_argnums=0)
def _apply(classifier: Classifier, params: PyTree, x: Array, t: Array) -> Array:
    return cast(Array, classifier.apply(params, x, jnp.broadcast_to(t, len(x))))


def load(config: Config, run: Run) -> Led:
    """The trained classifier in `config.workdir`."""
    params, saved, _ = training.load(config.workdir)
    channels, classes = tuple(saved["options"]["channels"]), saved["num_classes"]
    net = Classifier(classes, channels, time_scale=1000 / run.model.process.t_max)
    names = tuple(saved.get("class_names") or ())
    return Led(run, net, params, conditioning.Labels(classes, names=names))


def save_accuracy(config: Config, led: Led) -> dict[str, float]:
    """accuracy.png: the share of test images that are read rightly, against the log signal-to-noise ratio."""
    model = led.run.model
    test = data.load(str(led.run.options["dataset"]), split="test", data_dir=config.data_dir)
    x_0, label = model.codec.encode({"image": jnp.asarray(test["image"][:500])}), test["label"][:500]
    eps = jax.random.normal(jax.random.key(1), x_0.shape)
    found = {}
    for value in np.linspace(10, -10, 11):
        t = float(process.at_log_snr(model.process, np.float64(value)))
        if model.process.t_min <= t <= model.process.t_max:
            logits = led.logits(model.process.perturb(x_0, jnp.float32(t), eps), jnp.float32(t))
            found[value] = float((np.asarray(logits).argmax(1) == label).mean())
    with plots.figure(config.workdir / "accuracy.png") as axes:
        axes.plot(list(found), list(found.values()), "o-")
        axes.invert_xaxis()
        axes.set(
            xlabel=r"$\log \alpha_t^2 / \sigma_t^2$",
            ylabel="read rightly",
            title="what noise leaves to be read",
        )
        axes.grid(alpha=0.3)
    return {f"accuracy_at_log_snr_{value:g}": share for value, share in found.items()}


def asked_labels(config: Config, labels: conditioning.Labels) -> Int[np.ndarray, "n"]:
    """The label of each sample: one for all, or all in turn. ValueError for one that is not learned, or no samples."""
    num, label = checks.whole("num", config.sampling.num, "sample"), config.sampling.label
    return np.arange(num) % labels.num_classes if label is None else np.full(num, labels.numbers(label))


def draw_samples(config: Config, led: Led, chunk: int = 100) -> dict[str, float]:
    """samples.npy, labels.npy, classes.png and weights.png; what the classifier itself reads in the samples."""
    draw, num, classes = led.draw(config), config.sampling.num, led.labels.num_classes
    label = asked_labels(config, led.labels)
    weight = 1.0 if config.sampling.guidance is None else config.sampling.guidance
    one = lambda index: draw(label[index], weight, index)
    images = generate.in_chunks(one, num, min(chunk, num), shared=True)
    launch.save(config.workdir / "samples.npy", images)
    launch.save(config.workdir / "labels.npy", np.int32(label))
    plots.save_grid(config.workdir / "classes.png", images[:100], columns=min(classes, 10))
    first = np.arange(min(classes, 10))
    strips = np.stack([draw(first, w, first) for w in config.weights], axis=1)
    heads = [f"$w = {w:g}$" for w in config.weights]
    plots.save_strips(config.workdir / "weights.png", strips, heads, "the same noise at every weight")
    x_0 = led.run.model.codec.encode({"image": jnp.asarray(images)})
    read = np.asarray(led.logits(x_0, jnp.float32(led.run.model.process.t_min))).argmax(1)
    return {"read_by_itself": float((read == label).mean())}


def main(config: Config) -> dict[str, object]:
    """Train (or go on training), measure and sample, or sample alone."""
    launch.start(config.training.batch_size)
    config = launch.resolved(config)
    run = pretrained.load_run(config.checkpoint)
    if not isinstance(run.model.condition, conditioning.Nothing):
        raise ValueError(
            f"{config.checkpoint} knows labels; classifier guidance is for a run of step09_diffusion.py."
        )
    if config.sampling.sample_only:
        return dict(draw_samples(config, load(config, run)))
    train(config, run)
    led, asked = load(config, run), config.sampling
    summary: dict[str, object] = {
        "steps": config.training.steps,
        "guidance": asked.guidance,
        "nfe": asked.nfe,
    }
    summary |= draw_samples(config, led)
    if jax.process_index() == 0:
        summary |= save_accuracy(config, led)
        summary |= pictures.save_loss(config.workdir, "cross-entropy (nats)")
    lines = ["another class: python experiments/step10_classifier_guidance.py --sample-only --label 8"]
    return launch.finish(config.workdir, summary, lines=lines)


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


if __name__ == "__main__":
    launch.run(__file__)
