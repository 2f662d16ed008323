"""Step 4: data that no single normal fits: the Gaussian mixture, its density and its samples.

    python experiments/step04_gaussian_mixture.py

    p(x) = sum_k weights_k N(x; means_k, covs_k)        draw z ~ weights, then x ~ N(means_z, covs_z)

About 10 seconds on two cores. The embedded data are 272 eruptions of Old Faithful (Azzalini & Bowman 1990). The
parameters are chosen by eye; step 5 finds better ones. Leaves in
checkpoints/step04_gaussian_mixture/: data.png, surface.png, contour.png, samples.png and summary.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import checks, data, gmm, launch, normal, plots
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Draw data, density and samples of a mixture of two normals."""

    data: str = "old_faithful"
    """Name of an embedded table, or a txt or csv file; its first two columns are used."""
    labels: tuple[str, str] = ("eruption in minutes", "waiting time in minutes")
    num: Count = 500
    """How many to draw."""
    seed: Seed = 0
    workdir: Path = launch.ROOT / "checkpoints" / "step04_gaussian_mixture"


def by_hand() -> gmm.GMM:
    """Short eruptions after short waits, and long ones after long waits: two thirds are long."""
    return gmm.GMM(
        weights=jnp.array([0.35, 0.65]),
        means=jnp.array([[2.0, 54.5], [4.3, 80.0]]),
        covs=jnp.array([[[0.07, 0.44], [0.44, 33.7]], [[0.17, 0.94], [0.94, 36.0]]]),
    )


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def main(config: Config) -> dict[str, object]:
    """Draw the figures; returns the numbers."""
    launch.start(1)
    prepare(config.workdir)
    x = data.table(config.data)[:, :2].astype(np.float32)
    params = by_hand()
    one = normal.fit(x)
    margin = 0.15 * np.ptp(x, axis=0)
    low, high = x.min(0) - margin, x.max(0) + margin
    grid = np.meshgrid(np.linspace(low[0], high[0], 120), np.linspace(low[1], high[1], 120))
    points = jnp.stack([*grid], axis=-1).reshape(-1, 2).astype(x.dtype)
    density = np.exp(gmm.log_prob(params, points)).reshape(grid[0].shape)
    drawn, component = gmm.sample(jax.random.key(config.seed), params, config.num)
    names = {"xlabel": config.labels[0], "ylabel": config.labels[1]}
    limits = {"xlim": (low[0], high[0]), "ylim": (low[1], high[1])}
    with plots.figure(config.workdir / "data.png", width=5, height=5) as axes:
        axes.scatter(*x.T, s=8)
        axes.set(title=f"{len(x):,} rows of {config.data}", **names, **limits)
    with plots.figure(
        config.workdir / "surface.png", width=6, height=5, subplot_kw={"projection": "3d"}
    ) as axes:
        axes.plot_surface(*grid, density, cmap="viridis")
        axes.set(zlabel="density", title="a mixture of two normals", **names)
    with plots.figure(config.workdir / "contour.png", width=5, height=5) as axes:
        axes.scatter(*x.T, s=8, alpha=0.5, label="data")
        axes.contour(*grid, density, colors="black", linewidths=0.7)
        axes.set(title="density of the mixture", **names, **limits)
        axes.legend()
    with plots.figure(config.workdir / "samples.png", width=5, height=5) as axes:
        for k in range(len(params.weights)):
            axes.scatter(*np.asarray(drawn)[np.asarray(component) == k].T, s=8, label=f"z = {k}")
        axes.set(title=f"{config.num:,} samples and where they come from", **names, **limits)
        axes.legend()
    summary = {
        "rows": len(x),
        "log_likelihood_per_row_of_the_mixture": float(gmm.log_prob(params, x).mean()),
        "log_likelihood_per_row_of_one_normal": float(normal.log_prob(one, x).mean()),
        "share_of_samples_from_each_component": (np.bincount(component, minlength=2) / config.num).tolist(),
    }
    lines = ["next: python experiments/step05_em.py"]
    return launch.finish(
        config.workdir, summary, config=config, experiment="step04_gaussian_mixture", lines=lines
    )


if __name__ == "__main__":
    launch.run(__file__)
