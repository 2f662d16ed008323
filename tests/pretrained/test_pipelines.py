"""Whole pipelines against diffusers: from the same folder, noise and texts to latents and images, with guidance."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import generate, pretrained
from gen_jax.codec import Latents
from gen_jax.model import Sampling
from gen_jax.pretrained import schedulers
from tests import small_pipelines, tiny_sd
from tests.pretrained import pipelines_by_diffusers as peer

FOUND = np.load(Path(__file__).with_name("pipelines_by_diffusers.npz"))
QUICK = ("heun",)


def check(m, weights, case, z, latents, images, **texts):
    """That `generate.sample` draws these latents, and that they are decoded to these images, which are in [0, 1]."""
    ours, _ = generate.sample(
        replace(m, codec=Latents(m.codec.shape)),
        weights,
        peer.KEY,
        len(z),
        nfe=peer.CASES[case][2],
        guidance=peer.GUIDANCE,
        rescale=peer.RESCALE.get(case, 0.0),
        rescale_of="output",
        x_T=z,
        **texts,
    )
    network = m.codec.autoencoder.build()
    decoded = jax.jit(lambda p, z: network.apply(p, z, method="decode"))(
        weights["autoencoder"], ours[: len(images)] / m.codec.scale
    )
    error = np.abs(ours - latents).max() / np.abs(latents).max()
    seen = float(jnp.abs(jnp.clip(decoded / 2 + 0.5, 0, 1) - images).max())
    print(f"{case}: latents {error:.1e}, images {seen:.1e}")
    assert error <= 1e-4
    assert seen <= 1e-3


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in peer.CASES]
)
def test_a_small_model_draws_what_diffusers_drew(case):
    """Its latents and images are stored, with the script that made them."""
    m, weights = small_pipelines.model("distilled" if case == "lcm" else "vary")
    process, predicts, schedule, solver = schedulers.read(peer.config(case))
    m = replace(m, process=process, predicts=predicts, sampling=Sampling(solver, schedule=schedule))
    latents, images = FOUND[f"{case}: latents"], FOUND[f"{case}: images"]
    check(m.at(*images.shape[1:3]), weights, case, peer.start(), latents, images)


@pytest.mark.slow
def test_what_is_stored_is_of_diffusers_that_is_installed():
    pytest.importorskip("diffusers")
    for name, theirs in peer.expected().items():
        if ":" in name:
            np.testing.assert_allclose(FOUND[name], theirs, atol=1e-5 * np.abs(theirs).max())


MODELS = {
    "tiny-sd15": [case for case in peer.CASES if "zero" not in case],
    "tiny-sd21": ["heun", "dpmpp karras", "pndm", *(case for case in peer.CASES if "zero" in case)],
    "tiny-sdxl": ["heun", "unipc", "dpmpp karras", "pndm"],
    "tiny-sd15, other": ["heun", "unipc"],
    "tiny-sd21, other": ["dpmpp karras", "zero snr"],
    "tiny-sdxl, other": ["heun", "dpmpp"],
}
"""The fixtures and others, with what is drawn of them."""
OTHERS = {
    "tiny-sd15, other": (1, 2, (40, 24)),
    "tiny-sd21, other": (2, 2, (24, 56)),
    "tiny-sdxl, other": (3, 2, (40, 64)),
}
"""What make_tiny_sd makes of a seed, with so many blocks a level, for so many pixels."""
PROMPTS, NEGATIVE = ["a large red seven above a small blue three", "Two GREEN nines, it's 42!"], "blurry grey"


@pytest.fixture(scope="module")
def made(request, tmp_path_factory):
    """The pipeline of diffusers of a model, the folder that it wrote, and the size of images."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    if not tiny_sd.ROOT.is_dir():
        pytest.skip("no ../shared/stable_diffusion")
    name, folder = request.param.split(",")[0], tmp_path_factory.mktemp("model") / "it"
    if request.param not in OTHERS:
        pipe, size = diffusers.DiffusionPipeline.from_pretrained(tiny_sd.ROOT / name), (32, 48)
    else:
        seed, blocks, size = OTHERS[request.param]
        source = (tiny_sd.ROOT.parent / "make_tiny_sd.py").read_text()
        assert source.count("layers_per_block=1") == 2
        maker = types.ModuleType("maker")
        exec(source.replace("layers_per_block=1", f"layers_per_block={blocks}"), maker.__dict__)
        torch.manual_seed(seed)
        pipe = maker.build(name, folder.with_name("tokenizers"))
    pipe.save_pretrained(folder)
    return pipe, folder, size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "case"), [(name, case) for name, cases in MODELS.items() for case in cases], indirect=["made"]
)
def test_a_folder_draws_what_diffusers_draws(made, case):
    """The folder has the file of the scheduler, and nothing more is said of it."""
    pipe, folder, (height, width) = made
    kind, said, _ = peer.CASES[case]
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    stable = {k: v for k, v in config.items() if k not in ("rescale_betas_zero_snr", "use_karras_sigmas")}
    leading = {"timestep_spacing": "leading"}
    pipe.scheduler = getattr(sys.modules["diffusers"], kind).from_config({**stable, **leading, **said})
    pipe.scheduler.save_pretrained(folder / "scheduler")
    z = np.random.default_rng(5).standard_normal((2, height // 4, width // 4, 4), np.float32)
    texts = {"prompt": PROMPTS, "negative_prompt": [NEGATIVE] * 2}
    latents, images = peer.drawn(pipe, case, z, **texts)
    m, weights = pretrained.load(folder)
    check(m.at(height, width), weights, case, z, latents, images, prompt=PROMPTS, negative_prompt=NEGATIVE)
