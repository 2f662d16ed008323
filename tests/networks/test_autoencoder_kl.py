"""The autoencoder of latent diffusion: diffusers' outputs, names and sizes; shapes, precision, memory, derivatives."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks import autoencoder_kl
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from tests.networks.drawn import parameters
from tests.tiny_sd import ROOT, tensors

SHARED = ROOT.parent

KEY = jax.random.key(0)
FIXTURE = Path(__file__).parent / "autoencoder_kl.npz"
TINY = AutoencoderKLConfig(channels=(4, 8), blocks=1, latent_channels=3, groups=2)
FOLDED = dataclasses.replace(
    TINY, in_channels=1, out_channels=1, patch=2, middle_attention=False, quant=False
)

NAMES = {
    "stem": "conv_in",
    "out_norm": "conv_norm_out",
    "out": "conv_out",
    "down_<l>_<i>": "down_blocks.<l>.resnets.<i>",
    "up_<l>_<i>": "up_blocks.<m>.resnets.<i>",
    "down_<l>": "down_blocks.<l>.downsamplers.0.conv",
    "up_<l>": "up_blocks.<m>.upsamplers.0.conv",
    "middle_<i>": "mid_block.resnets.<i>",
    "middle_attention": "mid_block.attentions.0",
    "GroupNorm_0": "norm1",
    "GroupNorm_1": "norm2",
    "Conv_0": "conv1",
    "Conv_1": "conv2",
    "Dense_1": "conv_shortcut",
    "self_norm": "group_norm",
    "self_query": "to_q",
    "self_key": "to_k",
    "self_value": "to_v",
    "self_out": "to_out.0",
    "encoder": "encoder",
    "decoder": "decoder",
    "quant": "quant_conv",
    "post_quant": "post_quant_conv",
}
"""Our names and diffusers'; `m` counts the levels from the coarsest, `l` from the finest."""


def diffusers_key(path, levels):
    """The key of a parameter in diffusers' files."""
    *module, leaf = path
    name = lambda part: NAMES[part] if part in NAMES else numbered(part, levels)
    return ".".join([*map(name, module), "bias" if leaf == "bias" else "weight"])


def numbered(part, levels):
    """diffusers' name of one of ours with numbers in it."""
    numbers = [int(n) for n in re.findall(r"\d+", part)]
    letters = "i" if part.startswith("middle") else "li"
    pattern = re.sub(r"\d+", "<>", part)
    for letter in letters[: len(numbers)]:
        pattern = pattern.replace("<>", f"<{letter}>", 1)
    values = dict(zip(letters, numbers, strict=False)) | {"m": levels - 1 - numbers[0]}
    return re.sub(r"<(\w)>", lambda found: str(values[found[1]]), NAMES[pattern])


def keys(config):
    """`{diffusers' key: our path}` of all parameters, and their shapes by path."""
    shape = (1, config.factor, config.factor, config.in_channels)
    shapes = jax.eval_shape(config.build().init, KEY, jnp.zeros(shape))["params"]
    flat = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    return {diffusers_key(path, len(config.channels)): path for path in flat}, flat


def torch_shape(path, shape, name):
    """The shape of the tensor in diffusers' file, given the key."""
    if path[-1] != "kernel":
        return (int(np.prod(shape)),)
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    if ".to_" in name:
        return (shape[-1], shape[0]) if ".to_out" not in name else (shape[-1], shape[-2])
    return (shape[1], shape[0], 1, 1)


def from_torch(config, tensors):
    """Parameters out of diffusers' tensors."""
    tree, (names, shapes) = {}, keys(config)
    assert set(names) == set(tensors)
    for name, path in names.items():
        value = np.asarray(tensors[name], np.float32)
        value = np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value
        here = tree
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = jnp.asarray(value.reshape(shapes[path].shape))
    return {"params": tree}


def config_of_diffusers(found):
    """Our configuration for the `config.json` of diffusers' AutoencoderKL."""
    return AutoencoderKLConfig(
        in_channels=found["in_channels"],
        out_channels=found["out_channels"],
        channels=tuple(found["block_out_channels"]),
        blocks=found["layers_per_block"],
        latent_channels=found["latent_channels"],
        middle_attention=found["mid_block_add_attention"],
        groups=found["norm_num_groups"],
        exact_norm=True,
        quant=found["use_quant_conv"],
    )


