"""Step 2: a generative model of heights: fit a normal to data by maximum likelihood, then draw new data from it.

    python experiments/step02_maximum_likelihood.py
    python experiments/step02_maximum_likelihood.py --data my_heights.csv --at-most 160 --more-than 180

    mean = sum_n x_n / N      std^2 = sum_n (x_n - mean)^2 / N

About 10 seconds on two cores. The embedded data are the heights of 3,000 men (Macdonell 1902), in cm, in classes
of one inch. Leaves in checkpoints/step02_maximum_likelihood/: histogram.png, fit.png, generated.png, and summary.json
with the fit, the log-likelihood per row in nats, and P(x <= 160), P(x > 180) of the model and of the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import checks, data, launch, normal, plots
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, Number, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Fit a normal to one column of numbers and generate more of them."""

    data: str = "heights"
    """Name of an embedded table, or a txt or csv file; its first column is used."""
    label: str = "height in cm"
    """What the numbers are, for the axes."""
    at_most: Number = 160.0
    """P(x <= this) is reported."""
    more_than: Number = 180.0
    """P(x > this) is reported."""
    num: Count = 10_000
    """How many to generate."""
    seed: Seed = 0
    workdir: Path = launch.ROOT / "checkpoints" / "step02_maximum_likelihood"


def bin_edges(x: np.ndarray) -> np.ndarray:
    """One bin for each value if there are few, such as heights to the inch: other bins would give a false pattern."""
    values = np.unique(x)
    if not 2 <= len(values) <= 50:
        return np.histogram_bin_edges(x, bins="auto")
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([[2 * values[0] - middle[0]], middle, [2 * values[-1] - middle[-1]]])


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def main(config: Config) -> dict[str, object]:
    """Fit, generate, draw; returns the numbers."""
    launch.start(1)
    prepare(config.workdir)
    x = data.table(config.data)[:, 0]
    params: Any = normal.fit(x)  # float64, of which no digit is lost
    generated = np.asarray(normal.sample(jax.random.key(config.seed), params, config.num))
    grid = jnp.linspace(x.min() - 2 * x.std(), x.max() + 2 * x.std(), 400)
    density = np.exp(normal.log_prob(params, grid))
    bins = bin_edges(x)
    pictures = {
        "histogram": [("data", x)],
        "fit": [("data", x)],
        "generated": [("data", x), (f"{config.num:,} generated", generated)],
    }
    for name, histograms in pictures.items():
        with plots.figure(config.workdir / f"{name}.png") as axes:
            for label, values in histograms:
                axes.hist(values, bins=bins, density=True, alpha=0.5, label=label)
            if name != "histogram":
                axes.plot(grid, density, color="black", label=f"N({params.mean:.2f}, {params.std:.2f}²)")
            axes.set(xlabel=config.label, ylabel="density", title=f"{len(x):,} rows of {config.data}")
            axes.legend()
    summary = {
        "rows": len(x),
        "mean": float(params.mean),
        "std": float(params.std),
        "log_likelihood_per_row": float(normal.log_prob(params, jnp.asarray(x)).mean()),
        f"model_P(x<={config.at_most:g})": float(normal.cdf(params, config.at_most)),
        f"data_P(x<={config.at_most:g})": float(np.mean(x <= config.at_most)),
        f"model_P(x>{config.more_than:g})": float(normal.interval(params, config.more_than, jnp.inf)),
        f"data_P(x>{config.more_than:g})": float(np.mean(x > config.more_than)),
    }
    lines = ["next: python experiments/step03_multivariate_normal.py"]
    return launch.finish(
        config.workdir, summary, config=config, experiment="step02_maximum_likelihood", lines=lines
    )


if __name__ == "__main__":
    launch.run(__file__)
