"""The best solver and grid at few evaluations, against all of the peers': makes samplers/RECOMMENDED.md.

    python benchmarks/best_per_nfe.py             # about forty minutes on two cores
    python benchmarks/best_per_nfe.py --keep DIR  # goes on where it was stopped: what is done is kept there
    python benchmarks/best_per_nfe.py --smoke     # a minute, to see that it runs; writes nothing

With glibc, MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4000000000 before it makes it three times faster: the arrays of a
sampler's step are then not handed back to the kernel each time.

Three kinds of data whose denoiser is exact, so that all error is the solver's: a mixture in 2 dimensions, one in 64, and
1,000 digits of MNIST. The process is DDPM's, of 1,000 linear betas, which all peers know. All start from the same noise.

**The error** of a deterministic solver is the mean distance of its samples from the ends `X*` of the exact flow from
the same noise, a number: `E|X - X*| / sqrt(d)`. It bounds the Wasserstein distance of its samples from the data. That of
a stochastic solver is the energy distance from the data (Szekely & Rizzo 2013, Eq. 2.5), `D^2 = 2 E|X - Y| - E|X - X'| -
E|Y - Y'|`, less what the ends of the exact flow get, which have `D = 0`. Its own noise is in it, so small differences are
not to be seen; the two kinds are compared apart, and `D` is given of both.

**The search** is the same for ours and theirs: all solvers on all grids on few samples; the best of them again, with
grids that begin and end elsewhere, whose ends are then moved for as long as that helps; the best of these on four times
as many other samples; and the best of those on others still, many, whose errors are reported. The schedulers of diffusers
make their own grids.
"""

import argparse
import concurrent.futures
import datetime
import functools
import itertools
import multiprocessing
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from pages import commit, markdown
from peer_tables import Table, of_plan
from solver_settings import DIFFUSERS, PROCESS, Setting, at_ratio, k_diffusion, of_class, ours

from gen_jax import data, samplers
from gen_jax.diffusion import oracle
from gen_jax.gmm import GMM
from gen_jax.samplers import times

EVALUATIONS = (5, 6, 8, 10, 20)
STARTS = (1000.0, 850.0, 700.0)
"""Times at which a grid may begin, with noise alone."""
LEASTS = (1.0, 15.0, 50.0, 120.0)
"""Times at which the denoiser is asked last."""
MOVES = tuple(itertools.product((0.92, 1.0, 1.08), (0.7, 1.0, 1.4)))
"""Factors by which the two are moved."""
ROUNDS = 8
SOLVERS = 3
"""How many solvers of a side and kind are tried on grids that begin and end elsewhere."""
SHORTLIST = 24
"""How many settings of a side and kind are judged again: among many, few samples pick the luckiest, not the best."""
FINALISTS = 8
"""How many of these are measured."""
RESOLUTION = 1e-4
"""An error the default does not look below: of settings that end where the flow does, ratios say nothing."""
BLOCKS = 6


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


# --- the search ---


class Found(NamedTuple):
    """A setting and its error in the search, comparable among stochastic ones and among the others."""

    error: float
    setting: Setting


def fingerprint(table: Table) -> bytes:
    """The same for tables that are the same to rounding."""
    return np.round(np.concatenate([table.rows.ravel(), table.alpha]), 4).tobytes()


