"""Stable Diffusion 1.5 in one file, of its real size and random weights: how much memory it takes to load."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from gen_jax.pretrained import safetensors, single_file
from tests import tiny_sd
from tests.pretrained import stable_diffusion as sd

PARTS = {"unet": "sd15_unet", "vae": "vae", "text_encoder": "clip_l"}
PARAMETERS = 1_066_235_307
"""Of all three parts."""

LOAD = """
import json, sys
import jax
from gen_jax import pretrained

def peak():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])

jax.device_put(0).block_until_ready()
before = peak()
model, weights = pretrained.load(sys.argv[1], dtype=sys.argv[2], config=sys.argv[3])
jax.block_until_ready(weights)
leaves = jax.tree.leaves(weights)
count, size = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
print(json.dumps({"peak": peak() - before, "count": count, "size": size}))
"""


@pytest.mark.slow
@tiny_sd.needs_fixtures
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_takes_the_memory_of_its_file_and_a_quarter(tmp_path, dtype):
    kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
    file = tmp_path / "model.safetensors"
    parts = {part: sd.random(sd.real(name), kind) for part, name in PARTS.items()}
    safetensors.write(file, single_file.join(parts, "sd1"))
    sd.vocabulary(tmp_path)
    try:
        command = [sys.executable, "-c", LOAD, str(file), dtype, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found, size = json.loads(done.stdout), file.stat().st_size
    finally:
        file.unlink()
    assert found["count"] == PARAMETERS
    assert found["size"] == PARAMETERS * np.dtype(kind).itemsize <= size
    assert found["peak"] <= 1.25 * size
