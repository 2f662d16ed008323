"""Where the batches of a run come from: the two protocols, iterables made into one, and what goes to the devices."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from gen_jax import checks
from gen_jax.training.compile import Compiled
from gen_jax.training.workdir import Json
from gen_jax.types import Size

PROTOCOL = (
    "batches must be those of data.batches(arrays, batch_size, key=key), a list of batches, or an object with "
    "`batch_size`, `seek(step)` and `__next__()`, which returns the batch of that step, a dict of arrays. What can be "
    "gone through again and again, such as a torch DataLoader, becomes one by training.Repeated(loader), and so does a "
    "function that makes a generator"
)


@runtime_checkable
class InMemory(Protocol):
    """A data set that lives on the devices; the batch of a step is a pure function of the step."""

    @property
    def arrays(self) -> Mapping[str, Array | np.ndarray]:
        """Arrays with one leading axis of examples."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    def select(self, step: Int[Array, ""], num_steps: int) -> Int[Array, "K B"]:
        """Rows of the batches of `num_steps` steps from `step`."""


@runtime_checkable
class Stream(Protocol):
    """Host batches in an order that is a function of the step; `batch_size` is that of all processes."""

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""

    def seek(self, step: int) -> None:
        """Go to the batch of `step`."""

    def __next__(self) -> Mapping[str, np.ndarray]:
        """The next batch: this process's rows."""


class Repeated:
    """A `Stream` of what can be gone through again and again: a torch `DataLoader`, a list, a function.

        batches = training.Repeated(loader)
        batches = training.Repeated(lambda: read(file))          # a function that makes a generator, for one pass

    The last batch of a pass is left out where it has fewer rows than the first. Tensors become arrays of numpy.
    To go on at step `k`, batches are read and thrown away, at most those of one pass and `k` of them. A run that resumes
    is the same to the bit only where every pass has the same order: of a loader that shuffles it is another one.

    Raises ValueError for a generator, which is gone through once, for no batches at all, and for batches of other arrays
    than the first.
    """

    @checks.checked
    def __init__(self, source: Iterable[Any] | Callable[[], Iterable[Any]]):
        if isinstance(source, Iterable) and iter(source) is source:
            raise ValueError(
                f"source is gone through once, got {checks.came(source)}: give the function that makes it, as in "
                "training.Repeated(lambda: ...)."
            )
        self._source, self._length = source, 0
        first = next(iter(self._pass()), None)
        if first is None:
            raise ValueError(f"source has no batches, got {checks.came(source)}.")
        self._first = as_batch(first, "the first batch of source")
        self._rows = num_rows(self._first, "the first batch of source")
        self.batch_size = self._rows * jax.process_count()
        self._iterator = self._endless()

    @checks.checked
    def seek(self, step: Size) -> None:
        """Go to the batch of `step`, from the beginning of a pass."""
        self._iterator, left = self._endless(), step
        while left:
            left = left % self._length if self._length else left  # after a whole pass it is known
            if left:
                next(self._iterator)
                left -= 1

    def __next__(self) -> PyTree:
        return next(self._iterator)

    def _pass(self) -> Iterable[Any]:
        return self._source if isinstance(self._source, Iterable) else self._source()

    def _endless(self) -> Iterator[PyTree]:
        """Whole batches, and in the end of each pass how many there were."""
        wanted = _kinds(self._first)
        while True:
            count = short = 0
            for i, batch in enumerate(self._pass()):
                batch = as_batch(batch, f"batch {i}")
                if _kinds(batch) != wanted:
                    raise ValueError(
                        f"batch {i} has other arrays than the first: {_kinds(batch)} in place of {wanted}."
                    )
                if short:
                    raise ValueError(
                        f"batches of source must have {self._rows} rows as the first one has, but for the last of a "
                        f"pass; got {short} in batch {i - 1}: let the loader make batches of one size."
                    )
                if (rows := num_rows(batch, f"batch {i}")) == self._rows:
                    count += 1
                    yield batch
                elif rows < self._rows:
                    short = rows
                else:
                    raise ValueError(
                        f"batches of source must have {self._rows} rows as the first one has, got {rows} in batch {i}: "
                        "let the loader make batches of one size."
                    )
            if not count:
                raise ValueError("source has no batches in its second pass: give the function that makes it.")
            self._length = count


def as_batch(batch: PyTree, name: str) -> PyTree:
    """A batch whose leaves are arrays of numbers, of numpy or JAX; ValueError for one with others."""
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    keep = lambda x: x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)
    arrays = jax.tree.map(keep, batch)
    for path, x in jax.tree_util.tree_leaves_with_path(arrays):
        if isinstance(x, np.ndarray):
            checks.as_it_is(f"{name}{jax.tree_util.keystr(path)}", x)
        if isinstance(x, np.ndarray) and x.dtype.kind in "OSU":
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must be numbers, got {checks.came(x)}: leave it out, or make "
                "numbers of it."
            )
    return arrays


