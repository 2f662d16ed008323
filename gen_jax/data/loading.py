"""`load` and `info`: a data set by name, as arrays."""

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gen_jax.data import cache, decode, embedded, prepared

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Info:
    """What a model has to know of a data set."""

    name: str
    num_examples: int
    image_shape: tuple[int, int, int]  # height, width, channels
    num_classes: int | None  # None: the set has no label


def load(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, np.ndarray]:
    """A split of a data set as arrays: `{"image": uint8 [N, H, W, C], "label": int32 [N]}`.

    "mnist" comes with the package. Every other name, and "mnist" too where `data_dir` is given, is a TFDS
    data set (`name[/config][:version]`) read from `data_dir`, `$TFDS_DATA_DIR` or `~/tensorflow_datasets` in
    array_record form, without TensorFlow, in TFDS's order; one that is not there is prepared if it can be. It
    is decoded once, into `cache_dir`, `$GEN_JAX_CACHE` or `~/.cache/gen_jax`, and memory-mapped from there,
    read-only.

    `split` may be a slice or a sum: "train[:10%]", "train+test". A set without an integer "label" has only
    "image"; images in floating point are returned as float32, unscaled.

    `ValueError`, with what to do, for: an unknown name, config, version or split; a set that is not prepared
    and can not be (no TensorFlow, no network); damaged files; images of several shapes; no image.
    """
    return _load(name, split, data_dir, cache_dir)[0]


def info(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Info:
    """Shape and numbers of what `load` with the same arguments returns.

    The number of classes is the one that the data set declares, or else its largest label plus one.
    """
    arrays, num_classes = _load(name, split, data_dir, cache_dir)
    if num_classes is None and "label" in arrays:
        num_classes = int(arrays["label"].max()) + 1
    count, height, width, channels = arrays["image"].shape
    return Info(name, count, (height, width, channels), num_classes)


def _load(
    name: str, split: str, data_dir: str | os.PathLike | None, cache_dir: str | os.PathLike | None
) -> tuple[dict[str, np.ndarray], int | None]:
    """The arrays, and the number of classes where it is declared."""
    if name.lower() == "mnist" and data_dir is None:
        return embedded.mnist(split), 10
    builder = prepared.find(name, data_dir)
    source = _source(name, builder, split)
    features = decode.choose(name, builder.info.features)
    path = cache.root(cache_dir) / cache.entry(builder.info.full_name, split, Path(builder.data_dir))
    try:
        if not path.exists():
            _log.info("decoding %s, %d examples, once, into %s", name, len(source), path)
            chunks = decode.chunks(name, source, features)
            cache.write(path, chunks, len(source), {"num_classes": features.num_classes})
    except OSError as error:
        warnings.warn(
            f"the cache {path} can not be written ({error}): decoding {name} into memory, this time and each "
            "time. Set GEN_JAX_CACHE or cache_dir= to a writable directory with enough room.",
            stacklevel=3,
        )
        return _in_memory(decode.chunks(name, source, features)), features.num_classes
    arrays, meta = cache.read(path)
    return arrays, meta["num_classes"]


def _source(name: str, builder: Any, split: str) -> Any:
    """The serialized examples of a split: random access, no decoding."""
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    try:
        count = splits[split].num_examples
    except (KeyError, ValueError) as error:
        sizes = {key: value.num_examples for key, value in splits.items()}
        raise ValueError(embedded.wrong_split(name, split, sizes, error)) from error
    if count <= 0:
        raise ValueError(f'split "{split}" of "{name}" is empty: expected at least one example.')
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f'"{name}" is prepared in {builder.data_dir}, but not in array_record form: {error} Prepare '
            "it in another directory (it may need TensorFlow: pip install 'gen-jax[prepare]') and use that:\n"
            f"  {prepared.prepare_command(builder, 'NEW_DIRECTORY')}"
        ) from error


def _in_memory(chunks: Any) -> dict[str, np.ndarray]:
    parts = list(chunks)
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
