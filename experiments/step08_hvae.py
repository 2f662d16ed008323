"""Step 8: the hierarchical VAE, a latent of the latent. High levels decide what is in the picture, low ones how.

    python experiments/step08_hvae.py

trains the book's model of two levels on MNIST (embedded) for 30 epochs and leaves pictures, metrics and checkpoints in
checkpoints/step08_hvae/. The same command goes on where an interrupted run stopped. The book's loss ends at 39.2 (in the
book, 38.9); its bound leaves the second level silent, at 0.0004 of 6.35 nats. Afterwards

    python experiments/step08_hvae.py --sample-only --num 64 --levels 1 --seed 3

samples from the checkpoint, here with the top level alone drawn and the other at its mean.

    python experiments/step08_hvae.py --preset best --workdir checkpoints/step08_best

trains a ladder of five levels on bits (seed 0): on the 10,000 test images an ELBO of -83.15 and, by 100 samples, a
log-likelihood of at least -80.84 nats (standard errors 0.22 and 0.20; Sonderby et al. 2016 have -81.74 by 5,000 samples),
after 69 minutes of training and 13 of testing on one core of a CPU. `--test-samples 5000` takes fifty times as long to
test, and raises it in the mean. Any other TFDS image set: `--dataset NAME`, with a `--workdir` of its own.
"""

import dataclasses
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
import tyro

from gen_jax import data, hvae, plots, training
from gen_jax.networks import autoencoder, ladder
from gen_jax.networks.mlp import MLP
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """Train a hierarchical VAE, or sample from one. The defaults shown are those of the preset."""

    preset: Literal["book", "best"] = "book"
    """The book's chain of two levels and its loss; a ladder on bits, tested as in the literature."""
    dataset: str = "mnist"
    """mnist (embedded) or the name of any TFDS image set, such as kmnist or cifar10."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    workdir: Path = ROOT / "checkpoints" / "step08_hvae"
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
    """What the model says of a pixel; "gaussian" has deviation 1 and a mean in [0, 1], as in the book."""
    model: Literal["chain", "ladder"] = "chain"
    """The book's, in which each level knows its neighbours only; or up once, then down with a latent at each level."""
    latents: tuple[int, ...] = (20, 20)
    """Numbers in the latent of each level (chain) or its channels (ladder), the level nearest the data first."""
    hidden: int = 100
    """Hidden units of each network (chain)."""
    terms: Literal["neighbours", "sampled"] = "neighbours"
    """The book's bound, or the higher one, of which an exact posterior would make log p(x) (chain)."""
    patch: int = 4
    """Side of the squares of pixels that become one position (ladder)."""
    levels_per_stage: tuple[int, ...] = (2, 3)
    """How many levels there are at each resolution, from the data up (ladder)."""
    widths: tuple[int, ...] = (64, 128)
    """Channels of each resolution (ladder)."""
    halvings: tuple[int, ...] = (0, 3)
    """How often each is halved, from the one below (ladder)."""
    blocks: int = 1
    """Residual blocks at a level (ladder)."""
    bottleneck: int = 2
    """How many times fewer channels there are inside a block (ladder)."""
    merge: Literal["precision", "residual", "concat"] = "residual"
    """How the posterior of a level comes about (ladder)."""

    objective: Literal["elbo", "iwae"] = "elbo"
    """The bound with one draw, or with several: the latter to end with, on parameters of the former."""
    num_samples: int = 10
    """Draws for an image in a step, with iwae."""
    start_from: Path | None = None
    """Workdir of another run, from whose parameters (their average) to start."""
    kl_warmup: int = 0
    """Steps over which the weight of the KL grows from 0, with elbo."""
    free_bits: float = 0.0
    """Nats that each level may say without being pushed lower, with elbo."""
    balance: bool = False
    """Tax the levels by what they say while the KL warms up."""
    steps: int = 56_250
    """Updates in the whole run."""
    batch_size: int = 32
    """Images a step, over all devices."""
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 1e-3
    """Highest rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the rate does after the warm-up: stay, or fall to zero."""
    warmup: int = 0
    """Steps over which the rate grows from 0."""
    clip_norm: float | None = None
    """Greatest norm of a gradient."""
    skip: float | None = None
    """Leave out steps whose gradient is more than so many times longer than usual (`training.skip_exploding`)."""
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
    levels: int | None = None
    """Draw the top levels, so many, and take the others at their means (default: draw all)."""
    temperature: float = 1.0
    """Factor of all deviations when a sample is drawn."""


