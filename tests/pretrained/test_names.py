"""Names and shapes of parameters against the real ones of diffusers, values there and back, and what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gen_jax.networks import autoencoder_kl, text, unet
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.pretrained import components, names
from tests.marks import slow
from tests.networks.stable_diffusion import drawn
from tests.pretrained import stable_diffusion as sd

REAL = {
    "sd15_unet": ("unet", unet.sd15),
    "sd21_unet": ("unet", unet.sd21),
    "sdxl_unet": ("unet", unet.sdxl),
    "vae": ("vae", autoencoder_kl.sd),
    "clip_l": ("text", text.clip_l),
    "openclip_h_23": ("text", text.openclip_h),
    "openclip_bigg": ("text", text.openclip_bigg),
    "taesd": ("taesd", AutoencoderTinyConfig()),
}


@pytest.mark.parametrize("name", slow(REAL, but=("sdxl_unet", "vae", "openclip_bigg")))
def test_entries_are_the_tensors_of_the_real_model(name):
    part, config = REAL[name]
    theirs = {names.modern(key, part): shape for key, shape in sd.real(name).items()}
    linear = name != "sd15_unet"
    found = names.entries(components.parameters(config), part)
    assert {key: entry.theirs(linear) for key, entry in found.items()} == theirs
    assert all(entry.fits(theirs[key]) for key, entry in found.items())


TINY = dataclasses.replace(
    unet.sdxl,
    channels=(8, 16),
    blocks=1,
    depth=(0, 1),
    groups=4,
    embedding=32,
    sinusoid_features=8,
    head_features=4,
    context_features=6,
    cond_features=10,
    guidance_features=12,
)
CONFIGS = {
    "unet": TINY,
    "vae": autoencoder_kl.AutoencoderKLConfig(channels=(4, 8), blocks=1, latent_channels=3, groups=2),
    "text": text.CLIPTextConfig(
        vocab_size=40, width=16, layers=2, heads=2, hidden=24, length=8, projection=6
    ),
    "taesd": AutoencoderTinyConfig(channels=4, encoder_blocks=(1, 2), decoder_blocks=(2, 1)),
}
each_part = pytest.mark.parametrize("part", CONFIGS)


def tensors_of(part, linear=True):
    """The shapes of parameters, and drawn tensors by their names at diffusers."""
    shapes = components.parameters(CONFIGS[part])
    return shapes, drawn({key: e.theirs(linear) for key, e in names.entries(shapes, part).items()})


@each_part
@pytest.mark.parametrize("linear", [True, False])
def test_from_linen_is_the_inverse_of_to_linen(part, linear):
    shapes, tensors = tensors_of(part, linear)
    params = names.to_linen(tensors, shapes, part=part)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
        lambda a: (a.shape, a.dtype), shapes
    )
    back = names.from_linen(params, part=part, linear=linear)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old(name):
    """The name of a tensor of an autoencoder before 2023."""
    for new, was in OLD.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
    return name


RENAMED = {
    "vae": old,
    "text": lambda name: name.removeprefix("text_model."),
}


@pytest.mark.parametrize("part", RENAMED)
def test_to_linen_knows_the_other_names_of_a_part(part):
    shapes, tensors = tensors_of(part)
    there = {RENAMED[part](key): tensor for key, tensor in tensors.items()}
    assert there.keys() != tensors.keys()
    extra = {"text_model.embeddings.position_ids": np.arange(8)[None]} if part == "text" else {}
    params = names.to_linen(there | extra, shapes, part=part)
    jax.tree.map(np.testing.assert_array_equal, params, names.to_linen(tensors, shapes, part=part))
    like = {key: tensor.shape for key, tensor in (there | extra).items()}
    back = names.from_linen(params, part=part, like=like)
    assert back.keys() == there.keys()
    for key, tensor in there.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


def test_to_linen_takes_a_matrix_as_a_convolution_of_one_pixel():
    """The autoencoder's attention in one file, and proj_in of version 1."""
    shapes, tensors = tensors_of("vae")
    there = {key: t[..., None, None] if ".to_" in key and t.ndim == 2 else t for key, t in tensors.items()}
    jax.tree.map(
        np.testing.assert_array_equal,
        names.to_linen(there, shapes, part="vae"),
        names.to_linen(tensors, shapes, part="vae"),
    )
    back = names.from_linen(
        names.to_linen(there, shapes, part="vae"), part="vae", like={key: t.shape for key, t in there.items()}
    )
    assert {key: t.shape for key, t in back.items()} == {key: t.shape for key, t in there.items()}


def test_to_linen_reads_one_tensor_at_a_time_and_casts_it():
    shapes, tensors = tensors_of("unet")
    order = []

    class Lazy(dict):
        def __getitem__(self, name):
            order.append(f"read {name}")
            return tensors[name].astype(ml_dtypes.bfloat16)

    there = Lazy(tensors)

    def put(array):
        assert isinstance(array, np.ndarray)
        assert array.flags.c_contiguous
        assert array.flags.owndata
        order.append("put")
        return jnp.asarray(array)

    params = names.to_linen(there, shapes, part="unet", dtype="float32", put=put)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    puts = [i for i, step in enumerate(order) if step == "put"]  # the type checker reads besides
    assert len(puts) == len(tensors)
    assert all(order[i - 1].startswith("read") for i in puts)
    kept = names.to_linen(there, shapes, part="unet")
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype("bfloat16")}


def without(tensors, *keys):
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


MISFITS = {
    "missing": (lambda t: without(t, "conv_in.bias"), "missing: conv_in.bias. "),
    "left over": (lambda t: t | {"lora": np.zeros(3)}, "left over: lora. "),
    "both": (
        lambda t: without(t, "conv_in.bias") | {"conv_in.b": np.zeros(8)},
        "missing: conv_in.bias; left over: conv_in.b. ",
    ),
    "many": (lambda t: {}, "missing: ([a-z0-9_.]+, ){4}[a-z0-9_.]+ and [0-9]+ more"),
    "shape": (
        lambda t: t | {"conv_in.weight": np.zeros((8, 9, 3, 3))},
        r"conv_in.weight has the shape \(8, 9, 3, 3\), expected \(8, 4, 3, 3\)",
    ),
    "transposed": (
        lambda t: t | {"time_embedding.linear_1.weight": np.zeros((8, 32))},
        r"has the shape \(8, 32\), expected \(32, 8\)",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_to_linen_names_what_does_not_fit(name):
    change, message = MISFITS[name]
    shapes, tensors = tensors_of("unet")
    with pytest.raises(ValueError, match=rf"unet: .*{message}"):
        names.to_linen(change(tensors), shapes, part="unet")


def test_from_linen_refuses_a_network_that_is_not_of_stable_diffusion():
    other = components.parameters(unet.mnist, 1)
    with pytest.raises(ValueError, match="diffusers has no tensor for label"):
        names.entries(components.parameters(dataclasses.replace(unet.mnist, num_classes=10), 1), "unet")
    assert names.entries(other, "unet")
