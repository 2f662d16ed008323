"""The kinds of models and weights that docs/stable_diffusion.md says are read."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import generate, pretrained
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.pretrained import components, names, safetensors, seen
from tests.pretrained import mutations

FILE = "unet/diffusion_pytorch_model.safetensors"
MODELS = {
    "refiner": {"refiner": True},
    "inpainting": {"out_channels": 4},
    "LCM": {"guidance_features": 8},
}


def random(weights):
    """Weights of the same shapes, not zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype) / 8, weights)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "README.md",
            "is neither the directory of a run, nor a folder of Stable Diffusion, nor a .safetensors",
        ),
        ("cut.safetensors", r"is no safetensors file, or cut off: .* got b'# A read' at its beginning"),
    ],
)
def test_a_file_of_another_kind_is_told_what_is_read(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"# A read" if name.startswith("cut") else b"# A readme, and more of it.\n")
    with pytest.raises(ValueError, match=said):
        pretrained.load(tmp_path / name)


@pytest.mark.parametrize("name", MODELS)
def test_load_knows_what_model_it_is(name, tmp_path):
    m = mutations.model(**MODELS[name])
    m = replace(m, beside=5) if name == "inpainting" else m
    mutations.write(tmp_path / "model", m)
    found, _ = pretrained.load(tmp_path / "model")
    assert found.network == m.network
    assert found.beside == m.beside
    assert found.condition.sizes == m.condition.sizes
    assert found.condition.null_sizes == m.condition.null_sizes
    assert generate.denoising.distilled(found) == (name == "LCM")
    by_shapes = seen.unet(safetensors.read(tmp_path / "model" / FILE).shapes)
    assert by_shapes["guidance_features"] == m.network.guidance_features
    assert by_shapes["out_channels"] == m.network.out_channels
    assert by_shapes["cond_features"] == m.network.cond_features


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_load_reads_weights_of_every_type(dtype, tmp_path):
    """They are those of the file, in float32 or in what is asked for."""
    m = mutations.model()
    weights = random(mutations.zeros(m))
    pretrained.save(tmp_path / "model", m, weights)
    file = tmp_path / "model" / FILE
    small = {name: np.asarray(x).astype(jnp.dtype(dtype)) for name, x in safetensors.read(file).items()}
    safetensors.write(file, small)
    for asked in (None, "bfloat16"):
        _, found = pretrained.load(tmp_path / "model", dtype=asked)
        cast = lambda x, asked=asked: np.asarray(x).astype(jnp.dtype(dtype)).astype(asked or "float32")
        jax.tree.map(np.testing.assert_array_equal, found["network"], jax.tree.map(cast, weights["network"]))


def test_a_tiny_autoencoder_is_read_by_its_names(tmp_path):
    """As docs/stable_diffusion.md has it, from TAESD's own blocks."""
    made = components.parameters(AutoencoderTinyConfig(channels=4))
    params = random(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), made))
    safetensors.write(tmp_path / "taesd.safetensors", names.from_linen(params, part="taesd"))
    tensors = safetensors.read(tmp_path / "taesd.safetensors")
    config = components.tiny(None, tensors.shapes)
    found = names.to_linen(tensors, components.parameters(config), part="taesd")
    assert config.channels == 4
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.slow
def test_refine_draws_with_a_model_and_its_refiner():
    """Two folders, as of XL: 4 steps, of which the refiner takes one."""
    pairs = [
        (m, random(mutations.zeros(m))) for m in (mutations.model(xl=True), mutations.model(refiner=True))
    ]
    images, _ = generate.refine(*pairs, jax.random.key(0), 1, part=0.8, prompt="a large red seven", nfe=4)
    assert images.shape == (1, 16, 16, 3)
    assert images.dtype == np.uint8
