"""All that is public, called with one wrong argument at a time: nothing is silent, and each error names its argument.

The calls are made in a process of their own, without the type checker of the tests, as users make them.
"""

import inspect
import json
import subprocess
import sys

import pytest

from tests.api import walk

QUICK = ("--modules", "densities", "--", "normal", "keys", "gmm")
"""A part of which CI has the walk; all of them take three minutes."""


@pytest.mark.parametrize(
    ("parts", "least"), [(QUICK, 600), pytest.param((), 8000, marks=pytest.mark.slow)], ids=["quick", "all"]
)
def test_a_wrong_argument_is_named(parts, least):
    command = [sys.executable, "-m", "tests.api.walk", "--json", *parts]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    bad = [o for o in found if o["what"] in ("silent", "unclear")]
    assert [f"{o['path']}({o['argument']}: {o['mutation']}): {o['said']}" for o in bad] == []
    assert sum(o["what"] == "clear" for o in found) >= least


def test_all_that_is_public_is_held_to_its_annotations():
    is_held = lambda each: hasattr(each.__init__ if inspect.isclass(each) else each, "__checked__")
    assert [path for path, each in walk.public().items() if not is_held(each)] == []


def test_a_silent_fault_is_found():
    """The walk itself: a function that takes what it should not is reported."""

    def careless(x: float, name: str):
        return x

    outcomes = {
        (o.argument, o.mutation): o.what for o in walk.outcomes("careless", careless, walk.call(1.0, "abc"))
    }
    assert outcomes["x", "NaN"] == outcomes["name", "misspelt"] == outcomes["x", "a word"] == "silent"
    assert outcomes["x", "negative"] == "fine"
