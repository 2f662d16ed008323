"""The rule of an annotation: `Float[Array, "N D"]`, `Annotated[float, Range(0)]`, `Solver | None`, a NamedTuple."""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gen_jax.checks.rules import (
    BYTES,
    FLOATS,
    INTEGERS,
    TRUTHS,
    UNSIGNED,
    Either,
    Fields,
    Items,
    Kind,
    Number,
    Numbers,
    OneKey,
    Rule,
    Tree,
    is_key,
)
from gen_jax.checks.values import FieldsAs, Range, Value


def rule(annotation: Value, allowed: Range | None = None) -> Rule | None:
    """The rule of an annotation; None where it says nothing that can be checked."""
    if typing.get_origin(annotation) is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        if others := [m.other for m in more if isinstance(m, FieldsAs)]:
            return Fields(inner, _fields(others[0]))
        ranges = [m for m in more if isinstance(m, Range)]
        return rule(inner, ranges[0] if ranges else allowed)
    if annotation in (Value, object, inspect.Parameter.empty) or isinstance(
        annotation, (str, typing.ForwardRef, typing.ParamSpec)
    ):
        return None
    if isinstance(annotation, typing.TypeVar):
        kinds = annotation.__constraints__
        return _union(kinds, allowed) if kinds else rule(annotation.__bound__ or Value, allowed)
    if _is_union(annotation):
        return _union(typing.get_args(annotation), allowed)
    if annotation is PyTree:
        return Kind("a tree of arrays, as parameters are", lambda v: v is not None and not isinstance(v, str))
    if annotation is jax.Array:
        return Numbers("", "...", jnp.asarray, allowed)
    if annotation is np.ndarray:
        return Kind("a numpy array", lambda v: isinstance(v, np.ndarray))
    if hasattr(annotation, "dim_str"):
        return _array([annotation], allowed)
    if hasattr(annotation, "leaftype"):
        leaf = rule(annotation.leaftype, allowed)
        return None if leaf is None or annotation.leaftype is jax.Array else Tree(leaf)
    return _of_type(annotation, allowed)


def _of_type(annotation: Value, allowed: Range | None) -> Rule | None:
    """The rule of a type of Python, or of a class."""
    plain = {
        int: lambda: Number(True, allowed or Range()),
        float: lambda: Number(False, allowed or Range()),
        bool: lambda: Kind("True or False", lambda v: isinstance(v, (bool, np.bool)), bool),
        str: lambda: Kind("a name", lambda v: isinstance(v, str)),
        type(None): lambda: Kind("None", lambda v: v is None),
    }
    if annotation in plain:
        return plain[annotation]()
    origin, args = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is collections.abc.Callable:
        return Kind("a function", callable)
    if origin is collections.abc.Mapping:
        of = " of trees by name" if args[1:] == (PyTree,) else ""
        return Kind(f"a dict{of}", lambda v: isinstance(v, Mapping))
    if origin in (collections.abc.Sequence, list):
        return Items(rule(args[0], allowed) if args else None)
    if origin is tuple and args:
        same = args[-1] is Ellipsis or len(set(map(str, args))) == 1
        return Items(rule(args[0], allowed) if same else None, None if args[-1] is Ellipsis else len(args))
    if origin is typing.Literal:
        return Kind(f"one of {', '.join(map(str, args))}", lambda v: v in args)
    if not isinstance(origin, type) or origin is type:
        return None
    if origin in (Path, PurePath):  # one of a bucket is a PurePath
        return Kind("a path", lambda v: isinstance(v, PurePath))
    if hasattr(origin, "_fields") and hasattr(origin, "_replace"):
        return Fields(origin, _fields(origin))
    if getattr(origin, "_is_protocol", False):
        return _protocol(origin)
    name = origin.__name__
    return Kind(f"{'an' if name[0] in 'AEIO' else 'a'} {name}", lambda v: isinstance(v, origin))


def _fields(cls: type) -> dict[str, Rule]:
    return {n: r for n, a in hints(cls).items() if (r := rule(a)) is not None}


def _protocol(cls: type) -> Rule:
    """An object with the members of a protocol, methods and fields."""
    bases = [b for b in cls.__mro__ if getattr(b, "_is_protocol", False)]
    members = {
        n for b in bases for n in [*vars(b), *vars(b).get("__annotations__", {})] if not n.startswith("_")
    }
    members |= {"__call__"} if any("__call__" in vars(b) for b in bases) else set()
    fine: set[type] = set()

    def admits(value: Value) -> bool:
        if type(value) in fine:
            return True
        if isinstance(value, type) or not all(hasattr(value, m) for m in members):
            return False
        fine.add(type(value))
        return True

    named = ", ".join(sorted(members - {"__call__"})[:4])
    return Kind(f"a {cls.__name__}" + (f", which has {named}" if named else ""), admits)


def _union(options: Sequence[Value], allowed: Range | None) -> Rule | None:
    """The rule of several: arrays of one shape and numbers of Python are one rule, an array."""
    is_array = lambda o: hasattr(o, "dim_str") or o in (jax.Array, np.ndarray)
    arrays = [o for o in options if is_array(o) and typing.get_origin(o) is not typing.Annotated]
    rest = [o for o in options if o not in arrays]
    if jax.Array in arrays and float in rest:  # jax.typing.ArrayLike
        rest = [o for o in rest if o not in (np.bool, np.number, bool, int, float, complex)]
        rules: list[Rule | None] = [Numbers("", "...", np.asarray, allowed or Range())]
    else:
        shaped: dict[str, list[Value]] = {}
        for each in arrays:
            shaped.setdefault(getattr(each, "dim_str", "..."), []).append(each)
        rules = [_array(each, allowed) for each in shaped.values()]
        if rules:  # which take numbers of numpy as well
            rest = [o for o in rest if not (isinstance(o, type) and issubclass(o, np.generic))]
        if rules and any(o in (int, float) for o in rest):  # a number of Python stays one
            rest = [o for o in rest if o not in (int, float, bool)]
            rules = [Number(float not in options, allowed or Range()), *rules]
    rules = [r for r in [rule(o, allowed) for o in rest]] + rules
    known = [r for r in rules if r is not None]
    return None if len(known) < len(rules) else known[0] if len(known) == 1 else Either(known)


def _array(options: Sequence[Value], allowed: Range | None) -> Rule:
    """The rule of an array of a shape, for the kinds of array that it may be."""
    first = options[0]
    dtypes = getattr(first, "dtypes", ())
    dtypes = dtypes if isinstance(dtypes, (tuple, list)) else ()  # else any
    if "prng_key" in dtypes:
        return OneKey() if not first.dim_str else Kind("keys of jax.random.split", is_key)
    names = [n for n in (FLOATS, INTEGERS, UNSIGNED, TRUTHS) if n in dtypes]
    kinds = [getattr(o, "array_type", o) for o in options]
    kind = names[0] if len(names) == 1 else BYTES if list(dtypes) == [BYTES] else ""
    make = jnp.asarray if kinds == [jax.Array] else np.asarray
    return Numbers(
        kind, getattr(first, "dim_str", "..."), make, allowed or (Range() if kind == FLOATS else None)
    )


def _is_union(annotation: Value) -> bool:
    return typing.get_origin(annotation) is typing.Union or isinstance(annotation, types.UnionType)


def hints(owner: Callable[..., object]) -> Mapping[str, Value]:
    """The annotations of a function or a class; one that names what is not there at run time stays a string."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except NameError:
        return dict(getattr(owner, "__annotations__", {}))
