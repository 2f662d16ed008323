"""What steps 7 and 8 share: options, training, figures of the test set, samples, pictures."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import recipes
from bounds import Arrays, Binarize, Bounds, evaluate, load_images, meaning, to_bytes
from jaxtyping import PyTree

from gen_jax import checks, data, generate, hvae, launch, plots, training, vae
from gen_jax.training import Options
from gen_jax.types import Count, Positive, Seed, Size

Shape: TypeAlias = tuple[int, int, int]
LOGGED = (
    *("loss", "book_loss", "elbo", "iwae", "reconstruction", "kl", "images_per_second"),
    "seconds_of_training",
)
"""Figures of the last log point that the summary has."""
FREE = ("test_images", "test_samples", "start_from")
"""Options that a resumed run may change, beside those of `launch.may_change`."""


@checks.checked
@dataclass(frozen=True)
class Training(launch.Training):
    """How to learn."""

    steps: int = 56_250
    """Updates in the whole run."""
    batch_size: int = 32
    """Images a step, over all devices."""
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = 1e-3
    """Highest rate."""
    ema_decay: float | None = None
    """Of the average of the parameters, which is tested and sampled from (default: no average)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The rate after the warm-up: constant, or falling to zero."""
    warmup: Size = 0
    """Steps over which the rate grows from 0."""
    clip_norm: Positive | None = None
    """Greatest norm of a gradient."""

    def make_optimizer(self, *, iterations: int = 5) -> tuple[optax.GradientTransformation, optax.Schedule]:
        """The optimizer and its learning rate at each step; `iterations` of Muon for each matrix."""
        muon = functools.partial(training.muon, iterations=iterations)
        rule = muon if self.optimizer == "muon" else training.adam
        return rule(
            self.learning_rate,
            num_steps=self.steps,
            warmup_steps=self.warmup,
            schedule=self.schedule,
            clip_norm=self.clip_norm,
            accumulate=self.accumulate,
        )

    def make_step(
        self, loss: training.Loss, optimizer: optax.GradientTransformation, *, aux: bool = True
    ) -> training.Step:
        """One step of training; the loss takes `aux`, for the KL warm-up."""
        ema, parts = self.ema_decay, self.microbatches
        return training.make_step(loss, optimizer, ema_decay=ema, aux=aux, microbatches=parts)


@checks.checked
@dataclass(frozen=True)
class Config:
    """The options of both steps."""

    preset: str = "book"
    """See experiments/configs/."""
    workdir: Path = launch.ROOT / "checkpoints"
    """Where everything is written, and looked for when the run is resumed or sampled from."""
    seed: Seed = 0
    """Of parameters, data order and noise; with --sample-only, of the samples."""

    binarize: Binarize = "none"
    """Images as bits, with the grey values as probabilities, drawn at each step or once; or as they are."""
    likelihood: Literal[
        "bernoulli",
        "gaussian",
        "gaussian_learned",
        "discretized_gaussian",
        "discretized_logistic",
        "logistic_mixture",
    ] = "gaussian"
    """The distribution of a pixel; "gaussian" has standard deviation 1 and a mean in [0, 1], as in the book."""
    start_from: Path | None = None
    """Workdir of another run, whose (averaged) parameters are the initial ones."""
    kl_warmup: Size = 0
    """Steps over which the weight of the KL grows from 0, with elbo."""
    test_images: Count | None = 1000
    """Number of test images for the bounds (None: all)."""
    test_samples: Count = 500
    """Samples an image of the importance-weighted bound on them; papers report 5000."""
    sample_only: bool = False
    """Draw samples from the checkpoint in workdir: samples.npy and samples.png."""
    num: Count = 64
    """How many samples."""

    data: launch.Data = launch.Data()
    training: Training = Training()
    run: Options = Options(steps_per_call=1875, log_every=1875, checkpoint_every=9375)


C = TypeVar("C", bound=Config)
M = TypeVar("M", bound=vae.VAE | hvae.HVAE | hvae.Ladder)
Draw: TypeAlias = Callable[[PyTree, jax.Array], jax.Array]
"""`(params, numbers of the samples) -> images in [0, 1]`."""


@dataclass(frozen=True)
class Experiment(Generic[C, M]):
    """What is special to a step."""

    name: str
    build: Callable[[C, Shape, int | None], M]
    """The model for images of a shape, and labels of a number of classes."""
    make_loss: Callable[[M, C], training.Loss]
    make_optimizer: Callable[[C], tuple[optax.GradientTransformation, optax.Schedule]]
    restore: Callable[[PyTree], PyTree]
    """Parameters of a checkpoint in the form that the model takes."""
    bounds: Callable[[M, C], Bounds]
    """With the figures `elbo`, `reconstruction`, `kl` and `log_prob`."""
    sampler: Callable[[M, C, int | None], tuple[Draw, jax.Array | None]]
    """How samples are drawn, and their labels."""
    save_figures: Callable[[C, M, PyTree, Arrays], None]
    free: tuple[str, ...] = ()
    """Options of sampling, which a resumed run may change."""
    note: Callable[[C, Mapping[str, float]], str | None] = lambda config, figures: None
    """What is to be said of samples that are drawn so, from the last figures of the training."""

    def main(self, config: C, *, labels: bool = False) -> dict[str, object]:
        """Train (or go on training), test and sample, or sample alone."""
        launch.start(1)  # one device of a CPU, as the figures of the presets were measured
        config = launch.resolved(config)
        if config.sample_only:
            self.draw_samples(config)
            return {}
        train, test, num_classes = load_images(config.data, labels=labels, binarize=config.binarize)
        note, shape = meaning(config.likelihood, config.binarize, train["image"]), train["image"].shape[1:]
        launch.say(f"nats are the log of: {note}")
        model = self.build(config, shape, num_classes)
        self.check(config, model, shape, num_classes)
        state = self.train(config, model, train, num_classes)
        began, params = time.perf_counter(), self.restore(training.load(config.workdir).params)
        summary = {
            "steps": int(state.step),
            "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
            "batch_size": config.training.batch_size,
            "nats_are_the_log_of": note,
            "test_images": min(config.test_images or len(test["image"]), len(test["image"])),
            "test_samples": config.test_samples,
            **test_figures(config, self.bounds(model, config), params, test),
        }
        if isinstance(state.opt_state, training.SkipState):
            summary["steps_skipped"] = int(state.opt_state.skipped)
        if jax.process_index() == 0:
            self.save_figures(config, model, params, test)
            last = recipes.last_figures(config.workdir)
            summary |= {name: last[name] for name in LOGGED if name in last}
            summary["seconds_of_testing"] = time.perf_counter() - began
        self.draw_samples(config)
        lines = report(self.name, config, summary) if jax.process_index() == 0 else []  # of its figures
        return launch.finish(config.workdir, summary, lines=lines)

    def check(self, config: C, model: M, shape: Shape, num_classes: int | None) -> None:
        """ValueError before any training for samples that could not be drawn after it."""
        draw, _ = self.sampler(model, config, num_classes)
        params = jax.eval_shape(lambda: init(model, jax.random.key(0), shape, num_classes))
        jax.eval_shape(draw, params, jnp.zeros(1, jnp.int32))

    def train(self, config: C, model: M, arrays: Arrays, num_classes: int | None) -> training.TrainState:
        """Train to the end, or to the end of what is left."""
        t, shape = config.training, arrays["image"].shape[1:]
        key_params, key_data, key_steps = jax.random.split(jax.random.key(config.seed), 3)
        optimizer, schedule = self.make_optimizer(config)
        start = lambda: init(model, key_params, shape, num_classes)
        if config.start_from is not None:
            given = parameters_of(config.start_from, jax.eval_shape(start), self.restore)
            start = lambda: given
        return training.fit(
            t.make_step(self.make_loss(model, config), optimizer),
            lambda: training.TrainState.create(start(), optimizer, key_steps, ema=t.ema_decay is not None),
            data.batches(arrays, t.batch_size, key=key_data),
            num_steps=t.steps,
            workdir=config.workdir,
            config=launch.record(self.name, config, image_shape=shape, num_classes=num_classes),
            may_change=launch.may_change(*FREE, *self.free),
            schedule=schedule,
            shown="book_loss" if reports_book_loss(config) else "loss",
            options=config.run,
        )

    def draw_samples(self, config: C, chunk: int = 500) -> np.ndarray:
        """Samples from the checkpoint in `config.workdir`, means of `p(x | z)`: writes samples.npy and samples.png."""
        params, saved, step = training.load(config.workdir)
        options = saved.get("options", saved)  # version 0.1 had no groups
        as_saved: dict[str, Any] = {
            f.name: tuple(value) if isinstance(value := options[f.name], list) else value
            for f in dataclasses.fields(config)
            if f.name in options
            and f.name not in {"workdir", "seed", "sample_only", "num", *FREE, *self.free}
        }
        trained = dataclasses.replace(config, **as_saved)
        model = self.build(trained, tuple(saved["image_shape"]), saved.get("num_classes"))
        draw, labels = self.sampler(model, config, saved.get("num_classes"))
        draw, params = jax.jit(draw), self.restore(params)
        of = lambda index: to_bytes(draw(params, jnp.asarray(index)))
        images = generate.in_chunks(of, config.num, min(chunk, config.num), shared=True)
        launch.save(config.workdir / "samples.npy", images)
        if labels is not None:
            launch.save(config.workdir / "labels.npy", labels)
        note = self.note(trained, recipes.last_figures(config.workdir))
        save_samples(config.workdir / "samples.png", images[:64], note)
        launch.say(f"{config.num} samples at step {step}" + (f": {note}" if note else ""))
        return images


def init(model: Any, key: jax.Array, shape: Shape, num_classes: int | None) -> PyTree:
    """New parameters of a model for images of a shape."""
    labels = [] if num_classes is None else [jnp.zeros(1, jnp.int32)]
    return model.init(key, jnp.zeros((1, *shape)), *labels)


def reports_book_loss(config: Config) -> bool:
    """Whether a run has the book's loss, which its terminal shows in the place of nats."""
    return config.likelihood == "gaussian" and getattr(config, "objective", "elbo") == "elbo"


