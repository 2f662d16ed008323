"""The U-Nets of Stable Diffusion against diffusers: sizes, names, shapes, outputs and gradients."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks import layers, unet
from tests import tiny_sd
from tests.marks import slow
from tests.networks import stable_diffusion

COUNTS = {
    "sd15": 859_520_964,
    "sd21": 865_910_724,
    "sdxl": 2_567_463_684,
    "sdxl_refiner": 2_259_526_660,  # of diffusers' module on torch's meta device
}
FIXTURE = np.load(Path(__file__).with_name("unet_diffusers.npz"))


@functools.cache
def shapes(config):
    """The parameters' shapes, with 4 channels of latents; with the mask and the masked image 9."""
    x = jnp.zeros((1, 8, 8, 9 if config.out_channels else 4))
    return jax.eval_shape(unet.UNet(config).init, jax.random.key(0), x, jnp.zeros(1))


@pytest.mark.parametrize(
    "name",
    slow(COUNTS, but=("sd15",)),  # in CI SDXL's: tests/pretrained/test_names.py
)
def test_preset_has_the_parameters_of_stable_diffusion(name):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(getattr(unet, name)))) == COUNTS[name]


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("name", slow(["sd15", "sd21", "sdxl"], ("sdxl",)))
def test_preset_has_every_tensor_of_stable_diffusion_once(name):
    lines = (tiny_sd.ROOT.parent / f"keys/keys_{name}_unet.txt").read_text().splitlines()
    config = getattr(unet, name)
    ours = {path: leaf.shape for path, leaf in stable_diffusion.flat(shapes(config)).items()}
    for line in lines:
        key, shape = line.split(" ", 1)
        path, theirs = stable_diffusion.place(key, json.loads(shape), len(config.channels))
        assert stable_diffusion.fits(theirs, ours.pop(path)), line
    assert ours == {}


SMALL = {
    "channels": (8, 16, 24),
    "groups": 4,
    "embedding": 32,
    "sinusoid_features": 8,
    "context_features": 12,
}
TINY = {
    "sd15": dataclasses.replace(unet.sd15, blocks=1, depth=(1, 1, 0), heads=2, **SMALL),
    "sd21": dataclasses.replace(unet.sd21, blocks=1, depth=(1, 1, 0), head_features=8, **SMALL),
    "sdxl": dataclasses.replace(unet.sdxl, depth=(0, 1, 2), heads=(2, 4, 3), cond_features=46, **SMALL),
    "inpainting": dataclasses.replace(
        unet.sd15, blocks=1, depth=(1, 1, 0), heads=2, out_channels=4, guidance_features=6, **SMALL
    ),
}


def vector(text, ids, features):
    """SDXL's: the pooled text, then the sinusoid of each id."""
    wave = lambda x: layers.sinusoidal(x, features, cosines_first=True, endpoint=False)
    return jnp.concatenate([jnp.asarray(text), *(wave(jnp.asarray(column)) for column in ids.T)], axis=-1)


@pytest.mark.parametrize(
    "name", ["sd15", *(pytest.param(n, marks=pytest.mark.slow) for n in TINY if n != "sd15")]
)
def test_unet_is_that_of_diffusers_with_its_gradient(name):
    """On odd sizes and with a mask; weights are drawn alike on both sides (make_unet_diffusers.py)."""
    found = {
        key.removeprefix(f"{name}/"): FIXTURE[key] for key in FIXTURE.files if key.startswith(f"{name}/")
    }
    net = unet.UNet(TINY[name])
    tensors = stable_diffusion.drawn(json.loads(str(found["shapes"])))
    params = stable_diffusion.load(tensors, shapes(TINY[name]), 3)
    cond = vector(found["text_embeds"], found["time_ids"], 6) if name == "sdxl" else None
    t, context, mask = (jnp.asarray(found[key]) for key in ("times", "context", "mask"))
    t = t + 1  # which the network counts from 1, as gen_jax does
    guidance = jnp.asarray(found["guidance"]) if "guidance" in found else None

    @jax.jit
    def ours(x):
        value = lambda x: (
            jnp.sin(y := net.apply(params, x, t, cond, context, mask, guidance=guidance)).mean(),
            y,
        )
        (_, y), gradient = jax.value_and_grad(value, has_aux=True)(x)
        return y, gradient

    for mine, theirs in zip(ours(found["latents"]), (found["out"], found["gradient"]), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


WIDER = {"blocks": 1, "channels": (16, 24, 32), "groups": 8, "embedding": 64, "sinusoid_features": 16}
WHOLE = {
    "sd15": {"depth": (1, 1, 0), "heads": 2, "context_features": 24},
    "sd21": {"depth": (1, 1, 0), "head_features": 8, "context_features": 32},
    "sdxl": {"depth": (0, 1, 2), "head_features": 8, "context_features": 56, "cond_features": 68},
}


@pytest.mark.slow  # in CI: the same by the package's own table of names, tests/pretrained/test_components.py
@tiny_sd.needs_fixtures
@pytest.mark.parametrize("name", WHOLE)
def test_unet_is_that_of_a_pipeline_of_diffusers(name):
    folder = tiny_sd.ROOT / f"tiny-{name}"
    config = dataclasses.replace(getattr(unet, name), **WIDER, **WHOLE[name])
    net, found = unet.UNet(config), np.load(folder / "expected.npz")
    tensors = tiny_sd.tensors(folder / "unet/diffusion_pytorch_model.safetensors")
    params = stable_diffusion.load(tensors, shapes(config), 3)
    cond = vector(found["unet_text_embeds"], found["unet_time_ids"], 8) if name == "sdxl" else None
    x = jnp.asarray(found["latents"].transpose(0, 2, 3, 1))
    t, context = jnp.asarray(found["unet_t"]) + 1, jnp.asarray(found["unet_context"])
    ours, theirs = jax.jit(net.apply)(params, x, t, cond, context), found["unet_out"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
