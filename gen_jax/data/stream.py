"""Batches streamed from a source by Grain's threads: for data sets that do not fit on the device."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gen_jax import checks
from gen_jax.data.protocol import Arrays, Columns, Random, Source, as_source, read, reading_threads, stack
from gen_jax.types import Count, Size

Transform = Callable[[Columns], Columns]
"""A function of arrays `[n, ...]` that treats each row alone: to leave out keys, or to make tokens of captions."""


class Stream:
    """An endless iterator over batches `{"image": [b, H, W, C], ...}` of numpy arrays, its position a step.

    The order is an infinite row of epochs, each a shuffle of all examples; the batch of step `k` is the rows
    `k batch_size, ..., (k + 1) batch_size - 1` of it (a batch may end one epoch and begin the next: nothing
    is dropped). Host `p` of `P` gets the `p`-th of `P` equal parts of each batch, `b = batch_size / P` rows:
    what the hosts see together depends on key and step, not on their number. So the state is the step, and
    going to a step costs nothing.

    Examples that are drawn (`data.Random`, such as random crops) get a generator each, seeded by key, epoch and row.
    """

    @checks.checked
    def __init__(
        self,
        data: Columns | Source,
        batch_size: Count,
        *,
        key: Key[Array, ""],
        process_index: Size | None = None,
        process_count: Count | None = None,
        prefetch: Size | None = None,
        transform: Transform | None = None,
    ):
        """Set up at step 0.

        `batch_size` is that of the global batch. `process_index` and `process_count` are by default those of jax.
        `prefetch` is how many batches are read ahead (0: none, no thread): 4 of arrays, and of other sources one more
        than there are cores, with a thread for each. `transform` is applied to each batch. `ValueError` where the batch
        does not divide by the hosts, or exceeds the data set.
        """
        source = as_source(data)
        self.batch_size = batch_size
        self.num_examples = len(source)
        self._source = source
        self._transform = transform
        self._threads = 2 if isinstance(source, Arrays) else reading_threads()
        self._seed = int(jax.random.bits(key, dtype=jnp.uint32))
        self._index = jax.process_index() if process_index is None else process_index
        self._count = jax.process_count() if process_count is None else process_count
        self._prefetch = max(4, self._threads + 1) if prefetch is None else prefetch
        if batch_size > self.num_examples or batch_size % self._count:
            raise ValueError(
                f"batch_size must be from 1 to the {self.num_examples} examples of the data set and divide "
                f"by the {self._count} hosts, got {batch_size}: take a batch_size that does, or a larger split."
            )
        if not 0 <= self._index < self._count:
            raise ValueError(f"process_index must be from 0 to {self._count - 1}, got {self._index}.")
        self._dataset = self._make()
        self._iterator: Any = None
        self._step = 0

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self._step

    @checks.checked
    def seek(self, step: Size) -> None:
        """Go to a step: the next batch is that of `step`."""
        self.close()
        self._step = int(step)

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return self

    def __next__(self) -> Mapping[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on from here: a dict for JSON, the same on every host."""
        return {"step": self._step, **self._identity()}

    @checks.checked
    def set_state(self, state: Mapping[str, int]) -> None:
        """Go on where `get_state` was called, on this or another number of hosts.

        A state of another data set, batch size or key is a `ValueError` that says what differs.
        """
        differs = {k: (state.get(k), v) for k, v in self._identity().items() if state.get(k) != v}
        if differs or "step" not in state:
            listed = (
                ", ".join(f"{k} was {was}, is {now}" for k, (was, now) in differs.items()) or "it has no step"
            )
            raise ValueError(
                f"this state does not belong to this stream: {listed}. Make it as it was made then."
            )
        self.seek(state["step"])

    def close(self) -> None:
        """Stop reading ahead. The stream can still be used; its position does not change."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def _identity(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "num_examples": self.num_examples, "seed": self._seed}

    def _make(self) -> Any:
        """Random access to this host's part of the batch of any step."""
        import grain

        rows = grain.MapDataset.range(self.num_examples).seed(self._seed).shuffle().repeat()
        parts = rows.batch(self.batch_size // self._count)  # part k P + p is that of host p at step k
        return parts[self._index :: self._count].map_with_index(self._read)

    def _start(self) -> Any:
        import grain

        threads = min(self._threads, self._prefetch)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch)
        return iter(self._dataset[self._step :].to_iter_dataset(options))

    def _read(self, step: int, rows: np.ndarray) -> Columns:
        source = self._source
        if isinstance(source, Arrays):
            batch: Columns = source.gather(rows)
        elif isinstance(source, Random):
            batch = stack(source.draw(rows.tolist(), self._generators(step, rows)))
        else:
            batch = stack(read(source, rows.tolist()))
        return batch if self._transform is None else self._transform(batch)

    def _generators(self, step: int, rows: np.ndarray) -> list[np.random.Generator]:
        first = step * self.batch_size + self._index * len(rows)
        return [
            np.random.default_rng((self._seed, (first + i) // self.num_examples, row))
            for i, row in enumerate(rows.tolist())
        ]
