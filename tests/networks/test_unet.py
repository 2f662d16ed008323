"""The shared U-Net: sizes, conditions, precision, memory, derivatives, and where it can be lowered to."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.test_util import check_grads

from gen_jax import training
from gen_jax.diffusion import loss, process
from gen_jax.networks import transformer, unet
from gen_jax.networks.layers import dropped
from tests.marks import slow
from tests.networks.drawn import parameters
from tests.networks.stable_diffusion import flat

KEY = jax.random.key(0)
TINY = unet.UNetConfig(channels=(8, 12), embedding=16, groups=4)
TEXT = dataclasses.replace(
    TINY, depth=(0, 1), middle_attention=True, heads=2, context_features=5, time="add", exact_norm=True
)
LEAST = dataclasses.replace(TEXT, channels=(4,), depth=(1,), heads=1, blocks=1, dense_skips=False)


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


PRESETS = {
    "mnist_best": (dataclasses.replace(unet.mnist_best, num_classes=10), (28, 28, 1)),
    "mnist": (unet.mnist, (28, 28, 1)),
    "cifar10": (dataclasses.replace(unet.cifar10, channels=(4, 8, 8, 8)), (32, 32, 3)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_keeps_names_and_shapes_of_its_parameters(name):
    """Those of gen_jax 0.2, as committed then: runs on disk are read by them."""
    kept = json.loads(Path(__file__).with_name("unet_presets.json").read_text())[name]
    config, shape = PRESETS[name]
    params = jax.eval_shape(unet.UNet(config).init, KEY, jnp.zeros((1, *shape)), jnp.zeros(1))
    assert {path: list(leaf.shape) for path, leaf in flat(params).items()} == kept


CONFIGS = {
    "plain": TINY,
    "patch": dataclasses.replace(TINY, patch=2),
    "three levels": dataclasses.replace(TINY, channels=(4, 8, 12), blocks=2),
    "light": dataclasses.replace(TINY, patch=2, dense_skips=False, resample_conv=False),
    "attention": dataclasses.replace(TINY, attention=(1,), middle_attention=True, head_features=4),
    "text": TEXT,
}


@pytest.mark.parametrize(
    "config",
    [
        *(getattr(unet, name) for name in ("mnist_small", "mnist_best", "mnist", "cifar10")),
        dataclasses.replace(TINY, dtype=jnp.bfloat16, attention=(0, 1), num_classes=10, remat=True),
        dataclasses.replace(TINY, dtype="bfloat16", cond_features=3, dropout=0.1),
        dataclasses.replace(TEXT, heads=(1, 3), depth=(2, 1), cond_features=3, cond_layers=2),
        *(unet.sd15, unet.sd21, unet.sdxl, unet.sdxl_refiner),
        dataclasses.replace(unet.sd15, out_channels=4, guidance_features=256),
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


@pytest.mark.parametrize("config", slow(CONFIGS, but=("three levels", "light", "attention")))
def test_unet_keeps_any_shape(config):
    net = unet.UNet(CONFIGS[config])
    params = jax.eval_shape(net.init, KEY, images((8, 8), 3), jnp.ones(2))
    for size in ((28, 28), (27, 27), (9, 14), (1, 4)):
        assert jax.eval_shape(net.apply, params, images(size, 3), jnp.ones(2)).shape == (2, *size, 3)


@pytest.mark.parametrize("config", slow(["light", "attention"], but=("light",)))
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


def test_unet_counts_time_from_another_number():
    counted = unet.UNet(dataclasses.replace(TINY, time_offset=-1.0))
    x, t = images(), jnp.array([1, 700])
    params = parameters(counted, x, t)
    np.testing.assert_array_equal(apply(counted)(params, x, t), apply(unet.UNet(TINY))(params, x, t - 1))


def test_unet_gives_other_channels_than_it_reads():
    net = unet.UNet(dataclasses.replace(TINY, patch=2, out_channels=2))
    x, t = images((7, 6), 5), jnp.ones(2)
    params = parameters(net, x, t)
    y = apply(net)(params, x, t)
    assert y.shape == (2, 7, 6, 2)
    assert np.std(y) > 0
    assert params["params"]["out"]["kernel"].shape == (3, 3, 8, 8)


def test_unet_embeds_a_guidance_weight():
    """As if its linear map were added to the sinusoid of time; without a weight there is nothing."""
    net = unet.UNet(dataclasses.replace(TINY, guidance_features=6))
    x, t, weight = images(), jnp.ones(2), jnp.array([6.5, 6.5])
    params = parameters(net, x, t)
    assert jax.tree.structure(params) == jax.tree.structure(
        jax.eval_shape(lambda: net.init(KEY, x, t, guidance=weight))
    )
    inner = dict(params["params"])
    kernel = np.asarray(inner.pop("guidance")["kernel"], np.float64)
    frequencies = 10_000.0 ** (-np.arange(3) / 2)
    wave = np.concatenate([f(6500 * frequencies) for f in (np.sin, np.cos)])
    time = inner["time_0"]
    moved = inner | {"time_0": time | {"bias": time["bias"] + (wave @ kernel @ time["kernel"]).astype("f4")}}
    plain = apply(unet.UNet(TINY))
    guided = jax.jit(lambda p, w: net.apply(p, x, t, guidance=w))(params, weight)
    np.testing.assert_allclose(guided, plain({"params": moved}, x, t), atol=2e-4)
    np.testing.assert_array_equal(apply(net)(params, x, t), plain({"params": inner}, x, t))
    assert not np.allclose(guided, apply(net)(params, x, t), atol=1e-3)


def test_unet_null_label_is_no_label():
    net, x, t = unet.UNet(dataclasses.replace(TINY, num_classes=3)), images(), jnp.ones(2)
    params = parameters(net, x, t)
    run = apply(net)
    np.testing.assert_allclose(run(params, x, t, jnp.array([3, 3])), run(params, x, t), rtol=1e-5, atol=1e-6)
    one, two = run(params, x, t, jnp.array([0, 1])), run(params, x, t, jnp.array([0, 2]))
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.allclose(one[1], two[1])


@pytest.mark.parametrize("layers", [1, 2])
def test_unet_takes_a_vector_or_none(layers):
    net = unet.UNet(dataclasses.replace(TINY, cond_features=5, cond_layers=layers))
    x, t, vector = images(), jnp.ones(2), jnp.ones((2, 5))
    params = parameters(net, x, t)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(net.init, KEY, x, t, vector))
    with_vector, without = apply(net)(params, x, t, vector), apply(net)(params, x, t)
    assert not np.allclose(with_vector, without)
    null = np.allclose(apply(net)(params, x, t, 0 * vector), without, atol=1e-6)
    assert null == (layers == 2)


def test_unet_embeds_a_vector_by_two_layers():
    """As if its embedding were that of time: the last layer of time is a map with a bias, which takes all."""
    config = dataclasses.replace(TINY, cond_features=5, cond_layers=2)
    net, x, t = unet.UNet(config), images(), jnp.ones(2)
    vector = jax.random.normal(KEY, (1, 5))
    params = parameters(net, x, t)["params"]
    first, second = params["cond_0"], params["cond_1"]
    h = vector[0] @ first["kernel"] + first["bias"]
    added = jax.nn.silu(h) @ second["kernel"] + second["bias"]
    moved = params | {"time_1": params["time_1"] | {"bias": params["time_1"]["bias"] + added}}
    plain = apply(unet.UNet(TINY))({"params": {k: v for k, v in moved.items() if "cond" not in k}}, x, t)
    both = apply(net)({"params": params}, x, t, jnp.repeat(vector, 2, axis=0))
    np.testing.assert_allclose(both, plain, atol=1e-4)


CONTEXT = jax.random.normal(KEY, (2, 6, 5))


def test_unet_attends_to_context_without_regard_to_its_order():
    net, x, t = unet.UNet(LEAST), images(), jnp.ones(2)
    params = parameters(net, x, t, None, CONTEXT, scale=0.3)
    run = lambda context: apply(net)(params, x, t, None, context)
    y = run(CONTEXT)
    np.testing.assert_allclose(y, run(CONTEXT[:, ::-1]), atol=1e-4)
    assert not np.allclose(y, run(2 * CONTEXT), atol=1e-3)


def test_unet_has_the_same_parameters_whatever_init_is_given():
    net, x, t = unet.UNet(TEXT), images(), jnp.ones(2)
    shapes = [jax.eval_shape(net.init, KEY, x, t, *given) for given in ((), (None, CONTEXT))]
    assert shapes[0] == shapes[1]
    assert "cross_key" in shapes[0]["params"]["middle_transformer"]["block_0"]


def test_unet_without_tokens_is_one_without_cross_attention():
    net, x, t = unet.UNet(LEAST), images((2, 3)), jnp.ones(2)
    params = parameters(net, x, t, scale=0.3)
    plain = apply(unet.UNet(dataclasses.replace(LEAST, context_features=None)))(params, x, t)
    nothing = jnp.zeros((2, 6), bool)
    for given in ((), (None,), (CONTEXT[:, :0],), (CONTEXT, nothing)):
        context = (None, *given) if given else ()
        np.testing.assert_allclose(apply(net)(params, x, t, *context), plain, rtol=1e-6, atol=1e-6)
    assert not np.allclose(apply(net)(params, x, t, None, CONTEXT, ~nothing), plain, atol=1e-3)


def test_unet_middle_is_as_deep_as_the_last_level_with_a_transformer():
    depths = lambda **fields: unet.UNetConfig(
        channels=(8, 8, 8), groups=4, heads=1, middle_attention=True, **fields
    ).transformer(-1)[0]
    assert [depths(depth=d) for d in ((0, 2, 10), (1, 4, 0), (3, 0, 0), (0, 0, 0), ())] == [10, 4, 3, 0, 0]


def test_unet_gives_the_attention_of_each_transformer():
    net, x, t = unet.UNet(TEXT), images(), jnp.ones(2)
    params = parameters(net, x, t, scale=0.3)
    mask = jnp.arange(6)[None] < jnp.array([[4], [6]])
    _, found = jax.jit(lambda: net.apply(params, x, t, None, CONTEXT, mask, mutable=["intermediates"]))()
    assert set(found["intermediates"]) == {
        f"{name}_transformer" for name in ("down_1_0", "middle", "up_1_0", "up_1_1")
    }
    maps = transformer.attention_maps(found["intermediates"], (8, 8))
    assert maps.shape == (2, 8, 8, 6)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert not np.any(maps[0, ..., 4:])


def test_unet_dropout_is_on_only_with_a_key():
    net, x, t = unet.UNet(dataclasses.replace(TINY, dropout=0.5)), images(), jnp.ones(2)
    params = parameters(net, x, t)
    run = jax.jit(lambda key: net.apply(params, x, t, rngs=None if key is None else {"dropout": key}))
    np.testing.assert_array_equal(run(None), run(None))
    np.testing.assert_array_equal(run(jax.random.key(5)), run(jax.random.key(5)))
    assert not np.allclose(run(None), run(jax.random.key(5)))
    assert not np.allclose(run(jax.random.key(6)), run(jax.random.key(5)))


def test_dropped_is_unbiased_and_belongs_to_the_example():
    """Each number is lost with the probability that is asked for, whatever the batch and the devices are."""
    x, key, rate = jnp.ones((8, 50, 100)), jax.random.key(0), 0.3
    y = np.asarray(dropped(key, x, rate))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    lost = (y == 0).mean((1, 2))
    assert np.all(abs(lost - rate) < 4 * np.sqrt(rate * (1 - rate) / 5000))
    assert len(np.unique(lost)) > 4  # not the same for all
    np.testing.assert_array_equal(dropped(key, x[:3], rate), y[:3])
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rows = jax.sharding.PartitionSpec(("data", "fsdp"))
    each = jax.shard_map(lambda x: dropped(key, x, rate), mesh=mesh, in_specs=rows, out_specs=rows)
    np.testing.assert_array_equal(jax.jit(each)(x), y)


@pytest.mark.parametrize("name", slow(["attention", "text"], but=("text",)))
def test_unet_computes_in_bfloat16_with_float32_parameters(name):
    half = unet.UNet(dataclasses.replace(CONFIGS[name], dtype=jnp.bfloat16))
    x, t, context = images(), jnp.ones(2), CONTEXT if name == "text" else None
    params = parameters(half, x, t)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    run = lambda net: apply(net)(params, x, t, None, context)
    y16, y32 = run(half), run(unet.UNet(CONFIGS[name]))
    assert y16.dtype == jnp.float32
    assert 0 < float(jnp.abs(y16 - y32).max()) < 0.05 * float(jnp.abs(y32).max())


def gradients():
    """The programs that find them without and with `remat`, and the parameters."""
    x, t, context = images((8, 8), batch=8), jnp.ones(8), jnp.repeat(CONTEXT, 4, axis=0)
    nets = [unet.UNet(dataclasses.replace(TEXT, remat=remat)) for remat in (False, True)]
    params = parameters(nets[0], x, t)
    loss = lambda net: lambda params: jnp.sum(net.apply(params, x, t, None, context) ** 2)
    return [jax.jit(jax.grad(loss(net))).lower(params) for net in nets], params


def test_unet_remat_forgets_every_block():
    plain, remat = (program.as_text().count("optimization_barrier") for program in gradients()[0])
    assert remat >= plain + 9  # one for each residual block and transformer


@pytest.mark.slow  # two compilations; in CI: the above
def test_unet_remat_changes_no_gradient():
    programs, params = gradients()
    plain, remat = (program.compile()(params) for program in programs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), plain, remat)


def test_unet_of_text_has_gradients_that_are_derivatives():
    """In images and context, by finite differences in float32, with a drawn head."""
    net, x, t = unet.UNet(LEAST), images((2, 3)), jnp.ones(2)
    params, mask = parameters(net, x, t, scale=0.3), jnp.arange(6)[None] < jnp.array([[4], [6]])
    value = lambda x, context: jnp.mean(jnp.sin(net.apply(params, x, t, None, context, mask)))
    check_grads(jax.jit(value), (x, CONTEXT), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=2e-3)


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
        (TINY, (jnp.ones(2), None, CONTEXT), "takes no context"),
        (TEXT, (jnp.ones(2), None, CONTEXT[:1]), r"context of shape \(2, L, 5\)"),
        (TEXT, (jnp.ones(2), None, CONTEXT[..., :3]), r"context of shape \(2, L, 5\)"),
        (TEXT, (jnp.ones(2), None, None, jnp.ones((2, 6), bool)), "a mask alone"),
        (TEXT, (jnp.ones(2), None, CONTEXT, jnp.ones((2, 6))), "mask of bool"),
        (TEXT, (jnp.ones(2), None, CONTEXT, jnp.ones((2, 5), bool)), r"shape \(2, 6\)"),
        (dataclasses.replace(TEXT, groups=5), (jnp.ones(2),), "5 groups do not divide 8 channels"),
    ],
)
def test_unet_says_what_does_not_fit(config, args, message):
    with pytest.raises(ValueError, match=message):
        unet.UNet(config).init(KEY, images(), *args)


@pytest.mark.parametrize(
    ("config", "weight"),
    [(TINY, jnp.ones(2)), (dataclasses.replace(TINY, guidance_features=4), jnp.ones(3))],
)
def test_unet_says_that_a_guidance_weight_does_not_fit(config, weight):
    with pytest.raises(ValueError, match="a guidance weight for each of 2 images"):
        jax.eval_shape(lambda: unet.UNet(config).init(KEY, images(), jnp.ones(2), guidance=weight))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, "level"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"guidance_features": 0}, "guidance_features=0"),
        ({"guidance_features": 1}, "2 or more features.*guidance_features=1"),
        ({"sinusoid_features": 1}, "2 or more features, got sinusoid_features=1"),
        ({"attention": (2,)}, "0 to 1"),
        ({"num_classes": 3, "cond_features": 4}, "not both"),
        ({"cond_layers": 2}, "cond_features"),
        ({"depth": (1,)}, "one number for each level"),
        ({"depth": (1, -1), "heads": 2}, "one number for each level"),
        ({"depth": (1, 1), "heads": (1, 2, 3)}, "one number for each level"),
        ({"depth": (1, 0), "heads": 3}, "divide its channels; got 8"),
        ({"depth": (0, 1)}, "head_features=64"),
        ({"depth": (0, 1), "attention": (1,), "heads": 2}, "not both"),
        ({"context_features": 3}, "with a depth"),
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
