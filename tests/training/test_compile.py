import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from jax.sharding import AxisType, Mesh

from gen_jax import training
from gen_jax.networks import unet
from gen_jax.networks.mlp import MLP
from gen_jax.training import compile_step
from gen_jax.training.compile import lower_once
from tests.marks import slow


def mesh(n, *axes):
    return Mesh(np.array(jax.devices()[:n]).reshape(*(axes or (n,))), ("data", "model")[: max(1, len(axes))])


RULES = (("hidden/", ("tensor",)), ("out/kernel$", ("tensor", None)))
MODES = {
    "jit-1": lambda: {"mesh": mesh(1)},
    "jit-8": lambda: {},
    "jit-4x2": lambda: {"mesh": mesh(8, 4, 2)},
    "jit-explicit": lambda: {"mesh": jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))},
    "fsdp-8": lambda: {"shard": "fsdp"},
    "fsdp-4x2": lambda: {"shard": "fsdp", "mesh": mesh(8, 4, 2)},
    "zero1-8": lambda: {"shard": "zero1"},
    "hybrid-2x4": lambda: {"shard": "fsdp", "mesh": training.make_mesh("fsdp", replicas=2)},
    "zero1-hybrid": lambda: {"shard": "zero1", "mesh": training.make_mesh("zero1", replicas=2)},
    "tensor-4x2": lambda: {"mesh": training.make_mesh(tensor=2), "rules": RULES},
    "all-2x2x2": lambda: {
        "shard": "fsdp",
        "mesh": training.make_mesh("fsdp", tensor=2, replicas=2),
        "rules": RULES,
    },
    "pmap-8": lambda: {"parallel": "pmap"},
    "pmap-2": lambda: {"parallel": "pmap", "mesh": mesh(2)},
}


def run(num_steps=20, steps_per_call=1, select=False, microbatches=1, **options):
    step, state, _ = toy.setup(num_steps, microbatches=microbatches)
    memory = toy.InMemory()
    compiled = compile_step(
        step, steps_per_call=steps_per_call, select=memory.select if select else None, **options
    )
    history = []
    for k in range(0, num_steps, steps_per_call):
        data = memory.arrays
        if not select:
            rows = np.asarray(memory.select(jnp.int32(k), steps_per_call))
            data = {name: x[rows if steps_per_call > 1 else rows[0]] for name, x in data.items()}
        state, metrics = compiled(state, data)
        history.append(metrics)
    return state, {name: np.concatenate([m[name] for m in history]) for name in history[0]}, compiled


@pytest.fixture(scope="module")
def reference():
    """Plain jit on one device, no scan."""
    return run(mesh=mesh(1))


@pytest.mark.parametrize(
    ("mode", "steps_per_call", "select"),
    [
        ("jit-1", 5, True),
        *slow([("jit-8", 1, False)], but=()),
        ("jit-8", 5, True),
        *slow([("fsdp-8", 1, False)], but=()),
        ("fsdp-8", 5, True),
        *slow([("pmap-8", 1, False), ("pmap-8", 5, False)], but=()),
        ("pmap-8", 5, True),
        *slow([("pmap-2", 5, True), ("jit-4x2", 5, True)], but=()),
        ("fsdp-4x2", 5, False),
        ("jit-explicit", 5, True),
        ("zero1-8", 5, True),
        ("hybrid-2x4", 5, True),
        *slow([("zero1-hybrid", 5, True), ("tensor-4x2", 5, True), ("all-2x2x2", 1, False)], but=()),
        ("all-2x2x2", 5, True),
    ],
)
def test_compile_step_is_the_same_in_every_mode(reference, mode, steps_per_call, select):
    state, metrics, compiled = run(steps_per_call=steps_per_call, select=select, **MODES[mode]())
    toy.assert_close(state, reference[0], 1e-5)
    for name, metric in reference[1].items():
        np.testing.assert_allclose(metrics[name], metric, rtol=1e-4, err_msg=name)
    assert compiled.traces == 1
    assert state.step == 20
    assert state.step.shape == ()
    assert jax.dtypes.issubdtype(state.key.dtype, jax.dtypes.prng_key)


@pytest.mark.parametrize("mode", slow(["jit-8", "fsdp-8", "pmap-8", "jit-4x2"], but=("fsdp-8", "pmap-8")))
def test_compile_step_takes_the_same_microbatches_in_every_mode(mode):
    expected, metrics, _ = run(steps_per_call=5, select=True, microbatches=4, mesh=mesh(1))
    state, found, _ = run(steps_per_call=5, select=True, microbatches=4, **MODES[mode]())
    toy.assert_close(state, expected, 1e-5)
    for name, metric in metrics.items():
        np.testing.assert_allclose(found[name], metric, rtol=1e-4, err_msg=name)


