"""Calls every public function, class and method with one wrong argument at a time, as users do.

    python -m tests.api.walk normal gmm              # prints what is silent or unclear; all without names
    python -m tests.api.walk --modules densities     # only functions of which `densities` has examples

`examples` has a valid call of each; a class that needs no argument is called without. From the example and the annotation
of each argument follow the wrong ones: another rank or size, another type, NaN, infinity, a negative number, zero,
nothing, a list of nothing, None, a misspelt name, and two arguments in each other's place. The type checker of the tests
is not there.

A call is *clear* where it ends in a ValueError or a TypeError of our own that names the argument. It is *fine* where what
came is right: a list for an array, or, where the annotation allows it, a negative number or zero that gives finite
numbers. Else it is *silent* or *unclear*.
"""

import argparse
import importlib
import inspect
import itertools
import json
import pkgutil
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import gen_jax

INNER = (
    *("checks", "cli", "command", "ending", "infotext", "jsonlines", "parameters", "paths", "programs"),
    *("rows", "small_files"),
)
"""Modules of the library itself and of its commands: what users call goes through others."""
TREES = (
    "data.InMemory",
    "diffusion.process.Schedule",
    "diffusion.oracle.Empirical",
    "diffusion.oracle.Gaussian",
    "diffusion.oracle.Mixture",
    "inverse.Mask",
    "inverse.Matrix",
)
"""Classes that JAX makes too, out of tracers and shapes, and one to inherit from: their methods check what came."""
PACKAGE = str(Path(gen_jax.__file__).parent)
NEVER = "an argument nobody has"
COLUMN = "one column"
"""Of several: wrong where the result is as large as before, since it was stretched to all of them."""


