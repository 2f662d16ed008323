"""Data sets of TFDS in array_record form, read without TensorFlow, in TFDS's order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gen_jax.data import cache, splits
from gen_jax.data.protocol import Example, Info, Source
from gen_jax.data.sources.request import Request
from gen_jax.data.sources.tfds import decode, prepared


def find(request: Request) -> Source:
    """The set of this name, prepared now if it was not. `ValueError` where there is none, or it can not be prepared."""
    builder = prepared.find(request.name, request.data_dir)
    records = _records(request.name, builder, request.split)
    features = decode.choose(request.name, builder.info.features)
    contents = cache.of_files(Path(builder.data_dir))
    entry = cache.root(request.cache_dir) / cache.entry(builder.info.full_name, request.split, contents)
    return Tfds(request.name, records, features, entry)


class Tfds:
    """A split of a prepared data set."""

    def __init__(self, name: str, records: decode.Records, features: decode.Features, entry: Path):
        """`records` yields serialized examples; `entry` is where they are kept when decoded."""
        self._name = name
        self._records = records
        self._features = features
        self._entry = entry

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: int) -> Example:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        """The examples of these rows; `ValueError` where records can not be read."""
        return decode.examples(self._name, self._records, self._features, rows)

    def info(self) -> Info:
        """From the metadata of the set.

        What it does not declare is read: the shape from the first image, and the number of classes from the labels, once
        (they are kept in the cache).
        """
        shape = self._features.shape or np.shape(self[0]["image"])
        height, width, channels = shape
        classes = self._features.num_classes
        if self._features.has_label and classes is None:
            classes = int(self._labels().max()) + 1
        return Info(self._name, len(self), (height, width, channels), classes, self._features.class_names)

    def entry(self) -> Path:
        """Its place in the cache, which changes when the set is prepared again."""
        return self._entry

    def _labels(self) -> np.ndarray:
        path = self._entry.with_name(f"{self._entry.name}-labels")
        try:
            if not path.exists():
                cache.write(path, self._label_chunks(), len(self))
        except OSError:
            return np.concatenate([chunk["label"] for chunk in self._label_chunks()])
        return cache.read(path)["label"]

    def _label_chunks(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self), decode.CHUNK):
            rows = range(start, min(start + decode.CHUNK, len(self)))
            yield {"label": decode.labels(self._name, self._records, self._features, rows)}


def _records(name: str, builder: prepared.Builder, split: str) -> decode.Records:
    """The serialized examples of a split: random access, no decoding."""
    import tensorflow_datasets as tfds

    there = builder.info.splits
    try:
        count = there[split].num_examples
    except (KeyError, ValueError) as error:
        sizes = {key: value.num_examples for key, value in there.items()}
        raise splits.wrong(name, split, sizes, error) from None
    if count <= 0:
        raise splits.empty(name, split)
    try:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f'"{name}" is prepared in {builder.data_dir}, but not in array_record form: {error} Prepare '
            "it in another directory (it may need TensorFlow: pip install 'gen-jax[prepare]') and use that:\n"
            f"  {prepared.prepare_command(builder, 'NEW_DIRECTORY')}"
        ) from None
