"""What a loss gets beside its parameters: the step, the average, and weights that are not trained."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import Mesh

from gen_jax import training
from gen_jax.training import Aux, TrainState, compile_step, make_step
from tests.marks import slow

ONE = Mesh(np.array(jax.devices()[:1]), ("data",))
MODES = {
    "jit-1": {"mesh": ONE},
    "jit-8": {},
    "fsdp-8": {"shard": "fsdp"},
    "pmap-8": {"parallel": "pmap"},
}


def encoder(seed=5):
    """Weights of a frozen network, one array of which is large, one small and one of integers."""
    key = jax.random.key(seed)
    return {
        "kernel": 0.2 * jax.random.normal(key, (toy.DIM, 4096)),
        "scale": jnp.float32(0.7),
        "rows": jnp.arange(toy.DIM, dtype=jnp.int32),
    }


@jax.custom_jvp
def features(x, frozen):
    """Features of a frozen network; an error where they are differentiated."""
    return frozen["scale"] * jnp.tanh(x[:, frozen["rows"]] @ frozen["kernel"]) @ frozen["kernel"].T


@features.defjvp
def _(primals, tangents):
    raise AssertionError("the frozen weights were differentiated")


def loss(params, key, batch, aux):
    """The toy with targets of a frozen network and of the average, and a weight that follows the step."""
    value, metrics = toy.loss(params, key, batch)
    x = batch["x"] / 127.5 - 1.0
    out = lambda params: jnp.tanh(x @ params["hidden"]["kernel"]) @ params["out"]["kernel"]
    teacher = jnp.mean((out(params) - out(aux.ema_params)) ** 2)
    taught = jnp.mean((out(params) - features(x, aux.frozen)) ** 2)
    metrics |= {"step": aux.step, "teacher": teacher}
    return value + taught + (0.1 * aux.step) * teacher, metrics


def problem(loss=loss, aux=True, microbatches=1):
    optimizer, _ = training.adam(1e-2, num_steps=20, schedule="constant")
    make = lambda: TrainState.create(toy.params(), optimizer, jax.random.key(3))
    return make_step(loss, optimizer, ema_decay=0.9, aux=aux, microbatches=microbatches), make


def run(frozen, *, problem, steps_per_call=5, num_steps=10, **options):
    step, make = problem
    memory, state = toy.InMemory(), make()
    compiled = compile_step(step, steps_per_call=steps_per_call, select=memory.select, **options)
    for _ in range(0, num_steps, steps_per_call):
        state, metrics = compiled(state, memory.arrays, frozen)
    return state, metrics, compiled


@pytest.fixture(scope="module")
def closed_over():
    """One device, the frozen weights as constants of the program."""
    weights = encoder()

    def closure(params, key, batch, aux):
        return loss(params, key, batch, Aux(aux.step, aux.ema_params, weights))

    return run(None, problem=problem(closure), mesh=ONE)


@pytest.mark.parametrize("microbatches", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", slow(MODES, ("jit-1", "jit-8")))
def test_frozen_weights_as_an_argument_equal_a_closure(closed_over, mode, microbatches):
    if microbatches == 1:
        expected, metrics, _ = closed_over
    else:
        expected, metrics, _ = run(encoder(), problem=problem(microbatches=microbatches), mesh=ONE)
    state, found, compiled = run(encoder(), problem=problem(microbatches=microbatches), **MODES[mode])
    toy.assert_close(state, expected, 2e-5)
    for name, metric in metrics.items():
        np.testing.assert_allclose(found[name], metric, rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["step"], np.arange(5, 10))
    assert compiled.traces == 1
    assert (found["teacher"] > 0).all()


def test_one_step_a_call_equals_several(closed_over):
    state, _, _ = run(encoder(), problem=problem(), steps_per_call=1, mesh=ONE)
    toy.assert_close(state, closed_over[0], 1e-5)


def test_the_average_is_that_before_the_step():
    seen = lambda params, key, batch, aux: (params["w"] ** 2, {"average": aux.ema_params["w"]})
    optimizer = optax.sgd(0.25)
    state = TrainState.create({"w": jnp.float32(1.0)}, optimizer, jax.random.key(0))
    step = make_step(seen, optimizer, ema_decay=0.5, aux=True)
    for _ in range(3):
        before = state.ema_params["w"]
        state, metrics = step(state, None)
        assert metrics["average"] == before != state.ema_params["w"]


def test_several_averages_are_told_by_name():
    told = lambda params, key, batch, aux: (
        params["w"] ** 2,
        {"gap": aux.ema_params["slow"]["w"] - aux.ema_params["fast"]["w"]},
    )
    optimizer = optax.sgd(0.25)
    state = TrainState.create({"w": jnp.float32(1.0)}, optimizer, jax.random.key(0), ema=("slow", "fast"))
    constant = lambda decay: lambda step: jnp.float32(decay)
    step = make_step(told, optimizer, ema_decay={"slow": constant(0.9), "fast": constant(0.5)}, aux=True)
    state, _ = step(state, None)
    _, metrics = step(state, None)
    np.testing.assert_allclose(metrics["gap"], 0.95 - 0.75, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_frozen_weights_are_not_constants_of_the_program(mode):
    memory, (step, make) = toy.InMemory(), problem()
    compiled = compile_step(step, steps_per_call=5, select=memory.select, **MODES[mode])
    state, frozen = compiled.layout.put_state(make()), compiled.layout.put_frozen(encoder())
    text = compiled.lower(state, compiled.put(memory.arrays), frozen).as_text()
    assert len(text) < encoder()["kernel"].nbytes  # a constant takes two characters a byte
    assert "tensor<16x4096xf32>" in text


def test_fsdp_splits_frozen_weights_and_gathers_them_once_a_call():
    memory, (step, make) = toy.InMemory(), problem()
    compiled = compile_step(step, steps_per_call=5, select=memory.select, shard="fsdp")
    state, frozen = compiled.layout.put_state(make()), compiled.layout.put_frozen(encoder())
    assert frozen["kernel"].addressable_shards[0].data.shape == (toy.DIM, 4096 // 8)
    assert frozen["scale"].sharding.is_fully_replicated
    text = compiled.lower(state, compiled.put(memory.arrays), frozen).compile().as_text()
    gathers = [m.start() for m in re.finditer(r"= f32\[16,4096\]\S* all-gather", text)]
    assert len(gathers) == 1
    assert gathers[0] > text.index("\nENTRY")  # not in the body of the loop over the steps


@pytest.mark.parametrize("mode", MODES)
def test_frozen_weights_are_not_donated_nor_copied_again(mode):
    jax.config.update("jax_debug_nans", False)  # under which nothing is donated
    try:
        memory, (step, make) = toy.InMemory(), problem()
        compiled = compile_step(step, select=memory.select, **MODES[mode])
        frozen = compiled.layout.put_frozen(encoder())
        again = compiled.layout.put_frozen(frozen)
        assert all(a is b for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(again), strict=True))
        state = make()
        for _ in range(2):
            state, _ = compiled(state, memory.arrays, frozen)
    finally:
        jax.config.update("jax_debug_nans", True)
    jax.tree.map(np.testing.assert_array_equal, frozen, encoder())


@pytest.mark.parametrize(
    "options", slow([{"mesh": ONE}, {"shard": "fsdp"}, {"parallel": "pmap"}], but=[{"shard": "fsdp"}])
)
def test_fit_with_frozen_weights_resumes_to_the_bit_and_saves_none_of_them(tmp_path, options):
    def fit(name, num_steps):
        step, make = problem()
        how = {"parallel": "jit"} | {k: v for k, v in options.items() if k != "mesh"}
        return training.fit(
            step,
            make,
            toy.InMemory(),
            num_steps=num_steps,
            workdir=tmp_path / name,
            options=training.Options(steps_per_call=5, progress=False, **how),
            frozen=encoder(),
            mesh=options.get("mesh"),
        )

    whole = fit("whole", 20)
    fit("parts", 10)
    toy.assert_same_bits(fit("parts", 20), whole)
    size = sum(path.stat().st_size for path in (tmp_path / "whole" / "checkpoints" / "20").rglob("*"))
    state = sum(x.nbytes for x in toy.leaves(whole))
    assert size < state + encoder()["kernel"].nbytes / 2


def test_frozen_weights_without_aux_are_refused():
    step, make = problem(toy.loss, aux=False)
    with pytest.raises(ValueError, match=r"make_step\(\.\.\., aux=True\)"):
        compile_step(step, select=toy.InMemory().select)(make(), toy.arrays(), encoder())
