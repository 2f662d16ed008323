"""The count of a traced program: closed forms, XLA's count where there is no loop, and loops as often as they run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import Mesh, PartitionSpec
from test_compile import MODES

from gen_jax.networks.conv import conv
from gen_jax.training import compile_step, cost
from tests.marks import slow

SQUARE = 2 * 8**3
"""Of a product of two matrices of side 8."""
x = jnp.ones((8, 8))
of_mlp = lambda batch: 6 * batch * 2 * toy.DIM * toy.WIDTH - 2 * batch * toy.DIM * toy.WIDTH
"""6 N B, without the gradient by the input of the first layer."""


@pytest.mark.parametrize("mode", slow(MODES, but=("jit-1", "fsdp-8", "pmap-2")))
@pytest.mark.parametrize(
    ("steps_per_call", "microbatches", "select"), [(1, 1, False), (5, 1, True), (2, 4, False)]
)
def test_step_of_an_mlp_counts_as_its_closed_form(mode, steps_per_call, microbatches, select):
    step, state, _ = toy.setup(10, microbatches=microbatches)
    memory = toy.InMemory()
    how = {"steps_per_call": steps_per_call, "select": memory.select if select else None, **MODES[mode]()}
    compiled, rows = compile_step(step, **how), np.zeros((steps_per_call, toy.BATCH), int)
    data = (
        memory.arrays
        if select
        else {n: a[rows if steps_per_call > 1 else rows[0]] for n, a in memory.arrays.items()}
    )
    compiled.lower(compiled.layout.put_state(state), compiled.put(data))
    assert compiled.flops == of_mlp(toy.BATCH)
    assert compiled.traces == 1


CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "stride": {"padding": "SAME", "window_strides": (2, 1)},
    "given": {"padding": [(2, 0), (0, 3)], "rhs_dilation": (2, 1)},
    "transposed": {"padding": [(1, 2), (2, 1)], "lhs_dilation": (2, 3)},
    "groups": {"padding": "VALID", "feature_group_count": 2},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients_count_as_with_xla(name):
    groups = CONVOLUTIONS[name].get("feature_group_count", 1)
    image, kernel = jnp.ones((2, 9, 7, 4)), jnp.ones((3, 2, 4 // groups, 6))
    how = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **CONVOLUTIONS[name]}
    run = lambda image, kernel: jax.lax.conv_general_dilated(image, kernel, **how)
    out = run(image, kernel)
    gradients = lambda image, kernel, out: jax.vjp(run, image, kernel)[1](out)
    for f, args in ((run, (image, kernel)), (gradients, (image, kernel, out))):
        by_xla = jax.jit(f).lower(*args).cost_analysis()["flops"]
        assert cost.flops(f, *args) == by_xla > 0


def test_convolutions_of_the_library_count_three_times_with_their_gradients():
    """Whatever form they have on a CPU; each tap of a kernel of 3 counts where it lies on the image."""
    image, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 32))
    forward = 2 * 2 * 16 * 32 * (3 * 8 - 2) ** 2
    assert cost.flops(conv, image, kernel) == forward
    both = jax.grad(lambda *args: jnp.sum(conv(*args) ** 2), (0, 1))
    assert cost.flops(both, image, kernel) == 3 * forward


def scanned(x):
    return jax.lax.scan(lambda c, _: (jax.lax.fori_loop(0, 3, lambda _, c: c @ x, c), None), x, None, 5)[0]


PROGRAMS = {
    "product": (lambda x: x @ x, 1),
    "batched": (lambda x: jax.vmap(lambda y: y @ x)(jnp.stack([x] * 4)), 4),
    "called": (lambda x: jax.jit(jnp.dot)(x, x) + jax.jit(jnp.dot)(x, x), 2),
    "loops": (scanned, 15),
    "map": (lambda x: jax.lax.map(lambda y: y @ x, jnp.stack([x] * 4)), 4),
    "while": (lambda x: jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ x, x), 1),
    "branches": (lambda x: jax.lax.cond(x.sum() > 0, lambda y: y @ x @ x, lambda y: y @ x, x), 2),
    "platforms": (
        lambda x: jax.lax.platform_dependent(x, cpu=lambda y: y @ y @ y, default=lambda y: y @ y),
        1,
    ),
    "again": (jax.value_and_grad(lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.cos(x) @ x))(x))), 4),
    "elementwise": (lambda x: x * x + jnp.exp(x), 0),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_count_as_often_as_they_run(name):
    f, products = PROGRAMS[name]
    assert cost.flops(f, x) == products * SQUARE


def test_arguments_may_be_trees_shapes_and_nothing():
    shapes = {"a": jax.ShapeDtypeStruct((8, 8), "float32"), "b": x}
    assert cost.flops(lambda tree, none: tree["a"] @ tree["b"], shapes, None) == SQUARE


def test_a_part_for_each_device_counts_as_often_as_there_are_devices():
    mesh, rows = Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data")
    f = jax.shard_map(lambda y: y @ x, mesh=mesh, in_specs=rows, out_specs=rows)
    assert cost.flops(f, jnp.ones((16, 8))) == 2 * SQUARE