def agree(config, params, image, moments, latents, decoded):
    """All arrays as torch has them, `[B, C, H, W]`."""
    net, last = config.build(), lambda x: jnp.asarray(np.moveaxis(x, 1, -1))
    mean, log_variance = jax.jit(lambda x: net.apply(params, x, method="encode"))(last(image))
    ours = jnp.concatenate([mean, log_variance], axis=-1)
    assert relative(ours, last(moments)) < 1e-5
    assert (
        relative(jax.jit(lambda z: net.apply(params, z, method="decode"))(last(latents)), last(decoded))
        < 1e-5
    )


def relative(ours, theirs):
    """The largest error, divided by the largest value."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())


@pytest.mark.slow  # in CI: diffusers' in a file, and tiny-sdxl's parts
@pytest.mark.parametrize("model", ["tiny-sd15", "tiny-sd21", "tiny-sdxl"])
def test_autoencoder_is_that_of_stable_diffusion(model):
    folder = SHARED / "fixtures" / model
    if not folder.is_dir():
        pytest.skip("no ../shared/stable_diffusion")
    config = config_of_diffusers(json.loads((folder / "vae" / "config.json").read_text()))
    params = from_torch(config, tensors(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    expected = np.load(folder / "expected.npz")
    names = "image", "vae_moments", "latents", "vae_decoded"
    agree(config, params, *(expected[name] for name in names))


@pytest.mark.parametrize("name", ["attention", "plain"])
def test_autoencoder_is_that_of_diffusers(name):
    """By a file that `autoencoder_kl_by_diffusers.py` made, which CI has too."""
    found = np.load(FIXTURE)
    config = AutoencoderKLConfig(
        **{
            k: tuple(x) if isinstance(x, list) else x
            for k, x in json.loads(str(found[f"{name}/config"])).items()
        }
    )
    prefix = f"{name}/weights/"
    tensors = {k.removeprefix(prefix): found[k] for k in found.files if k.startswith(prefix)}
    arrays = (found[f"{name}/{x}"] for x in ("image", "moments", "latents", "decoded"))
    agree(config, from_torch(config, tensors), *arrays)


def test_sd_has_the_parameters_of_stable_diffusion():
    names, shapes = keys(autoencoder_kl.sd)
    assert sum(leaf.size for leaf in shapes.values()) == 83_653_863
    assert len(names) == len(shapes) == 248


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/stable_diffusion")
def test_sd_has_the_keys_and_shapes_of_stable_diffusion():
    names, shapes = keys(autoencoder_kl.sd)
    lines = (SHARED / "keys" / "keys_vae.txt").read_text().splitlines()
    expected = dict(line.split(" ", 1) for line in lines if line)
    ours = {name: str(list(torch_shape(path, shapes[path].shape, name))) for name, path in names.items()}
    assert ours == expected


@pytest.mark.parametrize("config", [autoencoder_kl.sd, autoencoder_kl.scenes, autoencoder_kl.mnist, TINY])
def test_config_is_hashable_and_survives_json(config):
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    read = AutoencoderKLConfig(**{k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()})
    assert read == config
    assert hash(read) == hash(config)
    assert config.build() == autoencoder_kl.AutoencoderKL(config)


@pytest.mark.parametrize(
    ("config", "image", "latent"),
    [
        (autoencoder_kl.sd, (64, 96, 3), (8, 12, 4)),
        (autoencoder_kl.scenes, (48, 48, 3), (12, 12, 4)),
        (autoencoder_kl.mnist, (28, 28, 1), (7, 7, 4)),
        (dataclasses.replace(FOLDED, channels=(4,), patch=5), (10, 15, 1), (2, 3, 3)),
    ],
)
def test_latents_have_the_shape_that_the_config_says(config, image, latent):
    net, x = config.build(), jnp.zeros((2, *image))
    params = jax.eval_shape(net.init, KEY, x)
    apply = lambda method, x: jax.eval_shape(lambda p, x: net.apply(p, x, method=method), params, x)
    assert config.latent_shape(image) == latent
    moments = apply("encode", x)
    assert [m.shape for m in moments] == [(2, *latent)] * 2
    assert apply("decode", moments[0]).shape == x.shape


def test_log_variance_is_clipped():
    net, x = TINY.build(), jnp.ones((1, 4, 4, 3))
    params = parameters(net, x)
    bias = jnp.array([0.0, 0, 0, 1000, -1000, 3])
    params["params"]["quant"] = {"kernel": jnp.zeros_like(params["params"]["quant"]["kernel"]), "bias": bias}
    _, log_variance = jax.jit(lambda p, x: net.apply(p, x, method="encode"))(params, x)
    np.testing.assert_array_equal(log_variance[0, 0, 0], [20, -30, 3])


def test_parts_see_their_own_image_alone_and_all_of_it():
    net, x = TINY.build(), jax.random.normal(KEY, (2, 8, 8, 3))
    params = parameters(net, x)
    influence = jax.jit(jax.grad(lambda x: net.apply(params, x)[0, 3, 3, 0]))(x)
    assert np.all(np.asarray(influence[1]) == 0)
    assert np.all(np.asarray(influence[0]) != 0)


def test_autoencoder_computes_in_bfloat16_with_float32_parameters():
    """The largest error is below 5% of the largest value, as for the U-Net."""
    half, x = dataclasses.replace(TINY, dtype="bfloat16").build(), jax.random.normal(KEY, (2, 8, 8, 3))
    params = parameters(half, x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for method, v in (("encode", x), ("decode", x[:, ::2, ::2])):
        y16, y32 = (
            jax.tree.leaves(jax.jit(lambda p, v, n=n: n.apply(p, v, method=method))(params, v))[0]
            for n in (half, TINY.build())
        )
        assert y16.dtype == jnp.float32
        assert 0 < relative(y16, y32) < 0.05


@pytest.mark.slow  # in CI: that of the U-Net
def test_remat_changes_the_program_not_the_gradients():
    x = jax.random.normal(KEY, (2, 4, 4, 1))
    nets = [dataclasses.replace(FOLDED, channels=(2,), remat=remat).build() for remat in (False, True)]
    params = parameters(nets[0], x)
    value = lambda net: jax.jit(jax.grad(lambda p: jnp.square(net.apply(p, x)).sum()))
    plain, remat = (value(net)(params) for net in nets)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), plain, remat)
    assert "optimization_barrier" in value(nets[1]).lower(params).as_text()


@pytest.mark.slow  # in CI: those of its convolutions and norms
def test_gradients_are_the_derivatives():
    """Against central differences in float64, along a random direction in parameters and images."""
    with jax.enable_x64(True):
        double = {"dtype": "float64", "param_dtype": "float64"}
        # without attention, whose softmax JAX computes in float32
        net = dataclasses.replace(TINY, channels=(2,), middle_attention=False, **double).build()
        x = jax.random.normal(KEY, (1, 3, 2, 3), jnp.float64)
        at = (jax.tree.map(lambda p: p.astype(jnp.float64), parameters(net, x)), x)
        direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape), at)

        def value(at):
            mean, log_variance = net.apply(at[0], at[1], method="encode")
            out = net.apply(at[0], mean + jnp.exp(log_variance / 2), method="decode")
            return jnp.mean(out**2) + jnp.mean(log_variance * mean)

        value_at = jax.jit(value)
        gradient = jax.jit(jax.grad(value))(at)
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))
        ahead, behind = (
            value_at(jax.tree.map(lambda a, d, h=h: a + h * d, at, direction)) for h in (1e-5, -1e-5)
        )
        np.testing.assert_allclose(along, (ahead - behind) / 2e-5, rtol=1e-3)  # norms in float32


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        ("encode", (1, 6, 9, 3), "6 x 9 pixels have no latents.* 2 must divide .* 6 x 10"),
        ("encode", (1, 8, 8, 1), "images of 3 channels"),
        ("decode", (1, 4, 4, 4), "latents of 3 channels"),
    ],
)
def test_autoencoder_says_what_does_not_fit(method, shape, message):
    net = TINY.build()
    params = jax.eval_shape(net.init, KEY, jnp.zeros((1, 4, 4, 3)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: net.apply(p, jnp.zeros(shape), method=method), params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": ()}, "at least one level"),
        ({"patch": 0}, "patch=0"),
        ({"dtype": "int8"}, "dtype must be a floating-point type"),
    ],
)
def test_config_says_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)