def test_compile_step_microbatches_need_less_memory():
    def temporary(microbatches):
        net, rows = MLP((256, 256, 256, 4)), jnp.zeros((1024, 4))
        params = net.init(jax.random.key(0), rows[:1])
        loss = lambda params, key, x: (jnp.mean((net.apply(params, x) - x) ** 2), {})
        state = training.TrainState.create(params, optax.sgd(0.1), jax.random.key(0))
        step = training.make_step(loss, optax.sgd(0.1), microbatches=microbatches)
        lowered = compile_step(step, mesh=mesh(1)).lower(state, rows)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.3 * temporary(1)


def test_compile_step_fsdp_shards_large_arrays_and_only_those():
    state, *_ = run(10, 5, shard="fsdp")
    for tree in (state.params, state.ema_params, state.opt_state[1][0].mu):
        kernel = tree["hidden"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (toy.DIM, toy.WIDTH // 8)
        assert tree["out"]["kernel"].addressable_shards[0].data.shape == (toy.WIDTH // 8, toy.DIM)
        assert tree["hidden"]["bias"].sharding.is_fully_replicated


@pytest.mark.parametrize("shard", [None, "zero1", "fsdp"])
def test_compile_step_keeps_parts_of_what_shard_says(shard):
    """The bytes of a device: of parameters, and of averages and the optimizer's state."""
    state, *_ = run(10, 5, shard=shard)
    here = lambda tree: sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
    kernels, biases = 2 * 4 * toy.DIM * toy.WIDTH, 4 * toy.WIDTH
    params = kernels // (8 if shard == "fsdp" else 1) + biases
    kept = kernels // (1 if shard is None else 8) + biases
    assert here(state.params) == params
    assert here(state.ema_params) == kept
    assert abs(here(state.opt_state) - 2 * kept) < 100  # and its counts


def test_compile_step_tensor_splits_what_the_rules_name():
    state, *_ = run(10, 5, shard="fsdp", mesh=training.make_mesh("fsdp", tensor=2, replicas=2), rules=RULES)
    for tree in (state.params, state.ema_params, state.opt_state[1][0].mu):
        shape = lambda layer, tree=tree: tree[layer]["kernel"].addressable_shards[0].data.shape
        assert shape("hidden") == (toy.DIM // 2, toy.WIDTH // 2)  # the rule takes the larger one
        assert shape("out") == (toy.WIDTH // 2, toy.DIM // 2)
        assert tree["hidden"]["bias"].addressable_shards[0].data.shape == (toy.WIDTH // 2,)


def test_compile_step_averages_over_devices():
    """The step on 8 devices against the gradient of the whole batch in numpy."""

    def loss(params, key, batch):
        return jnp.mean((params - batch["x"]) ** 2), {}

    x = np.random.default_rng(0).normal(size=(32,)).astype(np.float32)
    optimizer = optax.sgd(0.5)
    for parallel in ("jit", "pmap"):
        state = training.TrainState.create(jnp.float32(2.0), optimizer, jax.random.key(0))
        state, metrics = compile_step(training.make_step(loss, optimizer), parallel=parallel)(state, {"x": x})
        np.testing.assert_allclose(state.params, x.mean(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"][0], 2 * (2.0 - x.mean()), rtol=1e-5)


@pytest.fixture
def donation():
    """JAX donates nothing while it looks for NaNs."""
    jax.config.update("jax_debug_nans", False)
    yield
    jax.config.update("jax_debug_nans", True)


@pytest.mark.parametrize("mode", ["jit-8", "fsdp-8", "pmap-8"])
def test_compile_step_donates_its_own_state_but_not_the_first(mode, donation):
    step, state, _ = toy.setup()
    compiled = compile_step(step, **MODES[mode]())
    batch = {name: x[: toy.BATCH] for name, x in toy.arrays().items()}
    placed, _ = compiled(state, batch)
    compiled(placed, batch)
    assert placed.params["hidden"]["kernel"].is_deleted()
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_compile_step_accepts_arrays_that_are_on_a_device_already():
    step, state, _ = toy.setup()
    batch = {name: jax.device_put(x[: toy.BATCH], jax.devices()[3]) for name, x in toy.arrays().items()}
    for parallel in ("jit", "pmap"):
        compile_step(step, parallel=parallel)(state, batch)


@pytest.mark.parametrize("select", [False, True])
@pytest.mark.parametrize("parallel", ["jit", "pmap"])
def test_compile_step_refuses_a_batch_that_does_not_divide(parallel, select):
    step, state, _ = toy.setup()
    memory = toy.InMemory(batch_size=30)
    compiled = compile_step(step, parallel=parallel, select=memory.select if select else None)
    data = memory.arrays if select else {name: x[:30] for name, x in memory.arrays.items()}
    with pytest.raises(ValueError, match=r"30 rows .* 8 devices.* multiple of 8"):
        compiled(state, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel": "pjit"}, '"jit" or "pmap"'),
        ({"parallel": "pmap", "shard": "fsdp"}, '"?fsdp.* needs'),
        ({"steps_per_call": 0}, "at least 1"),
        ({"shard": "fdsp"}, 'must be None, "zero1" or "fsdp".*Did you mean'),
        ({"rules": (("kernel", ("data", None)),)}, r"other axes .* got \['data'\]"),
    ],
)
def test_compile_step_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        compile_step(toy.setup()[0], **options)


def test_compile_step_refuses_a_mesh_without_the_data_axis():
    with pytest.raises(ValueError, match="an axis 'data'"):
        compile_step(toy.setup()[0], mesh=Mesh(np.array(jax.devices()), ("batch",)))
    with pytest.raises(ValueError, match="mesh of one axis"):
        compile_step(toy.setup()[0], parallel="pmap", mesh=mesh(8, 4, 2))


@pytest.mark.parametrize("shard", [None, "zero1", "fsdp"])
def test_lower_makes_the_program_of_shapes_alone(shard):
    """The same program, which then runs on what it was not shown; gradients are reduced over the devices in it."""
    step, state, _ = toy.setup(20)
    batch = {name: x[:16] for name, x in toy.InMemory().arrays.items()}
    shapes = jax.eval_shape(lambda: (state, batch))
    compiled = compile_step(step, shard=shard, donate=False)
    program = compiled.lower(*shapes).compile()
    assert "all-reduce" in program.as_text() or "reduce-scatter" in program.as_text()
    placed = compiled.layout.put_state(state), compiled.put(batch)
    found, expected = program(*placed, None), compiled(*placed)
    jax.tree.map(np.testing.assert_array_equal, found[0].params, expected[0].params)


@pytest.mark.parametrize("options", [{}, {"shard": "fsdp"}, {"parallel": "pmap"}])
def test_only_parameters_and_gradients_move_between_devices(options):
    """What the collectives of a step have for results, whatever the number of examples is."""
    step, state, _ = toy.setup(20)
    found = []
    for size in (64, 512):
        batch = {
            "x": jax.ShapeDtypeStruct((size, toy.DIM), jnp.uint8),
            "index": jax.ShapeDtypeStruct((size,), jnp.int32),
        }
        program = compile_step(step, **options).lower(jax.eval_shape(lambda: state), batch).compile()
        kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        moved = re.findall(rf"= (\S+|\(.*?\)) ({kinds})(?:-start)?\(", program.as_text())
        assert moved
        found.append(sorted(re.sub(r"\{.*?\}", "", shape) + kind for shape, kind in moved))
    assert found[0] == found[1]
    assert not [x for x in found[0] if "all-to-all" in x or "permute" in x]


@pytest.mark.parametrize("large", [False, True])
def test_fsdp_gathers_large_parameters_again_for_the_gradient(large, monkeypatch):
    """In any program gradients are reduced to the parts; only large parameters are gathered twice."""
    monkeypatch.setattr(training.spread, "LARGE", 0 if large else 2**31)
    step, state, _ = toy.setup(20)
    shapes = {
        "x": jax.ShapeDtypeStruct((64, toy.DIM), jnp.uint8),
        "index": jax.ShapeDtypeStruct((64,), jnp.int32),
    }
    compiled = compile_step(step, shard="fsdp")
    text = compiled.lower(jax.eval_shape(lambda: state), shapes).as_text()
    assert text.count("stablehlo.reduce_scatter") == 2
    assert text.count("stablehlo.all_gather") == (3 if large else 2)  # no gradient needs the first one


@pytest.mark.parametrize("mode", ["jit-8", "fsdp-8", "pmap-8"])
@pytest.mark.parametrize(("steps_per_call", "select"), [(1, False), (5, False), (5, True)])
def test_lowered_and_compiled_is_what_is_then_run(mode, steps_per_call, select, caplog):
    """Of shapes alone; after it, the first call neither traces nor compiles the step."""
    step, state, _ = toy.setup(20)
    memory = toy.InMemory()
    compiled = compile_step(
        step, steps_per_call=steps_per_call, select=memory.select if select else None, **MODES[mode]()
    )
    rows = np.asarray(memory.select(jnp.int32(0), steps_per_call))
    data = {
        name: x if select else x[rows if steps_per_call > 1 else rows[0]] for name, x in memory.arrays.items()
    }
    state, data = compiled.layout.put_state(state), compiled.put(data)
    compiled.lower(compiled.layout.shapes(state)._replace(key=state.key), data).compile()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        compiled(state, data)
    assert compiled.traces == 1
    splits = {"<lambda>"} if mode == "pmap-8" and not select else set()  # of the batch, over the devices
    assert set(re.findall(r"Compiling jit\((.*?)\)", caplog.text)) == splits


def test_lower_once_is_the_function(monkeypatch):
    """Without optimisations on CPUs; elsewhere compiled as always."""
    net = unet.UNet(unet.UNetConfig(channels=(4,), embedding=8, groups=4))
    args = jax.random.key(0), jnp.zeros((1, 9, 7, 2)), jnp.zeros(1)
    wanted = net.init(*args)
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, wanted, lower_once(net.init, *args).compile()(*args))
