"""Images of scenes against their captions: shares of objects and scenes that are right, with standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from gen_jax import checks
from gen_jax.data.sources.scenes import CENTRES, RELATIONS, language, parse, render
from gen_jax.data.sources.scenes.drawing import Seed
from gen_jax.evaluation.scenes.judge import Judge
from gen_jax.evaluation.scenes.reading import CELLS, EXTRA, TOLERANCE, Read, read
from gen_jax.types import Relation, Size


@dataclass(frozen=True)
class _OrNaN(checks.Range):
    """In a range, or NaN."""

    def check(self, name: str, value: float) -> None:
        """That it is."""
        if not np.isnan(value):
            super().check(name, value)


class Share(NamedTuple):
    """A share of what was asked for."""

    value: Annotated[float, _OrNaN(0, 1)]
    """From 0 to 1; NaN where nothing was asked for."""
    error: Annotated[float, _OrNaN(0)]
    """Its standard error."""
    asked: Size
    """How many were asked for."""


class Scores(NamedTuple):
    """Shares of objects, and of scenes."""

    digit: Share
    colour: Share
    size: Share
    objects: Share
    """Digit, colour and size are all right."""
    position: Share
    """Something stands at the place of the object, its centre of mass within `TOLERANCE`."""
    nothing_else: Share
    """Scenes with nothing but their objects."""
    one: Share
    """Scenes of one object with everything right: `objects`, `position`, `nothing_else`."""
    two: Share
    """Scenes of two objects with everything right."""


class Report(NamedTuple):
    """Scores of all, and of those apart that no training scene has."""

    all: Scores
    seen: Scores
    """Objects that are in no held-out combination, scenes that have none."""
    held_out: Scores
    """Objects that are in one, scenes that have one."""


class _Right(NamedTuple):
    """What was found right in each image."""

    digit: Bool[np.ndarray, "N 2"]
    colour: Bool[np.ndarray, "N 2"]
    size: Bool[np.ndarray, "N 2"]
    objects: Bool[np.ndarray, "N 2"]
    position: Bool[np.ndarray, "N 2"]
    nothing_else: Bool[np.ndarray, "N"]


@checks.checked
def score(judge: Judge, images: UInt8[np.ndarray, "N 48 48 3"], captions: Sequence[str]) -> Report:
    """Compare each image with its caption.

    The caption says which cells are looked at; what stands elsewhere fails `nothing_else`.

    Raises:
        ValueError: there is not one caption for each image, or one is not of a scene.
    """
    if len(images) != len(captions) or not len(images):
        raise ValueError(
            "expected a caption for each image, and at least one image; got "
            f"{len(captions)} captions and {len(images)} images."
        )
    asked = language.numbers([parse(text) for text in captions])
    right = _compare(read(judge, images), asked)
    two = asked.relation >= 0
    there = np.stack([np.ones_like(two), two], 1)
    held_out = language.held_out(asked)
    either = held_out[:, 0] | held_out[:, 1]
    return Report(
        _scores(right, there, there, np.ones_like(two)),
        _scores(right, there, there & ~held_out, ~either),
        _scores(right, there, there & held_out, either),
    )


@checks.checked
def ceiling(judge: Judge, captions: Sequence[str], *, seed: Seed = 1) -> Report:
    """The score of real scenes for the same captions, drawn with test digits."""
    return score(judge, render([parse(text) for text in captions], seed=seed), captions)


@checks.checked
def share(right: Bool[np.ndarray, "N *k"], asked: Bool[np.ndarray, "N *k"]) -> Share:
    """The share of what was asked for that is right, with the standard error of a ratio of sums over rows.

        p = sum_i y_i / sum_i m_i,    error^2 = sum_i (y_i - p m_i)^2 / (sum_i m_i)^2

    with `y_i` right of `m_i` asked in row `i`, so that the two objects of an image need not be independent (Cochran 1977,
    Eq. 6.13). With one in each row it is `sqrt(p (1 - p) / N)`.
    """
    rows = len(right)
    m, y = (x.reshape(rows, -1).sum(1) for x in (asked, right & asked))
    count = int(m.sum())
    if not count:
        return Share(np.nan, np.nan, 0)
    p = float(y.sum() / count)
    return Share(p, float(np.sqrt(np.square(y - p * m).sum()) / count), count)


@checks.checked
def as_dict(report: Report) -> dict[str, dict[str, dict[str, float]]]:
    """The figures by name, for JSON, such as `as_dict(report)["held_out"]["objects"]["value"]`; of what was asked for."""
    _check_asked("report", report)
    return {
        group: {name: x._asdict() for name, x in scores._asdict().items() if x.asked}
        for group, scores in report._asdict().items()
    }


@checks.checked
def table(report: Report, real: Report | None = None) -> str:
    """The figures in percent as a table of Markdown; `real` is the ceiling, in rows of its own."""
    _check_asked("report", report)
    if real is not None:
        _check_asked("real", real)
    head = ["", *(name.replace("_", " ") for name in Scores._fields)]
    lines = [head, ["---"] * len(head)]
    for what, of in (("", report), (", real scenes", real)):
        for group, scores in of._asdict().items() if of else ():
            cells = [f"{100 * x.value:.1f} ± {100 * x.error:.1f}" if x.asked else "" for x in scores]
            lines.append([group.replace("_", " ") + what, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _check_asked(what: str, report: Report) -> None:
    """ValueError for a share that is NaN although something was asked for."""
    for group, scores in report._asdict().items():
        for name, x in scores._asdict().items():
            if x.asked and not np.isfinite([x.value, x.error]).all():
                raise ValueError(
                    f"{what}.{group}.{name} must be finite where {x.asked} were asked for, got {x}."
                )


def _compare(got: Read, asked: language.Numbers) -> _Right:
    """`got` at the cells that are asked for."""
    rows = np.arange(len(asked.relation))
    cells = np.array([_cells(relation) for relation in (*RELATIONS, None)])[asked.relation]
    at = rows[:, None], cells  # [N, 2]; -1, the last, is of one object
    digit, colour, size = (
        values[at] == asked.objects[..., i] for i, values in enumerate((got.digit, got.colour, got.size))
    )
    position = (got.digit[at] >= 0) & (got.offset[at] <= TOLERANCE)
    outside = got.outside[rows, np.array([1, 1, 2, 2, 0])[asked.relation]]
    return _Right(digit, colour, size, digit & colour & size, position, outside <= EXTRA)


def _cells(relation: Relation | None) -> tuple[int, int]:
    """Places in `CELLS` of both objects; of a single one twice."""
    cells = [CELLS.index(centre) for centre in CENTRES[relation]]
    return cells[0], cells[-1]


def _scores(
    right: _Right,
    there: Bool[np.ndarray, "N 2"],
    objects: Bool[np.ndarray, "N 2"],
    scenes: Bool[np.ndarray, "N"],
) -> Scores:
    """Scores of the chosen objects and scenes, where `there` says which scenes have a second object."""
    whole = (right.objects & right.position | ~there).all(1) & right.nothing_else
    return Scores(
        share(right.digit, objects),
        share(right.colour, objects),
        share(right.size, objects),
        share(right.objects, objects),
        share(right.position, objects),
        share(right.nothing_else, scenes),
        share(whole, scenes & ~there[:, 1]),
        share(whole, scenes & there[:, 1]),
    )
