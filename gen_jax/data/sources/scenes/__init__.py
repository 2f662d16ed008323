"""Captioned scenes: one or two coloured MNIST digits on black, whose captions can be checked object by object.

**Images.** 48 x 48 RGB. A digit is resized from 28 pixels to 16 (small) or 24 (large) by Lanczos; a pixel of intensity
`v` becomes `v / 255` times the colour, rounded. One digit stands at the centre. Two stand above or beside each other,
their centres 24 pixels apart: the squares of two large ones touch, none overlap.

**Captions.** "a small green zero", "a large red seven above a small blue three": 120 with one digit, 57,600 with two.

**Law.** One or two digits, with equal chance. Then digits, colours, sizes and the relation are uniform and independent,
and so is the picture among those of its digit.

**Held-out combinations.** A purple seven, a green two, a yellow nine, and a blue digit left of a red one (which is also a
red one right of a blue one). No training scene has one: there, the law is the above for scenes without.

**Splits.** "train" has training digits of MNIST, "test" test digits and all combinations. "held_out" has test digits, and
only scenes with a held-out combination.

    source = data.source("scenes", split="train")            # or Scenes("train", 1_000_000, seed=1), of any length
    scene = scenes.parse("a large red seven above a small blue three")
    images = scenes.render([scene] * 8, seed=1)                # uint8 [8, 48, 48, 3]
"""

from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
from jaxtyping import UInt64

from gen_jax import checks
from gen_jax.data import splits
from gen_jax.data.protocol import Example, Info, Source
from gen_jax.data.sources.request import Request
from gen_jax.data.sources.scenes import drawing, language
from gen_jax.data.sources.scenes.drawing import CENTRES, SIDE, SPLITS, Seed, render
from gen_jax.data.sources.scenes.language import (
    COLOURS,
    DIGITS,
    HELD_OUT,
    HELD_OUT_PAIR,
    RELATIONS,
    SIZES,
    Numbers,
    Object,
    Scene,
    caption,
    held_out_objects,
    is_held_out,
    parse,
)
from gen_jax.types import Count, SceneSplit

__all__ = [
    "CENTRES",
    "COLOURS",
    "DIGITS",
    "HELD_OUT",
    "HELD_OUT_PAIR",
    "LENGTHS",
    "RELATIONS",
    "SIDE",
    "SIZES",
    "Object",
    "Scene",
    "Scenes",
    "caption",
    "held_out_objects",
    "is_held_out",
    "parse",
    "render",
]

LENGTHS = {"train": 60_000, "test": 10_000, "held_out": 10_000}
"""How many examples the splits of `data.source("scenes")` have."""


def find(request: Request) -> Source | None:
    """Scenes of seed 0, where "scenes" is asked for and no directory of TFDS sets."""
    if request.name.lower() != "scenes" or request.data_dir is not None:
        return None
    parts = splits.select("scenes", request.split, LENGTHS)
    if len(parts) == 1 and parts[0][1].start == 0:
        return Scenes(cast(SceneSplit, parts[0][0]), parts[0][1].stop)
    return _Rows([(Scenes(cast(SceneSplit, name)), rows) for name, rows in parts])


class Scenes:
    """Scenes of a split: scene `i` depends on `seed`, `split` and `i` alone, whatever the length. Nothing is stored."""

    @checks.checked
    def __init__(self, split: SceneSplit = "train", num_examples: Count | None = None, *, seed: Seed = 0):
        """`num_examples` is by default that of `LENGTHS`. `ValueError` where it is below 1, for a seed outside 0 to
        2^64 - 1, and where there is no such split.
        """
        language.check("split", split, SPLITS)
        self._count = LENGTHS[split] if num_examples is None else num_examples
        self._split: SceneSplit = split
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Example:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        """The examples of these rows: `{"image": uint8 [48, 48, 3], "text": str}`."""
        draws = self._draws(rows)
        numbers = _law(draws[:, :2], self._split)
        images = drawing.draw(numbers, draws[:, 2:], self._split)
        texts = map(caption, language.described(numbers))
        return [{"image": image, "text": text} for image, text in zip(images, texts, strict=True)]

    @checks.checked
    def scenes(self, rows: Sequence[int]) -> list[Scene]:
        """What these rows show; no image is drawn."""
        return language.described(_law(self._draws(rows)[:, :2], self._split))

    def info(self) -> Info:
        """48 x 48 RGB with captions, without labels."""
        return _info(self._count)

    def _draws(self, rows: Sequence[int]) -> UInt64[np.ndarray, "N 4"]:
        wanted = np.array(rows, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self._count:
            raise IndexError(
                f"expected rows from 0 to {self._count - 1}, got {wanted.min()} to {wanted.max()}."
            )
        return drawing.randomness(self._seed, self._split, wanted)


class _Rows:
    """Slices of sources, one after the other."""

    def __init__(self, parts: Sequence[tuple[Scenes, slice]]):
        self._rows = [(source, row) for source, rows in parts for row in range(len(source))[rows]]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Example:
        source, number = self._rows[row]
        return source[number]

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        found: dict[int, Example] = {}
        for source in {id(source): source for source, _ in self._rows}.values():
            mine = [row for row in rows if self._rows[row][0] is source]
            found |= zip(mine, source.__getitems__([self._rows[row][1] for row in mine]), strict=True)
        return [found[row] for row in rows]

    def info(self) -> Info:
        return _info(len(self))


def _info(count: int) -> Info:
    return Info("scenes", count, (SIDE, SIDE, 3), None, has_text=True)


def _law(draws: UInt64[np.ndarray, "N 2"], split: SceneSplit) -> Numbers:
    """The first number says how many objects there are, the second which of all scenes with so many it is."""
    two = draws[:, 0] % 2 == 1
    objects, relation = np.zeros((len(draws), 2, 3), np.int64), np.full(len(draws), -1)
    for count, rows in ((1, ~two), (2, two)):
        every = _every(count, split)
        chosen = (draws[rows, 1] % np.uint64(len(every.relation))).astype(np.int64)
        objects[rows], relation[rows] = every.objects[chosen], every.relation[chosen]
    return Numbers(objects, relation)


@cache
def _every(count: int, split: SceneSplit) -> Numbers:
    """All scenes of one or two objects that a split may have."""
    shape = [len(RELATIONS) if count == 2 else 1] + [len(DIGITS), len(COLOURS), len(SIZES)] * count
    places = np.indices(shape).reshape(len(shape), -1).T
    objects = np.zeros((len(places), 2, 3), np.int64)
    objects[:, :count] = places[:, 1:].reshape(-1, count, 3)
    every = Numbers(objects, places[:, 0] if count == 2 else np.full(len(places), -1))
    held_out = language.held_out(every).any(1)
    keep = np.ones_like(held_out) if split == "test" else held_out == (split == "held_out")
    return Numbers(every.objects[keep], every.relation[keep])
