"""Pictures: grids of images (uint8 `[..., H, W, C]`), curves of `metrics.jsonl`, and figures that save themselves.

Only process 0 writes.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from gen_jax import checks, jsonlines, paths
from gen_jax.types import AnyPath, Count, Positive, Size


@checks.checked
def tile(images: UInt8[np.ndarray, "N H W C"], columns: Count | None = None, gap: Size = 2) -> np.ndarray:
    """Images in rows of `columns` (default: about a square) on white, `[H', W', C]`.

    `C` is 1, 3 or 4; of images with other channels each one is shown in grey, side by side.
    """
    images = _shown(images)
    checks.some("images", images, "image of 1 pixel")
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (gap + (height + gap) * (i // columns), gap + (width + gap) * (i % columns))
        canvas[top : top + height, left : left + width] = image
    return canvas


WIDTH, LONGEST = 600, 2000
"""Pixels that a grid has across at least, where that makes it no longer than this on either side."""


@checks.checked
def enlargement(height: Count, width: Count) -> int:
    """How many times a grid of so many pixels is enlarged to be seen: a whole number, so that pixels stay squares."""
    return max(1, min(-(-WIDTH // width), LONGEST // max(height, width)))


@checks.checked
def save_grid(
    path: str | AnyPath,
    images: UInt8[np.ndarray, "N H W C"],
    columns: Count | None = None,
    scale: Count | None = None,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write `tile(images, columns)`, each pixel as a square of `scale` (default: `enlargement`).

    `text` is as of `save_image`.
    """
    canvas = tile(images, columns)
    scale = enlargement(*canvas.shape[:2]) if scale is None else scale
    save_image(path, canvas.repeat(scale, 0).repeat(scale, 1), text)


@checks.checked
def save_image(
    path: str | AnyPath, image: UInt8[np.ndarray, "H W C"], text: Mapping[str, str] | None = None
) -> None:
    """Write an image as it is (channels as of `tile`); into a PNG file also `text`, a chunk for each name."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    checks.some("image", image, "pixel")
    chunks = PngInfo()
    for name, said in (text or {}).items():
        chunks.add_text(name, said)
    if jax.process_index() == 0:
        image = np.asarray(_shown(image))
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        with _writing(path) as place:
            picture.save(place, pnginfo=chunks) if text else picture.save(place)


@checks.checked
def save_strips(
    path: str | AnyPath,
    strips: UInt8[np.ndarray, "R T H W C"],
    labels: Sequence[str],
    title: str,
    rows: Sequence[str] = (),
) -> None:
    """Write rows of images, with `labels` above the columns and `rows` beside the rows."""
    from matplotlib.figure import Figure

    checks.some("strips", strips, "image of 1 pixel")
    count, length = strips.shape[:2]
    if len(labels) != length or len(rows) > count:
        raise ValueError(
            f"labels must be {length}, one for each column of strips, and rows at most {count}, got {len(labels)} "
            f"and {len(rows)}."
        )
    figure = Figure(figsize=(length * 0.9 + (0.7 if rows else 0), count * 0.9 + 0.7), layout="constrained")
    axes: Any = figure.subplots(count, length, squeeze=False)
    for i, j in np.ndindex(count, length):
        _show(axes[i, j], strips[i, j])
        axes[i, j].set(xticks=[], yticks=[])
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(label, fontsize=9)
    for axis, label in zip(axes[:, 0], rows, strict=False):
        axis.set_ylabel(label, fontsize=9)
    figure.suptitle(textwrap.fill(title, max(int(13 * figure.get_figwidth()), 20)), fontsize=10)
    if jax.process_index() == 0:
        with _writing(path) as place:
            figure.savefig(place, dpi=150)


@checks.checked
def save_captioned(
    path: str | AnyPath, images: UInt8[np.ndarray, "N H W C"], texts: Sequence[str], columns: Count = 6
) -> None:
    """Write images with a text above each. ValueError unless there are as many, one or more."""
    checks.some("images", images, "image of 1 pixel")
    if len(texts) != len(images):
        raise ValueError(f"texts must be one for each of {len(images)} images, got {len(texts)}.")
    rows = -(-len(images) // columns)
    with figure(
        path, width=1.9 * columns, height=2.4 * rows, nrows=rows, ncols=columns, squeeze=False
    ) as axes:
        for axis in axes.flat:
            axis.axis("off")
        for axis, image, text in zip(axes.flat, images, texts, strict=False):
            _show(axis, image)
            axis.set_title(textwrap.fill(text, 24), fontsize=8)


@checks.checked
def save_maps(
    path: str | AnyPath,
    image: UInt8[np.ndarray, "H W C"],
    maps: Float[np.ndarray, "h w K"],
    words: Sequence[str],
    title: str,
    columns: Count = 7,
) -> None:
    """Write an image, and for each word its map `[h, w, word]`, from its least value to its largest."""
    checks.some("image", image, "pixel")
    if len(words) != maps.shape[-1] or 0 in maps.shape:
        raise ValueError(
            f"maps must be one for each of {len(words)} words, of 1 pixel or more, got {checks.came(maps)}."
        )
    rows = -(-(len(words) + 1) // columns)
    with figure(
        path, width=1.4 * columns, height=1.6 * rows + 0.4, nrows=rows, ncols=columns, squeeze=False
    ) as axes:
        for axis in axes.flat:
            axis.axis("off")
        _show(axes.flat[0], image)
        for axis, word, each in zip(axes.flat[1:], words, np.moveaxis(maps, -1, 0), strict=False):
            axis.imshow(each, cmap="magma")
            axis.set_title(word, fontsize=9)
        axes.flat[0].figure.suptitle(title, fontsize=10)


def _show(axis: Any, image: UInt8[np.ndarray, "H W C"]) -> None:
    image = _shown(image)
    grey = image.squeeze(-1) if image.shape[-1] == 1 else image
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _shown(images: UInt8[np.ndarray, "*n H W C"]) -> UInt8[np.ndarray, "*n H V D"]:
    """Images of 1, 3 or 4 channels as they are; of others each channel in grey, `[..., H, C W, 1]`."""
    if images.shape[-1] in (1, 3, 4):
        return images
    beside = np.moveaxis(images, -1, -2)
    return beside.reshape(*images.shape[:-2], images.shape[-2] * images.shape[-1], 1)


@contextmanager
def _writing(path: str | AnyPath) -> Iterator[Path]:
    """The file to write to, `~` expanded. ValueError where nothing can be written there."""
    try:
        with paths.writing(paths.path_of(path)) as place:
            yield place
    except (OSError, ValueError) as error:  # no such folder, or no such format
        raise ValueError(f"path {str(path)!r} can not be written: {error}.") from error


@checks.checked
@contextmanager
def figure(
    path: str | AnyPath, *, width: Positive = 6.0, height: Positive = 4.0, **subplots: Any
) -> Iterator[Any]:
    """Yields `Figure.subplots(**subplots)`, the axes of a new figure, and writes it to `path` at the end of the block."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    yield drawn.subplots(**subplots)
    if jax.process_index() == 0:
        with _writing(path) as place:
            drawn.savefig(place, dpi=150)


