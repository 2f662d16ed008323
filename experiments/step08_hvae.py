"""Step 8: the hierarchical VAE, a latent of the latent. High levels decide what is in the image, low levels the details.

    python experiments/step08_hvae.py

trains the book's model of two levels on MNIST (embedded) for 30 epochs and leaves pictures, metrics and checkpoints in
checkpoints/step08_hvae/. The same command goes on where an interrupted run stopped. Afterwards

    python experiments/step08_hvae.py --sample-only --num 64 --levels 1 --seed 3

samples from the checkpoint, here with only the top level drawn and the other at its mean. The book's model does not use
its top level, so these samples are nearly equal; samples.png and the output say so. Other images: `--dataset
NAME_OR_FOLDER`, with a `--workdir` of its own. Presets are in experiments/configs/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import autoencoding
import jax
import jax.numpy as jnp
import numpy as np
import optax
import recipes
from bounds import LIKELIHOODS, Arrays, Bounds, preparer, to_bytes
from jaxtyping import PyTree

from gen_jax import checks, hvae, launch, plots, training
from gen_jax.networks import autoencoder, ladder
from gen_jax.networks.mlp import MLP
from gen_jax.types import Count, NotNegative, Positive, Size

Model: TypeAlias = hvae.HVAE | hvae.Ladder


@checks.checked
@dataclass(frozen=True)
class Config(autoencoding.Config):
    """Train a hierarchical VAE, or sample from one. The defaults shown are those of the preset."""

    workdir: Path = launch.ROOT / "checkpoints" / "step08_hvae"
    """Where everything is written, and looked for when the run is resumed or sampled from."""

    model: Literal["chain", "ladder"] = "chain"
    """The book's chain, each level linked to its neighbours; or bottom-up features and top-down latents."""
    latents: tuple[Count, ...] = (20, 20)
    """Numbers in the latent of each level (chain) or its channels (ladder), the level nearest the data first."""
    hidden: Count = 100
    """Hidden units of each network (chain)."""
    terms: Literal["neighbours", "sampled"] = "neighbours"
    """The book's bound, or the tighter one, which is log p(x) for the exact posterior (chain)."""
    patch: Count = 4
    """Side of the square patches that the first map folds into channels (ladder)."""
    levels_per_stage: tuple[Count, ...] = (2, 3)
    """Number of levels at each resolution, from the data up (ladder)."""
    widths: tuple[Count, ...] = (64, 128)
    """Channels of each resolution (ladder)."""
    halvings: tuple[Size, ...] = (0, 3)
    """How often each is halved from the one below (ladder)."""
    blocks: Count = 1
    """Residual blocks at a level (ladder)."""
    bottleneck: Count = 2
    """Factor by which there are fewer channels inside a block (ladder)."""
    merge: Literal["precision", "residual", "concat"] = "residual"
    """How the posterior of a level is made (ladder)."""

    objective: Literal["elbo", "iwae"] = "elbo"
    """The bound with one draw, or with several: the latter to finish with, from parameters of the former."""
    num_samples: Count = 10
    """Draws for an image in a step, with iwae."""
    free_bits: NotNegative = 0.0
    """Nats of each level that are not penalised, with elbo."""
    balance: bool = False
    """KL balancing: weigh the levels by their KL during the KL warm-up."""
    skip: Positive | None = None
    """Leave out steps whose gradient is longer than usual by more than this factor (`training.skip_exploding`)."""

    levels: Size | None = None
    """Draw only the top levels, so many, and set the others to their means (default: draw all)."""
    temperature: NotNegative = 1.0
    """Factor of all standard deviations when a sample is drawn."""


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""
    from configs import step08

    return launch.parse(Config, args, presets=step08.PRESETS, description=__doc__)


def build(config: Config, shape: autoencoding.Shape, num_classes: int | None = None) -> Model:
    """The model for images of a shape."""
    likelihood = LIKELIHOODS[config.likelihood]
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

    Raises ValueError if their numbers do not agree.
    """
    counts = len(config.levels_per_stage), len(config.widths), len(config.halvings)
    if len(set(counts)) > 1 or sum(config.levels_per_stage) != len(config.latents):
        raise ValueError(
            "--levels-per-stage, --widths and --halvings take one number for each stage, --latents one for each level; "
            f"got {counts} stages, and {len(config.latents)} latents for {sum(config.levels_per_stage)} levels."
        )
    ends = np.cumsum([0, *config.levels_per_stage])
    return tuple(
        ladder.Stage(width, config.latents[a:b], config.blocks, halvings, max(1, width // config.bottleneck))
        for width, halvings, a, b in zip(config.widths, config.halvings, ends, ends[1:], strict=False)
    )


def make_loss(model: Model, config: Config) -> training.Loss:
    """The ELBO, for the book's preset the book's loss plus a constant; or a bound of several draws."""
    prepare = preparer(config.binarize)
    if config.objective == "iwae":
        return hvae.iwae_loss(model, config.num_samples, prepare=prepare)
    elbo = hvae.loss(
        model,
        beta=optax.linear_schedule(0.0, 1.0, config.kl_warmup) if config.kl_warmup else 1.0,
        free_bits=config.free_bits,
        balance=(lambda step: 1.0 * (step < config.kl_warmup)) if config.balance else None,
        scale=2.0 if config.likelihood == "gaussian" else 1.0,
        prepare=prepare,
    )
    return autoencoding.with_book_loss(elbo, config.likelihood)


def make_optimizer(config: Config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The rule of the configuration, which leaves out steps with too long a gradient where that is asked for."""
    rule, schedule = config.training.make_optimizer()
    return rule if config.skip is None else training.skip_exploding(rule, factor=config.skip), schedule


