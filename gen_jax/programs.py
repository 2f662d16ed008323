"""Programs that a second call outside `jit` finds compiled: they are kept with the function that they are made of.

Outside `jit`, JAX compiles a loop whenever its body is a new function, and the body of `samplers.sample` is one at every
call. So `sample`, and whatever else loops over a function of the user's, puts what it does into a `jax.jit` of its own.

What the function closes over is a constant there, as in every program of JAX. Unlike `jax.jit`, a program is made anew
when the function depends on other things than before (`gen_jax._references` says what is seen): another array in its
closure, in a global that it names or in an attribute, an updated module of NNX, a replaced entry of a dict, a numpy
array that was changed in place. A function that is made anew from the same things finds the program, unless there are
arrays among them, or what can be changed in place.

Nothing is kept alive by this: programs with arrays go with their function, and of the others there are few.
"""

import types
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import get_opaque_trace_state

from gen_jax import _references as references

MOST = 64
"""How many programs are kept: of functions without arrays; and of each of how many functions with arrays."""

Result = TypeVar("Result")
Call = tuple[Callable[..., Any], object, tuple[object, ...]]


class _Kept(NamedTuple):
    """A program, and what its function and its options depended on when it was last traced."""

    make: Callable[..., Any]
    depends: list[object]
    program: Callable[..., Any]
    traced: list[bool]
    """Of one: whether it was traced since then."""


_KEPT: dict[int, tuple[weakref.ref[object], list[_Kept]]] = {}
"""By the id of a function, for as long as it lives."""
_SHARED: list[_Kept] = []
_OUTSIDE = get_opaque_trace_state()
_call: ContextVar[Call] = ContextVar("call")


def run(
    make: Callable[..., Callable[..., Result]],
    function: object,
    options: tuple[object, ...],
    *arrays: object,
) -> Result:
    """`make(function, *options)(*arrays)`, outside of transformations by a program that is kept.

    Inside `jit`, `grad`, `vmap` and the like it is just that, as `function` may close over their tracers. The program is
    compiled anew at each call if `function` cannot be referred to weakly, or depends on what cannot be compared.

    Args:
        make: a function of a module, not a closure.
        function: what programs are kept with; it may be any object.
        options: all that a program depends on besides, functions too.
        *arrays: pytrees of arrays, its arguments.
    """
    call: Call = make, function, options
    if get_opaque_trace_state() != _OUTSIDE:
        return make(function, *options)(*arrays)
    try:
        kept = _found(call)
    except TypeError:
        return jax.jit(make(function, *options))(*arrays)
    token = _call.set(call)
    try:
        result: Result = kept.program(*arrays)
    finally:
        _call.reset(token)
    if kept.traced[0]:  # which may have filled a cache of the function's own
        kept.traced[0] = False
        kept.depends[:] = references.kept(references.of(function, *options))
    return result


def _found(call: Call) -> _Kept:
    """The program of a call, made if it is not there; TypeError if it cannot be kept."""
    make, function, options = call
    depends, own = references.of(function, *options), _SHARED
    if (kept := _same(own, make, depends)) is not None:
        return kept
    if any(isinstance(each, (jax.Array, bytes)) for each in depends):  # large, maybe
        owner = function.__self__ if isinstance(function, types.MethodType) else function
        own = _own(owner)
        if (kept := _same(own, make, depends)) is not None:
            return kept
    traced = [False]
    own.insert(0, _Kept(make, references.kept(depends), _program(traced), traced))
    del own[MOST:]
    return own[0]


def _own(owner: object) -> list[_Kept]:
    """The programs of an object; TypeError if it cannot be referred to weakly."""
    place = id(owner)
    if place not in _KEPT:
        _KEPT[place] = weakref.ref(owner, lambda _: _KEPT.pop(place, None) and None), []
        if len(_KEPT) > MOST:
            del _KEPT[next(iter(_KEPT))]
    return _KEPT[place][1]


def _same(programs: list[_Kept], make: Callable[..., Any], depends: list[object]) -> _Kept | None:
    """The program that was made so and depends on the same things, put first; None without one."""
    for i, kept in enumerate(programs):
        if kept.make is make and references.same(kept.depends, depends):
            if i:
                programs.insert(0, programs.pop(i))
            return kept
    return None


def _program(traced: list[bool]) -> Callable[..., Any]:
    """A program of whatever call is under way when it is traced: it keeps neither function nor options alive."""

    def program(*arrays: object) -> object:
        make, function, options = _call.get()
        traced[0] = True
        return make(function, *options)(*arrays)

    return jax.jit(program)
