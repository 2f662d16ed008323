"""What a data set is to the rest of the package: examples that are read one by one, and what is known of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int

from gen_jax import checks
from gen_jax.data.columns import has_labels, warn_of_labels

Example = Mapping[str, np.ndarray | np.generic | str | int | float]
"""One example: `image` is uint8 [H, W, C], `label` an int32, `text` a str. Other keys may stand beside these."""
Columns = Mapping[str, Any]
"""Arrays of numpy or jax, memory-mapped or not, with one leading axis of examples."""


@checks.checked
@dataclass(frozen=True)
class Info:
    """What a model has to know of a data set."""

    name: str
    num_examples: int
    image_shape: tuple[int, int, int]  # height, width, channels
    num_classes: int | None  # None: there are no labels
    class_names: tuple[str, ...] | None = None  # None: the classes have no names
    has_text: bool = False  # whether each image has a caption, under the key "text"


@runtime_checkable
class Source(Protocol):
    """A data set with random access. Any object with these three methods trains through `data.batches`.

    `source[row]` must always give the same example. It is called from several threads at once. All examples have
    the same keys, shapes and types.
    """

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, row: int, /) -> Example:
        """The example of a row, from 0 to `len - 1`."""

    def info(self) -> Info:
        """What is known of the data set, without reading it."""


@runtime_checkable
class Bulk(Protocol):
    """A source that reads several examples faster together than one by one."""

    def __getitems__(self, rows: Sequence[int], /) -> Sequence[Example]:
        """The examples of these rows, in this order."""


@runtime_checkable
class Stored(Protocol):
    """A source whose decoded examples can be kept on disk."""

    def entry(self) -> Path | None:
        """The directory of its arrays in the cache, another one for other contents. None: they are not kept."""


@runtime_checkable
class Random(Protocol):
    """A source whose examples are drawn anew each epoch, as random crops are."""

    def draw(self, rows: Sequence[int], generators: Sequence[np.random.Generator], /) -> Sequence[Example]:
        """The examples of these rows, each drawn with its own generator."""


class Unreadable(ValueError):
    """Images that can not be decoded: `problems` has the reason for each, by the name of its file."""

    def __init__(self, where: str, problems: Mapping[str, str]):
        shown = ", ".join(f"{name} ({why})" for name, why in list(problems.items())[:5])
        more = f" and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        super().__init__(
            f"{len(problems):,} image(s) of {where} can not be read: {shown}{more}. Mend or remove them, or leave "
            'them out with unreadable="skip".'
        )
        self.problems = dict(problems)


def reading_threads() -> int:
    """How many threads decode images: one for each core, at most 16."""
    return min(16, os.cpu_count() or 1)


def read(source: Source, rows: Sequence[int]) -> Sequence[Example]:
    """The examples of these rows, in this order."""
    if isinstance(source, Bulk):
        return source.__getitems__(rows)
    return [source[int(row)] for row in rows]


def stack(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Examples as arrays `[n, ...]`; strings as an array of objects. `ValueError` where shapes or keys differ."""
    keys = list(examples[0])
    if any(set(example) != set(keys) for example in examples):
        raise ValueError(
            f"expected examples with the same keys, got {sorted({tuple(sorted(e)) for e in examples})}."
        )
    return {key: _column(key, [example[key] for example in examples]) for key in keys}


def _column(key: str, values: Sequence[object]) -> np.ndarray:
    if isinstance(values[0], str):
        return np.array(values, object)
    arrays = [np.asarray(value) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f'expected "{key}" of one shape in all examples, got {sorted(shapes)}: give image_size to resize '
            "and crop images."
        )
    return np.stack(arrays)


def num_examples(arrays: Columns) -> int:
    """The common length of the arrays; a `ValueError` if there is none."""
    lengths = {key: np.shape(array)[:1] for key, array in arrays.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values() or (0,) in lengths.values():
        raise ValueError(f"expected arrays with one leading axis of examples, got the lengths {lengths}.")
    return next(iter(lengths.values()))[0]


def as_columns(columns: Columns) -> dict[str, Any]:
    """The columns, lists of rows as arrays. ValueError where the rows of a list differ in shape."""
    found = {}
    for key, rows in columns.items():
        try:
            found[key] = rows if hasattr(rows, "dtype") and hasattr(rows, "shape") else np.asarray(rows)
        except ValueError as error:
            raise ValueError(f'"{key}" must be an array, or a list of rows of one shape: {error}.') from None
    return found


def _take(array: Any, rows: np.ndarray) -> np.ndarray:
    """Rows of an array; of one that is not numpy's, such as of h5py, in its order and each once."""
    if isinstance(array, (np.ndarray, jax.Array)):
        return np.asarray(array[rows])
    some, places = np.unique(rows, return_inverse=True)
    return np.asarray(array[some])[places]


class Arrays:
    """A source of arrays that are at hand, or that a function reads when they are first needed."""

    @checks.checked
    def __init__(self, arrays: Columns | Callable[[], Columns], info: Info | None = None):
        """Keep the arrays as they come. With a function, `info` says what is known before it is called."""
        self._make = arrays
        self._info = info
        self._count = num_examples(self.arrays) if info is None else info.num_examples

    @cached_property
    def arrays(self) -> Columns:
        """The arrays themselves. ValueError where they are not as many examples as is said of them."""
        arrays = as_columns(self._make() if callable(self._make) else self._make)
        if self._info is not None and num_examples(arrays) != self._info.num_examples:
            raise ValueError(
                f"info says {self._info.num_examples} examples, but the arrays have {num_examples(arrays)}."
            )
        return arrays

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Example:
        return {key: np.asarray(array[row])[()] for key, array in self.arrays.items()}

    @checks.checked
    def gather(self, rows: Int[np.ndarray, "B"]) -> dict[str, np.ndarray]:
        """The examples of these rows: arrays `[n, ...]`."""
        checks.within("rows", rows, 0, self._count - 1)
        return {key: _take(array, rows) for key, array in self.arrays.items()}

    def info(self) -> Info:
        """What is known of the arrays; a `ValueError` where none is called "image"."""
        if self._info is not None:
            return self._info
        if "image" not in self.arrays or np.ndim(self.arrays["image"]) != 4:
            shapes = {key: np.shape(array) for key, array in self.arrays.items()}
            raise ValueError(f'expected an array "image" [N, H, W, C], got the shapes {shapes}.')
        _, height, width, channels = np.shape(self.arrays["image"])
        warn_of_labels("arrays", self.arrays)
        classes = int(np.max(self.arrays["label"])) + 1 if has_labels(self.arrays) else None
        return Info("arrays", len(self), (height, width, channels), classes, None, "text" in self.arrays)


def as_source(data: Columns | Source) -> Source:
    """A source as it is, and arrays as one."""
    return Arrays(data) if isinstance(data, Mapping) else data
