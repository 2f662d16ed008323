"""Rules: what a value is, as a check of the value.

`of(name, value, call)` returns the value as the function gets it, or raises a ValueError; `admits(value)` is a quick
answer for unions; `says` is the rule in words. `annotations` makes a rule of an annotation.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.checks.call import Call, check_traced, is_known
from gen_jax.checks.held import integers, unmasked
from gen_jax.checks.seen import Seen
from gen_jax.checks.shapes import axis, broadcasts, fit, shown
from gen_jax.checks.values import Range, Value, as_bytes, one_key
from gen_jax.checks.words import came, no_numbers

FLOATS, INTEGERS, UNSIGNED, TRUTHS, BYTES = "float32", "int32", "uint32", "bool", "uint8"
NAMES = {FLOATS: "numbers", INTEGERS: "integers", UNSIGNED: "integers", TRUTHS: "truth values", BYTES: BYTES}


class Rule:
    """What a value has to be."""

    says: str = "anything"
    """In words, to follow "must be"."""

    def admits(self, value: Value) -> bool:
        """Whether it is of this kind, by its type."""
        raise NotImplementedError

    def of(self, name: str, value: Value, call: Call) -> Value:
        """The value as it is passed on, or a ValueError."""
        raise NotImplementedError


class Kind(Rule):
    """A value of some type."""

    def __init__(
        self, says: str, test: Callable[[Value], bool], make: Callable[[Value], Value] = lambda v: v
    ):
        self.says, self.test, self.make = says, test, make

    def admits(self, value: Value) -> bool:  # noqa: D102
        return self.test(value)

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        if not self.admits(value):
            raise ValueError(f"{name} must be {self.says}, got {came(value)}.")
        return self.make(value)


class Number(Rule):
    """A number of Python; an array without axes passes as one, also a traced one where it need not be whole."""

    def __init__(self, whole: bool, allowed: Range):
        self.whole, self.allowed = whole, allowed
        self.says = f"{'a whole number' if whole else 'a number'}{allowed.says}"

    def admits(self, value: Value) -> bool:  # noqa: D102
        if type(value) in (int, float):
            return type(value) is int or not self.whole
        if isinstance(value, (bool, np.bool)) or not hasattr(value, "dtype") or np.shape(value):
            return False
        if self.whole and isinstance(value, jax.core.Tracer):
            return False
        return dtype_kind(value) in ("iu" if self.whole else "iuf")

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        if not self.admits(value):
            raise ValueError(f"{name} must be {self.says}, got {came(value)}.{_static(name, value)}")
        if isinstance(value, jax.core.Tracer):
            return check_traced(name, value, self.allowed)
        call.ask(name, value, self.allowed)
        return float(value) if type(value) is int and not self.whole else value


def _static(name: str, value: Value) -> str:
    """What to do with a number that is traced where the program depends on it, to end a message with."""
    if not isinstance(value, jax.core.Tracer) or np.shape(value):
        return ""
    return (
        f" It is a number of Python, which decides what is compiled: jax.jit(..., static_argnames={name!r})."
    )


class Numbers(Rule):
    """An array of a shape, or what can be made one."""

    def __init__(self, kind: str, dims: str, make: Value, allowed: Range | None):
        self.kind, self.make, self.allowed = kind, make, allowed
        self.dims = [d for d in dims.split() if d]
        self.exact = {FLOATS: "f", INTEGERS: "i", TRUTHS: "b"}.get(kind, "")
        self.kinds = {INTEGERS: "iu", UNSIGNED: "iu", TRUTHS: "b"}.get(kind, "fiub")
        ranged = allowed is not None and (allowed.least > -np.inf or allowed.most < np.inf)
        self.read = "fiu" if ranged else "f" if allowed else ""  # kinds whose values are looked at
        self.star = next((i for i, d in enumerate(self.dims) if d == "..." or d.startswith("*")), None)
        self.axes = [axis(d) for d in self.dims]
        what = NAMES.get(kind, "an array of numbers")
        of = "" if self.dims == ["..."] else f" of shape [{', '.join(map(shown, self.dims))}]" if dims else ""
        one = {FLOATS: "a number", INTEGERS: "an integer", UNSIGNED: "an integer", TRUTHS: "True or False"}
        self.says = (f"{what}{of}" if dims else one.get(kind, "one value")) + (
            allowed.says if allowed else ""
        )

    def admits(self, value: Value) -> bool:  # noqa: D102
        if type(value) in (list, tuple) and value and self.make is not None:
            return all(
                isinstance(v, (bool, int, float, list, tuple, np.number)) or hasattr(v, "dtype")
                for v in value
            )
        known = isinstance(value, (bool, int, float)) or (hasattr(value, "dtype") and hasattr(value, "shape"))
        return known and dtype_kind(value) in self.kinds

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        if is_known(type(value)) and value.dtype.kind == self.exact:  # mostly, so this is to be quick
            array, shape, kind = value, value.shape, self.exact
        else:
            if type(value) in (int, float) and self.allowed:
                call.ask(name, value, self.allowed)
            array = self._array(name, value)
            shape, kind = np.shape(array), dtype_kind(array)
        before = len(call.sizes)
        if not self._fits(shape, call.sizes):
            sizes = dict(list(call.sizes.items())[:before])
            letters = [(shown(d), d.replace("#", "")) for d in self.dims]
            known = [f"{said} = {sizes[d]} of {call.by[d]}" for said, d in letters if d in sizes]
            given_by = f", where {' and '.join(dict.fromkeys(known))}" if known else ""
            raise ValueError(f"{name} must be {self.says}{given_by}, got {came(value)}.")
        if len(call.sizes) > before:
            call.by.update(dict.fromkeys(list(call.sizes)[before:], name))
        has_values = is_known(type(array))
        if not has_values and isinstance(array, jax.core.Tracer):
            return check_traced(name, array, self.allowed)
        if not has_values and isinstance(array, jax.ShapeDtypeStruct):
            return array
        if kind in self.read and 0 not in shape:
            call.ask(name, array, self.allowed or Range())
        return array if has_values or self.make is not jnp.asarray else self.make(array)

    def _array(self, name: str, value: Value) -> Value:
        """As an array of numpy or of JAX, of the right kind."""
        if not self.admits(value):
            raise ValueError(f"{name} must be {self.says}, got {no_numbers(value)}.")
        if isinstance(value, jax.ShapeDtypeStruct):  # in place of an array, to lower for or to restore
            return value
        if isinstance(value, np.ndarray):
            unmasked(name, value)
            if self.kind == INTEGERS:
                integers(name, value)
        if self.kind == BYTES and not isinstance(value, (list, tuple)):
            return as_bytes(name, value, self.says)
        if isinstance(value, jax.Array):
            wrong = self.kind in (FLOATS, INTEGERS) and dtype_kind(value) != self.kind[0]
            return value.astype(float if self.kind == FLOATS else int) if wrong else value
        if isinstance(value, (list, tuple)):
            try:
                module = jnp if any(isinstance(v, jax.Array) for v in value) else np
                return self._array(name, module.asarray(value))
            except (ValueError, TypeError) as error:  # rows of different lengths, or another kind
                if str(error).startswith(name):
                    raise
                raise ValueError(
                    f"{name} must be {self.says}, got {came(value)} of different lengths."
                ) from None
        if self.kind in (FLOATS, INTEGERS) and dtype_kind(value) != self.kind[0]:
            return np.asarray(value, float if self.kind == FLOATS else np.int64)
        return value if self.make is None or self.make is jnp.asarray else np.asarray(value)

    def has_rank(self, value: Value) -> bool:
        """Whether this many axes can be right; of lists of different lengths they can not."""
        try:
            axes = np.ndim(value)
        except ValueError:
            return False
        return axes == len(self.dims) if self.star is None else axes >= len(self.dims) - 1

    def _fits(self, shape: tuple[int, ...], sizes: dict[str, Value]) -> bool:
        axes, star = self.axes, self.star
        if star is None:
            return len(shape) == len(axes) and fit(axes, shape, sizes)
        behind = len(axes) - star - 1
        if len(shape) < star + behind:
            return False
        end = len(shape) - behind
        if not fit(axes[:star], shape[:star], sizes) or not fit(axes[star + 1 :], shape[end:], sizes):
            return False
        name, middle = self.dims[star], shape[star:end]
        if name.startswith("*#"):  # fits the axes of this name
            return broadcasts(middle, sizes.get("*" + name[2:], middle))
        return name in ("...", "*_") or sizes.setdefault(name, middle) == middle


def dtype_kind(value: Value) -> str:
    """`f`, `i`, `u`, `b` or another letter, of a number or an array; bfloat16 and its kind are `f`."""
    if isinstance(value, (bool, int, float)):
        return "b" if isinstance(value, bool) else "i" if isinstance(value, int) else "f"
    kind = getattr(dtype := value.dtype, "kind", "?")
    return "f" if kind == "V" and jnp.issubdtype(dtype, jnp.floating) else kind


def widened(value: Value) -> Value:
    """An array of floats of 16 bits as float32, in which densities are computed; anything else as it is."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or getattr(dtype, "itemsize", 4) != 2 or not hasattr(value, "astype"):
        return value
    return value.astype(np.float32) if dtype_kind(value) == "f" else value


