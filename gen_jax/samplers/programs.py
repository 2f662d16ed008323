"""Programs that a second call outside `jit` finds compiled: they are kept with their denoiser.

Outside `jit`, JAX compiles a loop whenever its body is a new function, and the body of `sample` is one at every call. So
`sample` puts what it does into a `jax.jit` of its own, one for each denoiser.

What the denoiser closes over is a constant there, as in every program of JAX. Unlike `jax.jit`, one is made anew when
the denoiser refers to other objects than before: in its closure, by the globals that it names, in pytrees of these, or as
arrays in attributes of these. A numpy array that changes in place, and an array further down in objects that are no
pytrees, is not seen: make the denoiser anew then, or call `sample` inside `jit` with the arrays as an argument.

Nothing is kept alive by this: programs go with their denoiser.
"""

import contextlib
import functools
import operator
import types
import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

MOST = 64
"""Of how many denoisers programs are kept, and how many of each."""

Result = TypeVar("Result")
Key = TypeVar("Key")
Value = TypeVar("Value")


class _Kept(NamedTuple):
    """The programs of a denoiser, and the objects that it referred to when they were made."""

    refers: list[object]
    programs: dict[object, Callable[..., Any]]


_KEPT: weakref.WeakKeyDictionary[object, _Kept] = weakref.WeakKeyDictionary()
_OUTSIDE = get_opaque_trace_state()


def run(
    make: Callable[..., Callable[..., Result]],
    denoise: Callable[..., object],
    options: tuple[object, ...],
    *arrays: object,
) -> Result:
    """`make(denoise, *options)(*arrays)`, outside of transformations by a program that is kept.

    Inside `jit`, `grad`, `vmap` and the like it is just that, as `denoise` may close over their tracers; and also if
    `denoise` or an option has no hash, or `denoise` cannot be referred to weakly.

    Args:
        make: a function of a module, not a closure: programs are kept by it.
        denoise: what programs are kept with.
        options: all that a program depends on besides, by equality.
        *arrays: pytrees of arrays, its arguments.
    """
    program = make(denoise, *options) if get_opaque_trace_state() != _OUTSIDE else None
    if program is None:
        try:
            program = _program(make, denoise, options)
        except TypeError:
            program = make(denoise, *options)
    return program(*arrays)


def _program(
    make: Callable[..., Callable[..., Result]], denoise: Callable[..., object], options: tuple[object, ...]
) -> Callable[..., Result]:
    """The program, made if it is not there; TypeError if it cannot be kept."""
    owner: object = denoise
    weak: Callable[[], object] = weakref.ref(denoise)
    key: tuple[object, ...] = make, None, options
    if isinstance(denoise, types.MethodType):  # a new object whenever it is looked up
        owner, weak, key = denoise.__self__, weakref.WeakMethod(denoise), (make, denoise.__func__, options)
    refers, kept = list(_refers(denoise, owner)), _KEPT.get(owner)
    if kept is None or len(kept.refers) != len(refers) or any(map(operator.is_not, kept.refers, refers)):
        kept = _KEPT[owner] = _Kept(refers, {})
        _at_most(MOST, _KEPT)
    if key not in kept.programs:
        kept.programs[key] = jax.jit(lambda *arrays: make(weak(), *options)(*arrays))
        _at_most(MOST, kept.programs)
    return kept.programs[key]


def _at_most(most: int, kept: MutableMapping[Key, Value]) -> None:
    """Drops the oldest if there are more."""
    if len(kept) > most:
        del kept[next(iter(kept))]


def _refers(function: object, owner: object) -> Iterator[object]:
    """What a function refers to, but its owner: objects, and the arrays in their attributes.

    It is looked for in functions that the function refers to, too, of globals in those of the same module.
    """
    todo, seen = [function], set[int]()
    while todo:
        here = todo.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, jax.Array):
            yield here
        elif isinstance(here, functools.partial):
            todo += here.func, *here.args, *here.keywords.values()
        elif isinstance(here, types.MethodType):
            todo += here.__func__, here.__self__
        elif isinstance(here, types.FunctionType):
            todo += _closed_over(here)
            if str(here.__globals__.get("__name__")).startswith("gen_jax."):  # names nothing that changes
                continue
            for name in _names(here.__code__):
                value = here.__globals__.get(name)
                if isinstance(value, types.FunctionType) and value.__globals__ is not here.__globals__:
                    yield value
                elif value is not None:
                    todo.append(value)
        elif isinstance(here, types.ModuleType | type):
            yield here
        elif len(leaves := jax.tree.leaves(here)) != 1 or leaves[0] is not here:
            todo += leaves
        else:
            if here is not owner:
                yield here
            attributes = list(getattr(here, "__dict__", {}).values())
            yield from (leaf for leaf in jax.tree.leaves(attributes) if isinstance(leaf, jax.Array))


def _closed_over(function: types.FunctionType) -> Iterator[object]:
    """The values in a function's closure, and its defaults."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # of a cell that is not set yet
            yield cell.cell_contents
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The globals (and attributes) that a piece of code names, and that the functions in it name."""
    inner = (name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const))
    return tuple(dict.fromkeys((*code.co_names, *inner)))
