"""Estimates that are heard while a compiled program runs.

    with listening.to(on_step, num, shards=mesh.size) as ticket:
        program(..., ticket)                          # in its loop: listening.tell(ticket, index, step, x0_hat)

A program knows a listener by a number, one of its arguments, so that it serves every function that listens. What listens
runs in a thread of its own: inside a callback of JAX a computation by JAX would wait for the program, for ever.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree

OnStep: TypeAlias = Callable[[int, np.ndarray], None]
"""`(step, x0_hat [n, ...])`: the number of the step from 0, and the estimates of the samples that are being drawn."""

_numbers, _listeners = itertools.count(), dict[int, "_Listener"]()


@contextlib.contextmanager
def to(on_step: OnStep | None, num: int, shards: int) -> Iterator[np.int32 | None]:
    """The number by which a program knows the function in the block; None for no function.

    Args:
        on_step: what is called, on the host. What it raises is raised at the end of the block.
        num: how many samples there are; others, which fill up a chunk, are not heard of.
        shards: in how many parts each step is told.
    """
    if on_step is None:
        yield None
        return
    ticket, listener = next(_numbers), _Listener(on_step, num, shards)
    _listeners[ticket] = listener
    try:
        yield np.int32(ticket)
        jax.effects_barrier()
        listener.check()
    finally:
        del _listeners[ticket]
        listener.close()


def tell(ticket: Int[Array, ""], index: Int[Array, "n"], step: Int[Array, ""], x0_hat: PyTree) -> None:
    """In a program: that these are the estimates of the samples `index` at a step."""
    jax.debug.callback(_hear, ticket, index, step, x0_hat)


def _hear(ticket: Array, index: Array, step: Array, x0_hat: Array) -> None:
    if (listener := _listeners.get(int(ticket))) is not None:
        listener.hear(index, step, x0_hat)


class _Listener:
    """Puts together what the devices tell of a step."""

    def __init__(self, on_step: OnStep, num: int, shards: int):
        self._on_step, self._num, self._shards = on_step, num, shards
        self._parts, self._thread = dict[int, list[tuple[np.ndarray, np.ndarray]]](), ThreadPoolExecutor(1)
        self._heard: list[Future[None]] = []

    def hear(self, index: Array, step: Array, x0_hat: Array) -> None:
        """Take one part of a step, without a wait."""
        self._heard.append(self._thread.submit(self._add, index, step, x0_hat))

    def check(self) -> None:
        """Wait for what was heard, and raise what went wrong with it."""
        for heard in self._heard:
            heard.result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _add(self, index: Array, step: Array, x0_hat: Array) -> None:
        parts = self._parts.setdefault(int(step), [])
        parts.append((np.asarray(index), np.asarray(x0_hat)))
        if len(parts) < self._shards:
            return
        numbers, x = (np.concatenate(each) for each in zip(*self._parts.pop(int(step)), strict=True))
        numbers, first = np.unique(numbers, return_index=True)
        self._on_step(int(step), x[first[numbers < self._num]])