@dataclass(frozen=True)
class Example:
    """A valid call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    free: tuple[str, ...] = ()
    """Mutations that are right here, as "argument: mutation"."""


def call(*args: Any, free: tuple[str, ...] = (), **kwargs: Any) -> Example:
    """An example, written as the call."""
    return Example(args, kwargs, free)


def modules(module: Any = gen_jax) -> Iterator[Any]:
    """Modules with a page in the docs: without underscore; of a package with `__all__`, it and what it lists."""
    inner = sorted(m.name for m in pkgutil.iter_modules(getattr(module, "__path__", ())))
    exports = getattr(module, "__all__", None)
    if exports is not None or not inner:
        yield module
        inner = [n for n in inner if n in (exports or ())]
    for name in inner:
        if not name.startswith("_") and name not in INNER:
            yield from modules(importlib.import_module(f"{module.__name__}.{name}"))


def exported(kind: Callable[[Any], bool]) -> dict[str, Any]:
    """What is public, by its name without "gen_jax."; what several modules export once, by the shortest."""
    found: dict[Any, str] = {}
    for module in modules():
        for name in getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]:
            value = getattr(module, name, None)
            own = hasattr(module, "__all__") or getattr(value, "__module__", "") == module.__name__
            if not kind(value) or not own:
                continue
            path = f"{module.__name__}.{name}".removeprefix("gen_jax.")
            if value not in found or len(path) < len(found[value]):
                found[value] = path
    return {path: value for value, path in found.items()}


def functions() -> dict[str, Callable[..., Any]]:
    """Every public function that takes something."""
    return exported(lambda value: inspect.isfunction(value) and bool(inspect.signature(value).parameters))


def classes() -> dict[str, type]:
    """Every public class that a user makes objects of: no protocol, error, tuple of arrays or module of linen."""

    def is_one(value: Any) -> bool:
        if not is_own_class(value) or getattr(value, "_is_protocol", False) or hasattr(value, "_fields"):
            return False
        return "__init__" in vars(value)

    return {path: cls for path, cls in exported(is_one).items() if path not in TREES}


def is_own_class(value: Any) -> bool:
    """Whether it is a class of the library, but no error and no module of linen."""
    return (
        inspect.isclass(value)
        and value.__module__.startswith("gen_jax.")
        and not issubclass(value, (BaseException, nn.Module))
    )


def methods() -> dict[str, Callable[..., Any]]:
    """The methods of public classes, of which tuples are some, where they are defined; they take something."""
    found = {}
    for path, cls in exported(is_own_class).items():
        for name, value in vars(cls).items():
            if name.startswith("_") or getattr(cls, "_is_protocol", False):
                continue
            if isinstance(value, classmethod):
                found[f"{path}.{name}"] = getattr(cls, name)
            elif inspect.isfunction(value):
                kinds = [p.kind for n, p in inspect.signature(value).parameters.items() if n != "self"]
                if any(kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD) for kind in kinds):
                    found[f"{path}.{name}"] = value
    return found


def public() -> dict[str, Callable[..., Any]]:
    """All of them."""
    return functions() | classes() | methods()


# --- wrong arguments ---


def wrong(value: Any, annotation: Any, optional: bool) -> Iterator[tuple[str, Any, bool]]:
    """Names of mutations, values, and whether each is wrong for certain (else it may be right, or must be clear)."""
    if not optional and value is not None:
        yield "None", None, True
    if is_key(value):
        yield "a seed", 0, True
        yield "an old key", jax.random.PRNGKey(0), True
        yield "two keys", jax.random.split(value), True
    elif isinstance(value, bool):
        yield "a word", "abc", True
        yield "a number", 2.5, True
    elif isinstance(value, int):
        yield from (("a fraction", 2.5, True), ("a word", "abc", True), ("NaN", float("nan"), True))
        yield from (("negative", -3, False), ("zero", 0, False), ("an empty list", [], True))
    elif isinstance(value, float):
        yield from (("NaN", float("nan"), True), ("infinity", float("inf"), True), ("a word", "abc", True))
        yield from (("negative", -1.0, False), ("zero", 0.0, False), ("an empty list", [], True))
    elif isinstance(value, str):
        yield "misspelt", value[:-1] + "_" if len(value) > 1 else "?", True
        yield "a number", 3, True
    elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
        yield from wrong_arrays(value, annotation)
    elif hasattr(value, "_fields"):
        yield "another object", NEVER, True
        for name, field in zip(value._fields, value, strict=True):
            annotation = inspect.get_annotations(type(value)).get(name)
            optional = field is None or type(None) in typing.get_args(annotation)
            for kind, new, certain in wrong(field, annotation, optional):
                yield f"{name}: {kind}", value._replace(**{name: new}), certain
    elif callable(value):
        yield "a number", 3, True
    elif value is not None:
        yield "another object", NEVER, not isinstance(value, (dict, list, tuple))


def wrong_arrays(value: Any, annotation: Any) -> Iterator[tuple[str, Any, bool]]:
    """Mutations of an array."""
    dims = dims_of(annotation)
    array = np.asarray(value)
    yield "a word", "abc", True
    yield "complex", array.astype(complex), True
    yield "words", array.astype(str), True
    if dims is not None and not any("*" in d or "..." in d for d in dims):
        yield "one axis more", array[None], True
        if array.ndim:
            yield "one axis less", array[0], True
    for axis, dim in enumerate(dims or ()):
        if array.ndim == len(dims or ()) and not dim.startswith(("#", "*", ".")):
            shared = axis if dim.isidentifier() else None
            if shared is not None:
                yield f"one more on axis {axis}", np.concatenate([array, array.take([0], axis)], axis), False
    if (
        dims is None and array.ndim and array.shape[-1] > 1
    ):  # what an annotation does not say, the function checks
        yield COLUMN, array[..., :1], False
        yield "one more on the last axis", np.concatenate([array, array[..., :1]], -1), False
    if array.size:
        yield "empty", array[:0] if array.ndim else np.zeros(0), False
    if array.dtype.kind == "f" and array.size:
        for name, new in (("NaN", np.nan), ("infinity", np.inf)):
            changed = np.array(array, order="C")
            changed.ravel()[0] = new
            yield name, changed if array.ndim else np.float32(new), True
        yield "negative", -np.abs(array) - 1, False
        yield "zero", 0 * array, False
    if array.dtype.kind in "iu":
        yield "fractions", array + 0.5, True
        yield "negative", array.astype(int) * 0 - 7, False
        yield "large", array.astype(int) * 0 + 10_000, False


def dims_of(annotation: Any) -> list[str] | None:
    """The axes of the first jaxtyping annotation in a union."""
    if hasattr(annotation, "dim_str"):
        return str(annotation.dim_str).split()
    for each in typing.get_args(annotation):
        if (found := dims_of(each)) is not None:
            return found
    return None


def is_key(value: Any) -> bool:
    """Whether it is a key of `jax.random.key`."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


# --- the walk ---


@dataclass(frozen=True)
class Outcome:
    """What came of a call."""

    path: str
    argument: str
    mutation: str
    what: str
    """ "clear", "fine", "silent" or "unclear"."""
    said: str = ""


def outcomes(path: str, function: Callable[..., Any], example: Example) -> Iterator[Outcome]:
    """All wrong calls of a function."""
    signature = inspect.signature(function)
    bound = signature.bind(*example.args, **example.kwargs)
    if inspect.isclass(function):
        bound.apply_defaults()
        made = {n: v for n, v in bound.arguments.items() if type(v).__name__ != "_HAS_DEFAULT_FACTORY_CLASS"}
        bound.arguments = made
    try:
        right = function(*example.args, **example.kwargs)
        jax.block_until_ready(right)
    except Exception as error:
        yield Outcome(path, "", "none", "unclear", f"the example itself: {type(error).__name__}: {error}")
        return
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name == "self":
            continue
        annotation = hint(function, name)
        for mutation, new, certain in wrong(value, annotation, may_be_none(annotation, parameter)):
            if f"{name}: {mutation}" in example.free:
                continue
            changed = bound.arguments | {name: new}
            found = judged(path, name, mutation, certain, function, signature, changed, shapes(right))
            yield found
    names = [
        n
        for n, p in signature.parameters.items()
        if p.kind == p.POSITIONAL_OR_KEYWORD and n in bound.arguments and n != "self"
    ]
    for one, other in itertools.pairwise(names):
        if type(bound.arguments[one]) is not type(bound.arguments[other]):
            swapped = bound.arguments | {one: bound.arguments[other], other: bound.arguments[one]}
            yield judged(path, f"{one}|{other}", "swapped", False, function, signature, swapped)
    if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
        for name, p in signature.parameters.items():
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and len(name) > 1 and name != "self":
                yield misspelt(path, name, function, example)
                break


