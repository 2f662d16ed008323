"""Configurations of parts: those of the real models, tiny models against diffusers' numbers, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks import autoencoder_kl, layers, text, unet
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.pretrained import components, names, single_file
from tests import tiny_sd
from tests.marks import slow
from tests.pretrained import stable_diffusion as sd

SD15 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
}
SD21 = SD15 | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "sample_size": 96,
    "use_linear_projection": True,
    "upcast_attention": True,
}
SDXL = SD21 | {
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
REFINER = SDXL | {
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
UNETS = {
    "sd15": (SD15, unet.sd15),
    "sd21": (SD21, unet.sd21),
    "sdxl": (SDXL, unet.sdxl),
    "sdxl_refiner": (REFINER, unet.sdxl_refiner),
    "inpainting": (SD15 | {"in_channels": 9}, dataclasses.replace(unet.sd15, out_channels=4)),
    "lcm": (SD15 | {"time_cond_proj_dim": 256}, dataclasses.replace(unet.sd15, guidance_features=256)),
    "defaults": ({"cross_attention_dim": 768}, unet.sd15),
}
"""What unet/config.json of the real models says, and the network that it is."""


@pytest.mark.parametrize("name", UNETS)
def test_unet_reads_a_config_of_diffusers(name):
    config, expected = UNETS[name]
    assert components.unet(config) == expected


@pytest.mark.parametrize("name", slow(UNETS, but=list(UNETS)[:2]))
def test_unet_is_seen_from_shapes(name):
    config, expected = UNETS[name]
    tree = components.parameters(expected, config.get("in_channels", 4))
    shapes = {key: entry.theirs() for key, entry in names.entries(tree, "unet").items()}
    assert components.unet(None, shapes) == expected


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_unet_is_seen_from_the_names_of_the_real_model(name):
    assert components.unet(None, sd.real(f"{name}_unet")) == getattr(unet, name)


VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def test_autoencoder_reads_a_config_of_diffusers():
    assert components.autoencoder(VAE) == autoencoder_kl.sd
    flux = VAE | {
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "shift_factor": 0.1,
    }
    assert components.autoencoder(flux) == dataclasses.replace(
        autoencoder_kl.sd, latent_channels=16, quant=False
    )


def test_autoencoder_is_seen_from_the_names_of_the_real_model():
    assert components.autoencoder(None, sd.real("vae")) == autoencoder_kl.sd


CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "projection_dim": 768,
    "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0",
    "vocab_size": 49408,
}
BIGG = CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIP_L, text.clip_l),
        (BIGG, text.openclip_bigg),
        (CLIP_L | {"eos_token_id": 49407}, dataclasses.replace(text.clip_l, end=49407)),
    ],
)
def test_text_reads_a_config_of_transformers(config, expected):
    assert components.text(config) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("clip_l", text.clip_l), ("openclip_h_23", text.openclip_h), ("openclip_bigg", text.openclip_bigg)],
)
def test_text_is_seen_from_the_names_of_the_real_model(name, expected):
    assert components.text(None, sd.real(name)) == expected


GIVEN = {
    "tiny-sd15": {"unet": {"groups": 8, "heads": 2}, "text_encoder": {"heads": 3, "act": "quick_gelu"}},
    "tiny-sd21": {"unet": {"groups": 8, "head_features": 8}, "text_encoder": {"heads": 4}},
    "tiny-sdxl": {
        "unet": {"groups": 8, "head_features": 8},
        "text_encoder": {"heads": 3, "act": "quick_gelu"},
        "text_encoder_2": {"heads": 4},
    },
}
"""What shapes of the tiny models do not say."""
READ = {"unet": components.unet, "vae": components.autoencoder}


def parts(model, source):
    """`{part: (configuration, parameters)}` of a tiny model."""
    tensors, configs = sd.folder(model)
    if source == "file":
        tensors = single_file.split(tiny_sd.tensors(tiny_sd.ROOT / f"{model}.safetensors"))
    found = {}
    for part in tensors:
        shapes, rows = names.shapes_of(tensors[part]), "text" if "text" in part else part
        read, given = (
            READ.get(part, components.text),
            {"groups": 4} if part == "vae" else GIVEN[model].get(part, {}),
        )
        config = read(configs[part], shapes) if source == "folder" else read(None, shapes, **given)
        found[part] = config, names.to_linen(tensors[part], components.parameters(config), part=rows)
    return found


@pytest.mark.parametrize(
    "source", ["folder", pytest.param("file", marks=pytest.mark.slow)]
)  # the same to the bit
@pytest.mark.parametrize("model", slow(sd.MODELS, but=("tiny-sdxl",)))
def test_parts_of_a_model_compute_what_diffusers_does(model, source):
    found, expected = parts(model, source), np.load(tiny_sd.ROOT / model / "expected.npz")
    last = lambda x: jnp.asarray(np.moveaxis(x, 1, -1))
    net = {part: config.build() for part, (config, _) in found.items()}
    params = {part: tree for part, (_, tree) in found.items()}
    for part in ("text_encoder", "text_encoder_2"):
        if part in found:
            suffix = part.removeprefix("text_encoder")
            out = jax.jit(net[part].apply)(params[part], expected[f"input_ids{suffix}"].astype(np.int32))
            assert sd.relative(jnp.stack(out.hidden), expected[f"text_hidden{suffix}"]) < 1e-5
            assert sd.relative(out.last, expected[f"text_last{suffix}"]) < 1e-5
            assert sd.relative(out.pooled, expected[f"text_pooled{suffix}"]) < 1e-5
    encode, decode = (
        jax.jit(lambda p, x, m=m: net["vae"].apply(p, x, method=m)) for m in ("encode", "decode")
    )
    moments = jnp.concatenate(encode(params["vae"], last(expected["image"])), axis=-1)
    assert sd.relative(moments, last(expected["vae_moments"])) < 1e-5
    decoded = decode(params["vae"], last(expected["latents"]))
    assert sd.relative(decoded, last(expected["vae_decoded"])) < 1e-5
    cond = vector(expected) if model == "tiny-sdxl" else None
    t, context = jnp.asarray(expected["unet_t"] + 1), jnp.asarray(expected["unet_context"])
    out = jax.jit(net["unet"].apply)(params["unet"], last(expected["latents"]), t, cond, context)
    assert sd.relative(out, last(expected["unet_out"])) < 1e-5


def vector(expected):
    """SDXL's: the pooled text, then the sinusoid of each size."""
    wave = lambda x: layers.sinusoidal(jnp.asarray(x), 8, cosines_first=True, endpoint=False)
    return jnp.concatenate([expected["unet_text_embeds"], *map(wave, expected["unet_time_ids"].T)], axis=-1)


