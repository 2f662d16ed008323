"""Step 7: the variational autoencoder. Images are coded as a few normal numbers, and drawn from new ones.

    python experiments/step07_vae.py

trains the book's VAE on MNIST (embedded) for 30 epochs and leaves pictures, metrics and checkpoints in
checkpoints/step07_vae/. The same command goes on where an interrupted run stopped. Afterwards

    python experiments/step07_vae.py --sample-only --num 64 --seed 3

samples from the checkpoint. Any other TFDS image set: `--dataset NAME`, with a `--workdir` of its own.

    python experiments/step07_vae.py --preset best --workdir checkpoints/step07_best

trains the network of the IWAE paper on bits (seed 0): on the 10,000 test images an ELBO of -90.00 and, by 5,000 samples,
a log-likelihood of -86.03 nats (standard errors 0.25 and 0.23), after 84 minutes of training and 10 of testing on one
core of a CPU. The bound of 50 samples goes on from a shorter such run,

    python experiments/step07_vae.py --preset best --steps 30000 --kl-warmup 4000 --workdir checkpoints/step07_start
    python experiments/step07_vae.py --preset iwae --start-from checkpoints/step07_start --workdir checkpoints/step07_iwae

to -84.53 nats (0.22) after 20 and 56 minutes of training on one core (seed 0).
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import autoencoding
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import tyro

from gen_jax import data, labels, plots, training, vae
from gen_jax.networks import autoencoder
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]
ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh, "silu": jax.nn.silu}


@dataclass(frozen=True)
class Config:
    """Train a VAE, or sample from one. The defaults shown are those of the preset."""

    preset: Literal["book", "best", "iwae"] = "book"
    """The book's model and loss; the network of the IWAE paper trained on the ELBO; the same on 50 samples."""
    dataset: str = "mnist"
    """mnist (embedded) or the name of any TFDS image set, such as kmnist or cifar10."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    workdir: Path = ROOT / "checkpoints" / "step07_vae"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    seed: int = 0
    """Of parameters, data order and noise; with --sample-only, of the samples."""

    binarize: autoencoding.Binarize = "none"
    """Images as bits, drawn with the grey values as probabilities, anew at each step or once; or as they are."""
    likelihood: Literal[
        "bernoulli",
        "gaussian",
        "gaussian_learned",
        "discretized_gaussian",
        "discretized_logistic",
        "logistic_mixture",
    ] = "gaussian"
    """What the decoder says of a pixel; "gaussian" has deviation 1 and a mean in [0, 1], as in the book."""
    network: Literal["mlp", "conv"] = "mlp"
    hidden: tuple[int, ...] = (200,)
    """Widths of the hidden layers (mlp), of the encoder and backwards of the decoder."""
    channels: tuple[int, ...] = (32, 64)
    """Channels after each halving of the image (conv)."""
    activation: Literal["relu", "tanh", "silu"] = "relu"
    latent: int = 20
    """Numbers in a latent; with 2 the run draws a map of them, manifold.png."""
    labels: bool = False
    """Give both networks the labels. Each sample is then drawn for a label, written to labels.npy."""

    objective: Literal["elbo", "iwae", "dreg"] = "elbo"
    """The bound with one sample; with several; the same with doubly reparameterised gradients."""
    num_samples: int = 50
    """Samples of an image in a step, with iwae and dreg."""
    gradient_samples: int | None = None
    """How many of them are differentiated, drawn by their weights, with iwae and dreg (default: all)."""
    start_from: Path | None = None
    """Workdir of another run, from whose parameters (their average) to start."""
    beta: float = 1.0
    """Weight of the KL, with elbo."""
    kl_warmup: int = 0
    """Steps over which that weight grows from 0."""
    free_bits: float = 0.0
    """Nats that each number in the latent may cost without being pushed lower, with elbo."""
    steps: int = 56_250
    """Updates in the whole run."""
    batch_size: int = 32
    """Images a step, over all devices."""
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 3e-4
    """Highest rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the rate does after the warm-up: stay, or fall to zero."""
    warmup: int = 0
    """Steps over which the rate grows from 0."""
    clip_norm: float | None = None
    """Greatest norm of a gradient."""
    ema_decay: float | None = None
    """Of the average of the parameters that is tested and sampled from (default: none)."""

    parallel: Literal["jit", "pmap"] = "jit"
    """How a step is spread over the devices."""
    fsdp: bool = False
    """Shard parameters and optimizer over the devices as well (with jit)."""
    steps_per_call: int = 1875
    """Steps in one call of the compiled program."""
    log_every: int = 1875
    checkpoint_every: int = 9375
    keep: int = 3
    """How many checkpoints stay."""
    test_images: int | None = 1000
    """How many images of the test set the bounds are taken on (None: all)."""
    test_samples: int = 500
    """Samples an image of the importance-weighted bound on them; 5000 is what papers report."""

    sample_only: bool = False
    """Draw samples from the checkpoint in workdir: samples.npy and samples.png."""
    num: int = 64
    """How many samples."""
    label: int | None = None
    """The label of all samples, where labels were learned (default: each its own, at random)."""


BEST = Config(
    "best",
    binarize="dynamic",
    likelihood="bernoulli",
    hidden=(200, 200),
    activation="tanh",
    latent=50,
    kl_warmup=12_000,
    steps=90_000,
    batch_size=500,
    optimizer="muon",
    learning_rate=1e-2,
    schedule="cosine",
    warmup=600,
    ema_decay=0.9995,
    steps_per_call=120,
    log_every=600,
    checkpoint_every=3000,
    test_images=None,
    test_samples=5000,
)
PRESETS = {
    "book": Config(),
    "best": BEST,
    "iwae": dataclasses.replace(
        BEST,
        preset="iwae",
        objective="dreg",
        gradient_samples=2,
        kl_warmup=0,
        steps=30_000,
        batch_size=250,
        learning_rate=3e-3,
    ),
}

MAY_CHANGE = (
    *("steps", "workdir", "data_dir", "log_every", "checkpoint_every", "keep", "sample_only", "num", "label"),
    *("parallel", "fsdp", "steps_per_call", "test_images", "test_samples", "start_from"),
)
"""Fields that a resumed run may set otherwise; all others must be those of the checkpoint."""


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""

    @dataclass
    class Choice:
        preset: str = "book"

    choice, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False)
    default = PRESETS.get(choice.preset, Config())  # a wrong name is reported by the parser of Config
    return tyro.cli(Config, args=args, default=default, description=__doc__)


def build(config: Config, shape: tuple[int, int, int], num_classes: int | None) -> vae.VAE:
    """The model for images of a shape; `num_classes` where it takes labels."""
    likelihood = autoencoding.LIKELIHOODS[config.likelihood]
    options: dict[str, Any] = {"activation": ACTIVATIONS[config.activation], "num_classes": num_classes}
    out = (*shape[:2], likelihood.outputs(shape[2]))
    if config.network == "mlp":
        encoder = autoencoder.MLPEncoder(config.latent, config.hidden, **options)
        decoder = autoencoder.MLPDecoder(out, config.hidden[::-1], **options)
        return vae.VAE(encoder, decoder, likelihood, config.latent)
    return vae.VAE(
        autoencoder.ConvEncoder(config.latent, config.channels, **options),
        autoencoder.ConvDecoder(out, config.channels, **options),
        likelihood,
        config.latent,
    )


def make_loss(model: vae.VAE, config: Config) -> training.Loss:
    """`loss(params, key, batch, aux)`; with the book's likelihood it reports the book's loss as well."""
    prepare = autoencoding.preparer(config.binarize)
    if config.objective != "elbo":
        dreg = config.objective == "dreg"
        return vae.iwae_loss(
            model,
            config.num_samples,
            doubly_reparameterised=dreg,
            gradient_samples=config.gradient_samples,
            prepare=prepare,
        )
    beta = optax.linear_schedule(0.0, config.beta, config.kl_warmup) if config.kl_warmup else config.beta
    elbo = vae.loss(model, beta=beta, free_bits=config.free_bits, prepare=prepare)

    def loss_fn(params, key, batch, aux):
        value, metrics = elbo(params, key, batch, aux)
        if config.likelihood == "gaussian":
            metrics["book_loss"] = autoencoding.book_loss(metrics, math.prod(batch["image"].shape[1:]))
        return value, metrics

    return loss_fn


def train(config: Config) -> dict[str, Any]:
    """Train to the end, or to the end of what is left; tests, draws the figures and returns the summary."""
    arrays, test, num_classes = autoencoding.load_images(
        config.dataset, config.data_dir, labels=config.labels, binarize=config.binarize
    )
    note = autoencoding.meaning(config.likelihood, config.binarize, arrays["image"])
    if jax.process_index() == 0:
        print(f"nats are the log of: {note}")
    shape = arrays["image"].shape[1:]
    model = build(config, shape, num_classes)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    few = functools.partial(training.muon, iterations=4)  # each takes a third as long as the gradients
    make_optimizer: Any = few if config.optimizer == "muon" else training.adam
    optimizer, schedule = make_optimizer(
        config.learning_rate,
        num_steps=config.steps,
        warmup_steps=config.warmup,
        schedule=config.schedule,
        clip_norm=config.clip_norm,
    )
    label = None if num_classes is None else jnp.zeros(1, jnp.int32)
    init = lambda: model.init(key_params, jnp.zeros((1, *shape)), label)
    if config.start_from is not None:
        given = autoencoding.parameters_of(config.start_from, jax.eval_shape(init), restore)
        init = lambda: given
    state = training.fit(
        training.make_step(make_loss(model, config), optimizer, ema_decay=config.ema_decay, aux=True),
        lambda: training.TrainState.create(init(), optimizer, key_steps, ema=config.ema_decay is not None),
        data.batches(arrays, config.batch_size, key=key_data),
        num_steps=config.steps,
        workdir=config.workdir,
        config={**dataclasses.asdict(config), "image_shape": shape, "num_classes": num_classes},
        may_change=MAY_CHANGE,
        schedule=schedule,
        options=training.Options(
            **{
                k: getattr(config, k)
                for k in ("parallel", "fsdp", "steps_per_call", "log_every", "checkpoint_every", "keep")
            }
        ),
    )
    return finish(config, model, state, test, note)


def restore(params: Any) -> vae.Params:
    """Parameters of a checkpoint in the form that the model takes."""
    return vae.Params(**params) if isinstance(params, dict) else params


def finish(config: Config, model: vae.VAE, state, test, note: str) -> dict[str, Any]:
    """The bounds on the test set, the figures, samples, and the summary."""
    began, params = time.perf_counter(), restore(training.load(config.workdir)[0])

    def bounds(params, key, batch, index):
        x, label = batch["image"], batch.get("label")
        key_elbo, key_iwae = jax.random.split(key)
        elbo = model.elbo(params, key_elbo, x, label, index=index)
        log_prob = model.log_prob(params, key_iwae, x, config.test_samples, label, index=index)
        return elbo._asdict() | {"log_prob": log_prob}

    figures = autoencoding.evaluate(bounds, params, test, limit=config.test_images, key=jax.random.key(1))
    dims = math.prod(test["image"].shape[1:])
    summary: dict[str, Any] = {
        "steps": int(state.step),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "batch_size": config.batch_size,
        "nats_are_the_log_of": note,
        "test_images": min(config.test_images or len(test["image"]), len(test["image"])),
        "test_samples": config.test_samples,
        "test_elbo": figures.pop("value"),
        "test_elbo_standard_error": figures.pop("value_standard_error"),
        **{f"test_{name}": figure for name, figure in figures.items()},
    }
    if config.likelihood.startswith(("bernoulli", "discretized", "logistic")):
        summary["test_bits_per_dim"] = -summary["test_log_prob"] / (dims * math.log(2))
    if jax.process_index() == 0:
        save_figures(config, model, params, test)
        last = plots.read_metrics(config.workdir / "metrics.jsonl")[-1]
        names = ("loss", "book_loss", "elbo", "iwae", "reconstruction", "kl", "images_per_second")
        summary |= {name: last[name] for name in names if name in last}
        summary |= {
            "seconds_of_training": last["seconds"],
            "seconds_of_testing": time.perf_counter() - began,
        }
    draw_samples(config)
    if jax.process_index() == 0:
        run_directory.write_json(config.workdir / "summary.json", summary)
    return summary


def save_figures(config: Config, model: vae.VAE, params: vae.Params, test) -> None:
    """loss.png, reconstructions.png, interpolation.png, and manifold.png of a latent of two numbers."""
    terms = {"elbo": "ELBO", "reconstruction": r"$\log p(x \mid z)$", "kl": "KL"}
    terms = {"book_loss": "the book's loss"} | terms if config.likelihood == "gaussian" else terms
    autoencoding.save_terms(
        config.workdir / "loss.png",
        config.workdir / "metrics.jsonl",
        {name: f"{label} (nats)" for name, label in terms.items()}
        if config.objective == "elbo"
        else {"iwae": f"bound of {config.num_samples} samples (nats)"},
    )
    images, label = test["image"][:32], test.get("label")
    x, label = jnp.asarray(images / 255, jnp.float32), None if label is None else jnp.asarray(label[:32])
    rebuilt = autoencoding.to_bytes(jax.jit(model.reconstruct)(params, x, label))
    autoencoding.save_pairs(config.workdir / "reconstructions.png", images, rebuilt)
    first = None if label is None else label[:8]
    line = jax.jit(lambda a, b: model.interpolate(params, a, b, 10, first))(x[:8], x[8:16])
    strips = autoencoding.to_bytes(line)
    plots.save_grid(
        config.workdir / "interpolation.png", strips.reshape(-1, *strips.shape[2:]), columns=strips.shape[1]
    )
    if config.latent == 2:
        save_manifold(config, model, params, None if label is None else label[:1])


def save_manifold(config: Config, model: vae.VAE, params: vae.Params, label, side: int = 20) -> None:
    """manifold.png: what latents decode to, at even quantiles of both numbers (Kingma & Welling 2014, Figure 4)."""
    line = scipy.stats.norm.ppf((np.arange(side) + 0.5) / side)
    z = jnp.asarray([(x, y) for y in line[::-1] for x in line], jnp.float32)
    label = None if label is None else jnp.broadcast_to(label, len(z))
    images = autoencoding.to_bytes(jax.jit(model.decode)(params, z, label))
    plots.save_grid(config.workdir / "manifold.png", images, columns=side, scale=1)


def draw_samples(config: Config, chunk: int = 500) -> np.ndarray:
    """Samples from the checkpoint in `config.workdir`, means of `p(x | z)`: writes samples.npy and samples.png."""
    params, saved, step = training.load(config.workdir)
    learned = {f.name for f in dataclasses.fields(Config)} - {*MAY_CHANGE, "seed"}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in learned
    }
    trained = dataclasses.replace(config, **values)
    shape, num_classes = tuple(saved["image_shape"]), saved["num_classes"]
    model = build(trained, shape, num_classes)
    params = restore(params)
    key_x, key_label = jax.random.split(jax.random.key(config.seed))
    drawn_for = labels.choose(config.label, num_classes, key_label, np.arange(config.num))
    draw = jax.jit(
        lambda index, label: model.sample(key_x, params, len(index), label, mean=True, index=index)
    )
    size, parts = min(chunk, config.num), []
    for start in range(0, config.num, size):
        rows = np.minimum(np.arange(start, start + size), config.num - 1)
        parts.append(autoencoding.to_bytes(draw(rows, None if drawn_for is None else drawn_for[rows])))
    images = np.concatenate(parts)[: config.num]
    if jax.process_index() == 0:
        np.save(config.workdir / "samples.npy", images)
        if drawn_for is not None:
            np.save(config.workdir / "labels.npy", drawn_for)
        plots.save_grid(config.workdir / "samples.png", images[:64], columns=8)
    print(f"{config.num} samples at step {step}")
    return images


def main(config: Config) -> dict[str, Any]:
    """Train (or go on training), test and sample, or sample alone."""
    training.initialize_distributed()
    training.enable_compilation_cache()
    if config.sample_only:
        draw_samples(config)
        return {}
    summary = train(config)
    if jax.process_index() == 0:
        report(config, summary)
    return summary


def report(config: Config, summary: dict[str, Any]) -> None:
    """What was done, and what can be done next."""
    figure = lambda name: (
        f"{summary[f'test_{name}']:.2f} +- {summary[f'test_{name}_standard_error']:.2f} nats"
    )
    print(
        f"{summary['steps']} steps, {summary['parameters'] / 1e6:.2f} M parameters, loss {summary['loss']:.4f}, "
        f"{summary['images_per_second']:.0f} images/s, {summary['seconds_of_training']:.0f} s of training\n"
        f"on {summary['test_images']} test images: ELBO {figure('elbo')} ({figure('kl')} of KL), bound of "
        f"{summary['test_samples']} samples on log p(x) {figure('log_prob')}, "
        f"the log of: {summary['nats_are_the_log_of']}\n"
        f"pictures, metrics and checkpoints: {config.workdir}\n"
        f"sample again: python experiments/step07_vae.py --sample-only --workdir {config.workdir} --num 64 --seed 3"
    )


if __name__ == "__main__":
    main(parse())