PRESETS = {
    "book": Config(),
    "best": Config(
        "best",
        binarize="dynamic",
        likelihood="bernoulli",
        model="ladder",
        latents=(4, 4, 8, 8, 16),
        levels_per_stage=(2, 2, 1),
        widths=(64, 96, 128),
        halvings=(0, 1, 2),
        kl_warmup=2000,
        free_bits=0.1,
        steps=16_500,
        batch_size=100,
        optimizer="muon",
        learning_rate=4e-3,
        schedule="cosine",
        warmup=300,
        clip_norm=100.0,
        skip=3.0,
        ema_decay=0.9995,
        steps_per_call=50,
        log_every=200,
        checkpoint_every=1000,
        test_images=None,
        test_samples=100,
    ),
}

MAY_CHANGE = (
    *(
        "steps",
        "workdir",
        "data_dir",
        "log_every",
        "checkpoint_every",
        "keep",
        "sample_only",
        "num",
        "levels",
    ),
    *("temperature", "parallel", "fsdp", "steps_per_call", "test_images", "test_samples", "start_from"),
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


def build(config: Config, shape: tuple[int, int, int]) -> hvae.HVAE | hvae.Ladder:
    """The model for images of a shape."""
    likelihood = autoencoding.LIKELIHOODS[config.likelihood]
    outputs = likelihood.outputs(shape[2])
    if config.model == "ladder":
        net = ladder.Ladder(shape, outputs, stages(config), patch=config.patch)
        return hvae.Ladder(net, likelihood, config.merge)
    first = autoencoder.MLPDecoder((*shape[:2], outputs), (config.hidden,))
    return hvae.HVAE(
        tuple(autoencoder.MLPEncoder(size, (config.hidden,)) for size in config.latents),
        (first, *(MLP((config.hidden, size)) for size in config.latents[:-1])),
        likelihood,
        config.latents,
        config.terms,
    )


def stages(config: Config) -> tuple[ladder.Stage, ...]:
    """The resolutions of a ladder.

    Raises ValueError where the numbers do not fit together.
    """
    counts = len(config.levels_per_stage), len(config.widths), len(config.halvings)
    if len(set(counts)) > 1 or sum(config.levels_per_stage) != len(config.latents):
        raise ValueError(
            "--levels-per-stage, --widths and --halvings give one number a stage, --latents one a level of all stages; "
            f"got {counts} stages, and {len(config.latents)} latents for {sum(config.levels_per_stage)} levels."
        )
    ends = np.cumsum([0, *config.levels_per_stage])
    return tuple(
        ladder.Stage(width, config.latents[a:b], config.blocks, halvings, max(1, width // config.bottleneck))
        for width, halvings, a, b in zip(config.widths, config.halvings, ends, ends[1:], strict=False)
    )


def make_loss(model: hvae.HVAE | hvae.Ladder, config: Config) -> training.Loss:
    """`loss(params, key, batch, aux)`; of the book's preset it is the book's, but for a constant."""
    prepare = autoencoding.preparer(config.binarize)
    if config.objective == "iwae":
        return hvae.iwae_loss(model, config.num_samples, prepare=prepare)
    beta = optax.linear_schedule(0.0, 1.0, config.kl_warmup) if config.kl_warmup else 1.0
    elbo = hvae.loss(
        model,
        beta=beta,
        free_bits=config.free_bits,
        balance=(lambda step: 1.0 * (step < config.kl_warmup)) if config.balance else None,
        scale=2.0 if config.likelihood == "gaussian" else 1.0,
        prepare=prepare,
    )

    def loss_fn(params, key, batch, aux):
        value, metrics = elbo(params, key, batch, aux)
        if config.likelihood == "gaussian":
            metrics["book_loss"] = autoencoding.book_loss(metrics, math.prod(batch["image"].shape[1:]))
        return value, metrics

    return loss_fn


def make_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The rule of the configuration, with the skip where one is asked for."""
    rule = {"adam": training.adam, "muon": training.muon}[config.optimizer]
    optimizer, schedule = rule(
        config.learning_rate,
        num_steps=config.steps,
        warmup_steps=config.warmup,
        schedule=config.schedule,
        clip_norm=config.clip_norm,
    )
    return optimizer if config.skip is None else training.skip_exploding(
        optimizer, factor=config.skip
    ), schedule


def restore(params: Any) -> Any:
    """Parameters of a checkpoint in the form that the model takes."""
    if set(params) != {"encoder", "decoder"}:
        return params
    levels = lambda part: tuple(part[i] for i in range(len(part)))
    return hvae.Params(*(levels(as_levels(params[name])) for name in ("encoder", "decoder")))


def as_levels(part: Any) -> dict[int, Any]:
    """The levels of a chain by number, whatever the checkpoint made of a tuple."""
    return {int(k): v for k, v in part.items()} if isinstance(part, dict) else dict(enumerate(part))


def train(config: Config) -> dict[str, Any]:
    """Train to the end, or to the end of what is left; tests, draws the figures and returns the summary."""
    arrays, test, _ = autoencoding.load_images(
        config.dataset, config.data_dir, labels=False, binarize=config.binarize
    )
    note = autoencoding.meaning(config.likelihood, config.binarize, arrays["image"])
    if jax.process_index() == 0:
        print(f"nats are the log of: {note}")
    shape = arrays["image"].shape[1:]
    model = build(config, shape)
    key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    optimizer, schedule = make_optimizer(config)
    init = lambda: model.init(key_params, jnp.zeros((1, *shape)))
    if config.start_from is not None:
        given = autoencoding.parameters_of(config.start_from, jax.eval_shape(init), restore)
        init = lambda: given
    state = training.fit(
        training.make_step(make_loss(model, config), optimizer, ema_decay=config.ema_decay, aux=True),
        lambda: training.TrainState.create(init(), optimizer, key_steps, ema=config.ema_decay is not None),
        data.batches(arrays, config.batch_size, key=key_data),
        num_steps=config.steps,
        workdir=config.workdir,
        config={**dataclasses.asdict(config), "image_shape": shape},
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


def finish(config: Config, model, state, test, note: str) -> dict[str, Any]:
    """The bounds on the test set, the figures, samples, and the summary."""
    began, params = time.perf_counter(), restore(training.load(config.workdir)[0])

    def bounds(params, key, batch, index):
        key_elbo, key_iwae = jax.random.split(key)
        bound = model.elbo(params, key_elbo, batch["image"], index=index)
        log_prob = model.log_prob(params, key_iwae, batch["image"], config.test_samples, index=index)
        each = {f"kl_{i + 1}": bound.kl[:, i] for i in range(model.levels)}
        figures = {"elbo": bound.value, "reconstruction": bound.reconstruction, "kl": bound.kl.sum(1)}
        return figures | each | {"log_prob": log_prob}

    figures = autoencoding.evaluate(bounds, params, test, limit=config.test_images, key=jax.random.key(1))
    dims = math.prod(test["image"].shape[1:])
    summary: dict[str, Any] = {
        "steps": int(state.step),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
        "batch_size": config.batch_size,
        "nats_are_the_log_of": note,
        "test_images": min(config.test_images or len(test["image"]), len(test["image"])),
        "test_samples": config.test_samples,
        **{f"test_{name}": figure for name, figure in figures.items()},
    }
    if config.likelihood.startswith(("bernoulli", "discretized", "logistic")):
        summary["test_bits_per_dim"] = -summary["test_log_prob"] / (dims * math.log(2))
    if isinstance(state.opt_state, training.SkipState):
        summary["steps_skipped"] = int(state.opt_state.skipped)
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


def save_figures(config: Config, model, params, test) -> None:
    """loss.png, kl.png (by level), reconstructions.png, and levels.png: samples level by level."""
    metrics = config.workdir / "metrics.jsonl"
    terms = {"elbo": "ELBO", "reconstruction": r"$\log p(x \mid z)$", "kl": "KL"}
    terms = {"book_loss": "the book's loss"} | terms if config.likelihood == "gaussian" else terms
    terms = terms if config.objective == "elbo" else {"iwae": f"bound of {config.num_samples} draws"}
    autoencoding.save_terms(
        config.workdir / "loss.png", metrics, {name: f"{label} (nats)" for name, label in terms.items()}
    )
    if config.objective == "elbo":
        save_levels_kl(config.workdir / "kl.png", metrics, model.levels)
    images = test["image"][:32]
    x = jnp.asarray(images / 255, jnp.float32)
    rebuilt = jax.jit(lambda params, x: model.reconstruct(params, jax.random.key(0), x))(params, x)
    autoencoding.save_pairs(config.workdir / "reconstructions.png", images, autoencoding.to_bytes(rebuilt))
    # the same noise in each row: from left to right one level more is drawn
    draw = jax.jit(
        lambda params, heat: model.sample(jax.random.key(config.seed), params, 8, temperature=heat, mean=True)
    )
    drawn = range(model.levels + 1)
    heat = [np.float32(np.arange(model.levels) >= model.levels - k) for k in drawn]
    strips = np.stack([autoencoding.to_bytes(draw(params, h)) for h in heat], axis=1)
    labels = ["means", *(f"$z_{{{model.levels - k + 1}}}$" for k in drawn[1:])]
    plots.save_strips(
        config.workdir / "levels.png", strips, labels, "drawn from the top, one level more a column"
    )


def save_levels_kl(path: Path, metrics: Path, levels: int) -> None:
    """What each level says, over the training."""
    lines = plots.read_metrics(metrics)
    with plots.figure(path) as axes:
        for i in range(1, levels + 1):
            axes.plot(
                [line["step"] for line in lines],
                [line[f"kl_{i}"] for line in lines],
                ".-" if len(lines) < 50 else "-",
                label=f"$z_{{{i}}}$",
            )
        axes.set(xlabel="step", ylabel="KL (nats)", title="what each level says")
        axes.legend()
        axes.grid(alpha=0.3)


def draw_samples(config: Config, chunk: int = 500) -> np.ndarray:
    """Samples from the checkpoint in `config.workdir`, means of `p(x | z)`: writes samples.npy and samples.png."""
    params, saved, step = training.load(config.workdir)
    learned = {f.name for f in dataclasses.fields(Config)} - {*MAY_CHANGE, "seed"}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k in learned
    }
    model = build(dataclasses.replace(config, **values), tuple(saved["image_shape"]))
    params, key = restore(params), jax.random.key(config.seed)
    options: dict[str, Any] = {"levels": config.levels, "temperature": config.temperature, "mean": True}
    draw = jax.jit(lambda params, index: model.sample(key, params, len(index), index=index, **options))
    size, parts = min(chunk, config.num), []
    for start in range(0, config.num, size):
        parts.append(autoencoding.to_bytes(draw(params, jnp.arange(start, start + size))))
    images = np.concatenate(parts)[: config.num]
    if jax.process_index() == 0:
        np.save(config.workdir / "samples.npy", images)
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
        f"sample again: python experiments/step08_hvae.py --sample-only --workdir {config.workdir} --num 64 --seed 3"
    )


if __name__ == "__main__":
    main(parse())
