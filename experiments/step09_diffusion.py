"""Step 9: a diffusion model. Noise is added to an image little by little; a network learns to take it away.

    python experiments/step09_diffusion.py

trains on MNIST (embedded) and leaves pictures, metrics and checkpoints in checkpoints/step09_diffusion/. The same
command goes on where an interrupted run stopped. Afterwards

    python experiments/step09_diffusion.py --sample-only --num 64 --solver ddim --nfe 20 --seed 3

samples from the checkpoint. Any other TFDS image set: `--dataset NAME`, with a `--workdir` of its own.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import data, labels, plots, runs, samplers, training
from gen_jax.diffusion import loss, process
from gen_jax.networks import unet
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """Train a diffusion model, or sample from one. The defaults shown are those of the preset."""

    preset: Literal["mnist_small", "mnist_best", "mnist", "cifar10"] = "mnist_small"
    """Network and training length: 5 minutes on two cores; half an hour; the book's size; the size of Ho et al. 2020."""
    dataset: str = "mnist"
    """mnist (embedded) or the name of any TFDS image set, such as kmnist or cifar10."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    workdir: Path = ROOT / "checkpoints" / "step09_diffusion"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    seed: int = 0
    """Of parameters, data order and noise; with --sample-only, of the samples."""

    steps: int = 1600
    """Updates in the whole run."""
    batch_size: int = 64
    """Images a step, over all devices."""
    optimizer: Literal["adam", "muon"] = "muon"
    """Adam, or Muon for all matrices and kernels, which needs about a third fewer steps."""
    learning_rate: float = 8e-3
    """Highest rate, after a warm-up over the first tenth of the steps (1,000 at most) and before a cosine decay."""
    ema_decay: float = 0.995
    """Of the average of the parameters, with which samples are drawn."""
    flip: bool = False
    """Mirror every other image; for things that have no left and right."""
    process: Literal["ddpm_linear", "ddpm_cosine", "vp"] = "ddpm_cosine"
    """How noise is added."""
    predicts: Literal["eps", "x0", "v"] = "v"
    """What the network says."""
    weighting: Literal["simple", "snr", "min_snr"] = "simple"
    """Weights of the loss."""
    times: Literal["uniform", "logit_normal"] = "logit_normal"
    """At which times to train; logit_normal dwells on the noisy middle, where it is decided what is in the picture."""
    times_mean: float = 0.8
    """Of the logit of t / t_max, with logit_normal; larger is noisier."""
    times_std: float = 1.0
    labels: bool = False
    """Learn from the labels too. Each sample is then drawn for a label of its own, written to labels.npy."""
    label_dropout: float = 0.1
    """Share of the images whose label is hidden from the network, without which there is no guidance."""
    dropout: float = 0.0
    """Dropout rate inside the network."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; parameters, losses and samplers stay in float32."""
    remat: bool = False
    """Trade a third more computation for far less memory."""
    accumulate: int = 1
    """Steps whose gradients are averaged into one update."""
    microbatches: int = 1
    """Parts in which a step takes its batch, one after the other: less memory, and faster where a part fits a cache."""

    parallel: Literal["jit", "pmap"] | None = None
    """How a step is spread over the devices (default: jit; pmap over the two that are made of a CPU's cores)."""
    fsdp: bool = False
    """Shard parameters and optimizer over the devices as well (with jit)."""
    steps_per_call: int = 10
    """Steps in one call of the compiled program."""
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 3
    """How many checkpoints stay."""
    sample_every: int | None = None
    """Steps between grids of samples, samples_STEP.png (default: a fifth of the run)."""

    sample_only: bool = False
    """Draw samples from the checkpoint in workdir: samples.npy and samples.png."""
    num: int = 64
    """How many samples."""
    solver: runs.SolverName = "ddpm"
    """Ancestral, deterministic (ddim, or euler on Karras et al.'s grid), or one of high order for few evaluations."""
    nfe: int = 50
    """Evaluations of the denoiser for a sample; a solver of several a step takes as many whole steps as fit."""
    guidance: float = 2.0
    """Weight of guidance, by the labels where they were learned (classifier-free), else by the network's own younger
    parameters, of a fifth of the run (autoguidance): 1 is none, larger is clearer and less varied."""
    label: int | None = None
    """The label of all samples, where labels were learned (default: each its own, at random)."""


PRESETS = {
    "mnist_small": Config(),
    "mnist_best": Config(
        "mnist_best",
        steps=2500,
        learning_rate=6e-3,
        ema_decay=0.999,
        labels=True,
        times_mean=0.5,
        times_std=1.4,
        solver="ddim",
        guidance=1.5,
    ),
    "mnist": Config(
        preset="mnist",
        steps=20_000,
        batch_size=128,
        optimizer="adam",
        learning_rate=1e-3,
        ema_decay=0.999,
        nfe=100,
        guidance=1.0,
    ),
    "cifar10": Config(
        preset="cifar10",
        dataset="cifar10",
        steps=800_000,
        batch_size=128,
        learning_rate=2e-4,
        ema_decay=0.9999,
        flip=True,
        dropout=0.1,
        process="ddpm_linear",
        predicts="eps",
        times="uniform",
        optimizer="adam",
        checkpoint_every=5000,
        nfe=100,
        guidance=1.0,
    ),
}
"""`cifar10` is the network and the training of Ho et al. 2020."""

