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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import data, guidance, keys, plots, samplers, training
from gen_jax.diffusion import loss, prediction, process
from gen_jax.networks import unet
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]


class Method(NamedTuple):
    """A solver as `--solver` offers it."""

    solver: samplers.Solver
    grid: Callable[..., Any]
    """Which times suit it."""
    steps: Callable[[int], int] = lambda nfe: nfe
    """How many steps it takes for so many evaluations; the last one of a solver of several stages asks once."""


SolverName: TypeAlias = Literal[
    "ddpm",
    "ddim",
    "euler",
    "dpmpp",
    "dpmpp3",
    "sde_dpmpp",
    "unipc",
    "deis",
    "lms",
    "ipndm",
    "pndm",
    "heun",
    "dpmpp_single",
    "dpmpp3_single",
]
UNIFORM, LOG_SNR, KARRAS = samplers.times.uniform, samplers.times.log_snr, samplers.times.karras
SOLVERS: dict[SolverName, Method] = {
    "ddpm": Method(samplers.DDPM(), UNIFORM),
    "ddim": Method(samplers.DDIM(), UNIFORM),
    "euler": Method(samplers.Euler(), KARRAS),
    "dpmpp": Method(samplers.DPMSolverPP(order=2), LOG_SNR),
    "dpmpp3": Method(samplers.DPMSolverPP(order=3), LOG_SNR),
    "sde_dpmpp": Method(samplers.SDEDPMSolverPP(order=2), LOG_SNR),
    "unipc": Method(samplers.UniPC(order=3), LOG_SNR),
    "deis": Method(samplers.DEIS(order=3), LOG_SNR),
    "lms": Method(samplers.LMS(order=4), LOG_SNR),
    "ipndm": Method(samplers.IPNDM(order=4), LOG_SNR),
    "pndm": Method(samplers.PNDM(), LOG_SNR, lambda nfe: nfe - 1),
    "heun": Method(samplers.Heun(), KARRAS, lambda nfe: (nfe + 1) // 2),
    "dpmpp_single": Method(samplers.DPMSolverPPSingle(order=2), LOG_SNR, lambda nfe: (nfe + 1) // 2),
    "dpmpp3_single": Method(samplers.DPMSolverPPSingle(order=3), LOG_SNR, lambda nfe: (nfe + 2) // 3),
}
LEAST_LOG_SNR = -10.2
"""Where grids of high order begin, if the prior lies below: pure noise, in which such a step loses its way."""

NETWORKS = {
    "mnist_small": unet.mnist_small,
    "mnist_best": unet.mnist_best,
    "mnist": unet.mnist,
    "cifar10": unet.cifar10,
}


@dataclass(frozen=True)
class Config:
    """Train a diffusion model, or sample from one. The defaults shown are those of the preset."""

    preset: Literal["mnist_small", "mnist_best", "mnist", "cifar10"] = "mnist_small"
    """Network and training length: 8 minutes on two cores; half an hour; the book's size; the size of Ho et al. 2020."""
    dataset: str = "mnist"
    """mnist (embedded) or the name of any TFDS image set, such as kmnist or cifar10."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    workdir: Path = ROOT / "checkpoints" / "step09_diffusion"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    seed: int = 0
    """Of parameters, data order and noise; with --sample-only, of the samples."""

    steps: int = 1300
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

    parallel: Literal["jit", "pmap"] = "jit"
    """How a step is spread over the devices."""
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
    solver: SolverName = "ddpm"
    """Ancestral, deterministic (ddim, or euler on Karras et al.'s grid), or one of high order for few evaluations."""
    nfe: int = 100
    """Evaluations of the denoiser for a sample; a solver of several a step takes as many whole steps as fit."""
    guidance: float = 1.5
    """Weight of classifier-free guidance where labels were learned: 1 is none, larger is clearer and less varied."""
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
        nfe=50,
    ),
    "mnist": Config(
        "mnist", steps=20_000, batch_size=128, optimizer="adam", learning_rate=1e-3, ema_decay=0.999
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
    ),
}
"""`cifar10` is the network and the training of Ho et al. 2020."""

MAY_CHANGE = (
    *("steps", "workdir", "data_dir", "log_every", "checkpoint_every", "keep", "sample_every", "sample_only"),
    *("num", "solver", "nfe", "guidance", "label", "parallel", "fsdp", "steps_per_call", "remat"),
)
"""Fields that a resumed run may set otherwise; all others must be those of the checkpoint."""


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""

    @dataclass
    class Choice:
        preset: str = "mnist_small"

    choice, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False)
    default = PRESETS.get(choice.preset, Config())  # a wrong name is reported by the parser of Config
    return tyro.cli(Config, args=args, default=default, description=__doc__)


def build(config: Config, num_classes: int | None = None) -> tuple[unet.UNet, process.Process]:
    """The network and the process of a configuration; `num_classes` where it learns from labels."""
    proc: process.Process = {
        "ddpm_linear": process.DDPM(schedule="linear"),
        "ddpm_cosine": process.DDPM(schedule="cosine"),
        "vp": process.VP(),
    }[config.process]
    network = dataclasses.replace(
        NETWORKS[config.preset],
        time_scale=1000 / proc.t_max,
        num_classes=num_classes,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
    )
    return unet.UNet(network), proc


def make_loss(net: unet.UNet, proc: process.Process, config: Config) -> training.state.Loss:
    """`loss(params, key, batch)`: the error of the network's prediction at random times.

    A label is hidden, replaced by the null label, with probability `label_dropout` (Ho & Salimans 2022, Algorithm 1).
    """
    weighting = {"simple": loss.simple, "snr": loss.snr, "min_snr": loss.min_snr()}[config.weighting]
    quantiles = {
        "uniform": loss.stratified,
        "logit_normal": loss.logit_normal(config.times_mean, config.times_std),
    }[config.times]
    objective = functools.partial(
        loss.denoising, predicts=config.predicts, weighting=weighting, quantiles=quantiles
    )

    def loss_fn(params, key, batch):
        key_flip, key_dropout, key_label, key_loss = jax.random.split(key, 4)
        x_0 = data.to_unit(batch["image"])
        x_0 = data.flip(key_flip, x_0) if config.flip else x_0
        label, null = batch.get("label"), net.config.num_classes
        if null is not None:
            hidden = loss.independent(key_label, len(label)) < config.label_dropout
            label = jnp.where(hidden, null, label)
        predict = lambda x_t, t: net.apply(params, x_t, t, label, rngs={"dropout": key_dropout})
        return objective(key_loss, predict, proc, x_0)

    return loss_fn


def make_denoiser(
    net: unet.UNet, proc: process.Process, config: Config, params, label=None
) -> prediction.Denoiser:
    """`denoise(x_t, t)`, for labels where there are some, its estimates kept in the range of images."""

    def denoiser(label):
        apply = lambda x_t, t: net.apply(params, x_t, t, label)
        return prediction.as_denoiser(apply, proc, predicts=config.predicts)

    if label is None or config.guidance == 1:
        return prediction.clipped(denoiser(label))
    return prediction.clipped(guidance.classifier_free(denoiser(label), denoiser(None), config.guidance))


def make_plan(proc: process.Process, solver: SolverName, nfe: int) -> samplers.Plan:
    """The table of a solver's steps, of `nfe` evaluations or the few less that whole steps leave."""
    method = SOLVERS[solver]
    options: dict[str, Any] = {"final": "denoise"} if isinstance(proc, process.VP) else {}
    if method.grid is not UNIFORM:
        options["t_start"] = first_time(proc)
    return method.solver.plan(proc, method.grid(proc, method.steps(nfe), **options))


def first_time(proc: process.Process, least_log_snr: float = LEAST_LOG_SNR) -> float:
    """Where grids begin: the last time at which there is more than noise; `x_T` is as good there as at `t_max`.

    The prior of the cosine schedule has `log_snr = -20`, of which DPM-Solver leaves out about as much (Lu et al. 2022,
    Appendix D.4).
    """
    return float(process.at_log_snr(proc, np.asarray(least_log_snr, np.float64)))


def make_sampler(net: unet.UNet, proc: process.Process, config: Config):
    """`draw(params, key, plan, index) -> (uint8 [len(index), H, W, C], labels)`: `i` depends on `key` and `i` alone."""

    @functools.partial(jax.jit, static_argnames="shape")
    def draw(params, key, plan, index, shape):
        key_prior, key_noise, key_label = jax.random.split(key, 3)
        x_T = proc.prior(key_prior, (len(index), *shape), index=index)
        label = choose_labels(config, net.config.num_classes, key_label, index)
        denoise = make_denoiser(net, proc, config, params, label)
        return data.to_uint8(samplers.sample(key_noise, denoise, plan, x_T, index=index)), label

    return draw


def choose_labels(config: Config, num_classes: int | None, key, index):
    """A label for each sample, `--label` or one at random; None where the run has learned from none."""
    if num_classes is None:
        if config.label is not None:
            raise ValueError("--label asks for what this run has not learned: train one with --labels.")
        return None
    if config.label is None:
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, num_classes))(
            keys.per_example(key, len(index), index)
        )
    if not 0 <= config.label < num_classes:
        raise ValueError(f"--label must be from 0 to {num_classes - 1}, got {config.label}.")
    return jnp.full(len(index), config.label)