@checks.checked
def read_metrics(path: str | AnyPath) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`, a dict for each log point; a null is NaN, what is no line is left out.

    ValueError for another file, or none.
    """
    try:
        place = paths.path_of(path)
        paths.size(place)  # an OSError where there is no file
        lines, bad = jsonlines.read(place)
    except OSError as error:
        raise ValueError(f"path {str(path)!r} is not that of a metrics.jsonl: {error}.") from error
    if bad and not lines:
        raise ValueError(f"path {str(path)!r} is not that of a metrics.jsonl: it has no line of figures.")
    number = lambda value: math.nan if value is None else float(value)
    return [{name: number(value) for name, value in line.items()} for line in lines]


@checks.checked
def save_loss(
    path: str | AnyPath, metrics: str | AnyPath, *, name: str = "loss", label: str = "loss"
) -> None:
    """Plot one metric of a `metrics.jsonl` against the step; on a logarithmic axis where it spans a decade.

    Points are marked where there are few, so that a short run shows something. ValueError for a metric that there is not.
    """
    from matplotlib.ticker import MaxNLocator

    lines = read_metrics(metrics)
    known = set.intersection(*map(set, lines)) if lines else set()
    if name not in known:
        raise ValueError(
            f"name must be that of a metric, one of {', '.join(sorted(known)) or 'none'}; got {name!r}."
            f"{checks.nearest(name, known)}"
        )
    values = [line[name] for line in lines]
    finite = [value for value in values if math.isfinite(value)] or [1.0]
    spans = 0 < 10 * min(finite) <= max(finite)
    with figure(path) as axes:
        axes.plot([line["step"] for line in lines], values, marker="o" if len(lines) < 50 else "", ms=4)
        axes.set(xlabel="step", ylabel=label, yscale="log" if spans else "linear")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3, which="both")
