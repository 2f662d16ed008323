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

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import data, guidance, labels, plots, runs, samplers, training
from gen_jax.diffusion import prediction, process
from gen_jax.networks.classifier import Classifier
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """Train a classifier of noised images and lead a checkpoint of step 9 by it."""

    checkpoint: Path = ROOT / "checkpoints" / "step09_diffusion"
    """The --workdir of a run of step09_diffusion."""
    workdir: Path = ROOT / "checkpoints" / "step10_classifier_guidance"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    steps: int = 1000
    batch_size: int = 128
    """Images a step, over all devices."""
    learning_rate: float = 5e-3
    channels: tuple[int, ...] = (32, 64, 128)
    """Of the classifier, at each resolution."""
    weights: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    """Of weights.png."""
    guidance: float = 2.0
    """Weight of the classifier's gradient in all samples but those."""
    solver: runs.SolverName = "unipc"
    nfe: int = 25
    num: int = 100
    """How many samples."""
    label: int | None = None
    """The label of all samples (default: 0, 1, 2, ... in turn)."""
    parallel: Literal["jit", "pmap"] | None = None
    """How a step is spread over the devices (default: jit; pmap over the two that are made of a CPU's cores)."""
    fsdp: bool = False
    steps_per_call: int = 10
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 3
    sample_only: bool = False
    """Draw from the checkpoint in workdir, and train no further."""
    seed: int = 0


MAY_CHANGE = (
    *("steps", "workdir", "data_dir", "weights", "guidance", "solver", "nfe", "num", "label", "parallel"),
    *("fsdp", "steps_per_call", "log_every", "checkpoint_every", "keep", "sample_only"),
)
"""Fields that a resumed run may set otherwise."""


def build(config: Config, run: runs.Run, num_classes: int) -> Classifier:
    """The classifier, which counts time as the run's process does."""
    return Classifier(num_classes, tuple(config.channels), time_scale=1000 / run.process.t_max)