def draw_samples(config: Config, chunk: int = 250) -> np.ndarray:
    """Samples from the checkpoint in `config.workdir`: writes samples.npy and samples.png."""
    params, saved, step = training.load(config.workdir)
    learned = {f.name for f in dataclasses.fields(Config)} - {*MAY_CHANGE, "seed"}
    trained = dataclasses.replace(config, **{name: saved[name] for name in learned})
    shape, (net, proc) = tuple(saved["image_shape"]), build(trained, saved["num_classes"])
    draw, plan = make_sampler(net, proc, trained), make_plan(proc, config.solver, config.nfe)
    key, size = jax.random.key(config.seed), min(chunk, config.num)
    parts = []
    for start in range(0, config.num, size):
        parts.append(jax.device_get(draw(params, key, plan, jnp.arange(start, start + size), shape)))
    images, labels = jax.tree.map(lambda *part: np.concatenate(part)[: config.num], *parts)
    if jax.process_index() == 0:
        np.save(config.workdir / "samples.npy", images)
        if labels is not None:
            np.save(config.workdir / "labels.npy", labels)
        plots.save_grid(config.workdir / "samples.png", images[:64])
        label = choose_labels(config, net.config.num_classes, key, jnp.arange(4))
        denoise = make_denoiser(net, proc, trained, params, label)
        save_denoising(config.workdir / "denoising.png", denoise, proc, plan, shape)
    print(
        f"{config.num} samples at step {step} with {config.solver}, {plan.nfe} evaluations of the denoiser each"
    )
    return images