def restore(params: PyTree) -> PyTree:
    """Parameters of a checkpoint in the form that the model takes; of a chain, the levels in order."""
    if set(params) != {"encoder", "decoder"}:
        return params
    numbered = lambda part: part.items() if isinstance(part, dict) else enumerate(part)
    in_order = lambda part: tuple(x for _, x in sorted((int(i), x) for i, x in numbered(part)))
    return hvae.Params(in_order(params["encoder"]), in_order(params["decoder"]))


def bounds(model: Model, config: Config) -> Bounds:
    """The terms of the ELBO, with the KL of each level, and the importance-weighted bound."""

    def figures(params, key, batch, index):
        key_elbo, key_iwae = jax.random.split(key)
        bound = model.elbo(params, key_elbo, batch["image"], index=index)
        log_prob = model.log_prob(params, key_iwae, batch["image"], config.test_samples, index=index)
        each = {f"kl_{i + 1}": bound.kl[:, i] for i in range(model.levels)}
        terms = {"elbo": bound.value, "reconstruction": bound.reconstruction, "kl": bound.kl.sum(1)}
        return terms | each | {"log_prob": log_prob}

    return figures


def sampler(model: Model, config: Config, num_classes: int | None) -> tuple[autoencoding.Draw, None]:
    """Means of `p(x | z)` for random latents; there are no labels."""
    key, levels, factor = jax.random.key(config.seed), config.levels, config.temperature

    def draw(params: PyTree, rows: jax.Array) -> jax.Array:
        count = len(rows)
        return model.sample(key, params, count, levels=levels, temperature=factor, mean=True, index=rows)

    return draw, None


SILENT = 0.05
"""Nats below which the KL of a level is that of a level that is not used."""


def silent(figures: Mapping[str, float], levels: int, drawn: int) -> str | None:
    """What is to be said where none of the `drawn` top levels is used, by the KL of each in the training."""
    kls = {i: figures[f"kl_{i}"] for i in range(1, levels + 1) if f"kl_{i}" in figures}
    top = [kls[i] for i in range(levels - drawn + 1, levels + 1) if i in kls]
    if not 0 < drawn < levels or len(kls) < levels or max(top) > SILENT:
        return None
    which = f"z_{levels}" if drawn == 1 else f"z_{levels - drawn + 1} to z_{levels}"
    return (
        f"drawn from {which} alone, which the model does not use: {sum(top):.2g} of {sum(kls.values()):.2f} nats of KL, "
        "so all samples are nearly equal"
    )


def note(config: Config, figures: Mapping[str, float]) -> str | None:
    """Of samples of the top levels alone."""
    levels = len(config.latents)
    return silent(figures, levels, levels if config.levels is None else config.levels)


def save_figures(config: Config, model: Model, params: PyTree, test: Arrays) -> None:
    """loss.png, kl.png (by level), reconstructions.png, and levels.png: samples level by level."""
    several = None if config.objective == "elbo" else f"bound of {config.num_samples} draws"
    autoencoding.save_terms(config.workdir, config, several)
    if config.objective == "elbo":
        save_kl(config.workdir / "kl.png", recipes.figures(config.workdir), model.levels)
    images = test["image"][:32]
    x = jnp.asarray(images / 255, jnp.float32)
    rebuilt = jax.jit(lambda params, x: model.reconstruct(params, jax.random.key(0), x))(params, x)
    autoencoding.save_pairs(config.workdir / "reconstructions.png", images, to_bytes(rebuilt))
    # the same noise in each row: from left to right one level more is drawn
    draw = jax.jit(
        lambda params, each: model.sample(jax.random.key(config.seed), params, 8, temperature=each, mean=True)
    )
    drawn = range(model.levels + 1)
    each = [np.float32(np.arange(model.levels) >= model.levels - k) for k in drawn]
    strips = np.stack([to_bytes(draw(params, temperature)) for temperature in each], axis=1)
    heads = ["means", *(f"$z_{{{model.levels - k + 1}}}$" for k in drawn[1:])]
    last = recipes.last_figures(config.workdir)
    unused = [k for k in drawn if silent(last, model.levels, k)]
    title = "drawn from the top, one level more in each column"
    if unused:
        title += f"; the model does not use the top {unused[-1]}"
    plots.save_strips(config.workdir / "levels.png", strips, heads, title)


def save_kl(path: Path, lines: Sequence[Mapping[str, float]], levels: int) -> None:
    """The KL of each level over the training, of its log points."""
    if not lines:
        return
    with plots.figure(path) as axes:
        for i in range(1, levels + 1):
            curve = [(line["step"], line[f"kl_{i}"]) for line in lines]
            axes.plot(*zip(*curve, strict=True), ".-" if len(lines) < 50 else "-", label=f"$z_{{{i}}}$")
        axes.set(xlabel="step", ylabel="KL (nats)", title="the KL of each level")
        axes.legend()
        axes.grid(alpha=0.3)


EXPERIMENT = autoencoding.Experiment(
    name="step08_hvae",
    build=build,
    make_loss=make_loss,
    make_optimizer=make_optimizer,
    restore=restore,
    bounds=bounds,
    sampler=sampler,
    save_figures=save_figures,
    free=("levels", "temperature"),
    note=note,
)
main, draw_samples = EXPERIMENT.main, EXPERIMENT.draw_samples

if __name__ == "__main__":
    launch.run(__file__)
