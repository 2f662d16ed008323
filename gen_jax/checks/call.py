"""One call of a checked function: what is known of its arguments, and the values that are to be read."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from gen_jax.checks.values import Range, Value

LARGE = 2**16
"""Numbers of an array of another device from which on only its smallest and its largest are fetched."""
_RIGHT: weakref.WeakValueDictionary[tuple[int, object], jax.Array] = weakref.WeakValueDictionary()
"""Arrays of JAX whose values were found right, by their id and range: they do not change, and are read once."""
_ARRAYS: dict[type, bool] = {}
_traced: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def values_of_traced() -> Iterator[None]:
    """Values of traced arrays are checked as well, by `checkify`."""
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


class Call:
    """What is known in one call: the size of each letter, and the arrays whose values are to be read in the end."""

    def __init__(self, reads: bool = True, owner: object = None) -> None:
        self.sizes: dict[str, Value] = {}
        self.by: dict[str, str] = {}  # the argument that gave a letter its size
        self.values: list[tuple[str, Value, Range]] = []
        self.reads = reads
        """Whether values are looked at."""
        self.then: list[Callable[[], None]] = []
        """What is done once all values were found right."""
        self.owner = owner
        """The first argument: of a method, its object."""

    def ask(self, name: str, value: Value, allowed: Range) -> None:
        """Have values checked: numbers of Python always, arrays of numpy now, of JAX in the end."""
        allowed = allowed.of(self.owner)
        if type(value) in (int, float) or (self.reads and not is_known(type(value))):
            allowed.check(name, value)
        elif self.reads and _RIGHT.get((id(value), allowed.key)) is not value:
            self.values.append((name, value, allowed))

    def read(self) -> None:
        """Check values. Those on other devices are fetched at once: of large ones, where their ends are enough, those."""
        if self.values:
            self._read()
        for remember in self.then:
            remember()

    def _read(self) -> None:
        self.values = [each for each in self.values if not (each[2].on_host and _is_distant(each[1]))]
        asked = self.values
        if any(_is_distant(value) for _, value, _ in asked):
            self._fetch()
        for name, value, allowed in self.values:
            allowed.check(name, value)
        for _, value, allowed in asked:
            _RIGHT[id(value), allowed.key] = value

    def _fetch(self) -> None:
        large = [type(r) is Range and _is_distant(v) and v.size > LARGE for _, v, r in self.values]
        asked = [_ends(v) if big else v for (_, v, _), big in zip(self.values, large, strict=True)]
        given = zip(self.values, large, jax.device_get(asked), strict=True)
        self.values = [
            (n, np.asarray(v) if big and not r.holds(*got) else got, r) for (n, v, r), big, got in given
        ]


def is_known(cls: type) -> bool:
    """Whether a type is that of arrays of JAX with values."""
    if cls not in _ARRAYS:
        _ARRAYS[cls] = issubclass(cls, jax.Array) and not issubclass(cls, jax.core.Tracer)
    return _ARRAYS[cls]


@jax.jit
def _ends(x: jax.Array) -> jax.Array:
    return jnp.stack([x.min(), x.max()])


def _is_distant(value: Value) -> bool:
    return isinstance(value, jax.Array) and next(iter(value.devices())).platform != "cpu"


def check_traced(name: str, value: Value, allowed: Range | None) -> Value:
    """A traced value, checked where the call is one of `checkified`."""
    if _traced.get() and allowed and jnp.issubdtype(value.dtype, jnp.number) and value.size:
        fine = allowed.holds(value.min(), value.max())
        checkify.check(fine, f"{name} must be {allowed.words}")
    return value
