"""Tuples of arrays that were found right: JAX's never change, so a plan is looked at once."""

import weakref
from collections.abc import Mapping, Sequence

from gen_jax.checks.call import is_known
from gen_jax.checks.values import Value

MOST = 64
"""How many tuples are remembered."""
Sizes = Mapping[str, tuple[Value, str]]
"""Of each letter its size, and the field that gave it."""


class Seen:
    """By the identity of their arrays, which it does not keep alive."""

    def __init__(self) -> None:
        self._tuples: dict[tuple[int, ...], tuple[list[weakref.ref[Value] | None], Sizes]] = {}

    def find(self, value: Sequence[Value]) -> Sizes | None:
        """What was added with a tuple of these arrays; None if nothing was."""
        known = self._tuples.get(tuple(map(id, value)))
        if known is None:
            return None
        for ref, field in zip(known[0], value, strict=True):
            if field is not None and (ref is None or ref() is not field):
                return None
        return known[1]

    def add(self, value: Sequence[Value], sizes: Sizes) -> None:
        """Remember a tuple of arrays of JAX, some of which may be missing; no other tuple is remembered."""
        if not all(field is None or is_known(type(field)) for field in value):
            return
        self._tuples[tuple(map(id, value))] = [None if x is None else weakref.ref(x) for x in value], sizes
        if len(self._tuples) > MOST:
            del self._tuples[next(iter(self._tuples))]