def save_denoising(
    path: Path, denoise: prediction.Denoiser, proc: process.Process, plan, shape, columns: int = 10
) -> None:
    """denoising.png: four samples on their way from noise to data, and what the network takes them for meanwhile."""
    x_T = proc.prior(jax.random.key(0), (4, *shape))
    keep = lambda x, x0_hat: (x, x0_hat)
    _, (path_x, path_x0) = jax.jit(
        lambda: samplers.sample(jax.random.key(1), denoise, plan, x_T, trace=keep)
    )()
    shown = np.unique(np.linspace(0, plan.num_steps - 1, columns).astype(int))
    pairs = [
        np.stack([np.asarray(data.to_uint8(p[:, i])) for p in (path_x, path_x0)]) for i in range(len(x_T))
    ]
    strips = np.concatenate(pairs)[:, shown]
    labels = [f"step {k + 1}" for k in shown]
    plots.save_strips(path, strips, labels, "from noise to data", ["$x_s$", r"$\hat{x}_0$"] * len(x_T))


def save_forward(path: Path, images: np.ndarray, proc: process.Process, columns: int = 10) -> None:
    """forward.png: images on their way from data to noise, the book's figure."""
    times = np.linspace(0, proc.t_max, columns)
    x_0 = data.to_unit(jnp.asarray(images))
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    x_t = jnp.stack([proc.perturb(x_0, jnp.asarray(t, jnp.float32), eps) for t in times], axis=1)
    labels = [f"t = {t:.3g}" for t in times]
    plots.save_strips(
        path, np.asarray(data.to_uint8(x_t)), labels, r"$x_t = \alpha_t x_0 + \sigma_t \epsilon$"
    )


