"""LoRA against diffusers' outputs with the same files, and what a merge promises."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import pretrained
from gen_jax.networks.layers import sinusoidal
from gen_jax.pretrained import lora, safetensors
from tests import tiny_sd
from tests.compiling import compilations
from tests.marks import slow
from tests.pretrained import stable_diffusion as sd

NAMES, LAYOUTS = ("tiny-sd15", "tiny-sdxl"), ("kohya", "peft")
KEY = jax.random.key(0)


@functools.cache
def load(name):
    return pretrained.load(tiny_sd.ROOT / name)


def file(name, layout):
    return tiny_sd.ROOT / f"{name}-lora-{layout}.safetensors"


@functools.cache
def programs(m):
    """Of the U-Net and of the first text encoder."""
    return jax.jit(m.network.build().apply), jax.jit(m.condition.readers[0].encoder.build().apply)


def outputs(m, weights, found):
    """What the U-Net and the first text encoder say, `[B, C, H, W]` and `[B, L, K]`."""
    x, t = (jnp.asarray(found[name], jnp.float32) for name in ("latents", "unet_t"))
    cond = None
    if "unet_time_ids" in found:
        ids = jnp.asarray(found["unet_time_ids"])
        waves = sinusoidal(ids.reshape(-1), m.condition.size_features, cosines_first=True, endpoint=False)
        cond = jnp.concatenate([found["unet_text_embeds"], waves.reshape(len(ids), -1)], axis=-1)
    unet, text = programs(m)
    out = unet(weights["network"], x.transpose(0, 2, 3, 1), t + 1, cond, jnp.asarray(found["unet_context"]))
    read = text(weights["text"]["text_encoder"], found["input_ids"])
    return np.asarray(out).transpose(0, 3, 1, 2), np.asarray(read.last)


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("name", slow(NAMES, but=list(NAMES)[:1]))
def test_merge_gives_the_outputs_of_diffusers(name):
    """Of the U-Net and of the text encoder, with both layouts, to 1e-5 of the largest."""
    m, weights = load(name)
    found = dict(np.load(tiny_sd.ROOT / name / "expected.npz"))
    expected = np.load(tiny_sd.ROOT / f"{name}-lora-expected.npz")
    assert sd.relative(outputs(m, weights, found)[0], expected["unet_out"]) > 1e-3
    for layout in LAYOUTS:
        out, text = outputs(m, lora.merge(weights, [(lora.load(file(name, layout), m), 1.0)]), found)
        assert sd.relative(out, expected["unet_out"]) < 1e-5
        assert sd.relative(text, expected["text_last"]) < 1e-5


@tiny_sd.needs_fixtures
def test_merge_is_a_weighted_sum():
    """Twice a half is the whole, two together are their sum, and 0 is the bits of the weights."""
    m, weights = load("tiny-sd15")
    few = lambda layout: sorted(lora.load(file("tiny-sd15", layout), m).factors.items())[:8]
    a, b = map(lora.Lora, map(dict, map(few, LAYOUTS)))
    b = lora.Lora({path: f._replace(right=f.right[:, ::-1]) for path, f in b.factors.items()})
    whole, halves = lora.merge(weights, [(a, 1.0)]), lora.merge(weights, [(a, 0.5), (a, 0.5)])
    both, other = lora.merge(weights, [(a, 0.8), (b, -0.3)]), lora.merge(weights, [(b, -0.3)])
    once = lora.merge(weights, [(a, 0.8)])
    each = zip(*map(jax.tree.leaves, (weights, whole, halves, both, other, once)), strict=True)
    for w, one, two, sum_, second, first in each:
        np.testing.assert_allclose(two, one, atol=1e-7)
        np.testing.assert_allclose(sum_ - w, (first - w) + (second - w), atol=1e-6)
    for w, same in zip(*map(jax.tree.leaves, (weights, lora.merge(weights, [(a, 0.0)]))), strict=True):
        assert np.asarray(w).tobytes() == np.asarray(same).tobytes()
    changed = lora.merge(jax.tree.map(lambda x: x.astype("bfloat16"), weights), [(a, 1.0)])
    assert {x.dtype for x in jax.tree.leaves(changed)} == {jnp.dtype("bfloat16")}


@tiny_sd.needs_fixtures
def test_merge_of_others_compiles_nothing():
    """A program that takes weights, and the merge itself, are compiled once for all LoRA of a shape."""
    m, weights = load("tiny-sd15")
    a, b = (lora.load(file("tiny-sd15", layout), m) for layout in LAYOUTS)
    first = lora.merge(weights, [(a, 1.0)])
    program = jax.jit(lambda w: sum(jnp.sum(x) for x in jax.tree.leaves(w)))
    program(weights)
    with compilations() as found:
        for each, weight in ((a, 0.3), (b, 1.2)):
            program(lora.merge(weights, [(each, weight)]))
        program(first)
    assert found == []


@tiny_sd.needs_fixtures
def test_load_reads_every_layout(tmp_path):
    """The same factors from names of kohya by either path, peft, its own prefix, and older diffusers."""
    m, _ = load("tiny-sdxl")
    expected = lora.load(file("tiny-sdxl", "peft"), m)
    tensors = safetensors.read(file("tiny-sdxl", "peft"))
    old = {"lora_A.weight": "lora.down.weight", "lora_B.weight": "lora.up.weight"}
    older = {f".to_{q}.lora": f".processor.to_{q}_lora" for q in "qkv"} | {
        ".to_out.0.lora": ".processor.to_out_lora"
    }

    def renamed(name, rules):
        for a, b in rules.items():
            name = name.replace(a, b)
        return name

    def kohya(name):
        module, piece = name.split(".lora_")
        module = module.replace("text_encoder_2.", "lora_te2.").replace("text_encoder.", "lora_te1.")
        module = module.replace("unet.", "lora_unet.").replace(".", "_")
        return f"{module}.lora_{renamed(piece, {'A': 'down', 'B': 'up'})}"

    layouts = {
        "kohya by diffusers' paths": kohya,
        "diffusers 0.20": lambda name: renamed(name, old),
        "diffusers 0.12": lambda name: renamed(renamed(name, old), older),
        "an adapter of a name": lambda name: name.replace("lora_A.", "lora_A.mine."),
    }
    for layout, rename in layouts.items():
        path = tmp_path / "x.safetensors"
        safetensors.write(path, {rename(name): tensors[name] for name in tensors})
        found = lora.load(path, m)
        assert jax.tree.structure(found) == jax.tree.structure(expected), layout
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(x, y)


@tiny_sd.needs_fixtures
def test_load_reads_convolutions_and_alpha(tmp_path):
    """LoCon: `alpha / r` times the composition of the two convolutions; alphas of peft stand in the header."""
    m, weights = load("tiny-sd15")
    rng = np.random.default_rng(0)
    down, up = (rng.standard_normal(s).astype(np.float32) for s in ((2, 16, 3, 3), (16, 2, 1, 1)))
    change = np.einsum("ro,rihw->hwio", up[:, :, 0, 0].T, down)
    name = "down_blocks.0.resnets.0.conv1"
    kohya = {
        f"lora_unet_{name.replace('.', '_')}.{k}": v
        for k, v in zip(
            ("lora_down.weight", "lora_up.weight", "alpha"), (down, up, np.float32(3.0)), strict=True
        )
    }
    peft = {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    said = {"unet.lora_alpha": 1, "unet.alpha_pattern": {"resnets.0.conv1": 3.0}}
    for tensors, header, factor in (
        (kohya, None, 1.5),
        (peft, None, 1.0),
        (peft, {"format": "pt", "lora_adapter_metadata": json.dumps(said)}, 1.5),
        (
            peft,
            {
                "format": "pt",
                "lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.use_rslora": True}),
            },
            2**-0.5,
        ),
    ):
        safetensors.write(tmp_path / "x.safetensors", tensors, header)
        found = lora.merge(weights, [(lora.load(tmp_path / "x.safetensors", m), 1.0)])
        pick = lambda w: w["network"]["params"]["down_0_0"]["Conv_0"]["kernel"]
        np.testing.assert_allclose(pick(found) - pick(weights), factor * change, atol=1e-5)


A, B = np.ones((3, 24), np.float32), np.ones((24, 3), np.float32)
KEY_A = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"
KEY_B = KEY_A.replace("lora_A", "lora_B")


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({KEY_A: A, KEY_B: B, KEY_A.replace("lora_A.weight", "dora_scale"): A}, "DoRA.*q_proj.dora_scale"),
        ({"lora_unet_x.hada_w1_a": A}, "LoHa"),
        ({"lora_unet_x.lokr_w1": A}, "LoKr"),
        ({f"unet.nothing.{i}.lora_A.weight": A for i in range(7)}, "nothing.4.*and 2 more"),
        ({KEY_A: A}, "no up beside it"),
        ({KEY_A: A, KEY_B: B[:, :2]}, r"\(24, 2\).*same rank"),
        ({KEY_A: A[:, :20], KEY_B: B}, r"\(3, 20\).*expected \('r', 24\)"),
        ({}, "an empty file"),
    ],
)
def test_load_refuses_what_it_can_not_merge(tensors, says, tmp_path):
    safetensors.write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ValueError, match=says):
        lora.load(tmp_path / "x.safetensors", load("tiny-sd15")[0])


def test_merge_refuses_weights_of_another_model():
    change = lora.Lora(
        {"network/params/x/kernel": lora.Factors(jnp.ones((3, 2)), jnp.ones((2, 5)), jnp.float32(1))}
    )
    with pytest.raises(ValueError, match="no network/params/x/kernel of 15 numbers"):
        lora.merge({"network": {"params": {"x": {"kernel": jnp.ones((3, 4))}}}}, [(change, 1.0)])