@pytest.mark.parametrize("model", slow(sd.MODELS, but=("tiny-sdxl",)))
def test_parts_are_the_same_from_a_folder_and_from_a_file(model):
    one, other = (parts(model, source) for source in ("folder", "file"))
    assert {part: config for part, (config, _) in one.items() if "text" not in part} == {
        part: config for part, (config, _) in other.items() if "text" not in part
    }
    jax.tree.map(
        np.testing.assert_array_equal, *({part: tree for part, (_, tree) in p.items()} for p in (one, other))
    )


@pytest.mark.parametrize("model", sd.MODELS)
def test_from_linen_gives_back_what_was_read(model):
    """With the rule of `components.linear`, which knows version 1 by its heads."""
    tensors, _ = sd.folder(model)
    for part, (config, params) in parts(model, "folder").items():
        rows = "text" if "text" in part else part
        linear = components.linear(config) if part == "unet" else True
        back = names.from_linen(params, part=rows, linear=linear)
        read = {now: t for key, t in tensors[part].items() if (now := names.modern(key, rows)) is not None}
        assert back.keys() == read.keys()
        for key, tensor in read.items():
            np.testing.assert_array_equal(back[key], tensor, strict=True)


TAESD = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "decoder_block_out_channels": [64] * 4,
    "encoder_block_out_channels": [64] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}


def test_tiny_reads_a_config_of_diffusers():
    assert components.tiny(TAESD) == AutoencoderTinyConfig()
    assert components.tiny({}) == AutoencoderTinyConfig()


