"""`source`, `load` and `info`: a data set by name or path."""

import contextlib
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypedDict, Unpack

import numpy as np

from gen_jax import checks, paths
from gen_jax.data import cache
from gen_jax.data.fetching import fetched
from gen_jax.data.fitted import Fitted, RandomlyCropped
from gen_jax.data.protocol import (
    Arrays,
    Example,
    Info,
    Random,
    Source,
    Stored,
    Unreadable,
    read,
    reading_threads,
    stack,
)
from gen_jax.data.sources import FINDERS
from gen_jax.data.sources.request import Crop, Request
from gen_jax.types import Count

_log = logging.getLogger(__name__)
_COUNTED = 10_000  # examples looked at, at least, to say which shapes are mixed
_CHUNK, _CHUNK_BYTES = 256, 2**25  # the most examples, and bytes, that a thread decodes at a time


class Options(TypedDict, total=False):
    """The arguments of `source` that `load` and `info` hand on."""

    split: str
    data_dir: str | os.PathLike[str] | None
    cache_dir: str | os.PathLike[str] | None
    image_size: int | tuple[int, int] | None
    crop: Crop
    channels: Literal[1, 3, 4] | None
    unreadable: Literal["raise", "skip"]


@checks.checked
def source(
    name: str | os.PathLike[str],
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    image_size: Count | tuple[Count, Count] | None = None,
    crop: Crop = "center",
    channels: Literal[1, 3, 4] | None = None,
    unreadable: Literal["raise", "skip"] = "raise",
) -> Source:
    """A split of a data set, whose examples are read when they are asked for.

    `name` is
        "mnist"                    the one that comes with the package;
        "scenes"                   coloured MNIST digits with captions: see `gen_jax.data.sources.scenes`;
        a folder of image files    see `gen_jax.data.sources.folder` for classes, captions and splits;
        a file .npz or .npy        with the arrays "image" and perhaps "label", or a single array;
        any other name             a TFDS data set, `name[/config][:version]`, from `data_dir`, `$TFDS_DATA_DIR` or
                                   `~/tensorflow_datasets`. So are "mnist" and "scenes", where `data_dir` is given.
    A name is a path where it exists, ends in .npz or .npy, or begins with "/", "." or "~". Of a path in a bucket, and a
    `data_dir` there, "gs://BUCKET/PATH", a copy is kept in the cache.

    `split` may be a slice or a sum: "train[:10%]", "train+test". `cache_dir` (`$GEN_JAX_CACHE`, `~/.cache/gen_jax`)
    keeps indices and decoded images. `image_size`, an int or (height, width), resizes images until they cover it and
    crops them: at the centre, or with `crop="random"` at a place drawn for each example and epoch. `channels` converts
    to grey (1), RGB (3) or RGBA (4). `unreadable="skip"` leaves out the files of a folder that can not be decoded, with
    a warning.

    `ValueError`, with what to do, for: an unknown name, path, config, version or split; a TFDS set that is not
    prepared and can not be (no TensorFlow, no network); damaged files; images of several shapes without
    `image_size`; no images.
    """
    size = _size(image_size)
    if crop == "random" and size is None:
        raise ValueError('crop="random" needs an image_size to crop to.')
    if paths.is_url(name):
        name = os.fspath(fetched(paths.path_of(name), cache_dir))
    if not isinstance(name, str):  # a path, whatever it looks like
        name = os.path.abspath(os.path.expanduser(name))
    request = Request(name, split, data_dir, cache_dir, size, channels, unreadable)
    found = next(found for find in FINDERS if (found := find(request)) is not None)
    if size is None and channels is None:
        return found
    return (RandomlyCropped if crop == "random" else Fitted)(found, size, channels)


