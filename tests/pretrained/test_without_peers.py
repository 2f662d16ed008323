"""No package of the torch world is imported: from files to a picture with all of them blocked."""

import os
import subprocess
import sys

import numpy as np

from gen_jax import pretrained
from tests import small_folder

SCRIPT = """
import importlib.abc, sys

BLOCKED = {"torch", "transformers", "diffusers", "safetensors", "peft", "accelerate", "k_diffusion"}

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise RuntimeError(f"{name} is imported")

sys.meta_path.insert(0, Blocked())
from gen_jax import cli, pretrained

folder, file, out = sys.argv[1:]
cli.main(["sample", folder, "--prompt", "a large red seven", "--nfe", "2", "--num", "2", "--out", out])
model, weights = pretrained.load(file, config=folder)
pretrained.save(folder + "-again", model, weights)
print("imported:", sorted(BLOCKED & set(sys.modules)))
"""


def test_a_picture_is_drawn_from_files_without_torch_and_what_needs_it(tmp_path):
    """By the command from a folder; one file is read, and written as a folder."""
    model = small_folder.model()
    weights = small_folder.weights(model)
    folder, file, out = (tmp_path / name for name in ("folder", "one.safetensors", "out.npy"))
    pretrained.save(folder, model, weights)
    pretrained.save(file, model, weights, layout="single")
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(file), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "imported: []" in ran.stdout
    images = np.load(out)
    assert (images.dtype, images.shape) == (np.uint8, (2, 16, 16, 3))
    assert images.std() > 1
    assert (tmp_path / "folder-again" / "model_index.json").exists()