def train(config: Config, run: runs.Run) -> None:
    """Train the classifier to the end, or to the end of what is left."""
    dataset = run.config["dataset"]
    num_classes = data.info(dataset, data_dir=config.data_dir).num_classes
    if num_classes is None:
        raise ValueError(f"{dataset} has no labels, so there is no class to lead to.")
    arrays = {k: data.load(dataset, data_dir=config.data_dir)[k] for k in ("image", "label")}
    labels.check(arrays["label"], num_classes)
    net = build(config, run, num_classes)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    optimizer, schedule = training.muon(
        config.learning_rate, num_steps=config.steps, warmup_steps=min(100, config.steps // 10)
    )
    examples = jnp.zeros((1, *run.shape)), jnp.zeros(1)
    classify: Any = net.apply
    prepare = lambda key, image: data.to_unit(image)
    training.fit(
        training.make_step(
            guidance.classifier_loss(classify, run.process, prepare=prepare), optimizer, ema_decay=0.99
        ),
        lambda: training.TrainState.create(net.init(key_params, *examples), optimizer, key_steps),
        data.batches(arrays, config.batch_size, key=key_data),
        num_steps=config.steps,
        workdir=config.workdir,
        config={**dataclasses.asdict(config), "num_classes": num_classes},
        may_change=MAY_CHANGE,
        schedule=schedule,
        options=training.Options(
            **{
                k: getattr(config, k)
                for k in ("parallel", "fsdp", "steps_per_call", "log_every", "checkpoint_every", "keep")
            }
        ),
    )


def load_classifier(config: Config, run: runs.Run) -> tuple[guidance.Classify, int]:
    """The trained classifier and its number of classes."""
    params, saved, _ = training.load(config.workdir)
    trained = dataclasses.replace(config, channels=tuple(saved["channels"]))
    net = build(trained, run, saved["num_classes"])
    classify: Any = lambda x_t, t: net.apply(params, x_t, t)
    return classify, saved["num_classes"]


def sampler(config: Config, run: runs.Run, classify: guidance.Classify) -> Any:
    """`draw(label, weight, index)`, compiled once for all labels and weights."""
    plan, key = runs.plan(run.process, config.solver, config.nfe), jax.random.key(config.seed)
    plain = runs.denoiser(run.net, run.process, run.predicts, run.params)

    @jax.jit
    def draw(label: Any, weight: Any, index: Any) -> Any:
        key_prior, key_noise = jax.random.split(key)
        x_T = run.process.prior(key_prior, (len(index), *run.shape), index=index)
        log_prob = guidance.log_class(classify, label)
        denoise = prediction.clipped(guidance.classifier(plain, log_prob, run.process, weight))
        return data.to_uint8(samplers.sample(key_noise, denoise, plan, x_T, index=index))

    return draw


def save_accuracy(config: Config, run: runs.Run, classify: guidance.Classify) -> dict[str, float]:
    """accuracy.png: the share of test images that are read rightly, against the log signal-to-noise ratio."""
    test = data.load(run.config["dataset"], split="test", data_dir=config.data_dir)
    x_0, label = data.to_unit(test["image"][:500]), test["label"][:500]
    levels = np.linspace(10, -10, 11)
    times = [float(process.at_log_snr(run.process, np.float64(v))) for v in levels]
    inside = [
        (v, t) for v, t in zip(levels, times, strict=True) if run.process.t_min <= t <= run.process.t_max
    ]

    @jax.jit
    def logits(t: Any) -> Any:
        eps = jax.random.normal(jax.random.key(1), x_0.shape)
        return classify(run.process.perturb(x_0, t, eps), jnp.broadcast_to(t, len(x_0)))

    found = [float((np.asarray(logits(jnp.float32(t))).argmax(1) == label).mean()) for _, t in inside]
    with plots.figure(config.workdir / "accuracy.png") as axes:
        axes.plot([v for v, _ in inside], found, "o-")
        axes.invert_xaxis()
        axes.set(
            xlabel=r"$\log \alpha_t^2 / \sigma_t^2$",
            ylabel="read rightly",
            title="what noise leaves to be read",
        )
        axes.grid(alpha=0.3)
    return {f"accuracy_at_log_snr_{v:g}": share for (v, _), share in zip(inside, found, strict=True)}


def draw_samples(config: Config, run: runs.Run, chunk: int = 100) -> dict[str, float]:
    """samples.npy, labels.npy, classes.png and weights.png; what the classifier itself reads in the samples."""
    classify, classes = load_classifier(config, run)
    draw, index = sampler(config, run, classify), np.arange(config.num)
    label = (
        labels.choose(config.label, classes, jax.random.key(0), index)
        if config.label is not None
        else index % classes
    )
    label = np.asarray(label, np.int32)
    size, weight = min(chunk, config.num), jnp.float32(config.guidance)
    rows = [np.minimum(np.arange(i, i + size), config.num - 1) for i in range(0, config.num, size)]
    images = np.concatenate([np.asarray(draw(label[r], weight, r)) for r in rows])[: config.num]
    np.save(config.workdir / "samples.npy", images)
    np.save(config.workdir / "labels.npy", label)
    plots.save_grid(config.workdir / "classes.png", images[:100], columns=min(classes, 10))
    first = np.arange(min(classes, 10))
    strips = [np.asarray(draw(first.astype(np.int32), jnp.float32(w), first)) for w in config.weights]
    heads = [f"$w = {w:g}$" for w in config.weights]
    plots.save_strips(
        config.workdir / "weights.png", np.stack(strips, 1), heads, "the same noise at every weight"
    )
    t_min = jnp.full(len(images), run.process.t_min)
    read = np.asarray(jax.jit(classify)(data.to_unit(images), t_min)).argmax(1)
    return {"read_by_itself": float((read == label).mean())}


def main(config: Config) -> dict[str, Any]:
    """Train (or go on training), measure and sample, or sample alone."""
    training.initialize_distributed()
    training.split_cpu_devices(config.batch_size)
    training.enable_compilation_cache()
    run = runs.load(config.checkpoint)
    if run.num_classes is not None:
        raise ValueError(
            f"{config.checkpoint} knows labels; classifier guidance is for a run of step09_diffusion.py."
        )
    if config.sample_only:
        return draw_samples(config, run)
    train(config, run)
    summary: dict[str, Any] = {"steps": config.steps, "guidance": config.guidance, "nfe": config.nfe}
    summary |= draw_samples(config, run)
    if jax.process_index() == 0:
        summary |= save_accuracy(config, run, load_classifier(config, run)[0])
        plots.save_loss(
            config.workdir / "loss.png", config.workdir / "metrics.jsonl", label="cross-entropy (nats)"
        )
        run_directory.write_json(config.workdir / "summary.json", summary)
        print("\n".join(f"{name:28} {value:.4g}" for name, value in summary.items()))
        print(f"pictures, metrics and checkpoints: {config.workdir}")
    return summary


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