def save_samples(path: Path, images: np.ndarray, note: str | None = None) -> None:
    """Rows of eight, under what is to be said of them."""
    if note is None:
        plots.save_grid(path, images, columns=8)
        return
    columns = min(8, len(images))
    blank = np.full((-len(images) % columns, *images.shape[1:]), 255, np.uint8)
    strips = np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
    plots.save_strips(path, strips, [""] * columns, note)


def parameters_of(workdir: Path, like: PyTree, restore: Callable[[PyTree], PyTree]) -> PyTree:
    """The final (averaged) parameters of a run, as initial parameters of another.

    Raises ValueError unless they have the shapes of `like`.
    """
    params = restore(training.load(workdir).params)
    shapes = [[(p, x.shape) for p, x in jax.tree.leaves_with_path(tree)] for tree in (params, like)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"--start-from {workdir} holds the parameters of another model: it takes the same network, the same latents "
            "and likelihood, and images of one size."
        )
    return params


def with_book_loss(loss: training.Loss, likelihood: str) -> training.Loss:
    """The same loss, with the book's among its metrics if the likelihood is the book's.

    book_loss = |x_hat - x|^2 + 2 KL = -2 ELBO - D log(2 pi), under a Gaussian of standard deviation 1
    """

    def loss_fn(
        params: PyTree, key: jax.Array, batch: Mapping[str, jax.Array], aux: training.Aux
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        value, metrics = loss(params, key, batch, aux)
        dims = math.prod(batch["image"].shape[1:])
        return value, metrics | {"book_loss": -2 * metrics["elbo"] - dims * math.log(2 * math.pi)}

    return loss_fn if likelihood == "gaussian" else loss


def test_figures(config: Config, bounds: Bounds, params: PyTree, test: Arrays) -> dict[str, float]:
    """The bounds on the test images; also bits per dimension if the likelihood is of bits or bytes."""
    figures = evaluate(bounds, params, test, limit=config.test_images, key=jax.random.key(1))
    found = {f"test_{name}": figure for name, figure in figures.items()}
    if config.likelihood.startswith(("bernoulli", "discretized", "logistic")):
        dims = math.prod(test["image"].shape[1:])
        found["test_bits_per_dim"] = -found["test_log_prob"] / (dims * math.log(2))
    return found


def report(name: str, config: Config, summary: Mapping[str, object]) -> list[str]:
    """The main figures with their units, and what can be done next."""
    figure = lambda name: (
        f"{summary[f'test_{name}']:.2f} +- {summary[f'test_{name}_standard_error']:.2f} nats"
    )
    took = {done: summary.get(f"seconds_of_{done}ing") for done in ("train", "test")}
    minutes = [f"{done}ed in {cast(float, s) / 60:.1f} minutes" for done, s in took.items() if s is not None]
    book = [f"the book's loss, |x_hat - x|^2 + 2 KL, mean over the images: {summary.get('book_loss', 0):.2f}"]
    nats = "its loss above is in nats, with the constant of the density"
    return [
        *([*book, nats] if "book_loss" in summary else []),
        ", ".join(minutes),
        f"on {summary['test_images']} test images: ELBO {figure('elbo')} ({figure('kl')} of KL), bound of "
        f"{summary['test_samples']} samples on log p(x) {figure('log_prob')}, the log of: "
        f"{summary['nats_are_the_log_of']}",
        f"sample again: python experiments/{name}.py --sample-only --workdir {config.workdir} --num 64 --seed 3",
    ]


def save_terms(workdir: Path, config: Config, iwae: str | None = None) -> None:
    """loss.png: the terms of the loss against the step, a panel each; or the bound `iwae` of several samples."""
    terms = {"elbo": "ELBO (nats)", "reconstruction": r"$\log p(x \mid z)$ (nats)", "kl": "KL (nats)"}
    if config.likelihood == "gaussian":
        terms = {"book_loss": "the book's loss"} | terms
    if iwae is not None:
        terms = {"iwae": f"{iwae} (nats)"}
    lines = recipes.figures(workdir)
    if not lines:
        return
    with plots.figure(
        workdir / "loss.png", width=4 * len(terms), height=3.5, ncols=len(terms), squeeze=False
    ) as axes:
        for axis, (name, label) in zip(axes[0], terms.items(), strict=True):
            curve = [(line["step"], line[name]) for line in lines]
            axis.plot(*zip(*curve, strict=True), "." if len(lines) < 50 else "-")
            axis.set(xlabel="step", ylabel=label)
            axis.grid(alpha=0.3)


def save_pairs(path: Path, images: np.ndarray, rebuilt: np.ndarray) -> None:
    """Originals above their reconstructions, in rows of eight."""
    rows = [part for i in range(0, len(images), 8) for part in (images[i : i + 8], rebuilt[i : i + 8])]
    plots.save_grid(path, np.concatenate(rows), columns=8)
