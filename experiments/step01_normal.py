"""Step 1: the normal distribution, and why it is everywhere: the sum of many small numbers is nearly normal.

    python experiments/step01_normal.py

About 10 seconds on two cores. Leaves in checkpoints/step01_normal/:

    density.png      p(x) = exp(-(x - mean)^2 / (2 std^2)) / sqrt(2 pi std^2) of the standard normal
    parameters.png   what mean and standard deviation do
    averages.png     means of n uniforms, with the normal of the limit (mean 1/2, variance 1/(12 n))
    sums.png         sums of n uniforms (mean n/2, variance n/12)
    summary.json     the greatest distance between the cdf of each sum and that of its normal: it falls with n
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import checks, launch, normal, plots
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, Seed

PARAMETERS = ((0.0, 1.0), (2.0, 1.0), (0.0, 0.5), (-1.0, 2.0))


@checks.checked
@dataclass(frozen=True)
class Config:
    """Draw the normal distribution, and the sums of uniforms that tend to it."""

    num_samples: Count = 100_000
    """Sums drawn for each n."""
    terms: tuple[Count, ...] = (1, 2, 4, 10)
    """How many uniforms go into a sum."""
    seed: Seed = 0
    workdir: Path = launch.ROOT / "checkpoints" / "step01_normal"


def distance(x: jax.Array, params: normal.Normal) -> float:
    """Kolmogorov's: the greatest distance between the empirical cdf of `x` and that of `params`."""
    n = len(x)
    cdf = normal.cdf(params, jnp.sort(x))
    steps = jnp.arange(n + 1) / n
    return float(jnp.maximum(jnp.abs(cdf - steps[1:]), jnp.abs(cdf - steps[:-1])).max())


def save_density(path: Path) -> None:
    """The density of the standard normal, with the share of each standard deviation."""
    standard, x = normal.Normal(jnp.zeros(()), jnp.ones(())), jnp.linspace(-5, 5, 501)
    with plots.figure(path) as axes:
        p = np.exp(normal.log_prob(standard, x))
        axes.plot(x, p, color="black")
        for k, shade in ((3, 0.12), (2, 0.2), (1, 0.35)):
            share = float(normal.interval(standard, -k, k))
            inside = np.abs(x) <= k
            axes.fill_between(
                x[inside], p[inside], alpha=shade, color="C0", label=f"within {k} std: {share:.2%}"
            )
        axes.set(xlabel="x", ylabel="density p(x)", title="the standard normal", ylim=(0, None))
        axes.legend()


def save_parameters(path: Path) -> None:
    """Densities for several parameters."""
    x = jnp.linspace(-7, 7, 701)
    with plots.figure(path) as axes:
        for mean, std in PARAMETERS:
            params = normal.Normal(jnp.asarray(mean), jnp.asarray(std))
            axes.plot(x, np.exp(normal.log_prob(params, x)), label=f"mean {mean:g}, std {std:g}")
        axes.set(xlabel="x", ylabel="density p(x)", title="mean moves, std spreads", ylim=(0, None))
        axes.legend()


def save_histograms(path: Path, drawn: dict[int, tuple[jax.Array, normal.Normal]], what: str) -> None:
    """A histogram for each n beside the normal of the same mean and variance."""
    with plots.figure(path, width=3 * len(drawn), height=3, ncols=len(drawn), squeeze=False) as axes:
        for axis, (n, (x, params)) in zip(axes[0], drawn.items(), strict=True):
            axis.hist(np.asarray(x), bins=60, density=True, alpha=0.5)
            grid = jnp.linspace(x.min(), x.max(), 200)
            axis.plot(grid, np.exp(normal.log_prob(params, grid)), color="C1")
            axis.set(title=f"n = {n}", xlabel=f"{what} of n uniforms")
        axes[0, 0].set_ylabel("density")


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


def main(config: Config) -> dict[str, object]:
    """Write the figures and return the distances."""
    launch.start(1)
    prepare(config.workdir)
    save_density(config.workdir / "density.png")
    save_parameters(config.workdir / "parameters.png")
    sums, averages, summary = {}, {}, {}
    for n in config.terms:
        key = jax.random.fold_in(jax.random.key(config.seed), n)
        total = jax.random.uniform(key, (config.num_samples, n)).sum(1)
        params = normal.Normal(jnp.asarray(n / 2), jnp.sqrt(n / 12))
        sums[n] = total, params
        averages[n] = total / n, normal.affine(params, 1 / n)
        summary[f"distance_to_normal_{n}"] = distance(total, params)
    save_histograms(config.workdir / "sums.png", sums, "sum")
    save_histograms(config.workdir / "averages.png", averages, "mean")
    lines = ["next: python experiments/step02_maximum_likelihood.py"]
    return launch.finish(config.workdir, summary, config=config, experiment="step01_normal", lines=lines)


if __name__ == "__main__":
    launch.run(__file__)
