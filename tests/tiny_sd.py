"""The tiny random Stable Diffusions in ../shared/stable_diffusion, where they are, and a reader of their weights."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2] / "shared" / "stable_diffusion" / "fixtures"
needs_fixtures = pytest.mark.skipif(not ROOT.is_dir(), reason="no ../shared/stable_diffusion")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I64": np.int64}


def tensors(path):
    """The arrays of a safetensors file by name."""
    data = Path(path).read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    array = lambda dtype, a, b: np.frombuffer(data[start + a : start + b], DTYPES[dtype])
    return {name: array(e["dtype"], *e["data_offsets"]).reshape(e["shape"]) for name, e in header.items()}