def is_key(value: Value) -> bool:
    """Whether it is a key of `jax.random.key`, or several."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


class OneKey(Kind):
    """A key of `jax.random.key`."""

    def __init__(self) -> None:
        super().__init__("a key of jax.random.key(seed)", is_key)

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        one_key(value, name)
        return value


class Fields(Rule):
    """A tuple of parameters: its fields are held to their annotations as well, and are float32 or better.

    A class with a static method `made_by`, such as of `samplers.Plan`, says so in messages.
    """

    def __init__(self, cls: type, rules: Mapping[str, Rule]):
        self.cls, self.rules, self._seen = cls, rules, Seen()
        made_by = getattr(cls, "made_by", None)
        self.says = f"a {cls.__name__}" + (f", as {made_by()} makes one" if made_by else "")

    def admits(self, value: Value) -> bool:  # noqa: D102
        return isinstance(value, self.cls)

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        if not isinstance(value, self.cls):
            raise ValueError(f"{name} must be {self.says}, got {came(value)}.")
        fresh = call.reads and not call.sizes  # so that its arrays alone decide
        if fresh and (seen := self._seen.find(value)) is not None:  # type: ignore[arg-type]
            for letter, (size, field) in seen.items():
                call.sizes[letter], call.by[letter] = size, name + field
            return value
        new = {}
        for field, each in self.rules.items():
            given = getattr(value, field)
            if (now := widened(each.of(f"{name}.{field}", given, call))) is not given:
                new[field] = now
        if fresh and not new:
            sizes = {letter: (size, call.by[letter][len(name) :]) for letter, size in call.sizes.items()}
            call.then.append(functools.partial(self._seen.add, value, sizes))  # type: ignore[arg-type]
        return value._replace(**new) if new else value  # type: ignore[attr-defined]


class Items(Rule):
    """A sequence, each of whose items follows a rule."""

    def __init__(self, each: Rule | None, num: int | None = None):
        self.each, self.num = each, num
        self.says = f"a list{f' of {num}' if num else ''}: each {each.says if each else 'a value'}"

    def admits(self, value: Value) -> bool:  # noqa: D102
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            return False
        return not value or self.each is None or self.each.admits(value[0])

    def admits_all(self, value: Value) -> bool:
        """Whether the items are of this kind too."""
        return self.each is None or all(map(self.each.admits, value))

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if not is_list or (self.num is not None and len(value) != self.num):
            raise ValueError(f"{name} must be {self.says}, got {came(value)}.")
        if self.each is None:
            return value
        items, known = list(value), dict(call.sizes)  # once: a sequence may make them when it is asked
        new = []
        for i, item in enumerate(items):
            new.append(self.each.of(f"{name}[{i}]", item, call))
            if isinstance(self.each, Fields | Either):  # the letters of a tuple of parameters are its own
                call.sizes = dict(known)
        if all(map(operator.is_, new, items)):
            return value
        return tuple(new) if isinstance(value, tuple) else new


class Tree(Rule):
    """A tree of arrays, each of which follows a rule."""

    says = "a tree of arrays"

    def __init__(self, leaf: Rule):
        self.leaf, self.says = leaf, leaf.says

    def admits(self, value: Value) -> bool:  # noqa: D102
        return value is not None

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        if is_known(type(value)) or isinstance(value, jax.Array):
            return self.leaf.of(name, value, call)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            raise ValueError(f"{name} must be {self.says}, got {came(value)}.")
        at = lambda path, leaf: self.leaf.of(f"{name}{jax.tree_util.keystr(path)}", leaf, call)
        return jax.tree_util.tree_map_with_path(at, value)


class Either(Rule):
    """One of several rules."""

    def __init__(self, rules: Sequence[Rule]):
        self.rules = rules
        self.says = " or ".join(dict.fromkeys(r.says for r in rules))

    def admits(self, value: Value) -> bool:  # noqa: D102
        return any(r.admits(value) for r in self.rules)

    def has_rank(self, value: Value) -> bool:
        """Whether its number of axes can be right in one of them."""
        return any(r.has_rank(value) for r in self.rules if isinstance(r, Numbers | Either))

    def of(self, name: str, value: Value, call: Call) -> Value:  # noqa: D102
        able = [r for r in self.rules if r.admits(value)]
        if len(able) == 1:
            return able[0].of(name, value, call)
        able = [r for r in able if not isinstance(r, Items) or r.admits_all(value)] or able
        able = [r for r in able if not isinstance(r, Numbers | Either) or r.has_rank(value)] or able
        if able:
            return able[0].of(name, value, call)
        raise ValueError(f"{name} must be {self.says}, got {came(value)}.")
