"""Step 5: find the mixture by expectation maximisation, watch it, and let it generate.

    python experiments/step05_em.py

    E   r_nk = p(z_n = k | x_n)
    M   weights, means and covariances of the rows, each with the weight r_nk

About 28 seconds on two cores. On Old Faithful, from the book's start (weights 1/2, means (0, 50) and (0, 100),
covariances I), the mean log-likelihood rises to -4.15538 nats. Leaves in checkpoints/step05_em/: em.gif (the fit,
iteration by iteration), log_likelihood.png, criteria.png (BIC and AIC for 1 to 5 components), generated.png and
summary.json.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gen_jax import checks, data, em, gmm, keys, launch, paths, plots
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, NotNegative, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Fit Gaussian mixtures by EM."""

    data: str = "old_faithful"
    """Name of an embedded table, or a txt or csv file; its first two columns are used."""
    labels: tuple[str, str] = ("eruption in minutes", "waiting time in minutes")
    num_components: Count = 2
    max_components: Count = 5
    """BIC and AIC are shown for 1 to this many."""
    book_start: bool = True
    """Start two components on Old Faithful where the book does; else with k-means++."""
    num_restarts: Count = 10
    """Runs for each number of components; the best one counts."""
    tol: NotNegative = 1e-6
    num: Count = 500
    """How many to generate."""
    seed: Seed = 0
    workdir: Path = launch.ROOT / "checkpoints" / "step05_em"


def ellipse(mean: np.ndarray, cov: np.ndarray, deviations: float) -> np.ndarray:
    """Points `deviations` standard deviations from the mean, `[2, 100]`."""
    angle = np.linspace(0, 2 * np.pi, 100)
    return mean[:, None] + deviations * np.linalg.cholesky(cov) @ np.stack([np.cos(angle), np.sin(angle)])


def save_animation(
    path: Path, x: np.ndarray, history: list[tuple[gmm.GMM, float]], labels: tuple[str, str]
) -> None:
    """em.gif: the components after each iteration, and the data in the colours of their responsibilities."""
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()

    responsibilities = jax.jit(gmm.responsibilities)

    def draw(i):
        params, log_likelihood = history[i]
        shares = np.asarray(responsibilities(params, x))
        axes.clear()
        axes.scatter(x[:, 0], x[:, 1], s=8, c=shares[:, -1], cmap="coolwarm", vmin=0, vmax=1)
        for mean, cov in zip(np.asarray(params.means), np.asarray(params.covs), strict=True):
            for deviations in (1, 2):
                axes.plot(*ellipse(mean, cov, deviations), color="black", linewidth=0.8)
        margin = 0.15 * np.ptp(x, axis=0)
        low, high = x.min(0) - margin, x.max(0) + margin
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=labels[0], ylabel=labels[1])
        axes.set_title(f"iteration {i}: {log_likelihood:.4f} nats a row")

    if jax.process_index() == 0:
        with paths.writing(path) as file:
            FuncAnimation(figure, draw, frames=len(history)).save(file, PillowWriter(fps=4), dpi=80)


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def main(config: Config) -> dict[str, object]:
    """Fit, compare, generate, draw; returns the numbers."""
    launch.start(1)
    prepare(config.workdir)
    x = jnp.asarray(data.table(config.data)[:, :2], jnp.float32)
    key = jax.random.key(config.seed)
    find = functools.partial(em.fit, key, x, tol=config.tol, max_iters=1000)
    if config.book_start and config.num_components == 2 and config.data == "old_faithful":
        start = gmm.GMM(
            jnp.array([0.5, 0.5]), jnp.array([[0.0, 50.0], [0.0, 100.0]]), jnp.stack([jnp.eye(2)] * 2)
        )
        fit = find(2, init=start)
    else:
        fit = find(config.num_components, num_restarts=config.num_restarts)
        start = em.fit(key, x, config.num_components, max_iters=1).params
    step = em.compile_step(mesh=Mesh(np.array(jax.local_devices()), (keys.AXIS,)))
    params, history = start, []
    for _ in range(min(int(fit.num_iters), 60)):
        after, log_likelihood = step(params, x)
        history.append((params, float(log_likelihood)))
        params = after
    save_animation(config.workdir / "em.gif", np.asarray(x), history, config.labels)
    with plots.figure(config.workdir / "log_likelihood.png") as axes:
        axes.plot(fit.log_likelihood, marker=".")
        low, high = float(fit.log_likelihood[:2][-1]), float(fit.log_likelihood[-1])
        axes.set_ylim(low - 0.1 * (high - low) - 1e-3, high + 0.1 * (high - low) + 1e-3)
        title = f"EM on {config.data}, from {fit.log_likelihood[0]:.1f} at the start"
        axes.set(xlabel="iteration", ylabel="mean log-likelihood in nats a row", title=title)
    counts = range(1, config.max_components + 1)
    fits = [find(k, num_restarts=config.num_restarts).params for k in counts]
    both = jax.jit(lambda params: (gmm.bic(params, x), gmm.aic(params, x)))
    criteria = dict(zip(("BIC", "AIC"), np.array([both(each) for each in fits]).T.tolist(), strict=True))
    with plots.figure(config.workdir / "criteria.png") as axes:
        for name, values in criteria.items():
            axes.plot(list(counts), values, marker="o", label=name)
        axes.set(xlabel="components", ylabel="criterion in nats (lower is better)", xticks=list(counts))
        axes.legend()
    draw = jax.jit(gmm.sample, static_argnums=2)
    drawn, component = draw(jax.random.fold_in(key, 1), fit.params, config.num)
    with plots.figure(
        config.workdir / "generated.png", width=9, height=4.5, ncols=2, sharex=True, sharey=True
    ) as axes:
        axes[0].scatter(*x.T, s=8, color="gray")
        axes[1].scatter(*drawn.T, s=8, c=component, cmap="coolwarm")
        for axis, title in zip(
            axes, (f"{len(x):,} rows of {config.data}", f"{config.num:,} generated"), strict=True
        ):
            axis.set(title=title, xlabel=config.labels[0], ylabel=config.labels[1])
    summary = {
        "rows": len(x),
        "status": str(fit.status),
        "iterations": int(fit.num_iters),
        "log_likelihood_per_row": float(gmm.log_prob(fit.params, x).mean()),
        "weights": fit.params.weights.tolist(),
        "means": fit.params.means.tolist(),
        "bic": criteria["BIC"],
        "aic": criteria["AIC"],
        "components_by_bic": int(np.argmin(criteria["BIC"])) + 1,
    }
    lines = ["next: python experiments/step06_neural_network.py"]
    return launch.finish(config.workdir, summary, config=config, experiment="step05_em", lines=lines)


if __name__ == "__main__":
    launch.run(__file__)
