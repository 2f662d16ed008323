"""Runs of two processes in experiments/launch/loop.sh, as a slice of two hosts has them."""

import json
import os
import signal
import sys

import processes
import pytest

from tests import programs

LOOP = programs.ROOT / "experiments" / "launch" / "loop.sh"
HERE = programs.ROOT / "tests" / "training"


def looped(workdir, *flags):
    """The two processes of a run of the toy problem, each in a loop."""
    workdir.mkdir()
    run = [sys.executable, HERE / "run_toy.py", workdir, workdir / "final.npz", *flags]
    variables = {"PAUSE": "0", "PYTHONPATH": f"{programs.ROOT}{os.pathsep}{HERE}"}
    with (workdir / "log.txt").open("w") as log:
        return programs.several(["bash", LOOP, *run], stdout=log, stderr=log, variables=variables)


@pytest.mark.slow
def test_a_preempted_run_is_begun_again_and_has_the_bits_of_one_left_alone(tmp_path):
    """SIGTERM to one process in the middle: both save, end with 75, and are begun again by their loops."""
    alone, preempted = tmp_path / "alone", tmp_path / "preempted"
    assert processes.finish(*looped(alone)) == [0, 0], processes.log(alone)
    both = looped(preempted, "--seconds-per-call", "0.15")
    processes.wait_until_logged(preempted, 15, both[0])
    first = json.loads((preempted / ".lock").read_text())
    os.kill(first["pid"], signal.SIGTERM)
    assert processes.finish(*both) == [0, 0], processes.log(preempted)
    said = processes.log(preempted)
    assert said.count("exit code 75, begins again in 0 s") == 2
    assert "resuming: checkpoint of step" in said
    processes.assert_same(alone, preempted)