@checks.checked
def load(name: str | os.PathLike[str] | Source, **options: Unpack[Options]) -> dict[str, np.ndarray]:
    """A split of a data set as arrays: `{"image": uint8 [N, H, W, C], "label": int32 [N], "text": str [N]}`.

    The arguments are those of `source`, or a source alone. A set without labels or captions has no such key; images in
    floating point are float32, unscaled. Folders and TFDS sets are decoded once, into the cache, and memory-mapped from
    there, read-only.
    """
    found = _find(name, options)
    if isinstance(found, Random):
        raise ValueError(
            'crop="random" is drawn anew each epoch, so there is no array of it: give the source to '
            'data.batches, or crop="center".'
        )
    if isinstance(found, Arrays):
        return dict(found.arrays)
    path = found.entry() if isinstance(found, Stored) else None
    if path is None:
        return _in_memory(found)
    try:
        if not path.exists():
            _log.info("decoding %s, %d examples, once, into %s", found.info().name, len(found), path)
            cache.write(path, _chunks(found), len(found))
    except OSError as error:
        warnings.warn(
            f"the cache {path} can not be written ({error}): decoding {found.info().name} into memory, this time "
            "and each time. Set GEN_JAX_CACHE or cache_dir= to a writable directory with enough room.",
            stacklevel=2,
        )
        return _in_memory(found)
    return cache.read(path)


@checks.checked
def info(name: str | os.PathLike[str] | Source, **options: Unpack[Options]) -> Info:
    """Shape and numbers of what `load` returns for the same arguments, without reading the images.

    The number of classes is the one that the data set declares, or else its largest label plus one: then labels are
    read, and kept in the cache.
    """
    return _find(name, options).info()


def _find(name: str | os.PathLike[str] | Source, options: Options) -> Source:
    if not isinstance(name, Source):
        return source(name, **options)
    if options:
        raise ValueError(f"a source is complete, so expected no options beside it, got {', '.join(options)}.")
    return name


def _size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def _in_memory(found: Source) -> dict[str, np.ndarray]:
    parts = list(_chunks(found))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _chunks(found: Source) -> Iterator[dict[str, np.ndarray]]:
    """All examples in order, as arrays of some at a time.

    Unreadable examples are an error that names those of the whole set, images of more than one shape an error that
    counts those of at least 10,000 examples.
    """
    shapes: Counter[tuple[int, ...]] = Counter()
    problems: dict[str, str] = {}
    for examples in _pieces(found):
        if isinstance(examples, Unreadable):
            problems |= examples.problems
            continue
        shapes.update(np.shape(example["image"]) for example in examples if "image" in example)
        if not problems and len(shapes) < 2:
            yield stack(examples)
        elif not problems and shapes.total() >= _COUNTED:
            break
    if problems:
        raise Unreadable(found.info().name, problems)
    if len(shapes) > 1:
        raise ValueError(_mixed(found.info().name, shapes))


def _pieces(found: Source) -> Iterator[Sequence[Example] | Unreadable]:
    """All examples in order, some at a time, read by one thread for each core."""
    import grain

    def attempt(rows: np.ndarray) -> Sequence[Example] | Unreadable:
        try:
            return read(found, rows.tolist())
        except Unreadable as error:
            return error

    size = max(1, min(_CHUNK, _CHUNK_BYTES // math.prod(found.info().image_shape)))
    rows = grain.MapDataset.range(len(found)).batch(size, drop_remainder=False).map(attempt)
    threads = reading_threads()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
    with contextlib.closing(iter(rows.to_iter_dataset(options))) as pieces:
        yield from pieces


def _mixed(name: str, shapes: Counter[tuple[int, ...]]) -> str:
    common = ", ".join(f"{shape} in {count:,}" for shape, count in shapes.most_common(5))
    more = f" and {len(shapes) - 5} more" if len(shapes) > 5 else ""
    return (
        f'the images of "{name}" have {len(shapes)} shapes: {common}{more}, among the first '
        f"{shapes.total():,} examples. A batch is one array, so expected one shape: give image_size to resize and "
        "crop them (and channels, if these differ), resize or crop them in the builder that prepares the set, or "
        'choose a data set or config of one size (such as "imagenet_resized/64x64").'
    )
