"""Data: embedded MNIST and tables, any TFDS set by name, batches from the device or streamed, augmentation from a key.

Importing this package imports neither tensorflow_datasets nor grain: both wait until something needs them.
"""

from gen_jax.data.feed import InMemory as InMemory
from gen_jax.data.feed import batches as batches
from gen_jax.data.loading import Info as Info
from gen_jax.data.loading import info as info
from gen_jax.data.loading import load as load
from gen_jax.data.stream import Stream as Stream
from gen_jax.data.tables import table as table
from gen_jax.data.transforms import binarize as binarize
from gen_jax.data.transforms import dequantize as dequantize
from gen_jax.data.transforms import flip as flip
from gen_jax.data.transforms import from_zero_one as from_zero_one
from gen_jax.data.transforms import to_uint8 as to_uint8
from gen_jax.data.transforms import to_unit as to_unit
from gen_jax.data.transforms import to_zero_one as to_zero_one