class Search:
    """Errors of settings on few samples, each table once."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.known = judge, {}

    def __call__(self, settings: list[Setting], nfe: int) -> list[Found]:
        """Best first."""
        found = []
        for setting in settings:
            table = setting.table(nfe)
            if table is None:
                continue
            key = fingerprint(table)
            if key not in self.known:
                self.known[key] = float(self.judge.errors(table).mean())
            found.append(Found(self.known[key], setting))
        return sorted(found, key=lambda each: each.error)


def best_few(found: list[Found], n: int, nfe: int) -> list[Setting]:
    """The first `n` of different errors that are deterministic, and as many that are not."""
    chosen: dict[bool, dict[float, Setting]] = {False: {}, True: {}}
    for error, setting in found:
        few = chosen[is_stochastic(setting, nfe)]
        if len(few) < n:
            few.setdefault(round(error, 9), setting)
    return [*chosen[False].values(), *chosen[True].values()]


def is_stochastic(setting: Setting, nfe: int) -> bool:
    """Whether its table draws noise."""
    table = setting.table(nfe)
    return table is not None and table.stochastic


def further(search: Search, found: list[Found], nfe: int) -> list[Found]:
    """The best solvers of a search again, on grids that begin and end elsewhere."""
    ends = list(itertools.product(STARTS, LEASTS))
    more = [
        new
        for old in best_solvers(found, nfe)
        if old.elsewhere
        for end in ends
        for new in old.elsewhere(*end)
    ]
    found = sorted(found + search(more, nfe), key=lambda each: each.error)
    moved = [one for old in best_solvers(found, nfe) if old.ends for one in refined(search, old, nfe)]
    return sorted(found + moved, key=lambda each: each.error)


def refined(search: Search, setting: Setting, nfe: int) -> list[Found]:
    """Its ends moved to where the error is least."""
    tried: list[Found] = []
    best = search([setting], nfe)[0]
    for _ in range(ROUNDS):
        assert best.setting.ends is not None
        (start, least), same = best.setting.ends, best.setting.family
        moved = [(min(start * a, 1000.0), max(least * b, 1.0)) for a, b in MOVES]
        new = [s for end in moved if end[1] < end[0] for s in setting.elsewhere(*end) if s.family == same]
        tried += search(new, nfe)
        better = min(tried, key=lambda each: each.error, default=best)
        if better.error >= best.error:
            break
        best = better
    return tried


def best_solvers(found: list[Found], nfe: int) -> list[Setting]:
    """The best setting of each of the best solvers that have a choice of grids, of both kinds."""
    best: dict[bool, dict[str, Setting]] = {False: {}, True: {}}
    for each in found:
        solvers = best[is_stochastic(each.setting, nfe)]
        if each.setting.elsewhere is not None and len(solvers) < SOLVERS:
            solvers.setdefault(each.setting.solver, each.setting)
    return [*best[False].values(), *best[True].values()]


class Error(NamedTuple):
    """A setting and its errors, measured, of each block."""

    setting: Setting
    squared: np.ndarray
    """`D^2`."""
    distances: np.ndarray | None
    """From the ends of the exact flow; None for a stochastic solver."""

    @property
    def error(self) -> np.ndarray:
        """What it is compared by."""
        return self.squared if self.distances is None else self.distances

    def __str__(self) -> str:
        squared, error = mean_and_error(self.squared)
        distance = max(squared, 0.0) ** 0.5
        return f"{distance:.4f} ± {min(error / (2 * distance), error**0.5) if distance else error**0.5:.4f}"


def mean_and_error(blocks: np.ndarray) -> tuple[float, float]:
    """Mean, and its standard error."""
    return float(blocks.mean()), float(blocks.std(ddof=1) / len(blocks) ** 0.5)


def measured(judge: Judge, settings: list[Setting], nfe: int) -> list[Error]:
    """Errors on many samples, best first."""
    errors = []
    for setting in settings:
        table = setting.table(nfe)
        if table is not None:
            distances = None if table.stochastic else judge.distances(table)
            errors.append(Error(setting, judge.squared(table), distances))
    return sorted(errors, key=lambda each: each.error.mean())


def ratio_of(a: Error, b: Error) -> tuple[float, float]:
    """Of the distances of two deterministic solvers, and its standard error by the jackknife over blocks."""

    def over(keep: np.ndarray) -> float:
        ours, theirs = a.error[keep].mean(), b.error[keep].mean()
        return 1.0 if ours == theirs else float(np.divide(ours, theirs))  # 1 where both end as the flow does

    blocks = np.arange(len(a.error))
    left_out = np.array([over(blocks != i) for i in blocks])
    spread = (len(blocks) - 1) * ((left_out - left_out.mean()) ** 2).mean()
    return float(over(blocks >= 0)), float(np.sqrt(spread))


class Compared(NamedTuple):
    """What was found for one kind of data and one number of evaluations; by whether it is stochastic, best first."""

    ours: dict[bool, list[Error]]
    peers: dict[bool, list[Error]]
    shortlist: list[Found]
    """Of ours."""


class Data(NamedTuple):
    """A kind of data, the two searches, of few samples and of more, and the judge of many."""

    problem: Problem
    first: Search
    second: Search
    judge: Judge


def compare(kind: Data, groups: dict[str, list[Setting]], nfe: int) -> Compared:
    """Searches on few samples, judges the best again on more, and measures the best of these on many."""
    best: dict[str, list[Found]] = {}
    for side, settings in groups.items():
        found = further(kind.first, kind.first(settings, nfe), nfe)
        best[side] = kind.second(best_few(found, SHORTLIST, nfe), nfe)
    theirs = sorted(best["diffusers"] + best["k-diffusion"], key=lambda each: each.error)

    def apart(found: list[Found]) -> dict[bool, list[Error]]:
        errors = measured(kind.judge, best_few(found, FINALISTS, nfe), nfe)
        return {noisy: [e for e in errors if (e.distances is None) == noisy] for noisy in (False, True)}

    return Compared(apart(best["ours"]), apart(theirs), best["ours"])


def default(problems: list[Data], found: dict[str, Compared], nfe: int) -> list[tuple]:
    """Deterministic settings of ours by their worst ratio over all data, best first: `(worst, ratios, setting)`."""
    shortlists = [s for each in found.values() for _, s in each.shortlist if not is_stochastic(s, nfe)]
    union = {str(s): s for s in shortlists}
    worst = dict.fromkeys(union, 0.0)
    for kind in problems:
        errors = kind.second(list(union.values()), nfe)
        least = errors[0].error + RESOLUTION
        for error, setting in errors:
            worst[str(setting)] = max(worst[str(setting)], (error + RESOLUTION) / least)
    rows = []
    for setting in (union[name] for name in sorted(worst, key=lambda name: worst[name])[:FINALISTS]):
        errors = [
            (measured(d.judge, [setting], nfe)[0], found[d.problem.name].peers[False][0]) for d in problems
        ]
        ratios = [ratio_of(*pair) for pair in errors]
        rows.append((max(r for r, _ in ratios), ratios, setting))
    return sorted(rows, key=lambda row: row[0])


# --- the page ---

PAGE = """# Which solver and grid to take at few evaluations

