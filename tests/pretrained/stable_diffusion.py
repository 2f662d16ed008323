"""Real names and shapes, and tiny models, of Stable Diffusion: what tests of its files share."""

import itertools
import json
import math

import numpy as np
import pytest

from gen_jax.pretrained.single_file import View
from gen_jax.pretrained.single_names import How
from gen_jax.text import Tokenizer
from gen_jax.text.words import BYTES
from tests import tiny_sd

MODELS = ("tiny-sd15", "tiny-sd21", "tiny-sdxl")
FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}


def real(name):
    """`{name: shape}` of `keys_{name}.txt`; skips without it."""
    file = tiny_sd.ROOT.parent / f"keys/keys_{name}.txt"
    if not file.exists():
        pytest.skip("no ../shared/stable_diffusion")
    lines = (line.split(" ", 1) for line in file.read_text().splitlines() if line)
    return {key: tuple(json.loads(shape)) for key, shape in lines}


def folder(model):
    """`{part: tensors}` and `{part: config}` of a tiny model in a folder; skips without it."""
    root = tiny_sd.ROOT / model
    if not root.is_dir():
        pytest.skip("no ../shared/stable_diffusion")
    there = {part: root / file for part, file in FILES.items() if (root / file).exists()}
    configs = {part: json.loads((file.parent / "config.json").read_text()) for part, file in there.items()}
    return {part: tiny_sd.tensors(file) for part, file in there.items()}, configs


def empty(shapes):
    """Tensors of these shapes, of one number each."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def random(shapes, dtype):
    """Tensors of these shapes, each made when it is asked for."""
    noise = np.random.default_rng(0).standard_normal(2**22 + 1, np.float32)

    def drawn(shape):
        deviation = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        return (np.resize(noise, shape) * np.float32(deviation)).astype(dtype)

    return View({name: ({}, How((), shape, lambda s=shape: drawn(s))) for name, shape in shapes.items()})


def vocabulary(path):
    """`tokenizer/` in a folder, of the size of CLIP's, with made-up merges."""
    (path / "tokenizer").mkdir()
    pairs = itertools.islice(itertools.product(BYTES.values(), repeat=2), 48_894)
    Tokenizer(tuple(map(" ".join, pairs))).save(path / "tokenizer")


def relative(ours, theirs):
    """The largest error, divided by the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()
