"""What a function's result may depend on besides its arguments, as a flat list: two lists tell whether it may be another.

Looked through are closures, defaults, globals that the code names, attributes, containers, and the functions and
classes that are found there. Functions and frozen dataclasses are what is found in them, so two that were made alike are
the same, unless there is something that can be changed in place, such as a list, into which each may write. Arrays of
JAX never change and are compared by identity; arrays of numpy do, and are compared by their contents, as numbers and
words are. So a large array of numpy takes its time: one of JAX takes none.

Code of installed packages is taken to stay as it is: what a function of these closes over is looked through, its
globals are not. What C code hides is not seen, nor is what a function imports while it runs.
"""

import collections
import dataclasses
import functools
import hashlib
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

MOST = 20_000
"""Of how many objects a function may depend."""
PLAIN = frozenset({int, float, complex, bool, str, bytes, types.NoneType, types.EllipsisType, types.CodeType})
"""Types of what never changes, and is compared by its value."""
KNOWN = frozenset({"gen_jax", "jax", "jaxlib", "flax", "numpy", "optax", "equinox", "diffrax", "jaxtyping"})
"""Packages whose globals never change."""
WRAPPERS = frozenset({"jaxtyping._decorator", "gen_jax.checks.signature", "dataclasses"})
"""Modules whose functions only look at the arguments of another."""
DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType)
INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")})

Todo = list[object]


class Found(list[object]):
    """What is found, and whether there is something among it that can be changed in place."""

    changeable = False


def of(*functions: object) -> list[object]:
    """The list of some functions; TypeError where one depends on what cannot be compared."""
    found = Found()
    todo: Todo = list(functions)
    seen: dict[int, tuple[int, object]] = {}  # with the object, whose id is nobody else's while it lives
    while todo:
        here = todo.pop()
        kind = type(here)
        if kind in PLAIN:
            found.append(here)
        elif (known := seen.get(id(here))) is not None:
            found.append(known[0])
        else:
            seen[id(here)] = len(seen), here
            _how(kind)(here, found, todo)
            if len(seen) > MOST:
                raise TypeError(f"it depends on more than {MOST} objects")
    if found.changeable:
        for each in functions:
            found += (each.__func__, each.__self__) if isinstance(each, types.MethodType) else (each,)
    return found


def kept(found: list[object]) -> list[object]:
    """A list to compare others with, which keeps nothing alive that can be referred to weakly."""
    return [here if type(here) in PLAIN else _weak(here) for here in found]


def same(before: list[object], now: list[object]) -> bool:
    """Whether a list is that of which `before` was `kept`."""
    return len(before) == len(now) and all(map(_is, before, now))


def _is(before: object, now: object) -> bool:
    if before is now:
        return True
    if type(before) is weakref.ref:
        return before() is now
    return type(before) is type(now) and type(now) in PLAIN and repr(before) == repr(now)  # 0.0 is not -0.0


def _weak(here: object) -> object:
    try:
        return weakref.ref(here)
    except TypeError:
        return here


# --- how to look through an object: `(here, found, todo)` appends leaves to `found`, and what else there is to `todo` ---


Look = Callable[[Any, Found, Todo], None]
_looks: dict[int, tuple[Look, weakref.ref[type]]] = {}
"""By the id of a type, for as long as it lives."""


def _how(kind: type) -> Look:
    """By the type of the object."""
    if (known := _looks.get(place := id(kind))) is not None:
        return known[0]
    look = _look_of(kind)
    _looks[place] = look, weakref.ref(kind, lambda _: _looks.pop(place, None) and None)
    return look


def _look_of(kind: type) -> Look:
    for types_of, look in _LOOKS:
        if issubclass(kind, types_of):
            return look
    value = getattr(kind, "__dataclass_params__", None)
    if value is not None and value.frozen:  # all else that it has follows from its fields
        names = tuple(field.name for field in dataclasses.fields(kind))
        return functools.partial(_frozen, names)
    slots = tuple(name for each in kind.__mro__ for name in _slots(each))
    return functools.partial(_object, slots)


def _leaf(here: object, found: Found, todo: Todo) -> None:
    found.append(here)


def _numbers(here: np.ndarray | np.generic, found: Found, todo: Todo) -> None:
    found.changeable |= isinstance(here, np.ndarray)
    if here.dtype.hasobject:
        todo += list(np.asarray(here).flat)
        return
    numbers = np.ascontiguousarray(here).reshape(-1).view(np.uint8)
    found += f"{here.dtype} {here.shape}", hashlib.blake2b(numbers.data, digest_size=16).digest()