def test_tiny_is_seen_from_the_names_of_the_real_model():
    assert components.tiny(None, sd.real("taesd")) == AutoencoderTinyConfig()


REFUSED = [
    (components.tiny, TAESD, {"act_fn": "silu"}, "act_fn is 'silu'"),
    (
        components.tiny,
        TAESD,
        {"decoder_block_out_channels": [64, 64, 64, 32]},
        "as many channels at each level",
    ),
    (components.tiny, TAESD, {"decoder_block_out_channels": [[64]] * 4}, "as many channels at each level"),
    (components.unet, SD15, {"down_block_types": [["DownBlock2D"]] * 4}, "down_block_types"),
    (components.unet, SD15, {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    (components.unet, SD15, {"num_class_embeds": 1000}, "num_class_embeds is 1000"),
    (components.unet, SD15, {"act_fn": "gelu"}, "act_fn is 'gelu'.*expects 'silu'"),
    (components.unet, SD15, {"norm_eps": 1e-6}, "norm_eps is 1e-06"),
    (components.unet, SD15, {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
    (components.unet, SD15, {"mid_block_type": None}, "mid_block_type is None"),
    (components.unet, SD15, {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type"),
    (components.unet, SD15, {"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
    (components.unet, SD15, {"layers_per_block": [2, 2, 2, 1]}, "layers_per_block.*as many at each level"),
    (components.unet, SD15, {"layers_per_block": 10**9}, "from 1 to 100"),
    (components.unet, SD15, {"layers_per_block": True}, "a whole number"),
    (components.unet, SD15, {"transformer_layers_per_block": [[1, 1]] * 4}, "transformer_layers_per_block"),
    (components.unet, SD15, {"transformer_layers_per_block": [1, 1, 1, 2]}, "middle as deep"),
    (components.unet, SD15, {"attention_head_dim": [8, 8]}, "one for each of 4 levels"),
    (components.unet, SD15, {"cross_attention_dim": [768, 768, 768, 640]}, "cross_attention_dim"),
    (components.unet, SD15, {"down_block_types": ["DownBlock2D"] * 4}, "at the levels of down_block_types"),
    (components.unet, SD15, {"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
    (components.unet, SD15, {"block_out_channels": []}, "block_out_channels"),
    (components.unet, SD15, {"block_out_channels": "abc"}, "block_out_channels"),
    (components.unet, SD15, {"new_attention": "linear"}, "new_attention is 'linear'.*no such field"),
    (components.unet, SDXL, {"projection_class_embeddings_input_dim": None}, "projection_class_embeddings"),
    (
        components.unet,
        SD15,
        {"_class_name": "SD3Transformer2DModel"},
        "_class_name is 'SD3Transformer2DModel'",
    ),
    (components.autoencoder, VAE, {"_class_name": "AsymmetricAutoencoderKL"}, "_class_name"),
    (components.autoencoder, VAE, {"latents_mean": [0.0]}, "latents_mean"),
    (components.autoencoder, VAE, {"use_quant_conv": False}, "use_post_quant_conv"),
    (components.autoencoder, VAE, {"down_block_types": ["DownEncoderBlock2D"]}, "at each of 4 levels"),
    (components.text, CLIP_L, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    (components.text, CLIP_L, {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
    (components.text, CLIP_L, {"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
    (components.text, CLIP_L, {"model_type": "t5"}, "model_type is 't5'"),
    (components.text, CLIP_L, {"num_hidden_layers": -1}, "num_hidden_layers"),
    (components.text, CLIP_L, {"d_model": 768}, "d_model"),
]


@pytest.mark.parametrize(("read", "config", "change", "message"), REFUSED)
def test_what_is_not_there_is_refused_by_name(read, config, change, message):
    with pytest.raises(ValueError, match=message):
        read(config | change)


@pytest.mark.parametrize("read", [components.unet, components.autoencoder, components.text])
def test_what_is_no_configuration_is_refused(read):
    with pytest.raises(ValueError, match="expected an object"):
        read(["a list"])
    with pytest.raises(ValueError, match="expected the tensors of"):
        read(None, {})
