"""A trace of a run holds the steps that were asked for, and changes nothing else."""

import gzip
import json

import pytest
import toy

from gen_jax import training
from gen_jax.training import profiling
from tests.marks import slow


def fit(workdir, profile):
    step, state, _ = toy.setup(40)
    options = training.Options(steps_per_call=5, checkpoint_every=0, progress=False, profile=profile)
    return training.fit(
        step, state, toy.InMemory(), num_steps=40, workdir=workdir, config={}, mesh=toy.ONE, options=options
    )


def traced(workdir):
    """The numbers of the steps in a trace, as Perfetto reads them."""
    (path,) = (workdir / "tensorboard").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(e["args"]["step_num"]) for e in events if e.get("name") == "train" and "args" in e)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("plain"), None)


@pytest.mark.parametrize(
    ("profile", "ends"),
    slow([("10:20", [15, 20]), ("12:13", [15]), ("35:1000", [40])], [("12:13", [15]), ("35:1000", [40])]),
    ids=str,
)
def test_trace_has_the_steps_asked_for_and_the_run_is_the_same(profile, ends, plain, tmp_path):
    state = fit(tmp_path, profile)
    assert traced(tmp_path) == ends
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))
    toy.assert_same_bits(state, plain)


def test_steps_that_are_not_taken_leave_no_trace(plain, tmp_path):
    toy.assert_same_bits(fit(tmp_path, "50:60"), plain)
    assert not list(tmp_path.rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["", "5", "5:5", "7:3", "-1:4", "a:b", "1:2:3"])
def test_what_is_no_range_of_steps_is_refused(text):
    with pytest.raises(ValueError, match=r"profile must be START:STOP.*got '"):
        training.Options(profile=text)


def test_a_trace_needs_a_place():
    with pytest.raises(ValueError, match="profile needs a workdir"):
        fit(None, "1:2")


def test_steps_of_is_the_range():
    assert profiling.steps_of("3:7") == range(3, 7)