def num_rows(batch: PyTree, name: str) -> int:
    """The first axis of all leaves of a batch; ValueError where they differ, or there is nothing."""
    rows = {jax.tree_util.keystr(p): np.shape(x)[:1] for p, x in jax.tree_util.tree_leaves_with_path(batch)}
    if len(set(rows.values())) != 1 or () in rows.values() or (0,) in rows.values():
        found = ", ".join(f"{where or 'it'} has {n[0] if n else 'no axis'}" for where, n in rows.items())
        raise ValueError(
            f"{name} must have arrays with equally many rows, at least one: {found or 'it has none'}."
        )
    return next(iter(rows.values()))[0]


def _kinds(batch: PyTree) -> dict[str, tuple[int, ...]]:
    """The shapes of the rows, by path."""
    return {jax.tree_util.keystr(p): np.shape(x)[1:] for p, x in jax.tree_util.tree_leaves_with_path(batch)}


def as_batches(batches: object) -> InMemory | Stream:
    """What `fit` was given, held to one of the two protocols; a list becomes `Repeated`."""
    if isinstance(batches, InMemory):
        _check_arrays(batches)
        return batches
    if isinstance(batches, list):
        return cast(Stream, Repeated(batches))
    if isinstance(batches, Stream):
        checks.whole("batches.batch_size", batches.batch_size, "row")
        return batches
    raise ValueError(f"{PROTOCOL}; got {_type(batches)}.")


def _type(value: object) -> str:
    name = type(value).__name__
    return (
        f"an object of {type(value).__module__}.{name}"
        if type(value).__module__ != "builtins"
        else f"a {name}"
    )


def _check_arrays(batches: InMemory) -> None:
    """Arrays of one length, and rows of them: XLA takes another row for one that is not there."""
    if not isinstance(batches.arrays, Mapping):
        raise ValueError(f"batches.arrays must be arrays by name, got {checks.came(batches.arrays)}.")
    num_rows(dict(batches.arrays), "batches.arrays")
    checks.whole("batches.batch_size", batches.batch_size, "row")
    rows = jax.eval_shape(lambda step: batches.select(step, 1), jax.ShapeDtypeStruct((), jnp.int32))
    if rows.shape != (1, batches.batch_size) or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f"batches.select(step, 1) must be the numbers of the rows, integers of shape {(1, batches.batch_size)}, got "
            f"{checks.came(rows)}."
        )


def identity(batches: InMemory | Stream) -> Json:
    """What makes the batch of a step the batch that it is; the position itself is the step."""
    found: Json = {"batch_size": batches.batch_size}
    if hasattr(batches, "get_state"):
        return found | {name: x for name, x in batches.get_state().items() if name != "step"}
    arrays = jax.tree.leaves(getattr(batches, "arrays", None))
    found["num_examples"] = int(arrays[0].shape[0]) if arrays else None
    if hasattr(batches, "key"):
        found["key"] = np.asarray(jax.random.key_data(batches.key)).tolist()
    return found


def shapes(batches: InMemory | Stream, step: int) -> PyTree:
    """Of a batch of all processes. Of a stream it is read, at a step where the stream then is again."""
    if isinstance(batches, InMemory):
        batch = dict(batches.arrays)
    else:
        batches.seek(step)
        batch = _checked(batches, step)
        batches.seek(step)
    size, kind = batches.batch_size, jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), kind(x.dtype)), batch)


def feed(compiled: Compiled, batches: InMemory | Stream, start: int, num_steps: int) -> Iterator[PyTree]:
    """The second argument of every call, on the devices."""
    size = compiled.steps_per_call
    if isinstance(batches, InMemory):
        data = compiled.put(dict(batches.arrays))
        for _ in range(start, num_steps, size):
            yield data
        return
    batches.seek(start)
    for first in range(start, num_steps, size):
        several = [_checked(batches, step) for step in range(first, first + size)]
        yield compiled.put(several[0] if size == 1 else _stacked(several, first))


def _checked(batches: Stream, step: int) -> PyTree:
    batch = as_batch(_next(batches, step), f"the batch of step {step}")
    rows, expected = num_rows(batch, f"the batch of step {step}"), batches.batch_size // jax.process_count()
    if rows != expected:
        raise ValueError(
            f"the batch of step {step} must have batch_size rows, {expected} in each process, got {rows}: leave out the "
            "partial batch in the end of a pass (drop_last=True)."
        )
    return batch


def _next(batches: Stream, step: int) -> PyTree:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(
            f"batches ended before step {step}: `__next__` has to go on as long as a run does. What is gone through "
            "again and again is training.Repeated(source)."
        ) from None


def _stacked(several: Sequence[PyTree], first: int) -> PyTree:
    shapes = [jax.tree.map(np.shape, batch) for batch in several]
    for i, each in enumerate(shapes):
        if each != shapes[0]:
            raise ValueError(
                f"batches of one call must have the same shapes, but that of step {first + i} has {each}, and that of "
                f"step {first} {shapes[0]}: leave out the partial batch in the end of a pass (drop_last=True)."
            )
    return jax.tree.map(lambda *rows: np.stack(rows), *several)


def of_images(data: PyTree, axes: int) -> bool:
    """Whether an array has rows `[H, W, C]` behind its first `axes`."""
    return any(np.ndim(x) >= axes + 3 for x in jax.tree.leaves(data))