def judged(
    path: str,
    name: str,
    mutation: str,
    certain: bool,
    function: Any,
    signature: inspect.Signature,
    arguments: Any,
    before: list[tuple[int, ...]] | None = None,
) -> Outcome:
    """The outcome of one call; `before` are the shapes of the right result."""
    call = inspect.BoundArguments(signature, dict(arguments))  # type: ignore[arg-type]
    try:
        result = function(*call.args, **call.kwargs)
        jax.block_until_ready([a for a in jax.tree.leaves(result) if isinstance(a, jax.Array)])
    except (ValueError, TypeError) as error:
        return clear_or_not(path, name, mutation, error)
    except Exception as error:
        return Outcome(path, name, mutation, "unclear", f"{type(error).__name__}: {error}"[:200])
    in_loops = getattr(function, "__in_loops__", False) and mutation.endswith(("NaN", "infinity"))
    if in_loops and not is_finite(result):  # what loops hand over is not looked at, and NaN stays NaN
        return Outcome(path, name, mutation, "fine")
    stretched = mutation == COLUMN and before is not None and shapes(result) == before
    if certain or stretched or not is_finite(result):
        return Outcome(path, name, mutation, "silent", repr(result)[:120])
    return Outcome(path, name, mutation, "fine")


def clear_or_not(path: str, name: str, mutation: str, error: Exception) -> Outcome:
    """Whether an error is our own and names the argument."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    named = any(part in str(error) for part in name.split("|"))
    said = f"{type(error).__name__}: {error}"[:200]
    return Outcome(path, name, mutation, "clear" if last.startswith(PACKAGE) and named else "unclear", said)


def misspelt(path: str, name: str, function: Any, example: Example) -> Outcome:
    """A keyword with a letter too many."""
    try:
        function(*example.args, **example.kwargs, **{f"{name}x": 1})
    except (ValueError, TypeError) as error:
        return clear_or_not(path, name, "misspelt keyword", error)
    return Outcome(path, name, "misspelt keyword", "silent")


def hint(function: Any, name: str) -> Any:
    """The annotation of an argument, as an object where it can be had."""
    plain = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    try:
        return typing.get_type_hints(plain, include_extras=True).get(name)
    except NameError:
        return plain.__annotations__.get(name)


def may_be_none(annotation: Any, parameter: inspect.Parameter) -> bool:
    """Whether None is a value of the argument."""
    return parameter.default is None or type(None) in typing.get_args(annotation)


def shapes(result: Any) -> list[tuple[int, ...]]:
    """Of the arrays of a result."""
    return [np.shape(leaf) for leaf in jax.tree.leaves(result)]


def is_finite(result: Any) -> bool:
    """Whether all numbers of a result are finite."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(result) if hasattr(a, "dtype") and not is_key(a)]
    return all(np.isfinite(a.astype(np.float64)).all() for a in leaves if a.dtype.kind in "fiV")


def needed(cls: type) -> list[str]:
    """The arguments without which there is no object of a class."""
    return [n for n, p in inspect.signature(cls).parameters.items() if p.default is p.empty]


def walk(parts: Sequence[str], modules: Sequence[str] = ()) -> list[Outcome]:
    """All outcomes of what has a name that begins with one of the parts; of all without parts."""
    from tests.api import examples

    known = examples.all_of(*modules)
    beside = sorted(set(known) - set(public()))
    found = [Outcome(path, "", "none", "unclear", "is an example of nothing public") for path in beside]
    for path, function in sorted(public().items()):
        if modules and path not in known:
            continue
        if parts and not any(path.startswith(f"{p}.") or path == p for p in parts):
            continue
        if path not in known and inspect.isclass(function) and not needed(function):
            known[path] = Example((), {})
        if path not in known:
            found.append(Outcome(path, "", "none", "unclear", "has no example in tests/api"))
            continue
        given = known[path]
        for example in given if isinstance(given, tuple) else (given,):
            found += outcomes(path, function, example)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--modules", nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    every = walk(asked.parts, asked.modules)
    if asked.json:
        print(json.dumps([vars(o) for o in every]))
    else:
        for o in every:
            if o.what in ("silent", "unclear"):
                print(f"{o.what:8} {o.path} {o.argument} <- {o.mutation}: {o.said}")
        counts = {w: sum(o.what == w for o in every) for w in ("clear", "fine", "silent", "unclear")}
        print(len(every), counts)
