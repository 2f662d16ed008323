"""Data whose denoiser is exact, and the error of a solver's table on them, in torch: what `best_per_nfe` measures."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from peer_tables import Table, of_plan
from solver_settings import PROCESS

from gen_jax import data, samplers
from gen_jax.diffusion import oracle
from gen_jax.gmm import GMM
from gen_jax.samplers import times

# --- data ---


class Problem(NamedTuple):
    """Data with an exact denoiser, in torch."""

    name: str
    dims: int
    denoise: Callable[[torch.Tensor, float, float], torch.Tensor]
    draw: Callable[[torch.Generator, int], torch.Tensor]
    """Exact samples."""
    exact: Any
    """The same denoiser by `gen_jax.diffusion.oracle`, to check this one by."""
    few: int
    """Samples that solvers are chosen by."""
    many: int
    """Samples in each of the blocks that errors are measured on."""
    dtype: torch.dtype = torch.float64


def mixture(
    name: str, weights: np.ndarray, means: np.ndarray, covs: np.ndarray, few: int, many: int
) -> Problem:
    """A Gaussian mixture."""
    params = GMM(*(jnp.asarray(v, jnp.float32) for v in (weights, means, covs)))
    log_weights, centres = torch.tensor(np.log(weights)), torch.tensor(means)
    values, vectors = torch.linalg.eigh(torch.tensor(covs))

    def denoise(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        variance = (alpha**2 * values + sigma**2)[:, None]
        z = (x[None] - alpha * centres[:, None]) @ vectors
        log_joint = log_weights[:, None] - (z**2 / variance + variance.log()).sum(-1) / 2
        each = centres[:, None] + (z * alpha * values[:, None] / variance) @ vectors.mT
        return (log_joint.softmax(0)[..., None] * each).sum(0)

    def draw(generator: torch.Generator, n: int) -> torch.Tensor:
        k = torch.multinomial(torch.tensor(weights), n, replacement=True, generator=generator)
        z = torch.randn(n, means.shape[1], generator=generator, dtype=torch.float64)
        return centres[k] + (vectors[k] @ (values[k].sqrt() * z)[..., None])[..., 0]

    return Problem(name, means.shape[1], denoise, draw, oracle.mixture(params, PROCESS), few, many)


def two() -> Problem:
    """A mixture in 2 dimensions."""
    weights = np.array([0.2, 0.5, 0.3])
    means = np.array([[-1.0, 0.5], [1.0, 0.8], [0.2, -1.2]])
    covs = np.array([[[0.05, 0.02], [0.02, 0.1]], [[0.2, -0.05], [-0.05, 0.08]], [[0.03, 0.0], [0.0, 0.25]]])
    return mixture("2-D mixture", weights, means, covs, 1024, 3072)


def sixty_four() -> Problem:
    """A mixture in 64 dimensions, with variances that fall as `1 / k` along the axes of each component."""
    rng = np.random.default_rng(64)
    weights, means = rng.dirichlet(np.full(8, 5.0)), 0.4 * rng.normal(size=(8, 64))
    axes = np.linalg.qr(rng.normal(size=(8, 64, 64)))[0]
    covs = (axes * (0.5 / np.arange(1, 65))) @ axes.swapaxes(1, 2)
    return mixture("64-D mixture", weights, means, covs, 256, 4096)


def mnist() -> Problem:
    """The first 1,000 digits of MNIST."""
    images = np.asarray(data.load("mnist", split="train")["image"][:1000], np.float32) / 127.5 - 1
    points = torch.from_numpy(images.reshape(1000, -1))
    norms = (points.double() ** 2).sum(1).float()

    def denoise(x: torch.Tensor, alpha: float, sigma: float) -> torch.Tensor:
        logits = (alpha / sigma**2) * (x @ points.T - (alpha / 2) * norms)
        return logits.softmax(1) @ points

    draw = lambda generator, n: points  # all there is
    return Problem(
        "MNIST-1000", 784, denoise, draw, oracle.empirical(images, PROCESS), 96, 500, torch.float32
    )


def check_denoiser(problem: Problem) -> None:
    """That the denoiser in torch is the library's."""
    x = torch.randn(16, problem.dims, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for t in (1.0, 30.0, 300.0, 1000.0):
        alpha, sigma = float(PROCESS.alpha(np.float64(t))), float(PROCESS.sigma(np.float64(t)))
        x_t = alpha * problem.draw(torch.Generator().manual_seed(4), 16)[:16].double() + sigma * x
        want = problem.exact(jnp.asarray(x_t.numpy(), jnp.float32), jnp.float32(t))
        got = problem.denoise(x_t.to(problem.dtype), alpha, sigma)
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


# --- running a table, and its error ---


@functools.cache
def exact_flow() -> Table:
    """80 evaluations of order 4."""
    with jax.enable_x64(True):
        return of_plan(samplers.UniPC(3).plan(PROCESS, times.log_snr(PROCESS, 80)), PROCESS)


class Judge:
    """Starts, noise, the ends of the exact flow and exact samples, in blocks; and the error of a table on them."""

    def __init__(self, problem: Problem, seed: int, blocks: int, size: int) -> None:
        self.problem, self.blocks, self.size, self.seed = problem, blocks, size, seed
        self.start = self._draw(0)
        count = 8192 if blocks * size > problem.few else 1024
        self.exact_samples = problem.draw(torch.Generator().manual_seed(seed), count)
        self.flow = self.run(exact_flow())
        self.of_flow = self._energy(self.flow)

    @functools.lru_cache(maxsize=64)  # noqa: B019 - as many as a table has, and a judge lives as long as they do
    def _draw(self, k: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + k)
        shape = self.blocks * self.size, self.problem.dims
        return torch.randn(shape, generator=generator, dtype=self.problem.dtype)

    def run(self, table: Table) -> torch.Tensor:
        """The samples of a table."""
        known, rows = [self.start], torch.from_numpy(table.rows).to(self.problem.dtype)
        noises = [self._draw(1 + j) for j in range(table.rows.shape[1] - 1 - table.nfe)]

        def combined(row: torch.Tensor) -> torch.Tensor:
            coefficients = [*row[: len(known)], *row[1 + table.nfe :]]
            terms = [(float(c), v) for c, v in zip(coefficients, known + noises, strict=True) if c != 0]
            out = torch.zeros_like(self.start)
            for c, v in terms:
                out.add_(v, alpha=c)
            return out

        for row, alpha, sigma in zip(rows[:-1], table.alpha, table.sigma, strict=True):
            known.append(self.problem.denoise(combined(row), float(alpha), float(sigma)))
        return combined(rows[-1])

    def _energy(self, x: torch.Tensor) -> np.ndarray:
        """`2 E|X - Y| - E|X - X'|` of each block."""
        found = []
        for block in x.split(self.size):
            across = torch.cdist(block, self.exact_samples).double().mean()
            within = torch.cdist(block, block).fill_diagonal_(0).double().sum() / (
                len(block) * (len(block) - 1)
            )
            found.append(float(2 * across - within))
        return np.array(found)

    def squared(self, table: Table) -> np.ndarray:
        """`D^2` of each block, without bias, so it may fall below 0."""
        x = self.run(table)
        return self._energy(x) - self.of_flow if x.isfinite().all() else np.full(self.blocks, np.inf)

    def distances(self, table: Table) -> np.ndarray:
        """Mean distance from the ends of the exact flow, a number, of each block."""
        each = (self.run(table) - self.flow).double().square().mean(1).sqrt()
        return np.nan_to_num(each.reshape(self.blocks, self.size).mean(1).numpy(), nan=np.inf)

    def errors(self, table: Table) -> np.ndarray:
        """`squared` of a stochastic table, `distances` of another."""
        return self.squared(table) if table.stochastic else self.distances(table)
