"""Data: a set by name or path as a source, as arrays, or as batches; tables of numbers; augmentation from a key.

Importing this package imports neither tensorflow_datasets nor grain nor Pillow: they wait until something needs them.
"""

from gen_jax.data import sources
from gen_jax.data.feed import InMemory, batches
from gen_jax.data.loading import info, load, source
from gen_jax.data.protocol import Arrays, Info, Random, Source
from gen_jax.data.splits import NoSplit
from gen_jax.data.stream import Stream
from gen_jax.data.tables import table
from gen_jax.data.transforms import (
    binarize,
    dequantize,
    flip,
    from_zero_one,
    to_uint8,
    to_unit,
    to_zero_one,
)

__all__ = [
    "Arrays",
    "InMemory",
    "Info",
    "NoSplit",
    "Random",
    "Source",
    "Stream",
    "batches",
    "binarize",
    "dequantize",
    "flip",
    "from_zero_one",
    "info",
    "load",
    "source",
    "sources",
    "table",
    "to_uint8",
    "to_unit",
    "to_zero_one",
]