MAY_CHANGE = (
    *("steps", "workdir", "data_dir", "log_every", "checkpoint_every", "keep", "sample_every", "sample_only"),
    *("num", "solver", "nfe", "guidance", "label", "parallel", "fsdp", "steps_per_call", "remat"),
)
"""Fields that a resumed run may set otherwise; all others must be those of the checkpoint."""


def parse(
    args: Sequence[str] | None = None,
    presets: Mapping[str, Config] = PRESETS,
    description: str | None = __doc__,
) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""

    @dataclass
    class Choice:
        preset: str = "mnist_small"

    choice, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False)
    default = presets.get(choice.preset, Config())  # a wrong name is reported by the parser of Config
    return tyro.cli(Config, args=args, default=default, description=description)


def make_loss(net: unet.UNet, proc: process.Process, config: Config) -> training.state.Loss:
    """`loss(params, key, batch)`: the error of the network's prediction at random times.

    A label is hidden, replaced by the null label, with probability `label_dropout` (Ho & Salimans 2022, Algorithm 1).
    """
    weighting = {"simple": loss.simple, "snr": loss.snr, "min_snr": loss.min_snr()}[config.weighting]
    time_sampling = {
        "uniform": loss.stratified,
        "logit_normal": loss.logit_normal(config.times_mean, config.times_std),
    }[config.times]
    objective = functools.partial(
        loss.denoising, predicts=config.predicts, weighting=weighting, time_sampling=time_sampling
    )

    def loss_fn(params, key, batch):
        key_flip, key_dropout, key_label, key_loss = jax.random.split(key, 4)
        x_0 = data.to_unit(batch["image"])
        x_0 = data.flip(key_flip, x_0) if config.flip else x_0
        label, null = batch.get("label"), net.config.num_classes
        if null is not None:
            label = labels.hide(key_label, label, null, config.label_dropout)
        predict = lambda x_t, t: net.apply(params, x_t, t, label, rngs={"dropout": key_dropout})
        return objective(key_loss, predict, proc, x_0)

    return loss_fn


def draw_samples(config: Config) -> np.ndarray:
    """Samples from the checkpoint in `config.workdir`: writes samples.npy, samples.png, labels.npy and denoising.png."""
    run, key = runs.load(config.workdir), jax.random.key(config.seed)
    options: dict[str, Any] = {"label": config.label, "guidance": config.guidance}
    images, drawn_for = runs.sample(run, key, config.num, solver=config.solver, nfe=config.nfe, **options)
    plan = runs.plan(run.process, config.solver, config.nfe)
    if jax.process_index() == 0:
        np.save(config.workdir / "samples.npy", images)
        if drawn_for is not None:
            np.save(config.workdir / "labels.npy", drawn_for)
        plots.save_grid(config.workdir / "samples.png", images[:64])
        save_denoising(config.workdir / "denoising.png", run, plan, config)
    guided = config.guidance != 1 and (drawn_for is not None or run.younger is not None)
    print(
        f"{config.num} samples at step {run.step} with {config.solver}, {plan.nfe} evaluations of the denoiser each, "
        + (f"guided with a weight of {config.guidance:g}" if guided else "without guidance")
    )
    return images


def save_denoising(path: Path, run: runs.Run, plan: samplers.Plan, config: Config, columns: int = 10) -> None:
    """denoising.png: four samples on their way from noise to data, and what the network takes them for meanwhile."""
    label = runs.choose_labels(config.label, run.num_classes, jax.random.key(config.seed), np.arange(4))
    weight = None if config.guidance == 1 else config.guidance
    denoise = runs.denoiser(run.net, run.process, run.predicts, run.params, label, weight, run.younger)
    x_T = run.process.prior(jax.random.key(0), (4, *run.shape))
    keep = lambda x, x0_hat: (x, x0_hat)
    _, (path_x, path_x0) = jax.jit(
        lambda: samplers.sample(jax.random.key(1), denoise, plan, x_T, trace=keep)
    )()
    shown = np.unique(np.linspace(0, plan.num_steps - 1, columns).astype(int))
    pairs = [
        np.stack([np.asarray(data.to_uint8(p[:, i])) for p in (path_x, path_x0)]) for i in range(len(x_T))
    ]
    strips = np.concatenate(pairs)[:, shown]
    heads = [f"step {k + 1}" for k in shown]
    plots.save_strips(path, strips, heads, "from noise to data", ["$x_s$", r"$\hat{x}_0$"] * len(x_T))


def save_forward(path: Path, images: np.ndarray, proc: process.Process, columns: int = 10) -> None:
    """forward.png: images on their way from data to noise, the book's figure."""
    times = np.linspace(0, proc.t_max, columns)
    x_0 = data.to_unit(jnp.asarray(images))
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    x_t = jnp.stack([proc.perturb(x_0, jnp.asarray(t, jnp.float32), eps) for t in times], axis=1)
    heads = [f"t = {t:.3g}" for t in times]
    plots.save_strips(
        path, np.asarray(data.to_uint8(x_t)), heads, r"$x_t = \alpha_t x_0 + \sigma_t \epsilon$"
    )


