"""CLIP's text encoder: against transformers, its sizes, what it attends to, precision, derivatives."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen_jax.networks import text
from tests import tiny_sd
from tests.networks.drawn import parameters

TINY = text.CLIPTextConfig(vocab_size=40, width=16, layers=2, heads=2, hidden=24, length=8, projection=6)
IDS = np.array([[38, 5, 7, 9, 39, 0, 0, 0], [38, 39, 0, 0, 0, 0, 0, 0]], np.int32)
MADE = np.load(Path(__file__).with_name("clip_text.npz"))  # by make_clip_text.py


def from_torch(state):
    """Parameters by the names and in the layout of torch, in those of here."""
    params = {}
    for name, value in state.items():
        name = re.sub(r"^text_model\.|self_attn\.|mlp\.|embeddings\.|encoder\.", "", name)
        *path, kind = name.replace("layers.", "layers_").split(".")
        if kind == "position_ids":
            continue
        embedding = path[-1].endswith("embedding")
        if kind == "weight":
            kind = "embedding" if embedding else "scale" if value.ndim == 1 else "kernel"
        leaf = params
        for part in path:
            leaf = leaf.setdefault(part, {})
        leaf[kind] = jnp.asarray(value.T if kind == "kernel" else value)
    return {"params": params}


def from_config(config):
    """A configuration of transformers in that of here."""
    projected = config["architectures"] == ["CLIPTextModelWithProjection"]
    return text.CLIPTextConfig(
        config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        length=config["max_position_embeddings"],
        act=config["hidden_act"],
        projection=config["projection_dim"] if projected else None,
    )


def assert_same(out, hidden, last, pooled, relative=1e-5):
    for got, expected in ((jnp.stack(out.hidden), hidden), (out.last, last), (out.pooled, pooled)):
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < relative * np.abs(expected).max()


def same_tree(net, params, ids):
    """None of the parameters is left out, made up, or of another shape."""
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    return shapes(params) == shapes(jax.eval_shape(net.init, jax.random.key(0), ids))


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_text_encoder_equals_that_of_transformers(act):
    of = lambda name: MADE[f"{act}/{name}"]
    marker = f"{act}/params/"
    params = from_torch({k.removeprefix(marker): MADE[k] for k in MADE if k.startswith(marker)})
    config = text.CLIPTextConfig(80, 24, 2, 3, 40, 10, act, projection=12 if act == "gelu" else None)
    assert same_tree(config.build(), params, MADE["ids"])
    out = jax.jit(config.build().apply)(params, MADE["ids"].astype(np.int32))
    assert_same(out, of("hidden"), of("last"), of("pooled"))


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("model", "suffix"), [("tiny-sd15", ""), ("tiny-sd21", ""), ("tiny-sdxl", ""), ("tiny-sdxl", "_2")]
)
def test_text_encoder_of_a_folder_equals_that_of_transformers(model, suffix):
    folder = tiny_sd.ROOT / model / f"text_encoder{suffix}"
    net = from_config(json.loads((folder / "config.json").read_text())).build()
    params = from_torch(tiny_sd.tensors(folder / "model.safetensors"))
    expected = np.load(folder.parent / "expected.npz")
    of = lambda name: expected[f"{name}{suffix}"]
    ids = of("input_ids").astype(np.int32)
    assert same_tree(net, params, ids)
    out = jax.jit(net.apply)(params, ids)
    assert_same(out, of("text_hidden"), of("text_last"), of("text_pooled"))


@pytest.mark.parametrize(
    ("name", "size", "tensors"),
    [
        ("clip_l", 123_060_480, 196),
        ("openclip_h", 340_387_840, 372),
        ("openclip_bigg", 694_659_840, 517),
    ],
)
def test_preset_has_the_parameters_of_the_real_model(name, size, tensors):
    net = getattr(text, name).build()
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 77), jnp.int32))
    leaves = jax.tree.leaves(params)
    assert (sum(p.size for p in leaves), len(leaves)) == (size, tensors)


def test_layers_left_out_are_those_at_the_end():
    """Which is the skip of web UIs: the norm of what an earlier layer says."""
    net, fewer = TINY.build(), dataclasses.replace(TINY, layers=1).build()
    params = parameters(net, IDS)
    out, skipped = jax.jit(net.apply)(params, IDS), jax.jit(fewer.apply)(params, IDS)
    np.testing.assert_array_equal(skipped.hidden[-1], out.hidden[-2])
    x = np.asarray(out.hidden[-2])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    scale, bias = (params["params"]["final_layer_norm"][k] for k in ("scale", "bias"))
    np.testing.assert_allclose(skipped.last, x * np.asarray(scale) + np.asarray(bias), atol=1e-5)


def test_token_is_read_by_those_behind_it_alone():
    net = TINY.build()
    params = parameters(net, IDS)
    changed = IDS.copy()
    changed[0, 3] = 11
    before, after = (jax.jit(net.apply)(params, ids).last for ids in (IDS, changed))
    differs = np.abs(before - after).max(-1) > 1e-4
    np.testing.assert_array_equal(differs, [[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8])


def test_text_may_be_shorter_than_the_encoder_reads():
    net = TINY.build()
    params = parameters(net, IDS)
    whole, part = (jax.jit(net.apply)(params, ids).last for ids in (IDS, IDS[:, :5]))
    np.testing.assert_allclose(part, whole[:, :5], atol=1e-5)


@pytest.mark.parametrize(("end", "places"), [(None, (4, 1)), (9, (3, 0)), (39, (4, 1))])
def test_pooled_is_taken_at_the_end_of_the_text(end, places):
    net = dataclasses.replace(TINY, end=end, projection=None).build()
    out = jax.jit(net.apply)(parameters(net, IDS), IDS)
    np.testing.assert_allclose(out.pooled, np.asarray(out.last)[np.arange(2), np.array(places)], atol=1e-6)


def test_text_encoder_in_bfloat16_is_near_float32():
    """Within 2% of the largest number (2 layers; an input rounded to bfloat16 alone is off by 0.4%)."""
    half, full = dataclasses.replace(TINY, dtype=jnp.bfloat16).build(), TINY.build()
    params = parameters(full, IDS)
    y16, y32 = (jax.jit(net.apply)(params, IDS) for net in (half, full))
    for a, b in zip(jax.tree.leaves(y16), jax.tree.leaves(y32), strict=True):
        assert a.dtype == jnp.bfloat16
        error = jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()
        assert 0 < error < 0.02


def test_norm_and_softmax_of_bfloat16_are_in_float32():
    """No reduction over features or positions has bfloat16 numbers."""
    net = dataclasses.replace(TINY, dtype="bfloat16").build()
    params = jax.eval_shape(net.init, jax.random.key(0), IDS)
    program = str(jax.make_jaxpr(net.apply)(params, IDS))
    sums = re.findall(r":(\w+)\[[\d,]*\] = (?:reduce_sum|reduce_max|exp|rsqrt)\b", program)
    assert len(sums) >= 4 * TINY.layers
    assert set(sums) == {"f32"}


def test_remat_keeps_the_gradient():
    one = dataclasses.replace(TINY, layers=1)
    params = parameters(one.build(), IDS)
    gradient = lambda c: jax.jit(jax.grad(lambda p: jnp.mean(c.build().apply(p, IDS).last ** 2)))(params)
    plain, remat = gradient(one), gradient(dataclasses.replace(one, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, remat)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_gradient_of_the_text_encoder_is_the_derivative(act):
    """In float64 but for the softmax, which is in float32."""
    with jax.enable_x64(True):
        config = dataclasses.replace(TINY, act=act, layers=1, dtype="float64", param_dtype="float64")
        net = config.build()
        params = jax.tree.map(lambda p: p.astype(jnp.float64), parameters(net, IDS))
        value = jax.jit(
            lambda p: (lambda out: jnp.mean(out.last**2) + jnp.mean(out.pooled))(net.apply(p, IDS))
        )
        check_grads(value, (params,), order=1, modes=("fwd", "rev"), atol=1e-4, rtol=1e-4)


def test_config_survives_json():
    config = dataclasses.replace(TINY, dtype=jnp.bfloat16)
    assert text.CLIPTextConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(config) == hash(dataclasses.replace(TINY, dtype="bfloat16"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "width that heads divide"),
        ({"layers": 0}, "positive sizes"),
        ({"projection": 0}, "positive sizes"),
        ({"act": "relu"}, "quick_gelu"),
        ({"dtype": "int32"}, "floating-point type"),
    ],
)
def test_config_says_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **fields)


def test_text_encoder_refuses_longer_texts():
    with pytest.raises(ValueError, match="at most 8 tokens, got 9"):
        jax.eval_shape(TINY.build().init, jax.random.key(0), jnp.zeros((1, 9), jnp.int32))
