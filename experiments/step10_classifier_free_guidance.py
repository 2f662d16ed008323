"""Step 10: classifier-free guidance, and what its weight buys and costs.

    python experiments/step10_conditional.py                 # once: trains the network
    python experiments/step10_classifier_free_guidance.py

draws the same noise for every class at several weights and leaves in checkpoints/step10_classifier_free_guidance/

    weights.png     the same noise, a row a sample, a column a weight
    trade.png       how often a classifier reads the class that was asked for, against how varied a class is
    law.png         where everything is exact: samples are not of p(x) p(y | x)^w, whose scores they followed

and the figures in summary.json. The classifier is trained apart, on clean images, once (checkpoints/judge_DATASET, two
minutes). 0 is unconditional, 1 conditional, as in the book.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import judging
import numpy as np

from gen_jax import checks, generate, gmm, guidance, launch, plots, pretrained, samplers
from gen_jax.conditioning import Labels
from gen_jax.diffusion import oracle, process
from gen_jax.pretrained import Run
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, Fraction, Number, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Sweep the weight of guidance of a conditional checkpoint."""

    checkpoint: Path = launch.ROOT / "checkpoints" / "step10_conditional"
    """The --workdir of a run of step10_conditional, whose network is sampled."""
    workdir: Path = launch.ROOT / "checkpoints" / "step10_classifier_free_guidance"
    """Where figures are written."""
    weights: tuple[Number, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    solver: str | None = None
    """A solver by name (default: as the model says)."""
    nfe: Count | None = None
    """Evaluations of the denoiser a sample (default: as the model says)."""
    num: Count = 1000
    """Samples at each weight, as many of each class."""
    rescale: Fraction = 0.0
    """How far estimates are brought to the deviation of the conditional one, 0 to 1."""
    interval: tuple[float, float] | None = None
    """Times between which to guide, of the process (default: all)."""
    judge_steps: Count = 1000
    """Of training the classifier."""
    judge_dir: Path | None = None
    """Where it is kept (default: checkpoints/judge_DATASET)."""
    data_dir: Path | None = None
    seed: Seed = 0


def draw_all(config: Config, run: Run, classes: int) -> dict[float, np.ndarray]:
    """Images for each weight, of the labels 0, 1, ..., 0, 1, ... and the same noise: one compiled program for all."""
    draw = generate.sampler(run.model, interval=config.interval, rescale=config.rescale)
    weights, key = draw.place(run.weights), jax.random.key(config.seed)
    plan, size = generate.plan(run.model, config.solver, config.nfe), min(250, config.num)
    images = lambda weight, index: draw(
        weights, key, plan, index, np.int32(index % classes), np.float32(weight)
    )
    chunks = functools.partial(generate.in_chunks, num=config.num, size=size, shared=True)
    return {weight: chunks(functools.partial(images, weight)) for weight in config.weights}


def measure(
    config: Config, classes: int, images: dict[float, np.ndarray], judge: judging.Judge
) -> dict[str, list[float]]:
    """Of each weight the share that is read as what was asked for, and the diversity, relative to that of real images."""
    label = np.arange(config.num) % classes
    found: dict[str, list[float]] = {"weights": list(config.weights), "accuracy": [], "diversity": []}
    for weight in config.weights:
        probabilities, features = judge.read(images[weight])
        found["accuracy"].append(float((probabilities.argmax(1) == label).mean()))
        relative = judging.diversity(features, label, classes) / judge.diversity
        found["diversity"].append(float(np.nanmean(relative)))
    return found


def save_trade(path: Path, found: dict[str, list[float]]) -> None:
    """trade.png: accuracy against diversity, a point a weight."""
    with plots.figure(path) as axes:
        axes.plot(found["diversity"], found["accuracy"], "o-")
        points = zip(found["weights"], found["diversity"], found["accuracy"], strict=True)
        for i, (weight, x, y) in enumerate(points):  # above and below in turn, as large weights lie close
            place = {"xytext": (0, (7, -15)[i % 2]), "ha": "center"}
            axes.annotate(f"{weight:g}", (x, y), textcoords="offset points", **place)
        axes.axvline(1, color="grey", lw=0.8, ls=":")
        axes.set(
            xlabel="diversity within a class (1: real images)",
            ylabel="read as the class asked for",
            title="what the weight of guidance buys, and costs",
        )
        axes.grid(alpha=0.3)


def law(weight: float = 3.0, n: int = 20_000) -> dict[str, np.ndarray]:
    """Samples of exact guidance between two normals at -1 and 1, and the density `p(x) p(y | x)^w` on a grid."""
    proc, params = process.VP(), gmm.GMM(jnp.ones(2) / 2, jnp.array([[-1.0], [1.0]]), jnp.full((2, 1), 0.5))
    model = oracle.mixture(params, proc, labels=jnp.arange(2))
    denoise = guidance.classifier_free(model.given(1), model, weight)
    plan = samplers.DPMSolverPP(2).plan(proc, samplers.times.log_snr(proc, 40))
    x_T = proc.prior(jax.random.key(0), (n, 1))
    x = jax.jit(lambda x: samplers.sample(jax.random.key(1), denoise, plan, x))(x_T)
    grid = np.linspace(-3, 5, 801)
    log_joint = lambda mean: -((grid - mean) ** 2) - np.log(2 * np.sqrt(np.pi))
    log_p = np.logaddexp(log_joint(-1), log_joint(1))
    tilted = np.exp(log_p + weight * (log_joint(1) - log_p))
    conditional = 2 * np.exp(log_joint(1))
    return {
        "samples": np.asarray(x)[:, 0],
        "grid": grid,
        "tilted": tilted / (tilted.sum() * (grid[1] - grid[0])),
        "conditional": conditional,
    }


def save_law(path: Path, found: dict[str, np.ndarray], weight: float = 3.0) -> None:
    """law.png: the histogram of the samples and the two densities."""
    with plots.figure(path) as axes:
        axes.hist(
            found["samples"], bins=100, density=True, alpha=0.4, label=f"samples guided with $w = {weight:g}$"
        )
        axes.plot(found["grid"], found["conditional"], "--", label=r"$p(x \mid y)$, which is $w = 1$")
        axes.plot(found["grid"], found["tilted"], label=rf"$p(x)\, p(y \mid x)^{{{weight:g}}}$, normalised")
        axes.set(xlim=(-1.5, 4), xlabel="$x$", ylabel="density", title="guided samples are of neither law")
        axes.legend()


def main(config: Config) -> dict[str, object]:
    """Draw, measure, write."""
    launch.start()
    run = pretrained.load_run(config.checkpoint)
    condition = run.model.condition
    if not isinstance(condition, Labels) or not condition.guides:
        raise ValueError(
            f"{config.checkpoint} has no labels to be guided by: train step10_conditional.py first, with dropout."
        )
    prepare(config.workdir)
    images = draw_all(config, run, condition.num_classes)
    judge = judging.train(
        str(run.options["dataset"]), config.data_dir, steps=config.judge_steps, workdir=config.judge_dir
    )
    found = measure(config, condition.num_classes, images, judge)
    rows = min(condition.num_classes, 10)
    strips = np.stack([images[weight][:rows] for weight in config.weights], axis=1)
    heads = [f"$w = {weight:g}$" for weight in config.weights]
    plots.save_strips(config.workdir / "weights.png", strips, heads, "the same noise at every weight")
    save_trade(config.workdir / "trade.png", found)
    save_law(config.workdir / "law.png", law())
    for weight, accuracy, diversity in zip(*found.values(), strict=True):
        launch.say(
            f"weight {weight:4g}: {accuracy:.1%} read as asked for, diversity {diversity:.2f} of real images'"
        )
    nfe = generate.plan(run.model, config.solver, config.nfe).nfe
    summary = {"judge_accuracy": judge.accuracy, "num": config.num, "nfe": nfe, **found}
    lines = [f"draw by a weight: gen-jax sample {config.checkpoint} --guidance 2 --num 16 --out guided.png"]
    return launch.finish(
        config.workdir, summary, config=config, experiment="step10_classifier_free_guidance", lines=lines
    )


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


if __name__ == "__main__":
    launch.run(__file__)
