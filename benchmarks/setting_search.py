"""The search of `best_per_nfe`: which of many settings of solvers and grids has the least error, ours and the peers'."""

import itertools
from typing import NamedTuple

import numpy as np
from exact_problems import Judge, Problem
from peer_tables import Table
from solver_settings import Setting

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