def train(config: Config) -> dict[str, Any]:
    """Train to the end, or to the end of what is left; writes the figures and returns the summary."""
    started = time.perf_counter()
    arrays = data.load(config.dataset, data_dir=config.data_dir)
    num_classes = data.info(config.dataset, data_dir=config.data_dir).num_classes if config.labels else None
    if config.labels and num_classes is None:
        raise ValueError(f"{config.dataset} has no labels: train without --labels.")
    arrays = {name: arrays[name] for name in (("image", "label") if config.labels else ("image",))}
    images, (net, proc) = arrays["image"], build(config, num_classes)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    params = jax.jit(net.init)(key_params, jnp.zeros((1, *images.shape[1:])), jnp.zeros(1))
    make_optimizer = {"adam": training.adam, "muon": training.muon}[config.optimizer]
    optimizer, schedule = make_optimizer(
        config.learning_rate,
        num_steps=config.steps,
        warmup_steps=min(config.steps // 10, 1000),
        accumulate=config.accumulate,
        b2=0.99,
    )
    draw, plan = make_sampler(net, proc, config), make_plan(proc, config.solver, min(config.nfe, 25))

    def on_sample(step, state):
        grid, _ = draw(state.ema_params, jax.random.key(config.seed), plan, jnp.arange(64), images.shape[1:])
        if jax.process_index() == 0:
            plots.save_grid(config.workdir / f"samples_{step}.png", np.asarray(grid))

    state = training.fit(
        training.make_step(make_loss(net, proc, config), optimizer, ema_decay=config.ema_decay),
        training.TrainState.create(params, optimizer, key_steps),
        data.batches(arrays, config.batch_size, key=key_data),
        num_steps=config.steps,
        workdir=config.workdir,
        config={**dataclasses.asdict(config), "image_shape": images.shape[1:], "num_classes": num_classes},
        may_change=MAY_CHANGE,
        schedule=schedule,
        **{
            k: getattr(config, k)
            for k in ("parallel", "fsdp", "steps_per_call", "log_every", "checkpoint_every", "keep")
        },
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


def main(config: Config) -> dict[str, Any]:
    """Train (or go on training) and sample, or sample alone."""
    training.initialize_distributed()
    if config.sample_only:
        draw_samples(config)
        return {}
    summary = train(config)
    if jax.process_index() == 0:
        report(config, summary)
    return summary


def report(config: Config, summary: dict[str, Any]) -> None:
    """What was done, and what can be done next."""
    print(
        f"{summary['steps']} steps, {summary['parameters'] / 1e6:.2f} M parameters, loss {summary['loss']:.4f}, "
        f"{summary['images_per_second']:.0f} images/s\n"
        f"{summary['seconds_of_training']:.0f} s of training, {summary['seconds_of_sampling']:.0f} s of sampling\n"
        f"pictures, metrics and checkpoints: {config.workdir}\n"
        f"sample again: python experiments/step09_diffusion.py --sample-only --workdir {config.workdir} "
        "--num 64 --solver ddim --nfe 20 --seed 3"
    )


if __name__ == "__main__":
    main(parse())
