"""Programs of the project in processes of their own, as users start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(script, *flags, **options):
    """A script of the project, without the eight devices of the tests."""
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, flags)], env=environment, text=True, **options
    )


def judged(workdir, *, labels):
    """What benchmarks/judge.py says of the samples of a run."""
    command = [sys.executable, ROOT / "benchmarks" / "judge.py", workdir / "samples.npy"]
    if labels:
        command += ["--labels", workdir / "labels.npy"]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
