"""Programs of the project in processes of their own, as users start them."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import MappingProxyType

import gen_jax

ROOT = Path(__file__).resolve().parents[1]
CACHE = tempfile.TemporaryDirectory()
"""Of compiled programs."""
SEVERAL = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Variables by which the processes of a run find each other."""


def environment(**variables):
    """That of a program, without the eight devices of the tests."""
    kept = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    return kept | {"PYTHONPATH": str(Path(gen_jax.__file__).parents[1]), **variables}


def start(script, *flags, **options):
    """A script of the project."""
    return subprocess.Popen(
        [sys.executable, ROOT / script, *map(str, flags)], env=environment(), text=True, **options
    )


def several(command, count=2, variables=MappingProxyType({}), **options):
    """The processes of one run of a command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = [dict(zip(SEVERAL, (address, str(count), str(i)), strict=True)) for i in range(count)]
    common = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": CACHE.name}
    common["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    each = [environment(**common, **variables, **own) for own in joined]
    return [subprocess.Popen([*map(str, command)], env=env, **options) for env in each]


def judged(workdir, *, labels):
    """What benchmarks/judge.py says of the samples of a run."""
    command = [sys.executable, ROOT / "benchmarks" / "judge.py", workdir / "samples.npy"]
    if labels:
        command += ["--labels", workdir / "labels.npy"]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
