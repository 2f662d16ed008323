"""One file against a folder of the same model, the names of the real models there and back, and what is refused."""

import numpy as np
import pytest

from gen_jax.pretrained import names, single_file
from tests import tiny_sd
from tests.pretrained import stable_diffusion as sd

FAMILIES = dict(zip(sd.MODELS, ("sd1", "sd2", "sdxl"), strict=True))


def whole(model):
    """The tensors of a tiny model in one file."""
    file = tiny_sd.ROOT / f"{model}.safetensors"
    if not file.exists():
        pytest.skip("no ../shared/stable_diffusion")
    return tiny_sd.tensors(file)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, strict=True)


def parameters_alone(tensors, part):
    """By today's names, without lists of positions."""
    rows = "text" if "text" in part else part
    return {now: t for name, t in tensors.items() if (now := names.modern(name, rows)) is not None}


@pytest.mark.parametrize("model", sd.MODELS)
def test_split_gives_the_tensors_of_the_folder(model):
    folder, _ = sd.folder(model)
    parts = single_file.split(whole(model))
    assert parts.keys() == folder.keys()
    for part, tensors in folder.items():
        expected = parameters_alone(tensors, part)
        same(parts[part], expected)
        assert parts[part].shapes == {name: tensor.shape for name, tensor in expected.items()}


@pytest.mark.parametrize("model", sd.MODELS)
def test_join_gives_the_tensors_of_one_file(model):
    folder, _ = sd.folder(model)
    found = single_file.join(folder, FAMILIES[model])
    expected = {name: t for name, t in whole(model).items() if not name.endswith("position_ids")}
    same(found, expected)
    assert found.shapes == {name: tensor.shape for name, tensor in expected.items()}


REAL = {
    "sd1": {"unet": "sd15_unet", "vae": "vae", "text_encoder": "clip_l"},
    "sd2": {"unet": "sd21_unet", "vae": "vae", "text_encoder": "openclip_h_23"},
    "sdxl": {"unet": "sdxl_unet", "vae": "vae", "text_encoder": "clip_l", "text_encoder_2": "openclip_bigg"},
}


@pytest.mark.parametrize("family", REAL)
def test_names_of_the_real_models_go_there_and_back(family):
    """No two become one, and none is read."""
    shapes = {part: sd.real(name) for part, name in REAL[family].items()}
    one = single_file.join({part: sd.empty(s) for part, s in shapes.items()}, family)
    assert single_file.family(one.shapes) == family
    layers = sum(name.endswith("attn.in_proj_weight") for name in one)
    assert len(one) + 4 * layers == sum(map(len, shapes.values()))
    back = single_file.split(sd.empty(one.shapes))
    assert back.keys() == shapes.keys()
    for part, expected in shapes.items():
        assert back[part].shapes == parameters_alone(expected, part)
    assert single_file.join(back, family).shapes == one.shapes


KNOWN = {
    "sd15": {
        "model.diffusion_model.input_blocks.3.0.op.weight": "unet down_blocks.0.downsamplers.0.conv.weight",
        "model.diffusion_model.input_blocks.11.0.in_layers.2.bias": "unet down_blocks.3.resnets.1.conv1.bias",
        "model.diffusion_model.output_blocks.2.1.conv.weight": "unet up_blocks.0.upsamplers.0.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight": "unet up_blocks.1.upsamplers.0.conv.weight",
        "model.diffusion_model.output_blocks.11.1.proj_out.weight": "unet up_blocks.3.attentions.2.proj_out.weight",
        "first_stage_model.decoder.up.3.block.2.conv1.weight": "vae decoder.up_blocks.0.resnets.2.conv1.weight",
        "first_stage_model.decoder.up.1.upsample.conv.weight": "vae decoder.up_blocks.2.upsamplers.0.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight": "vae encoder.mid_block.attentions.0.to_out.0.weight",
    },
    "sdxl": {
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (
            "unet down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.weight"
        ),
        "model.diffusion_model.output_blocks.2.2.conv.weight": "unet up_blocks.0.upsamplers.0.conv.weight",
        "model.diffusion_model.label_emb.0.2.bias": "unet add_embedding.linear_2.bias",
    },
}


