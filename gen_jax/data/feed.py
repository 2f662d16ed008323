"""Batches for a training run: rows of arrays on the device, or a stream for what does not fit."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from gen_jax import checks
from gen_jax.data.loading import load
from gen_jax.data.protocol import (
    Arrays,
    Columns,
    Random,
    Source,
    as_columns,
    as_source,
    num_examples,
    read,
    stack,
)
from gen_jax.data.stream import Stream, Transform
from gen_jax.types import Count, Size


@checks.checked
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class InMemory:
    """A data set at hand as a whole, and the order in which it is seen. Make it with `InMemory.create`.

    It is a pytree, its leaves the arrays and the key: place it once (`jax.device_put(feed, sharding)`) and
    pass it to the jitted function, which gathers the rows:

        rows = feed.select(step, num_steps)                       # [num_steps, batch_size]
        batches = jax.tree.map(lambda a: a[rows], feed.arrays)    # [num_steps, batch_size, ...]
    """

    arrays: Columns
    key: Any
    batch_size: int = field(metadata={"static": True})

    @classmethod
    @checks.checked
    def create(cls, arrays: Columns, batch_size: Count, *, key: Key[Array, ""]) -> "InMemory":
        """Keep the arrays as they come. A batch larger than the data set is a `ValueError`."""
        mine = (np.ndarray, jax.Array)
        arrays = {k: x if isinstance(x, mine) else np.asarray(x) for k, x in as_columns(arrays).items()}
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                checks.as_it_is(f'"{name}"', array)
        count = num_examples(arrays)
        if batch_size > count:
            raise ValueError(
                f"batch_size must be from 1 to the {count} examples of the data set, got {batch_size}: "
                f"take a batch_size of {count} or fewer, or a larger split."
            )
        return cls(arrays, key, batch_size)

    @property
    def num_examples(self) -> int:
        """Rows of the arrays."""
        return next(iter(self.arrays.values())).shape[0]

    @property
    def batches_per_epoch(self) -> int:
        """`N // batch_size`: the remainder is left out, another one each epoch."""
        return self.num_examples // self.batch_size

    @checks.checked
    def select(self, step: Int[Array, ""] | int, num_steps: Count = 1) -> Int[Array, "num_steps batch"]:
        """The rows of the batches of steps `step` to `step + num_steps - 1`: int32 `[num_steps, batch_size]`.

        Batch `i` of epoch `e` is the `i`-th `batch_size` rows of `permutation(fold_in(key, e), N)`, with
        `e, i = divmod(step, N // batch_size)`: a pure function of key and step, whatever `num_steps`, which
        is what makes a resumed run the same run. `step` may be traced, `num_steps` not; it may span epochs.
        """
        return _select(self.key, jnp.asarray(step, jnp.int32), self.num_examples, self.batch_size, num_steps)


@partial(jax.jit, static_argnums=(2, 3, 4))
def _select(
    key: Key[Array, ""], step: Int[Array, ""], num_examples: int, batch_size: int, num_steps: int
) -> Int[Array, "{num_steps} {batch_size}"]:
    """The rows of the batches of some steps."""
    per_epoch = num_examples // batch_size
    steps = step + jnp.arange(num_steps, dtype=jnp.int32)
    epochs, batches = jnp.divmod(steps, per_epoch)
    # The most epochs that num_steps batches can touch, wherever they begin. Only those they do touch are
    # shuffled: a permutation of 60,000 rows takes a CPU tens of milliseconds.
    bound = 1 + (num_steps + per_epoch - 2) // per_epoch
    rows = jnp.arange(num_examples, dtype=jnp.int32)

    def order(epoch: Int[Array, ""]) -> Int[Array, "n"]:
        shuffled = lambda: jax.random.permutation(jax.random.fold_in(key, epoch), rows)
        return jax.lax.cond(epoch <= epochs[-1], shuffled, lambda: rows)

    orders = jax.lax.map(order, epochs[0] + jnp.arange(bound, dtype=jnp.int32))
    columns = batches[:, None] * batch_size + jnp.arange(batch_size, dtype=jnp.int32)[None, :]
    return orders[(epochs - epochs[0])[:, None], columns]


@checks.checked
def batches(
    data: Columns | Source,
    batch_size: Count,
    *,
    key: Key[Array, ""],
    memory_budget: Size = 2 * 2**30,
    transform: Transform | None = None,
) -> InMemory | Stream:
    """Batches of `batch_size` examples, shuffled anew each epoch, in the way that fits the size of the data.

    Data of at most `memory_budget` bytes in all (2 GiB by default) become `InMemory`: they live on the device and are
    shuffled there; a source is loaded for this (`data.load`). Larger data become `Stream`: examples are read and decoded
    in the background, each host its share. So do examples that are drawn anew each epoch, such as random crops. Either
    can be forced by its own constructor. Both give the batch of a step as a pure function of key and step; the two
    orders differ.

    `transform` is applied to arrays `[n, ...]` of examples before they become batches: to all of them or to those of
    a batch, so it must treat each example alone. `ValueError` where a batch would have strings, which no device takes.
    """
    source = as_source(data)
    one = _apply(
        transform, source.gather(np.arange(1)) if isinstance(source, Arrays) else stack(read(source, [0]))
    )
    if strings := [key for key, array in one.items() if np.asarray(array).dtype.kind in "OSU"]:
        raise ValueError(
            f"a batch holds numbers, got strings under {strings}: give a transform that makes tokens of them or leaves "
            "them out."
        )
    if (
        isinstance(source, Random)
        or sum(array.nbytes for array in one.values()) * len(source) > memory_budget
    ):
        return Stream(source, batch_size, key=key, transform=transform)
    arrays = source.arrays if isinstance(source, Arrays) else load(source)
    return InMemory.create(_apply(transform, arrays), batch_size, key=key)


def _apply(transform: Transform | None, batch: Columns) -> Columns:
    return batch if transform is None else transform(batch)