Made by `python benchmarks/best_per_nfe.py` on {date}, from commit {commit}, in {minutes:.0f} minutes of one core,
against diffusers {diffusers} and k-diffusion 0.1.1.post1. Data whose denoiser is exact, so that all error is the
solver's; the process is `DDPM()`. The error of deterministic solvers is the mean distance of a sample from the end of
the exact flow from the same noise, over `sqrt(d)`; it bounds the Wasserstein distance from the data. `D` is the energy
distance from the data, what stochastic solvers are compared by, with the standard error over {blocks} blocks of samples
({sizes} in each, for the three kinds of data). A ratio below 1, a difference below 0: ours is nearer. Solvers and grids
were chosen on other samples than those they are measured on.

Peers are run by their own code, at all their settings (`benchmarks/solver_settings.py`), k-diffusion on the same grids
as ours. Settings that can be run at 10 evaluations: {settings}.
The denoiser is asked at their own `sigma`, where a scheduler rounds it for the network. Left out, as it has no fixed
number of evaluations: `sample_dpm_adaptive`. Grids are `times.*`, or nodes even in a function of time between the two
times given, and then 0: `karras(rho)` in `(sigma / alpha)^(1 / rho)`, `exponential(p)` as
`get_sigmas_polyexponential` (`times.exponential`), `time^p` in that power of `t` (`times.power`), `angle` in
`arctan(sigma / alpha)` (`times.cosine`). `leading` is `1 + k (1000 // n)`, `leading(n + 1)` the same for one step more,
without its last time (`times.leading(skip=1)`).

