"""Step 3: the normal distribution in two dimensions: heights and weights, and how to predict one from the other.

    python experiments/step03_multivariate_normal.py
    python experiments/step03_multivariate_normal.py --data my_table.csv --labels "height in cm" "weight in kg"

    p(x) = exp(-(x - mean)^T cov^-1 (x - mean) / 2) / sqrt(det(2 pi cov))

About 15 seconds on two cores. The embedded data are 247 physically active men (Heinz et al. 2003). Leaves in
checkpoints/step03_multivariate_normal/: surface.png and contour.png (the density for some covariances), data.png, fit.png
(data, contours of the fit, and the conditional mean of the second variable given the first), and summary.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import checks, data, launch, normal, plots
from gen_jax.normal import MultivariateNormal
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, Seed

COVARIANCES = {
    "independent": [[1.0, 0.0], [0.0, 1.0]],
    "stretched": [[2.0, 0.0], [0.0, 0.5]],
    "correlated": [[1.0, 0.8], [0.8, 1.0]],
}


@checks.checked
@dataclass(frozen=True)
class Config:
    """Fit a normal to two columns of numbers."""

    data: str = "height_weight"
    """Name of an embedded table, or a txt or csv file; its first two columns are used."""
    labels: tuple[str, str] = ("height in cm", "weight in kg")
    num: Count = 500
    """How many to generate."""
    seed: Seed = 0
    workdir: Path = launch.ROOT / "checkpoints" / "step03_multivariate_normal"


def on_grid(params: MultivariateNormal, low, high, size: int = 120):
    """A grid between two corners and the density on it."""
    x, y = np.meshgrid(np.linspace(low[0], high[0], size), np.linspace(low[1], high[1], size))
    return x, y, np.exp(normal.log_prob(params, jnp.stack([x, y], axis=-1)))


def save_densities(workdir: Path) -> None:
    """surface.png and contour.png."""
    several = {"ncols": len(COVARIANCES), "width": 4 * len(COVARIANCES), "height": 4, "squeeze": False}
    grids = {
        name: on_grid(MultivariateNormal(jnp.zeros(2), jnp.array(cov)), (-4, -4), (4, 4))
        for name, cov in COVARIANCES.items()
    }
    with plots.figure(workdir / "surface.png", subplot_kw={"projection": "3d"}, **several) as axes:
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            axis.plot_surface(*grid, cmap="viridis")
            axis.set(
                title=f"{name}: cov = {COVARIANCES[name]}", xlabel="$x_1$", ylabel="$x_2$", zlabel="density"
            )
    with plots.figure(workdir / "contour.png", **several) as axes:
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            axis.contour(*grid)
            axis.set(
                title=f"{name}: cov = {COVARIANCES[name]}", xlabel="$x_1$", ylabel="$x_2$", aspect="equal"
            )


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def main(config: Config) -> dict[str, object]:
    """Fit, condition, generate, draw; returns the numbers."""
    launch.start(1)
    prepare(config.workdir)
    x = data.table(config.data)[:, :2]
    params = normal.fit(x)  # float64, of which no digit is lost
    if not isinstance(params, MultivariateNormal) or x.shape[1] != 2:
        raise ValueError(f"Expected a table of at least two columns, got {config.data} with {x.shape[1]}.")
    generated = np.asarray(normal.sample(jax.random.key(config.seed), params, config.num))
    save_densities(config.workdir)
    with plots.figure(config.workdir / "data.png", width=5, height=5) as axes:
        axes.scatter(*x.T, s=8)
        axes.set(xlabel=config.labels[0], ylabel=config.labels[1], title=f"{len(x):,} rows of {config.data}")
    margin = 0.2 * np.ptp(x, axis=0)
    low, high = x.min(0) - margin, x.max(0) + margin
    firsts = jnp.linspace(low[0], high[0], 50)
    second = jax.vmap(lambda value: normal.conditional(params, (0,), value[None]))(firsts)
    middle, spread = np.asarray(second.mean[:, 0]), 2 * np.sqrt(second.cov[:, 0, 0])
    with plots.figure(config.workdir / "fit.png", width=6, height=5.5) as axes:
        axes.scatter(*x.T, s=8, label="data")
        axes.scatter(*generated.T, s=4, alpha=0.5, label=f"{config.num:,} generated")
        axes.contour(*on_grid(params, low, high), colors="black", linewidths=0.7)
        axes.plot(firsts, middle, color="C3", label="mean of the second, given the first")
        axes.fill_between(
            firsts, middle - spread, middle + spread, color="C3", alpha=0.12, label="two standard deviations"
        )
        axes.set(xlabel=config.labels[0], ylabel=config.labels[1], title="maximum likelihood")
        axes.legend()
    correlation = params.cov[0, 1] / jnp.sqrt(params.cov[0, 0] * params.cov[1, 1])
    summary = {
        "rows": len(x),
        "mean": params.mean.tolist(),
        "cov": params.cov.tolist(),
        "correlation": float(correlation),
        "log_likelihood_per_row": float(normal.log_prob(params, jnp.asarray(x)).mean()),
    }
    lines = ["next: python experiments/step04_gaussian_mixture.py"]
    return launch.finish(
        config.workdir, summary, config=config, experiment="step03_multivariate_normal", lines=lines
    )


if __name__ == "__main__":
    launch.run(__file__)
