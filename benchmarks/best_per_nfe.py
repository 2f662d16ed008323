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
import multiprocessing
import pickle
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from exact_problems import Judge, check_denoiser, mnist, sixty_four, two
from pages import commit, markdown
from setting_search import Compared, Data, Search, compare, default, mean_and_error, ratio_of
from solver_settings import DIFFUSERS, Setting, at_ratio, k_diffusion, of_class, ours

from gen_jax import samplers

EVALUATIONS = (5, 6, 8, 10, 20)
BLOCKS = 6

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