## To take

By number of evaluations, the deterministic solver and grid whose worst ratio to the peers' best of each kind of data is
least. The peers' best is another setting for each; this is one for all. `samplers.recommended` returns it.

{defaults}

Their times, of `DDPM()` (`samplers.UniPC(2).plan(proc, np.array([...]))`):

{nodes}

Their `sigma / alpha`, for any process (`np.append(process.at_log_snr(proc, -2 * np.log(sigmas)), 0)` is the grid):

{sigmas}

## Best of each kind of data

{verdict}

{tables}
"""


HEADS = {
    False: ["evaluations", "ours", "error", "D", "peers", "error", "D", "ratio of errors"],
    True: ["evaluations", "ours", "D", "peers", "D", "difference of D^2"],
}


def compared_row(nfe: int, found: Compared, stochastic: bool) -> tuple[list[str], bool]:
    """One row of the tables by data, and whether ours is at least as good, within two standard errors."""
    ours, peer = found.ours[stochastic][0], found.peers[stochastic][0]
    cells = lambda each: [str(each)] if stochastic else [f"{each.error.mean():.4f}", str(each)]
    if stochastic:
        value, error = mean_and_error(ours.squared - peer.squared)
        said, good = f"{value:+.1e} ± {error:.0e}", value <= 2 * error
    else:
        value, error = ratio_of(ours, peer)
        said, good = f"{value:.3f} ± {error:.3f}", value <= 1 + 2 * error
    theirs = f"{peer.setting.side}: `{peer.setting}`"
    return [str(nfe), f"`{ours.setting}`", *cells(ours), theirs, *cells(peer), said], bool(good)


class Result(NamedTuple):
    """What is said of one number of evaluations."""

    nfe: int
    rows: dict[tuple[str, bool], tuple[list[str], bool]]
    """By data and whether the solvers are stochastic, those of the tables, and whether ours is as good."""
    default: list[str]
    nodes: list[float]
    sigmas: list[float]
    counted: str
    log: str
    seconds: float


def sigmas_of(setting: Setting, nfe: int) -> list[float]:
    """`sigma / alpha` where a setting asks."""
    table = setting.table(nfe)
    assert table is not None
    return [float(f"{ratio:.4g}") for ratio in table.sigma / table.alpha]


def counted(groups: dict[str, list[Setting]], nfe: int) -> str:
    """How many settings of each side were run, and the solvers none of whose settings could be."""
    said = []
    for side, settings in groups.items():
        ran = [s for s in settings if s.table(nfe) is not None]
        idle = sorted({s.solver for s in settings} - {s.solver for s in ran})
        without = f" (none of {', '.join(idle)})" if idle else ""
        said.append(f"{side} {len(ran)} of {len(settings)}{without}")
    return ", ".join(said)


@functools.cache
def problems_of(smoke: bool) -> list[Data]:
    """The data, and the judges of the search and of what it finds."""
    problems, found = [two(), sixty_four()] if smoke else [two(), sixty_four(), mnist()], []
    for p in problems:
        check_denoiser(p)
        searches = [Search(Judge(p, seed, 1, size)) for seed, size in ((1, p.few), (3, 4 * p.few))]
        found.append(Data(p, *searches, Judge(p, 2, BLOCKS, p.few if smoke else p.many)))
    return found


@functools.cache
def groups_of(smoke: bool) -> dict[str, list[Setting]]:
    """All settings, by side."""
    classes = ("DDIM", "DEISMultistep", "EulerDiscrete") if smoke else DIFFUSERS
    return {
        "ours": [s for s in ours() if not smoke or s.solver in ("DDIM()", "UniPC(2)", "DDPM()")],
        "diffusers": [s for name in classes for s in of_class(name)],
        "k-diffusion": [s for s in k_diffusion() if not smoke or s.solver in ("sample_euler", "sample_heun")],
    }


def result(nfe: int, smoke: bool = False) -> Result:
    """Everything about one number of evaluations."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    began, spent = time.monotonic(), time.process_time()
    lines, found, rows = [], {}, {}
    problems = problems_of(smoke)
    for kind in problems:
        p = kind.problem
        found[p.name] = compare(kind, groups_of(smoke), nfe)
        for stochastic in (False, True):
            row, good = rows[p.name, stochastic] = compared_row(nfe, found[p.name], stochastic)
            lines.append(" | ".join([p.name, *row]))
            for each in found[p.name].ours[stochastic] + found[p.name].peers[stochastic]:
                lines.append(f"    {each.error.mean():.6f} {each} {each.setting.side}: {each.setting}")
            print(f"{time.monotonic() - began:.0f} s", p.name, *row, good, sep=" | ", flush=True)
    ranked = default(problems, found, nfe)
    for worst, ratios, setting in ranked:
        said = ", ".join(f"{r:.3f} ± {e:.3f}" for r, e in ratios)
        lines.append(f"    default {worst:.3f} ({said}) {setting}")
    _, ratios, best = ranked[0]
    row = [str(nfe), f"`{best}`", *(f"{r:.3f} ± {e:.3f}" for r, e in ratios)]
    sigmas = sigmas_of(best, nfe)
    nodes = [*(round(float(t), 1) for t in at_ratio(np.array(sigmas))), 0.0]
    ran = counted(groups_of(smoke), nfe)
    return Result(nfe, rows, row, nodes, sigmas, ran, "\n".join(lines), time.process_time() - spent)


