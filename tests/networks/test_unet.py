"""The shared U-Net: sizes, conditions, precision, memory, derivatives, and where it can be lowered to."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from gen_jax import training
from gen_jax.diffusion import loss, process
from gen_jax.networks import unet
from tests.networks.drawn import parameters

KEY = jax.random.key(0)
TINY = unet.UNetConfig(channels=(8, 12), embedding=16, groups=4)


def apply(net):
    return jax.jit(net.apply)


def images(size=(8, 8), channels=1, batch=2):
    return jax.random.normal(jax.random.key(2), (batch, *size, channels))


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [("mnist", (28, 28, 1), 2.2), ("cifar10", (32, 32, 3), 35.7)],
)
def test_preset_has_the_size_it_says(name, shape, millions):
    net = unet.UNet(getattr(unet, name))
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, *shape)), jnp.zeros(1))
    count = sum(p.size for p in jax.tree.leaves(params)) / 1e6
    assert abs(count / millions - 1) < 0.02, f"{count:.2f} M"


CONFIGS = {
    "plain": TINY,
    "patch": dataclasses.replace(TINY, patch=2),
    "three levels": dataclasses.replace(TINY, channels=(4, 8, 12), blocks=2),
    "light": dataclasses.replace(TINY, patch=2, dense_skips=False, resample_conv=False),
    "attention": dataclasses.replace(TINY, attention=(1,), middle_attention=True, head_features=4),
}


@pytest.mark.parametrize(
    "config",
    [
        *(getattr(unet, name) for name in ("mnist_small", "mnist_best", "mnist", "cifar10")),
        dataclasses.replace(TINY, dtype=jnp.bfloat16, attention=(0, 1), num_classes=10, remat=True),
        dataclasses.replace(TINY, dtype="bfloat16", cond_features=3, dropout=0.1),
    ],
)
def test_config_is_hashable_and_survives_json(config):
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    read = unet.UNetConfig(**{k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()})
    assert read == config
    assert hash(read) == hash(config)
    assert config.build() == unet.UNet(config)


def test_config_takes_a_dtype_by_name_or_as_a_type():
    by_name, by_type = (dataclasses.replace(TINY, dtype=x) for x in ("bfloat16", jnp.bfloat16))
    assert by_name == by_type
    for wrong in ("bfloat17", "int32", jnp.int8):
        with pytest.raises(ValueError, match="dtype must be a floating-point type"):
            dataclasses.replace(TINY, dtype=wrong)


@pytest.mark.parametrize("config", CONFIGS)
def test_unet_keeps_any_shape(config):
    net = unet.UNet(CONFIGS[config])
    params = jax.eval_shape(net.init, KEY, images((8, 8), 3), jnp.ones(2))
    for size in ((28, 28), (27, 27), (9, 14), (1, 4)):
        assert jax.eval_shape(net.apply, params, images(size, 3), jnp.ones(2)).shape == (2, *size, 3)


@pytest.mark.parametrize("config", ["light", "attention"])
def test_unet_starts_at_zero(config):
    net, x, t = unet.UNet(CONFIGS[config]), images((7, 5), 3), jnp.ones(2)
    params = parameters(net, x, t)
    assert np.any(apply(net)(params, x, t))
    start = jax.jit(
        lambda: net.init(KEY, x, t)["params"]["out"]
    )()  # what of the start this needs, to compile less
    y = apply(net)({"params": params["params"] | {"out": start}}, x, t)
    np.testing.assert_array_equal(y, np.zeros_like(x))


def test_unet_sees_everything_in_its_window():
    """Each output depends on its own image, through all levels, and on no other image of the batch."""
    config = dataclasses.replace(CONFIGS["three levels"], blocks=1)
    net, x, t = unet.UNet(config), images((16, 16)), jnp.ones(2)
    params = parameters(net, x, t)
    influence = jax.jit(jax.grad(lambda x: net.apply(params, x, t)[0, 8, 8, 0]))(x)
    assert np.all(np.asarray(influence[1]) == 0)
    assert (np.asarray(influence[0]) != 0).all()


def test_unet_treats_integer_and_float_times_alike():
    net, x = unet.UNet(TINY), images()
    params = parameters(net, x, jnp.ones(2))
    a, b, c = (
        apply(net)(params, x, t)
        for t in (jnp.array([3, 700]), jnp.array([3.0, 700.0]), jnp.array([3.5, 700.0]))
    )
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a[0], c[0])
    np.testing.assert_array_equal(a[1], c[1])


def test_unet_scales_time():
    a = unet.UNet(dataclasses.replace(TINY, time_scale=1000.0))
    x, t = images(), jnp.array([0.25, 0.5])
    params = parameters(a, x, t)
    np.testing.assert_allclose(apply(a)(params, x, t), apply(unet.UNet(TINY))(params, x, 1000 * t), rtol=1e-5)


def test_unet_null_label_is_no_label():
    net, x, t = unet.UNet(dataclasses.replace(TINY, num_classes=3)), images(), jnp.ones(2)
    params = parameters(net, x, t)
    run = apply(net)
    np.testing.assert_allclose(run(params, x, t, jnp.array([3, 3])), run(params, x, t), rtol=1e-5, atol=1e-6)
    one, two = run(params, x, t, jnp.array([0, 1])), run(params, x, t, jnp.array([0, 2]))
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.allclose(one[1], two[1])


def test_unet_takes_a_vector_or_none():
    net, x, t = unet.UNet(dataclasses.replace(TINY, cond_features=5)), images(), jnp.ones(2)
    params = parameters(net, x, t, jnp.ones((2, 5)))
    params = {"params": parameters(net, x, t)["params"] | params["params"]}
    with_vector, without = apply(net)(params, x, t, jnp.ones((2, 5))), apply(net)(params, x, t)
    assert not np.allclose(with_vector, without)


def test_unet_attends_to_context_without_regard_to_its_order():
    net, x, t = unet.UNet(CONFIGS["attention"]), images(), jnp.ones(2)
    context = jax.random.normal(KEY, (2, 6, 7))
    params = parameters(net, x, t, None, context, scale=0.3)
    run = lambda context: apply(net)(params, x, t, None, context)
    y = run(context)
    np.testing.assert_allclose(y, run(context[:, ::-1]), atol=1e-4)
    assert not np.allclose(y, run(2 * context), atol=1e-3)


def test_unet_dropout_is_on_only_with_a_key():
    net, x, t = unet.UNet(dataclasses.replace(TINY, dropout=0.5)), images(), jnp.ones(2)
    params = parameters(net, x, t)
    run = jax.jit(lambda key: net.apply(params, x, t, rngs=None if key is None else {"dropout": key}))
    np.testing.assert_array_equal(run(None), run(None))
    np.testing.assert_array_equal(run(jax.random.key(5)), run(jax.random.key(5)))
    assert not np.allclose(run(None), run(jax.random.key(5)))
    assert not np.allclose(run(jax.random.key(6)), run(jax.random.key(5)))


def test_unet_computes_in_bfloat16_with_float32_parameters():
    half = unet.UNet(dataclasses.replace(CONFIGS["attention"], dtype=jnp.bfloat16))
    x, t = images(), jnp.ones(2)
    params = parameters(half, x, t)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    y16, y32 = apply(half)(params, x, t), apply(unet.UNet(CONFIGS["attention"]))(params, x, t)
    assert y16.dtype == jnp.float32
    assert 0 < float(jnp.abs(y16 - y32).max()) < 0.05 * float(jnp.abs(y32).max())


def test_unet_remat_changes_memory_not_gradients():
    x, t = images((8, 8), batch=8), jnp.ones(8)
    nets = [unet.UNet(dataclasses.replace(TINY, remat=remat)) for remat in (False, True)]
    params = parameters(nets[0], x, t)
    programs = [
        jax.jit(jax.grad(lambda p, net=net: jnp.sum(net.apply(p, x, t) ** 2))).lower(params) for net in nets
    ]
    plain, remat = (program.compile() for program in programs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), plain(params), remat(params)
    )
    assert "checkpoint" in programs[1].as_text() or "optimization_barrier" in programs[1].as_text()


@pytest.mark.slow  # minutes of compilation; in CI: the gradients of convolutions and losses
def test_unet_gradient_is_the_derivative():
    """Against central differences in float64, along a random direction in parameters and images."""
    with jax.enable_x64(True):
        double = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        net = unet.UNet(dataclasses.replace(TINY, channels=(4, 6), groups=2, **double))
        x, t = images((5, 5)).astype(jnp.float64), jnp.array([1.0, 20.0])
        at = (jax.tree.map(lambda p: p.astype(jnp.float64), parameters(net, x, t)), x)
        direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), at)
        value = jax.jit(lambda at: jnp.mean(net.apply(at[0], at[1], t) ** 2))
        gradient = jax.jit(jax.grad(value))(at)
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))
        ahead, behind = (
            value(jax.tree.map(lambda a, d, h=h: a + h * d, at, direction)) for h in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "args", "message"),
    [
        (TINY, (jnp.ones(3), None), "one time for each of 2 images"),
        (TINY, (jnp.ones(2), jnp.array([0, 1])), "takes no condition"),
        (dataclasses.replace(TINY, num_classes=3), (jnp.ones(2), jnp.ones(2)), "integer labels"),
        (dataclasses.replace(TINY, cond_features=3), (jnp.ones(2), jnp.ones((2, 4))), r"\(2, 3\)"),
    ],
)
def test_unet_says_what_does_not_fit(config, args, message):
    with pytest.raises(ValueError, match=message):
        unet.UNet(config).init(KEY, images(), *args)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, "level"),
        ({"attention": (2,)}, "0 to 1"),
        ({"num_classes": 3, "cond_features": 4}, "not both"),
    ],
)
def test_unet_config_says_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_train_step_of_mnist_lowers_for_cpu_cuda_and_tpu():
    net, proc = unet.UNet(unet.mnist), process.DDPM()
    optimizer = optax.adam(1e-3)

    def loss_fn(params, key, x_0):
        return loss.denoising(key, lambda x, t: net.apply(params, x, t), proc, x_0)

    step = training.make_step(loss_fn, optimizer)
    batch = jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.float32)
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))
    state = jax.eval_shape(lambda p: training.TrainState.create(p, optimizer, KEY), params)
    with jax.debug_nans(False):
        exported = export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(state, batch)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    assert "stablehlo.convolution" in exported.mlir_module()
