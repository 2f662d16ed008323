"""A second call outside `jit` compiles nothing, and is as right as the first."""

import functools
import gc
import os
import weakref
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from gen_jax import programs, samplers
from gen_jax.diffusion import prediction, variance
from gen_jax.diffusion.process import DDPM, VP
from gen_jax.samplers import learned, named, times
from tests.compiling import compilations
from tests.marks import slow

KEY = jax.random.key(5)
PROCESS = DDPM()
X_T = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
TWICE = 2 * X_T
PLANS = {name: named.plan(PROCESS, name, 8) for name in ("ddpm", "dpmpp3")}
each_plan = pytest.mark.parametrize("name", PLANS)


def memory_maps():
    with open("/proc/self/maps") as maps:
        return sum(1 for _ in maps)


def memory():
    """Resident, in bytes."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def denoise(x_t, t):
    return jnp.tanh(x_t + 1e-3 * t)


def first(x, x0_hat):
    return x[:1]


CALLS = {
    "plain": {},
    "trace": {"trace": first},
    "checkpoint": {"checkpoint": True},
    "check_finite": {"check_finite": True},
    "index": {"index": jnp.arange(3, 6)},
}


def equal(one, other):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one, other)


@each_plan
@pytest.mark.parametrize("call", CALLS)
def test_a_second_call_compiles_nothing(name, call):
    run = lambda key, plan, x: samplers.sample(key, denoise, plan, x, **CALLS[call])
    run(KEY, PLANS[name], X_T)
    with compilations() as found:
        run(KEY, PLANS[name], X_T)
    other = jax.tree.map(lambda column: 0.9 * column, PLANS[name]), 2 * X_T
    jax.block_until_ready(other)
    with compilations() as again:
        got = run(jax.random.key(6), *other)
    assert found == again == []
    equal(got, jax.jit(run)(jax.random.key(6), *other))
    with compilations() as new:
        run(KEY, PLANS[name], jnp.ones((4, 2)) if call != "index" else jnp.ones((3, 5)))
    assert new


@dataclass(frozen=True)
class Scaled:
    """A denoiser that is an object, equal to others."""

    scale: float

    def __call__(self, x_t, t):
        return self.scale * x_t

    def method(self, x_t, t):
        return -self.scale * x_t


def test_kinds_of_denoisers_that_a_second_call_finds_compiled():
    kept = prediction.clipped(prediction.as_denoiser(lambda x, t: 0.5 * x, PROCESS))
    first_of_equals = Scaled(0.5)
    partial, model = functools.partial(lambda scale, x, t: scale * x, 0.5), Scaled(0.25)
    compiled = jax.jit(denoise)
    makes = {
        "library": lambda: kept,
        "partial": lambda: partial,
        "equal": lambda: Scaled(0.5),
        "method": lambda: model.method,
        "jit": lambda: compiled,
    }
    for name, make in makes.items():
        x_0 = samplers.sample(KEY, first_of_equals if name == "equal" else make(), PLANS["dpmpp3"], X_T)
        with compilations() as found:
            again = samplers.sample(KEY, make(), PLANS["dpmpp3"], X_T)
        assert found == [], name
        np.testing.assert_array_equal(again, x_0)
        equal(x_0, jax.jit(lambda x, make=make: samplers.sample(KEY, make(), PLANS["dpmpp3"], x))(X_T))
    call, method = (samplers.sample(KEY, d, PLANS["dpmpp3"], X_T) for d in (model, model.method))
    assert np.abs(call - method).max() > 1e-3


class Unhashable:
    __hash__ = None

    def __call__(self, x_t, t):
        return 0.5 * x_t


def test_what_cannot_be_remembered_is_called_as_it_is():
    expected = samplers.sample(KEY, Scaled(0.5), PLANS["ddpm"], X_T)
    equal(samplers.sample(KEY, Unhashable(), PLANS["ddpm"], X_T), expected)
    x_0, _ = samplers.sample(KEY, Scaled(0.5), PLANS["ddpm"], X_T, trace=Unhashable())
    equal(x_0, expected)


# --- other parameters are other programs ---

weight = jnp.float32(0.5)


def reads_a_global(x_t, t):
    return weight * x_t


def calls_a_reader(x_t, t):
    return (lambda: reads_a_global(x_t, t))()


class Holder:
    def __init__(self):
        self.params = {"w": jnp.float32(0.5)}

    def method(self, x_t, t):
        return self.params["w"] * x_t


def changes():
    """Pairs of a denoiser, and what makes it another: `(denoise, change)`, from 0.5 to 0.25 times `x_t`."""
    params, holder, attribute = {"w": jnp.float32(0.5)}, Holder(), Holder()
    local = jnp.float32(0.5)

    def cell(x_t, t):
        return local * x_t

    def set_cell():
        nonlocal local
        local = jnp.float32(0.25)

    def set_global():
        global weight
        weight = jnp.float32(0.25)

    def reset_global():
        global weight
        weight = jnp.float32(0.5)

    pytree = lambda x_t, t: params["w"] * x_t
    wrapped = prediction.clipped(pytree, -9.0, 9.0)
    yield "cell", cell, set_cell
    yield "pytree", pytree, lambda: params.update(w=jnp.float32(0.25))
    params["w"] = jnp.float32(0.5)
    yield "wrapped", wrapped, lambda: params.update(w=jnp.float32(0.25))
    yield "method", holder.method, lambda: setattr(holder, "params", {"w": jnp.float32(0.25)})
    yield (
        "attribute",
        lambda x, t: attribute.method(x, t),
        lambda: attribute.params.update(w=jnp.float32(0.25)),
    )
    yield "global", reads_a_global, set_global
    reset_global()
    yield "called", calls_a_reader, set_global
    reset_global()
    number, numpy_array, scale = Holder(), np.full((1, 2), 0.5, np.float32), nnx.Param(jnp.float32(0.5))
    number.params = {"w": 0.5}
    yield "a number", number.method, lambda: number.params.update(w=0.25)
    yield "numpy in place", lambda x, t: numpy_array * x, lambda: numpy_array.__imul__(np.float32(0.5))
    yield "NNX", lambda x, t: scale[...] * x, lambda: scale.set_value(jnp.float32(0.25))


def test_a_denoiser_that_refers_to_other_arrays_is_another():
    plan = PLANS["dpmpp3"]
    before, after = (samplers.sample(KEY, Scaled(scale), plan, X_T) for scale in (0.5, 0.25))
    for name, denoise, change in changes():
        np.testing.assert_allclose(samplers.sample(KEY, denoise, plan, X_T), before, rtol=1e-6, err_msg=name)
        change()
        np.testing.assert_allclose(samplers.sample(KEY, denoise, plan, X_T), after, rtol=1e-6, err_msg=name)


def test_other_callbacks_and_traces_are_others():
    """Each is called, also one that looks like one before: it may write to another place."""
    counts = []
    for factor in (2.0, 2.0, 3.0):
        seen = []
        x_0, traced = samplers.sample(
            *(KEY, denoise, PLANS["dpmpp3"], X_T),
            trace=lambda x, x0_hat, factor=factor: factor * x,
            on_step=lambda step, x0_hat, seen=seen: jax.debug.callback(lambda k: seen.append(int(k)), step),
        )
        jax.effects_barrier()
        counts.append(sorted(seen))
        np.testing.assert_allclose(traced[-1], factor * x_0, rtol=1e-6)
    assert counts == [list(range(8))] * 3


# --- transformations ---


class Mutable:
    """Tracers in an attribute, which a program that is kept would take for those of the call before."""

    def __call__(self, x_t, t):
        return self.scale * x_t


@pytest.mark.parametrize("name", slow(PLANS, but=("dpmpp3",)))
def test_transformations_outside_jit(name):
    plan, model = PLANS[name], Mutable()
    expected = jax.jit(lambda scale, x: samplers.sample(KEY, lambda x, t: scale * x, plan, x))

    def x_0(scale, x):
        model.scale = scale
        return samplers.sample(KEY, model, plan, x)

    for scale in (0.5, 0.25):  # a second time, with the tracers of another call
        scale = jnp.float32(scale)
        equal(x_0(scale, X_T), expected(scale, X_T))
        equal(jax.jit(x_0)(scale, X_T), expected(scale, X_T))
        for grad in (jax.grad, lambda f: jax.jacfwd(f)):
            sums = [grad(lambda s, f=f: f(s, X_T).sum())(scale) for f in (x_0, expected)]
            np.testing.assert_allclose(*sums, rtol=1e-5)
        scales = jnp.stack([scale, 2 * scale])
        equal(jax.vmap(x_0, (0, None))(scales, X_T), jax.vmap(expected, (0, None))(scales, X_T))
        equal(jax.vmap(jax.jit(x_0), (0, None))(scales, X_T), jax.vmap(expected, (0, None))(scales, X_T))


def test_gradients_of_the_start_outside_jit():
    with jax.enable_x64(True):
        plan, x_T = named.plan(VP(), "dpmpp3", 8), jnp.linspace(-1.0, 1.0, 3)[:, None]
        draw = lambda x: samplers.sample(KEY, denoise, plan, x)
        draw(x_T)
        check_grads(draw, (x_T,), order=1, modes=["fwd", "rev"], rtol=1e-5)


# --- the other loops ---


def test_a_second_step_compiles_nothing():
    step = functools.partial(samplers.step, KEY, denoise, PLANS["ddpm"])
    state, _ = step(samplers.init(PLANS["ddpm"], X_T))
    with compilations() as found:
        step(state)
    assert found == []


def test_a_second_ode_compiles_nothing():
    run = lambda x: samplers.adaptive.ode(denoise, VP(), x, rtol=1e-2, atol=1e-2)
    run(X_T)
    with compilations() as found:
        solution = run(TWICE)
    assert found == []
    assert solution.success
    equal(solution.x, jax.jit(run)(TWICE).x)


def test_a_second_sample_of_a_learned_variance_compiles_nothing():
    pair = variance.as_denoiser(lambda x, t: (0.5 * x, 0 * x + 0.5), PROCESS)
    plans = learned.plan(PROCESS, times.uniform(PROCESS, 8))
    run = lambda x: learned.sample(KEY, pair, plans, x)
    run(X_T)
    with compilations() as found:
        again = run(TWICE)
    assert found == []
    equal(again, jax.jit(run)(TWICE))


# --- nothing is kept for ever ---


DENOISERS = {
    "kept": lambda i: denoise,
    "made anew": lambda i: functools.partial(lambda scale, x, t: scale * x, 0.5),
    "of other arrays": lambda i: functools.partial(lambda scale, x, t: scale * x, jnp.float32(0.5)),
}


@pytest.mark.parametrize("calls", [60, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", slow(DENOISERS, ("kept", "of other arrays")))
def test_many_calls_take_no_more_memory(name, calls):
    calls = calls // 4 if name == "of other arrays" else calls  # each is compiled
    run = lambda i: samplers.sample(
        jax.random.key(i), DENOISERS[name](i), PLANS["ddpm"], X_T
    ).block_until_ready()
    for i in range(calls // 10):
        run(i)
    gc.collect()
    before, used, arrays = memory_maps(), memory(), len(jax.live_arrays())
    with compilations() as found:
        for i in range(calls):
            run(i)
    gc.collect()
    assert len(found) == (calls if name == "of other arrays" else 0)
    assert memory_maps() <= before + 20
    assert memory() <= used + 30e6
    assert len(jax.live_arrays()) <= arrays + 2


def test_programs_go_with_their_denoiser():
    """New denoisers at every call are compiled at every call, and then forgotten."""

    def once(scale):
        array = jnp.full((1000,), scale)
        refers = lambda x_t, t: array[0] * x_t
        samplers.sample(KEY, refers, PLANS["dpmpp3"], X_T)
        return weakref.ref(refers), weakref.ref(array)

    refs = [once(0.1 * i) for i in range(5)]
    gc.collect()
    assert all(ref() is None for pair in refs for ref in pair)


def test_programs_are_few():
    for i in range(programs.MOST + 5):
        programs.run(lambda function, i: lambda x: x, denoise, (i,), X_T)
    assert len(programs._SHARED) <= programs.MOST
