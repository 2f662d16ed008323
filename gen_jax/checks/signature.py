"""A signature is a contract: `checked` holds the arguments of a call to their annotations.

    @checked
    def log_prob(params: GMM, x: Float[Array, "N D"], *, scale: Positive = 1.0) -> Float[Array, "N"]: ...

    log_prob(params, jnp.zeros(3))       # ValueError: x must be numbers of shape [N, D], got an array float32 (3,).

A letter stands for one size in all arguments. What is not an array yet, and may be one, is made one: a list of numbers,
a number, integers where floats are meant. Shapes and types are checked always, values only where they are known: in
compiled code they are not, and nothing is checked there. What Flax says of shapes becomes a ValueError that names the
arguments. `benchmarks/checks.py` has what a call costs.
"""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from jax.experimental import checkify

from gen_jax.checks.annotations import hints, rule
from gen_jax.checks.call import Call, values_of_traced
from gen_jax.checks.values import Value
from gen_jax.checks.words import nearest, unfit

F = TypeVar("F", bound=Callable[..., Value])
P = ParamSpec("P")
R = TypeVar("R")


NEVER = object()
"""A default that no argument is."""
_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether a checked function runs: those that it calls do not read values again."""


class Signature:
    """What the arguments of a function have to be: rules by position and by name."""

    def __init__(self, function: Callable[..., object]):
        parameters = list(inspect.signature(function).parameters.values())
        self.name = function.__qualname__.removesuffix(".__init__")
        written = hints(function)
        rules = {p.name: rule(written.get(p.name, object)) for p in parameters}
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.by_position = [(p.name, rules[p.name], p.default) for p in parameters if p.kind in positional]
        self.by_name = {
            p.name: rules[p.name]
            for p in parameters
            if p.kind in (positional[1], inspect.Parameter.KEYWORD_ONLY)
        }
        self.more = next(
            (rules[p.name] for p in parameters if p.kind == inspect.Parameter.VAR_POSITIONAL), None
        )
        self.open = any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    def apply(
        self, args: tuple[Value, ...], kwargs: dict[str, Value]
    ) -> tuple[list[Value], dict[str, Value]]:
        """The arguments as the function gets them.

        Raises ValueError for one that is not what its annotation says, TypeError for one that there is not.
        """
        call, passed = Call(not _inside.get(), args[0] if args else None), list(args)
        for i, (value, (name, each, default)) in enumerate(zip(args, self.by_position, strict=False)):
            if each is not None and value is not default:
                passed[i] = each.of(name, value, call)
        if self.more is not None:
            for i in range(len(self.by_position), len(args)):
                passed[i] = self.more.of(f"argument {i + 1}", args[i], call)
        for name, value in kwargs.items():
            if name not in self.by_name:
                if self.open:
                    continue
                known = ", ".join(self.by_name)
                raise TypeError(
                    f"{self.name} has no argument {name!r}; it has {known}.{nearest(name, self.by_name)}"
                )
            each = self.by_name[name]
            if each is not None and value is not self.defaults.get(name, NEVER):
                kwargs[name] = each.of(name, value, call)
        call.read()
        return passed, kwargs


def checked(function: F) -> F:
    """`function`, a class of fields or a method, whose arguments are held to their annotations."""
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    signature = None

    @functools.wraps(function)
    def call(*args: Value, **kwargs: Value) -> Value:
        nonlocal signature
        if signature is None:
            signature = Signature(function)
        args, kwargs = signature.apply(args, kwargs)  # type: ignore[assignment]
        token = _inside.set(True)
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if type(error).__module__ != "flax.errors":
                raise
            given = dict(zip((name for name, *_ in signature.by_position), args, strict=False)) | kwargs
            raise ValueError(unfit(given, error)) from error
        finally:
            _inside.reset(token)

    call.__checked__ = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def checked_in_loops(function: F) -> F:
    """`checked`, but for values of arrays: reading them would have every step of a loop wait for the one before."""
    inner = checked(function)

    @functools.wraps(inner)
    def call(*args: Value, **kwargs: Value) -> Value:
        token = _inside.set(True)
        try:
            return inner(*args, **kwargs)
        finally:
            _inside.reset(token)

    call.__in_loops__ = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def checkified(function: Callable[P, R]) -> Callable[P, tuple[checkify.Error, R]]:
    """`function` for `jax.jit`: the values of traced arguments are checked as well, by `jax.experimental.checkify`.

        error, nats = jax.jit(checks.checkified(gmm.log_prob))(params, x)
        error.throw()                                   # ValueError's text, in a JaxRuntimeError

    It holds for every checked function that `function` calls.
    """

    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with values_of_traced():
            return function(*args, **kwargs)

    return functools.wraps(function)(checkify.checkify(inside))
