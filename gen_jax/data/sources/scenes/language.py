"""What a scene is, the words for it, and which combinations are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from gen_jax import checks
from gen_jax.types import Colour, DigitSize, Relation

_T = TypeVar("_T")

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words for the digits 0 to 9."""
COLOURS: dict[Colour, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (60, 90, 240),
    "yellow": (235, 210, 40),
    "purple": (160, 60, 200),
    "white": (240, 240, 240),
}
"""RGB of the brightest pixels."""
SIZES: dict[DigitSize, int] = {"small": 16, "large": 24}
"""Side of a digit in pixels, its margin included."""
RELATIONS: tuple[Relation, ...] = ("above", "below", "left of", "right of")
"""Where the first object of two stands."""
HELD_OUT: tuple[tuple[int, Colour], ...] = ((7, "purple"), (2, "green"), (9, "yellow"))
"""Digit and colour of the objects that no training scene has."""
HELD_OUT_PAIR: tuple[Colour, Colour] = ("blue", "red")
"""Colours that no training scene has left and right."""


@checks.checked
@dataclass(frozen=True)
class Object:
    """A digit in a scene. `ValueError` for a digit, colour or size that there is not."""

    digit: int
    colour: Colour
    size: DigitSize

    def __post_init__(self) -> None:
        check("digit", self.digit, range(10))
        check("colour", self.colour, tuple(COLOURS))
        check("size", self.size, tuple(SIZES))


@checks.checked
@dataclass(frozen=True)
class Scene:
    """One object and no relation, or two and how the first stands to the second. `ValueError` for anything else."""

    objects: tuple[Object, ...]
    relation: Relation | None = None

    def __post_init__(self) -> None:
        check("relation", self.relation, (*RELATIONS, None))
        if len(self.objects) != (1 if self.relation is None else 2):
            raise ValueError(
                "expected one object without a relation, or two with one; got "
                f"{len(self.objects)} with the relation {self.relation!r}."
            )


class Numbers(NamedTuple):
    """Many scenes as numbers, places in the tables of this module."""

    objects: Int[np.ndarray, "N 2 3"]
    """Digit, colour and size of each object; zeros where there is no second one."""
    relation: Int[np.ndarray, "N"]
    """-1 with one object."""


@checks.checked
def caption(scene: Scene) -> str:
    """The words for a scene: "a large red seven above a small blue three"."""
    nouns = [f"a {x.size} {x.colour} {DIGITS[x.digit]}" for x in scene.objects]
    return nouns[0] if scene.relation is None else f" {scene.relation} ".join(nouns)


@checks.checked
def parse(text: str) -> Scene:
    """The scene that a caption describes, the inverse of `caption`; capitals and spacing do not matter.

    `ValueError` for what is not a caption, with the word at fault.
    """
    words = text.lower().split()
    try:
        if len(words) == 4:
            return Scene((_object(words),))
        if len(words) not in (9, 10):
            raise ValueError(f"it has {len(words)} words")
        relation = _word(" ".join(words[4:-4]), RELATIONS)
        return Scene((_object(words[:4]), _object(words[-4:])), relation)
    except ValueError as error:
        raise ValueError(
            f"text {text!r} is not a caption of a scene: {error}. Expected two or one of "
            '"a SIZE COLOUR DIGIT", with "above", "below", "left of" or "right of" between two: '
            '"a small green zero", "a large red seven above a small blue three".'
        ) from error


@checks.checked
def held_out_objects(scene: Scene) -> tuple[bool, ...]:
    """Which objects are a part of a held-out combination: by digit and colour, or both of a held-out pair."""
    return tuple(held_out(numbers([scene]))[0, : len(scene.objects)].tolist())


@checks.checked
def is_held_out(scene: Scene) -> bool:
    """Whether a scene has a held-out combination."""
    return any(held_out_objects(scene))


def numbers(scenes: Sequence[Scene]) -> Numbers:
    """Scenes as numbers."""
    objects = np.zeros((len(scenes), 2, 3), np.int64)
    relation = np.full(len(scenes), -1)
    for i, scene in enumerate(scenes):
        for j, x in enumerate(scene.objects):
            objects[i, j] = x.digit, list(COLOURS).index(x.colour), list(SIZES).index(x.size)
        if scene.relation is not None:
            relation[i] = RELATIONS.index(scene.relation)
    return Numbers(objects, relation)


def described(of: Numbers) -> list[Scene]:
    """The inverse of `numbers`."""
    return [
        Scene(tuple(map(_OBJECTS.__getitem__, map(tuple, pair if r >= 0 else pair[:1]))), _relation(r))
        for pair, r in zip(of.objects.tolist(), of.relation.tolist(), strict=True)
    ]


def held_out(of: Numbers) -> Bool[np.ndarray, "N 2"]:
    """`held_out_objects` of many scenes; False where there is no second object."""
    digit, colour, two = of.objects[..., 0], of.objects[..., 1], of.relation >= 0
    names = list(COLOURS)
    alone = [(digit == d) & (colour == names.index(name)) for d, name in HELD_OUT]
    left, right = (names.index(name) for name in HELD_OUT_PAIR)
    pair = np.zeros(len(two), bool)
    for relation, order in (("left of", (left, right)), ("right of", (right, left))):
        pair |= (of.relation == RELATIONS.index(relation)) & (colour == order).all(1)
    return (np.any(alone, 0) | pair[:, None]) & np.stack([np.ones_like(two), two], 1)


def check(what: str, value: object, allowed: Sequence[object]) -> None:
    """`ValueError` for a value that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


_OBJECTS = {
    (digit, c, s): Object(digit, colour, size)
    for digit in range(10)
    for c, colour in enumerate(COLOURS)
    for s, size in enumerate(SIZES)
}


def _relation(number: int) -> Relation | None:
    return None if number < 0 else RELATIONS[number]


def _object(words: Sequence[str]) -> Object:
    _word(words[0], ("a",))
    return Object(
        DIGITS.index(_word(words[3], DIGITS)), _word(words[2], tuple(COLOURS)), _word(words[1], tuple(SIZES))
    )


def _word(word: str, allowed: tuple[_T, ...]) -> _T:
    if word not in allowed:
        raise ValueError(f"{word!r} is none of {', '.join(map(str, allowed))}")
    return allowed[allowed.index(word)]