def _mapping(here: dict, found: Found, todo: Todo) -> None:
    found.changeable = True
    found.append(len(here))
    found += here
    todo += here.values()


def _sequence(here: Iterable[object], found: Found, todo: Todo) -> None:
    inside = list(here)
    found += type(here), len(inside)
    todo += inside


def _container(here: Iterable[object], found: Found, todo: Todo) -> None:
    found.changeable = True
    _sequence(here, found, todo)


def _function(here: types.FunctionType, found: Found, todo: Todo) -> None:
    known = here.__globals__
    if (module := known.get("__name__")) in WRAPPERS and hasattr(here, "__wrapped__"):
        todo.append(here.__wrapped__)
        return
    found.append(here.__code__)
    for cell in here.__closure__ or ():
        try:
            todo.append(cell.cell_contents)
        except ValueError:  # not set yet
            found.append(None)
    todo += here.__defaults__ or ()
    todo += (here.__kwdefaults__ or {}).values()
    if _is_library(module):
        return
    todo += here.__dict__.values()
    names = _names(here.__code__)
    for name in names:
        if name not in known:
            continue
        value = known[name]
        kind = type(value)
        if kind is types.ModuleType:
            found.append(value)
            if not _is_library(value.__name__):
                inside = vars(value)
                todo += [inside[inner] for inner in names if inner in inside]
        elif kind is types.FunctionType and value.__globals__ is not known and _is_installed(value.__code__):
            found.append(value)
        else:
            todo.append(value)


def _method(here: types.MethodType, found: Found, todo: Todo) -> None:
    todo += here.__func__, here.__self__


def _wrapper(here: staticmethod | classmethod, found: Found, todo: Todo) -> None:
    todo.append(here.__func__)


def _property(here: property, found: Found, todo: Todo) -> None:
    todo += here.fget, here.fset


def _class(here: type, found: Found, todo: Todo) -> None:
    found.append(here)
    if _is_library(here.__module__):
        return
    todo += here.__bases__
    for name, value in vars(here).items():
        if isinstance(value, types.FunctionType) or not (
            name.startswith("__") or isinstance(value, DESCRIPTORS)
        ):
            todo.append(value)


def _partial(here: functools.partial, found: Found, todo: Todo) -> None:
    found.append(len(here.args))
    found += here.keywords
    todo += here.func, *here.args, *here.keywords.values()


def _frozen(names: tuple[str, ...], here: object, found: Found, todo: Todo) -> None:
    todo.append(type(here))
    todo += [getattr(here, name, None) for name in names]


def _object(slots: tuple[str, ...], here: object, found: Found, todo: Todo) -> None:
    attributes = getattr(here, "__dict__", {})
    found.append(here)
    found += attributes
    todo.append(type(here))
    todo += attributes.values()
    todo += [getattr(here, name, None) for name in slots]


def _mutable(here: object, found: Found, todo: Todo) -> None:
    raise TypeError(f"it depends on {type(here).__name__}, which may change at any time")


_LOOKS: tuple[tuple[type | tuple[type, ...], Look], ...] = (
    (jax.Ref, _mutable),
    (jax.Array, _leaf),
    ((np.ndarray, np.generic), _numbers),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    ((staticmethod, classmethod), _wrapper),
    (property, _property),
    (functools.partial, _partial),
    (dict, _mapping),
    ((tuple, frozenset), _sequence),
    ((list, set, collections.deque), _container),
    (type, _class),
    ((types.ModuleType, types.BuiltinFunctionType), _leaf),
)


def _slots(kind: type) -> tuple[str, ...]:
    """The names of the slots that a class adds."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


@functools.lru_cache(maxsize=1024)
def _is_library(name: str | None) -> bool:
    """Whether the globals of a module are taken never to change."""
    root = str(name).partition(".")[0]
    return root in KNOWN or root in sys.stdlib_module_names


@functools.lru_cache(maxsize=1024)
def _is_installed(code: types.CodeType) -> bool:
    """Whether a function is of an installed package, or of Python."""
    return code.co_filename.startswith(INSTALLED)


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The globals (and attributes) that a piece of code names, and that the functions in it name."""
    inner = (name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const))
    return tuple(dict.fromkeys((*code.co_names, *inner)))
