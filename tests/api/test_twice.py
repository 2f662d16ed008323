"""Nothing of the library compiles again when it is called again: every public function and method is called twice.

The calls are made in a process of their own, without the type checker of the tests, as users make them.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from tests.compiling import compilations

QUICK = (
    *("--modules", "densities", "guidance", "processes", "--", "em.e_step", "editing", "inverse.repaint"),
    *("diffusion.likelihood", "diffusion.process.at_log_snr", "diffusion.oracle.empirical"),
)
"""Parts that loop, of which CI has the calls; all of them take minutes."""


@pytest.mark.parametrize(
    ("parts", "least"), [(QUICK, 10), pytest.param((), 400, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_a_second_call_compiles_nothing(parts, least):
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.api.twice", *parts]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    again = {path: names for path, names in found["called"].items() if names}
    assert set(again) <= {"training.fit"}, "which is to compile its step (`twice.MAKE`)"
    assert len(found["called"]) >= least
    assert found["unknown"] == []


def test_a_second_compilation_is_found():
    scan = lambda: jax.lax.scan(lambda carry, _: (carry + 1, None), jnp.zeros(()), length=3)
    scan()
    with compilations() as found:
        scan()
    assert found == ["jit(scan)"]
