"""Samples a chunk at a time, by one compiled program; shared by the processes of a run where that is asked for."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Int, Shaped

from gen_jax import checks
from gen_jax.training import on_host
from gen_jax.types import Count

Draw: TypeAlias = Callable[[Int[np.ndarray, "n"]], Shaped[Array | np.ndarray, "n ..."]]
"""`index -> samples`, of the samples with these numbers."""


@checks.checked
def in_chunks(draw: Draw, num: Count, size: Count, *, shared: bool = False) -> Shaped[np.ndarray, "num ..."]:
    """The samples 0 to `num - 1`, in the memory of the host, `size` at a time; the last one fills up the last chunk.

    Args:
        draw: `draw(index) -> samples`; it is always called with `size` numbers.
        num: how many samples.
        size: of a chunk.
        shared: whether each process of a run draws its part of the chunks and gets those of the others, so all of them
            must call it. A process has the same chunks that one alone would have, so the bits are the same.
    """
    count = jax.process_count() if shared else 1
    starts = range(0, num, size)
    mine = starts[jax.process_index() if shared else 0 :: count] or starts[:1]  # it must know a shape
    each = (np.minimum(np.arange(start, start + size), num - 1) for start in mine)
    parts = [np.asarray(jax.device_get(draw(index))) for index in each]
    return np.concatenate(parts if count == 1 else _of_all(parts, len(starts)))[:num]


def _of_all(mine: list[np.ndarray], total: int) -> list[np.ndarray]:
    """The chunks of all processes in order, of which each has every `process_count`-th one."""
    rounds = -(-total // jax.process_count())
    mine = mine + mine[-1:] * (rounds - len(mine))
    found = np.asarray(on_host(np.stack(mine)[None]))  # [process, round, ...]
    return list(np.moveaxis(found, 0, 1).reshape(-1, *mine[0].shape))
