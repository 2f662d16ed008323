"""Batches streamed from memory-mapped arrays by Grain: for data sets that do not fit on the device."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key


def num_examples(arrays: Mapping[str, Any]) -> int:
    """The common length of the arrays; a `ValueError` if there is none."""
    lengths = {key: np.shape(array)[:1] for key, array in arrays.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values() or (0,) in lengths.values():
        raise ValueError(f"expected arrays with one leading axis of examples, got the lengths {lengths}.")
    return next(iter(lengths.values()))[0]


class Stream:
    """An endless iterator over batches `{"image": [b, H, W, C], ...}` of numpy arrays, its position a step.

    The order is an infinite row of epochs, each a shuffle of all examples; the batch of step `k` is the rows
    `k batch_size, ..., (k + 1) batch_size - 1` of it (a batch may end one epoch and begin the next: nothing
    is dropped). Host `p` of `P` gets the `p`-th of `P` equal parts of each batch, `b = batch_size / P` rows:
    what the hosts see together depends on key and step, not on their number. So the state is the step, and
    going to a step costs nothing.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        batch_size: int,
        *,
        key: Key[Array, ""],
        process_index: int | None = None,
        process_count: int | None = None,
        prefetch: int = 4,
    ):
        """Set up at step 0.

        `batch_size` is that of the global batch. `process_index` and `process_count` are by default those of
        jax; `prefetch` is how many batches are read ahead (0: none, no thread). `ValueError` where the batch
        does not divide by the hosts, or exceeds the data set.
        """
        self.batch_size = batch_size
        self.num_examples = num_examples(arrays)
        self._arrays = dict(arrays)
        self._seed = int(jax.random.bits(key, dtype=jnp.uint32))
        self._index = jax.process_index() if process_index is None else process_index
        self._count = jax.process_count() if process_count is None else process_count
        self._prefetch = prefetch
        if not 1 <= batch_size <= self.num_examples or batch_size % self._count:
            raise ValueError(
                f"batch_size must be from 1 to the {self.num_examples} examples of the data set and divide "
                f"by the {self._count} hosts, got {batch_size}: choose another batch size or a larger split."
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

    def seek(self, step: int) -> None:
        """Go to a step: the next batch is that of `step`."""
        if step < 0:
            raise ValueError(f"expected a step of at least 0, got {step}.")
        self.close()
        self._step = int(step)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """What `set_state` needs to go on from here: a dict for JSON, the same on every host."""
        return {"step": self._step, **self._identity()}

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
        return parts[self._index :: self._count].map(self._gather)

    def _start(self) -> Any:
        import grain

        options = grain.ReadOptions(num_threads=min(2, self._prefetch), prefetch_buffer_size=self._prefetch)
        return iter(self._dataset[self._step :].to_iter_dataset(options))

    def _gather(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {key: np.asarray(array[rows]) for key, array in self._arrays.items()}