def kept_result(nfe: int, folder: Path | None) -> Result:
    """`result`, from the folder where an earlier run of this commit has left it there."""
    path = folder and folder / f"{commit()}-{nfe}.pickle"
    if path and path.exists():
        return pickle.loads(path.read_bytes())
    found = result(nfe)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(found))
    return found


def page(results: list[Result], smoke: bool = False) -> str:
    """All of it."""
    import diffusers

    names = list(dict.fromkeys(name for name, _ in results[0].rows))
    tables = [
        f"### {name}, {'stochastic' if noisy else 'deterministic'} solvers\n\n"
        + markdown([HEADS[noisy], *(r.rows[name, noisy][0] for r in results)])
        for name, noisy in results[0].rows
    ]
    good = {noisy: [g for r in results for (_, n), (_, g) in r.rows.items() if n == noisy] for noisy in HEADS}
    verdict = (
        f"Ours is at least as near as the best of the peers, within two standard errors, in "
        f"{sum(good[False])} of {len(good[False])} cases with deterministic solvers and in {sum(good[True])} of "
        f"{len(good[True])} with stochastic ones."
    )
    return PAGE.format(
        date=datetime.date.today(),
        commit=commit(),
        minutes=sum(r.seconds for r in results) / 60,
        diffusers=diffusers.__version__,
        blocks=BLOCKS,
        defaults=markdown([["evaluations", "solver, grid", *names], *(r.default for r in results)]),
        nodes="\n".join(f"- {r.nfe}: `{r.nodes}`" for r in results),
        sigmas="\n".join(f"- {r.nfe}: `{r.sigmas}`" for r in results),
        settings=next((r.counted for r in results if r.nfe == 10), results[0].counted),
        sizes=", ".join(f"{kind.judge.size:,}" for kind in problems_of(smoke)),
        tables="\n\n".join(tables),
        verdict=verdict,
    )


def main() -> None:
    """Searches, measures and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="a few solvers and samples, and no page")
    parser.add_argument("--keep", type=Path, help="where results of this commit are kept, to go on from")
    args, results = parser.parse_args(), []
    if args.smoke:
        print(page([result(5, args.smoke)], args.smoke))
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        jobs = [pool.submit(kept_result, nfe, args.keep) for nfe in sorted(EVALUATIONS, reverse=True)]
        for job in concurrent.futures.as_completed(jobs):
            results.append(job.result())
            print(results[-1].log, flush=True)
    path = Path(samplers.__file__).with_name("RECOMMENDED.md")
    path.write_text(page(sorted(results, key=lambda r: r.nfe)))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
