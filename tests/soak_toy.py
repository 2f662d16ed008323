"""What benchmarks/soak_kills.py runs in CI in the place of an experiment: training of a second, a summary, samples."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import soak_runs


def parse():
    """The flag that it has."""
    return types.SimpleNamespace(workdir=Path(sys.argv[sys.argv.index("--workdir") + 1]))


def main(config):
    """Train or go on, and leave what is compared."""
    leaves = soak_runs.train(config.workdir, soak_runs.STEPS)
    np.save(config.workdir / "samples.npy", leaves[1])
    (config.workdir / "summary.json").write_text(json.dumps({"norm": float(np.abs(leaves[1]).sum())}))