def train(config: Config) -> dict[str, Any]:
    """Train to the end, or to the end of what is left; writes the figures and returns the summary."""
    started = time.perf_counter()
    arrays = data.load(config.dataset, data_dir=config.data_dir)
    num_classes = data.info(config.dataset, data_dir=config.data_dir).num_classes if config.labels else None
    if config.labels and num_classes is None:
        raise ValueError(f"{config.dataset} has no labels: train without --labels.")
    arrays = {name: arrays[name] for name in (("image", "label") if config.labels else ("image",))}
    if num_classes is not None:
        labels.check(arrays["label"], num_classes)
    images, (net, proc) = arrays["image"], runs.build(dataclasses.asdict(config), num_classes)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    examples = jnp.zeros((1, *images.shape[1:])), jnp.zeros(1)
    make_optimizer = {"adam": training.adam, "muon": training.muon}[config.optimizer]
    optimizer, schedule = make_optimizer(
        config.learning_rate,
        num_steps=config.steps,
        warmup_steps=min(config.steps // 10, 1000),
        accumulate=config.accumulate,
        b2=0.99,
    )
    draw = runs.sampler(net, proc, config.predicts, images.shape[1:], training.Layout().mesh)
    plan, key, index = (
        runs.plan(proc, config.solver, min(config.nfe, 25)),
        jax.random.key(config.seed),
        np.arange(64),
    )
    label = runs.choose_labels(config.label, num_classes, key, index)
    weight = None if config.guidance == 1 or label is None else jnp.float32(config.guidance)

    def on_sample(step, state):
        grid = draw(state.ema_params, key, plan, index, label, weight)
        if jax.process_index() == 0:
            plots.save_grid(config.workdir / f"samples_{step}.png", np.asarray(grid))

    state = training.fit(
        training.make_step(
            make_loss(net, proc, config),
            optimizer,
            ema_decay=config.ema_decay,
            microbatches=config.microbatches,
        ),
        lambda: training.TrainState.create(net.init(key_params, *examples), optimizer, key_steps),
        data.batches(arrays, config.batch_size, key=key_data),
        num_steps=config.steps,
        workdir=config.workdir,
        config={**dataclasses.asdict(config), "image_shape": images.shape[1:], "num_classes": num_classes},
        may_change=MAY_CHANGE,
        schedule=schedule,
        parallel=config.parallel or training.default_parallel(config.fsdp),
        **{
            k: getattr(config, k) for k in ("fsdp", "steps_per_call", "log_every", "checkpoint_every", "keep")
        },
        milestone=None if config.labels else runs.milestone(config.steps),
        sample_every=config.sample_every or max(config.steps // 5, 1),
        on_sample=on_sample,
    )
    trained = time.perf_counter()
    draw_samples(config)
    count = sum(p.size for p in jax.tree.leaves(state.params))
    summary: dict[str, Any] = {"steps": int(state.step), "parameters": count, "batch_size": config.batch_size}
    if jax.process_index() == 0:
        save_forward(config.workdir / "forward.png", images[:3], proc)
        plots.save_loss(
            config.workdir / "loss.png", config.workdir / "metrics.jsonl", label=f"error of {config.predicts}"
        )
        last = plots.read_metrics(config.workdir / "metrics.jsonl")[-1]
        summary |= {k: last[k] for k in ("loss", "images_per_second")} | {
            "seconds_of_training": last["seconds"]
        }
        summary |= {"num_samples": config.num, "solver": config.solver, "nfe": config.nfe}
        summary |= {"seconds_here": trained - started, "seconds_of_sampling": time.perf_counter() - trained}
        run_directory.write_json(config.workdir / "summary.json", summary)
    return summary


def main(config: Config, script: str = "step09_diffusion.py") -> dict[str, Any]:
    """Train (or go on training) and sample, or sample alone."""
    training.initialize_distributed()
    training.share_cores(config.batch_size)
    training.keep_programs(config.workdir)
    if config.sample_only:
        draw_samples(config)
        return {}
    summary = train(config)
    if jax.process_index() == 0:
        report(config, summary, script)
    return summary


def report(config: Config, summary: dict[str, Any], script: str) -> None:
    """What was done, and what can be done next."""
    print(
        f"{summary['steps']} steps, {summary['parameters'] / 1e6:.2f} M parameters, loss {summary['loss']:.4f}, "
        f"{summary['images_per_second']:.0f} images/s\n"
        f"{summary['seconds_of_training']:.0f} s of training, {summary['seconds_of_sampling']:.0f} s of sampling\n"
        f"pictures, metrics and checkpoints: {config.workdir}\n"
        f"sample again: python experiments/{script} --sample-only --workdir {config.workdir} "
        "--num 64 --solver ddim --nfe 20 --seed 3"
    )


if __name__ == "__main__":
    main(parse())
