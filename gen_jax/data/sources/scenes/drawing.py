"""Scenes as images: digits of MNIST resized, coloured and put in their places."""

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from gen_jax import checks
from gen_jax.data.sources import embedded
from gen_jax.data.sources.scenes import language
from gen_jax.data.sources.scenes.language import COLOURS, RELATIONS, SIZES, Numbers, Scene
from gen_jax.types import Relation, SceneSplit

Seed: TypeAlias = Annotated[int, checks.Range(0, 2**64 - 1)]
SPLITS: tuple[SceneSplit, ...] = ("train", "test", "held_out")
SIDE = 48
"""Height and width of a scene in pixels."""
CENTRES: dict[Relation | None, tuple[tuple[int, int], ...]] = {
    "above": ((12, 24), (36, 24)),
    "below": ((36, 24), (12, 24)),
    "left of": ((24, 12), (24, 36)),
    "right of": ((24, 36), (24, 12)),
    None: ((24, 24),),
}
"""Row and column of the middle of each object, in the order of the caption."""
_BLOCK = 256  # rows whose random numbers are drawn together
# round(v / 255 colour) for each colour and intensity v; never a half, as 255 is odd
_PALETTE = ((2 * np.arange(256)[:, None] * np.array(list(COLOURS.values()))[:, None] + 255) // 510).astype(
    np.uint8
)


class Pictures(NamedTuple):
    """The digits of MNIST in both sizes, sorted by class."""

    resized: tuple[UInt8[np.ndarray, "M h h"], ...]
    """Small ones and large ones."""
    first: Int[np.ndarray, "11"]
    """Where each class begins, and the end."""


@checks.checked
def render(
    scenes: Sequence[Scene], *, split: SceneSplit = "test", seed: Seed = 0
) -> UInt8[np.ndarray, "N 48 48 3"]:
    """Images of given scenes with digits of a split: image `i` depends on its scene, `split`, `seed` and `i` alone.

    Of the scenes of a source they are its images, where `split` and `seed` are the same: `render(Scenes("test").scenes(
    range(10)))` are its first ten. ValueError where there is no such split.
    """
    language.check("split", split, SPLITS)
    return draw(language.numbers(scenes), randomness(seed, split, np.arange(len(scenes)))[:, 2:], split)


def draw(of: Numbers, which: UInt64[np.ndarray, "N 2"], split: SceneSplit) -> UInt8[np.ndarray, "N 48 48 3"]:
    """Images of scenes; object `j` is digit `which[:, j]` of its class, counted round the end."""
    images = np.zeros((len(of.relation), SIDE, SIDE, 3), np.uint8)
    digits = pictures("train" if split == "train" else "test")
    counts = np.diff(digits.first)
    for number, centres in enumerate(CENTRES[relation] for relation in (*RELATIONS, None)):
        for j, (row, column) in enumerate(centres):
            for size, side in enumerate(SIZES.values()):
                of_relation = of.relation == (number if number < len(RELATIONS) else -1)
                rows = np.flatnonzero(of_relation & (of.objects[:, j, 2] == size))
                digit, colour = of.objects[rows, j, 0], of.objects[rows, j, 1]
                chosen = digits.first[digit] + (which[rows, j] % counts[digit].astype(np.uint64)).astype(int)
                grey = digits.resized[size][chosen]
                top, left = row - side // 2, column - side // 2
                images[rows, top : top + side, left : left + side] = _PALETTE[colour[:, None, None], grey]
    return images


def randomness(seed: int, split: SceneSplit, rows: Int[np.ndarray, "N"]) -> UInt64[np.ndarray, "N 4"]:
    """Four random numbers for each row, uniform in 64 bits.

    They are those at place `i` of the counter-based generator Philox with the key (seed, split) (Salmon et al. 2011).
    """
    blocks, which = np.unique(rows // _BLOCK, return_inverse=True)
    key = np.array([seed, SPLITS.index(split)], np.uint64)
    raw = [np.random.Philox(key=key, counter=_BLOCK * int(b)).random_raw(4 * _BLOCK) for b in blocks]
    found: np.ndarray = np.reshape(raw, (-1, _BLOCK, 4)).astype(np.uint64)[which, rows % _BLOCK]
    return found


@cache
def pictures(split: Literal["train", "test"]) -> Pictures:
    """The digits of a split of MNIST, resized when they are first needed: about half a second."""
    arrays = embedded.mnist(split)
    order = np.argsort(arrays["label"], kind="stable")
    grey = arrays["image"][order, :, :, 0]
    first = np.searchsorted(arrays["label"][order], np.arange(11))
    return Pictures(tuple(_resize(grey, side) for side in SIZES.values()), first)


def _resize(grey: UInt8[np.ndarray, "M H W"], side: int) -> UInt8[np.ndarray, "M side side"]:
    """Pillow's Lanczos filter on all images at once: it treats rows first, each alone, and then columns."""
    from PIL import Image

    for _ in range(2):  # the rows of all images below each other, then, transposed, the columns
        count, height, width = grey.shape
        picture = Image.fromarray(np.ascontiguousarray(grey).reshape(count * height, width))
        resized = picture.resize((side, count * height), Image.Resampling.LANCZOS)
        grey = np.asarray(resized).reshape(count, height, side).transpose(0, 2, 1)
    return np.ascontiguousarray(grey)
