"""Stable Diffusion from files against what diffusers makes of the same ones."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from gen_jax import generate, pretrained
from tests import tiny_sd

NAMES = ("tiny-sd15", "tiny-sd21", "tiny-sdxl")
PROMPTS, NEGATIVE = ["a large red seven above a small blue three", "Two GREEN nines, it's 42!"], "blurry grey"
KEY = jax.random.key(0)


def load(name, kind="folder", **options):
    if kind == "folder":
        return pretrained.load(tiny_sd.ROOT / name, **options)
    return pretrained.load(tiny_sd.ROOT / f"{name}.safetensors", config=tiny_sd.ROOT / name, **options)


def close(ours, theirs, rtol):
    np.testing.assert_allclose(ours, theirs, atol=rtol * np.abs(theirs).max(), rtol=0)


def drawn(m, weights, x_T, **options):
    """What diffusers' pipeline draws: latents."""
    return generate.sample(
        m, weights, KEY, 2, prompt=PROMPTS, negative_prompt=NEGATIVE, x_T=x_T, guidance=7.5, nfe=10, **options
    )[0]


SOLVERS = ("ddim", "euler", "dpmpp", "pndm")


@tiny_sd.needs_fixtures
@pytest.mark.slow  # in CI a smaller one, test_pipelines.py, and the parts of tiny-sdxl, test_components.py
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_images_are_those_of_diffusers_pipeline(name, solver):
    found = np.load(tiny_sd.ROOT / name / "expected.npz")
    m, weights = load(name)
    if solver == "dpmpp":  # made of a file that did not state the spacing, as that of the folder does
        m = replace(m, sampling=replace(m.sampling, schedule=replace(m.sampling.schedule, spacing=None)))
    images = drawn(m.at(32, 48), weights, found["latents"].transpose(0, 2, 3, 1), solver=solver)
    theirs = np.clip(found[f"{solver}_images"].transpose(0, 2, 3, 1) / 2 + 0.5, 0, 1)
    assert np.abs(images / 255 - theirs).max() <= 0.5 / 255 + 1e-3


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("name", NAMES)
def test_one_file_is_the_folder(name):
    """The same description, and the same weights to the bit."""
    whole, weights = load(name)
    m, single = load(name, "file")
    assert m == whole
    for ours, theirs in zip(jax.tree.leaves(single), jax.tree.leaves(weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert jax.tree.structure(single) == jax.tree.structure(weights)


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("predicts", [None, "eps"])
def test_one_file_of_version_2_says_what_is_taken_unless_it_is_told(predicts, caplog):
    tokenizer = tiny_sd.ROOT / "tiny-sd21" / "tokenizer"
    with pytest.raises(ValueError, match="heads of a transformer"):  # which shapes of a tiny one do not say
        pretrained.load(tiny_sd.ROOT / "tiny-sd21.safetensors", config=tokenizer, predicts=predicts)
    assert ("does not say what its network predicts" in caplog.text) is (predicts is None)


def test_load_says_what_it_reads_where_there_is_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"folder that has model_index.json, or a .safetensors file"):
        pretrained.load(tmp_path)
