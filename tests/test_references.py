"""What a function depends on: every change is seen, and what was made alike is the same."""

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gen_jax import _references as references
from gen_jax.diffusion import prediction, process

PROCESS = process.DDPM()
weight = 0.5
settings = SimpleNamespace(weight=0.5)


def reads_a_global(x):
    return weight * x


def calls_a_reader(x):
    return (lambda: reads_a_global(x))()


class Reads:
    factor = 0.5

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __call__(self, x):
        return weight * x

    def method(self, x):
        return self.inner.value * x


class Slots:
    __slots__ = ("value",)

    def __call__(self, x):
        return self.value * x


@dataclass(frozen=True)
class Scaled:
    scale: object

    def __call__(self, x):
        return self.scale * x


def set_global(name, value):
    globals()[name] = value


def closure(value):
    return lambda x: value * x


def of_an_array(value):
    return closure(jnp.float32(value))


def changes():
    """Names, functions, and what changes each."""
    cell, nan = 0.5, float("nan")

    def reads_a_cell(x):
        return cell * x

    def set_cell():
        nonlocal cell
        cell = 0.25

    yield "cell", reads_a_cell, set_cell
    params = {"w": jnp.ones(2)}
    yield "entry of a dict", closure(params), lambda: params.update(w=jnp.ones(2))
    more = {"w": 1.0}
    yield "entry more", closure(more), lambda: more.update(v=1.0)
    array, other = jnp.ones(2), jnp.ones(2)
    alias = [array, other, array]
    yield "alias", closure(alias), lambda: alias.__setitem__(2, other)
    deep = Reads(inner=Reads(value=[{"w": 0.5}]))
    yield "attributes far down", deep.method, lambda: deep.inner.value[0].update(w=0.25)
    in_class = Reads()
    yield "class", in_class, lambda: setattr(Reads, "factor", 0.25)
    yield "global", reads_a_global, lambda: set_global("weight", 0.25)
    yield "global of a callee", calls_a_reader, lambda: set_global("weight", 0.125)
    yield "global of a method", Reads(), lambda: set_global("weight", 0.5)
    yield "attribute of a global", lambda x: settings.weight * x, lambda: setattr(settings, "weight", 0.25)
    numbers = np.ones(3)
    yield "numpy in place", closure(numbers), lambda: numbers.__setitem__(0, 2.0)
    slots = Slots()
    slots.value = 0.5
    yield "slot", slots, lambda: setattr(slots, "value", 0.25)
    sign = [0.0]
    yield "sign of zero", closure(sign), lambda: sign.__setitem__(0, -0.0)
    kind = [1]
    yield "type", closure(kind), lambda: kind.__setitem__(0, True)
    keywords = functools.partial(lambda x, scale: scale * x, scale=(inside := [0.5]))
    yield "partial", keywords, lambda: inside.__setitem__(0, nan)
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    yield "NNX, entries", lambda x: linear(x), lambda: linear.kernel.__setitem__(..., linear.kernel[...] * 2)
    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    double = lambda: nnx.update(module, jax.tree.map(lambda a: 2 * a, nnx.state(module, nnx.Param)))
    yield "NNX, update", module, double
    held = Scaled({"w": 0.5})
    yield "in a frozen class", held, lambda: held.scale.update(w=0.25)
    compiled = jax.jit(closure(boxed := [1.0]))
    yield "jit", compiled, lambda: boxed.__setitem__(0, 2.0)
    wrapped = prediction.clipped(prediction.as_denoiser(closure(far := {"w": 1.0}), PROCESS))
    yield "wrapped by the library", wrapped, lambda: far.update(w=2.0)


@pytest.mark.parametrize(
    ("name", "function", "change"), list(changes()), ids=lambda x: x if type(x) is str else ""
)
def test_a_change_is_seen(name, function, change):
    before = references.kept(references.of(function))
    assert references.same(before, references.of(function))
    change()
    assert not references.same(before, references.of(function))


ARRAY = jnp.ones(2)
ALIKE = {
    "closures": lambda: closure(0.5),
    "with an array": lambda: closure(ARRAY),
    "frozen": lambda: Scaled((0.5, "word")),
    "partial": lambda: functools.partial(reads_a_global, scale=0.5),
    "denoisers": lambda: prediction.as_denoiser(reads_a_global, process.DDPM(), predicts="eps"),
    "bound": lambda: SCALED.__call__,
}
SCALED = Scaled(0.5)


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_what_is_made_alike_is_the_same(make):
    assert references.same(references.kept(references.of(make())), references.of(make()))


OTHERS = {
    "arrays": of_an_array,
    "objects": lambda value: object(),
    "in a list": lambda value: closure([value]),
    "in numpy": lambda value: closure(np.full(2, value)),
    "with attributes": lambda value: Reads(value=value),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_what_may_be_written_into_is_not_the_same_as_its_like(make):
    one, other = make(0.5), make(0.5)
    assert not references.same(references.kept(references.of(one)), references.of(other))


def test_what_was_found_keeps_nothing_alive():
    import gc
    import weakref

    array, owner = jnp.ones(3), Reads()
    owner.inner = closure([array, owner])
    kept = references.kept(references.of(owner))
    gone = weakref.ref(array), weakref.ref(owner)
    del array, owner
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert kept


def test_what_cannot_be_compared_is_said():
    with pytest.raises(TypeError, match="Ref"):
        references.of(closure(jax.new_ref(jnp.ones(2))))
    with pytest.raises(TypeError, match="more than"):
        references.of(closure([[i] for i in range(references.MOST)]))