@pytest.mark.parametrize("model", KNOWN)
def test_names_are_those_that_people_have(model):
    """Written down from the files' own lists."""
    family = "sd1" if model == "sd15" else "sdxl"
    parts = {"unet": sd.empty(sd.real(f"{model}_unet")), "vae": sd.empty(sd.real("vae"))}
    found = single_file.join(parts, family)
    for old, new in KNOWN[model].items():
        assert old in found
        part, name = new.split(" ")
        assert name in single_file.split(sd.empty(found.shapes))[part]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("cond_stage_model.transformer.text_model.final_layer_norm.bias", (768,), "sd1"),
        ("cond_stage_model.model.ln_final.bias", (1024,), "sd2"),
        ("conditioner.embedders.1.model.ln_final.bias", (1280,), "sdxl"),
        ("conditioner.embedders.0.model.ln_final.bias", (1280,), "sdxl_refiner"),
        *(
            (f"model.diffusion_model.input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight", shape, known)
            for i, shape, known in (
                (2, (320, 768), "sd1"),
                (2, (320, 1024), "sd2"),
                (4, (640, 2048), "sdxl"),
                (4, (768, 1280), "sdxl_refiner"),
            )
        ),
    ],
)
def test_family_is_that_of_the_text_encoder_or_of_the_context(name, shape, expected):
    assert single_file.family({"model_ema.decay": (), name: shape}) == expected


def test_split_passes_over_what_is_no_parameter():
    tensors = {
        "model.diffusion_model.out.2.bias": np.zeros(4),
        "cond_stage_model.model.ln_final.bias": np.ones(8),
        "cond_stage_model.model.logit_scale": np.zeros(()),
        "cond_stage_model.model.attn_mask": np.zeros((77, 77)),
        "cond_stage_model.model.text_projection": np.zeros((8, 8)),
        "cond_stage_model.model.transformer.resblocks.23.ln_1.bias": np.zeros(8),
        "model_ema.diffusion_modelout2bias": np.zeros(4),
        "first_stage_model.loss.discriminator.main.0.bias": np.zeros(64),
        "alphas_cumprod_prev": np.zeros(1000),
        "sqrt_one_minus_alphas_cumprod": np.zeros(1000),
        "global_step": np.zeros(()),
    }
    parts = single_file.split(tensors)
    assert {part: list(view) for part, view in parts.items()} == {
        "unet": ["conv_out.bias"],
        "text_encoder": ["text_model.final_layer_norm.bias"],
    }


SD1 = {"cond_stage_model.transformer.text_model.final_layer_norm.bias": np.zeros(8)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "got no tensors"),
        ({"unet.conv_in.weight": np.zeros(3)}, "Stable Diffusion in one file.*got unet.conv_in.weight"),
        (
            SD1 | {"control_model.input_hint_block.0.bias": np.zeros(3)},
            "no part.*control_model.input_hint_block",
        ),
        (
            SD1 | {"model.diffusion_model.fresh.bias": np.zeros(3)},
            "no part.*model.diffusion_model.fresh.bias",
        ),
    ],
)
def test_split_names_what_it_does_not_know(tensors, message):
    with pytest.raises(ValueError, match=message):
        single_file.split(tensors)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"text_encoder_2": {}}, "sd1 has the parts unet, vae, text_encoder; got text_encoder_2"),
        ({"unet": {"down.bias": np.zeros(3)}}, "no part.*down.bias"),
    ],
)
def test_join_names_what_it_does_not_know(parts, message):
    with pytest.raises(ValueError, match=message):
        single_file.join(parts, "sd1")
