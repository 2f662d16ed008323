"""What a scene shows: the digit, colour, size and place of what stands in each of its cells, whatever its caption."""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from gen_jax import checks
from gen_jax.data.sources.scenes import CENTRES, COLOURS, SIZES, Object, Scene, caption
from gen_jax.evaluation.scenes import judge as judging
from gen_jax.evaluation.scenes.judge import Judge
from gen_jax.types import Relation

CELLS = (*CENTRES[None], *CENTRES["above"], *CENTRES["left of"])
"""Row and column of the middle of each cell of 24 x 24: centre, top, bottom, left, right."""
FAINT = 64
"""Pixels below this brightness, their largest channel, are not seen."""
LEAST = 3.0
"""An object has at least this sum of `brightness / 255`; a crop with less is empty."""
EXTENT = 13.5
"""Pixels of the longer side of what is bright. Of test digits one in 10,000 is on the wrong side."""
TOLERANCE = 3.0
"""Pixels that the centre of mass of an object may be from its place."""
EXTRA = 2.0
"""The most `brightness / 255` that may be outside the cells of the objects; half a digit has more."""
_COLOURS = np.array(list(COLOURS.values())) / np.max(list(COLOURS.values()), 1, keepdims=True)
_CHUNK = 1000  # images at a time


class Read(NamedTuple):
    """What stands in the five `CELLS` of each image. Cells overlap: a caption says which are to be looked at."""

    digit: Annotated[Int[np.ndarray, "N 5"], checks.Range(-1, 9)]
    """-1 where the cell is empty, as are colour and size."""
    confidence: Annotated[Float[np.ndarray, "N 5"], checks.Range(0, 1)]
    """The classifier's probability of this digit; 0 where the cell is empty."""
    colour: Annotated[Int[np.ndarray, "N 5"], checks.Range(-1, len(COLOURS) - 1)]
    """Place in `COLOURS`."""
    size: Annotated[Int[np.ndarray, "N 5"], checks.Range(-1, len(SIZES) - 1)]
    """0 small, 1 large."""
    offset: Annotated[Float[np.ndarray, "N 5"], checks.Range(0, finite=False)]
    """Pixels from the middle of the cell to the centre of mass, the larger of rows and columns; infinite without mass."""
    outside: Annotated[Float[np.ndarray, "N 3"], checks.Range(0)]
    """Sum of `brightness / 255` outside the cells of one object, of two above each other, of two beside each other."""


@checks.checked
def read(judge: Judge, images: UInt8[np.ndarray, "N 48 48 3"]) -> Read:
    """Read the five cells of each image.

    The colour is that of the six which is nearest to the mean over pixels of at least half the largest brightness, both
    divided by their largest channel. The size is by the longer side of these pixels. MNIST puts the centre of mass of a
    digit in the middle of its square, so its distance says how far a digit is from its place.
    """
    parts = [_read(judge, images[i : i + _CHUNK]) for i in range(0, max(1, len(images)), _CHUNK)]
    return Read(*map(np.concatenate, zip(*parts, strict=True)))


@checks.checked
def captions(of: Read) -> list[str | None]:
    """A caption for what each image shows, with "above" and "left of"; None where it is not one or two objects."""
    found: list[str | None] = [None] * len(of.digit)
    placed = (of.digit >= 0) & (of.offset <= TOLERANCE)
    layouts: tuple[tuple[Relation | None, tuple[int, ...]], ...] = (
        (None, (0,)),
        ("above", (1, 2)),
        ("left of", (3, 4)),
    )
    for layout, (relation, cells) in enumerate(layouts):
        for i in np.flatnonzero(placed[:, cells].all(1) & (of.outside[:, layout] <= EXTRA)):
            objects = [
                Object(int(of.digit[i, c]), list(COLOURS)[of.colour[i, c]], list(SIZES)[of.size[i, c]])
                for c in cells
            ]
            found[i] = caption(Scene(tuple(objects), relation))
    return found


def _read(judge: Judge, images: UInt8[np.ndarray, "N 48 48 3"]) -> Read:
    half = judging.SIDE // 2
    crops = np.stack([images[:, r - half : r + half, c - half : c + half] for r, c in CELLS], 1)
    grey = crops.max(-1)
    seen = np.where(grey >= FAINT, grey, 0) / np.float32(255)
    mass = seen.sum((2, 3))
    there = mass >= LEAST
    bright = (grey >= np.maximum(grey.max((2, 3), keepdims=True) / 2, FAINT)) & there[..., None, None]

    digit, confidence = np.full(there.shape, -1), np.zeros(there.shape, np.float32)
    p = judge(judging.brightened(grey[there])[..., None])
    digit[there], confidence[there] = p.argmax(1), p.max(1)
    return Read(
        digit,
        confidence,
        np.where(there, _nearest_colour(crops, bright), -1),
        np.where(there, _extent(bright) > EXTENT, -1).astype(np.int64),
        _offset(seen, mass),
        np.stack([_outside(images, cells) for cells in (CELLS[:1], CELLS[1:3], CELLS[3:])], 1),
    )


def _nearest_colour(crops: UInt8[np.ndarray, "N 5 h h 3"], bright: np.ndarray) -> Int[np.ndarray, "N 5"]:
    total = np.einsum("nchwk,nchw->nck", crops, bright, dtype=np.float32)
    hue = total / np.maximum(total.max(-1, keepdims=True), 1)
    nearest: np.ndarray = np.square(hue[..., None, :] - _COLOURS).sum(-1).argmin(-1)
    return nearest


def _extent(bright: np.ndarray) -> Int[np.ndarray, "N 5"]:
    """The longer side of the smallest rectangle around the bright pixels."""
    sides = []
    for axis in (2, 3):
        line: np.ndarray = np.any(bright, axis)
        sides.append(line.shape[-1] - line.argmax(-1) - line[..., ::-1].argmax(-1))
    return np.where(bright.any((2, 3)), np.maximum(*sides), 0)


def _offset(seen: Float[np.ndarray, "N 5 h h"], mass: Float[np.ndarray, "N 5"]) -> Float[np.ndarray, "N 5"]:
    places = np.arange(seen.shape[-1]) - (seen.shape[-1] - 1) / 2
    found = [np.abs(seen.sum(axis) @ places) / np.maximum(mass, 1e-6) for axis in (2, 3)]
    return np.where(mass > 0, np.maximum(*found), np.inf)


def _outside(
    images: UInt8[np.ndarray, "N H W 3"], cells: tuple[tuple[int, int], ...]
) -> Float[np.ndarray, "N"]:
    half = judging.SIDE // 2
    outside = np.ones(images.shape[1:3], bool)
    for row, column in cells:
        outside[row - half : row + half, column - half : column + half] = False
    grey = images[:, outside].max(-1)
    total: np.ndarray = (np.where(grey >= FAINT, grey, 0) / 255).sum(1)
    return total
