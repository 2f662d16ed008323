"""A description of a model: its round trip for any configuration, and what a file may not be."""

import dataclasses
import json
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax import codec, conditioning, model, samplers
from gen_jax.diffusion import prediction, process
from gen_jax.networks import unet

PIXELS = codec.Pixels((4, 4, 1))
SMALL = model.Model(
    unet.UNetConfig(channels=(8,), embedding=16, groups=4),
    process.DDPM(),
    "v",
    conditioning.Nothing(),
    PIXELS,
)


@st.composite
def networks(draw):
    channels = tuple(draw(st.lists(st.integers(1, 512), min_size=1, max_size=4)))
    return unet.UNetConfig(
        channels=channels,
        blocks=draw(st.integers(1, 3)),
        attention=tuple(draw(st.sets(st.integers(0, len(channels) - 1)))),
        patch=draw(st.integers(1, 4)),
        dense_skips=draw(st.booleans()),
        time_scale=draw(st.floats(1e-3, 1e4)),
        num_classes=draw(st.none() | st.integers(1, 1000)),
        dropout=draw(st.floats(0, 0.9)),
        dtype=draw(st.sampled_from([jnp.float32, jnp.bfloat16])),
        remat=draw(st.booleans()),
    )


PROCESSES = st.one_of(
    st.builds(process.DDPM, st.integers(2, 50), st.sampled_from(["linear", "cosine", "scaled_linear"])),
    st.builds(process.VP, beta_max=st.floats(10, 30)),
    st.builds(process.SubVP, beta_max=st.floats(10, 30)),
    st.builds(process.VE, sigma_max=st.floats(2, 100)),
    st.builds(process.EDM, sigma_max=st.floats(2, 100)),
    st.builds(process.FlowMatching, t_min=st.floats(1e-5, 1e-2)),
)
MODELS = st.builds(
    model.Model,
    network=networks(),
    process=PROCESSES,
    predicts=st.sampled_from(prediction.PREDICTIONS),
    condition=st.just(conditioning.Nothing())
    | st.builds(conditioning.Labels, st.integers(1, 1000), st.floats(0, 0.5))
    | st.builds(conditioning.Labels, st.just(2), st.just(0.1), st.just(("cats", "dogs"))),
    codec=st.builds(codec.Pixels, st.tuples(*[st.integers(1, 64)] * 3))
    | st.builds(
        codec.Latents,
        st.lists(st.integers(1, 64), min_size=1, max_size=3).map(tuple),
        scale=st.floats(0.01, 100),
        shift=st.floats(-100, 100),
        name=st.text(string.ascii_lowercase, min_size=1),
    ),
    sampling=st.builds(
        model.Sampling,
        solver=st.none() | st.sampled_from(sorted(samplers.named.SOLVERS)),
        nfe=st.integers(1, 1000),
        guidance=st.floats(-10, 10),
        guide_step=st.none() | st.integers(1, 10**6),
    ),
)


@settings(max_examples=100, deadline=None)
@given(MODELS)
def test_round_trip_is_equal(described):
    text = model.to_json(described)
    again = model.from_json(text)
    assert again == described
    assert hash(again) == hash(described)
    assert model.to_json(again) == text


@pytest.mark.parametrize(
    "schedule", [samplers.Schedule(), samplers.Schedule("trailing", 1, False, karras=True)], ids=str
)
def test_round_trip_of_a_schedule_is_equal(schedule):
    sampling = model.Sampling("euler", 30, 7.5, schedule=schedule)
    described = dataclasses.replace(SMALL, sampling=sampling)
    assert model.from_json(model.to_json(described)) == described
    assert described != SMALL


def test_every_field_of_every_part_is_written():
    """So that a change of a default changes no run."""
    found = model.to_dict(SMALL)
    for part in ("network", "process", "condition", "codec", "sampling"):
        fields = {f.name for f in dataclasses.fields(getattr(SMALL, part))}
        assert set(found[part]) == fields | {"type"}


def changed(path, value):
    """A description with one value set otherwise; `...` removes it."""
    found = json.loads(model.to_json(SMALL))
    *way, last = path
    part = found
    for name in way:
        part = part[name]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("format",), 3, "format 2, got 3"),
        (("model",), 5, "model: expected Model, got 5"),
        (("model", "network", "type"), "os.system", r"model\.network: unknown type 'os\.system'"),
        (("model", "network", "type"), "DDPM", r"model\.network"),
        (("model", "network", "type"), ["UNetConfig"], "unknown type"),
        (("model", "network", "colour"), 1, r"no field 'colour'\.$"),
        (("model", "network", "channels"), "abc", r"model\.network\.channels"),
        (("model", "network", "channels"), [8, "a"], r"model\.network\.channels\[1\]: expected int, got 'a'"),
        (("model", "network", "blocks"), 1.5, r"blocks: expected int, got 1\.5"),
        (("model", "network", "blocks"), True, "blocks: expected int, got True"),
        (("model", "network", "remat"), 1, "remat: expected bool, got 1"),
        (("model", "network", "blocks"), 0, r"model\.network: .*positive"),
        (("model", "network", "dtype"), "object_", "dtype"),
        (("model", "process"), None, "process"),
        (("model", "process", "beta_max"), 2.0, r"model\.process"),
        (("model", "predicts"), "noise", "predicts"),
        (("model", "codec", "shape"), [28, 28], "shape"),
        (("model", "codec", "shape"), ..., "shape"),
        (("model", "sampling", "solver"), "rk4", "rk4"),
        (("model", "sampling", "guidance"), float("nan"), "guidance"),
        (
            ("model", "sampling", "schedule"),
            {"type": "Schedule", "spacing": "even"},
            "spacing must be one of",
        ),
        (("model", "condition"), {"type": "Labels", "num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_what_a_file_may_not_say(path, value, said):
    with pytest.raises(ValueError, match=said):
        model.from_json(changed(path, value))


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [("network", "channels", "chanels"), ("process", "num_steps", "numsteps"), ("sampling", "nfe", "nfes")],
)
def test_a_misspelt_field_is_answered_by_the_nearest(part, right, wrong):
    found = json.loads(model.to_json(SMALL))
    found["model"][part][wrong] = found["model"][part].pop(right)
    with pytest.raises(ValueError, match=rf"{part}: \w+ has no field '{wrong}'\. Did you mean {right}\?$"):
        model.from_json(json.dumps(found))


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [("network", "UNetConfig", "UnetConfig"), ("process", "DDPM", "DDMP"), ("condition", "Labels", "Label")],
)
def test_a_misspelt_type_is_answered_by_the_nearest(part, right, wrong):
    with pytest.raises(ValueError, match=rf"unknown type '{wrong}'.* Did you mean {right}( or \w+)?\?$"):
        model.from_json(changed(("model", part, "type"), wrong))


def test_a_field_that_is_newer_than_the_file_takes_its_default():
    assert model.from_json(changed(("model", "network", "remat"), ...)) == SMALL
    assert model.from_json(changed(("model", "sampling"), ...)) == SMALL
    assert model.from_json(changed(("model", "sampling", "schedule"), ...)).sampling.schedule is None
    old = {"type": "Labels", "num_classes": 2, "dropout": 0.1}
    assert model.from_json(changed(("model", "condition"), old)).condition == conditioning.Labels(2)


@pytest.mark.parametrize("text", ["", "[]", "5", "{", '{"model": {}}', "null"])
def test_what_is_no_description_is_refused(text):
    with pytest.raises(ValueError, match="expected a description"):
        model.from_json(text)


@dataclasses.dataclass(frozen=True)
class Mine:
    """A network of somebody's own."""

    width: int = 3

    def build(self):
        """No parameters."""


def test_a_network_of_ones_own_is_named():
    described = dataclasses.replace(SMALL, network=Mine(5))
    with pytest.raises(ValueError, match=r"network is a Mine, .*types="):
        model.to_json(described)
    text = model.to_json(described, types=[Mine])
    assert model.from_json(text, types=[Mine]) == described
    with pytest.raises(ValueError, match=r"unknown type 'Mine'.*types="):
        model.from_json(text)


def test_functions_can_not_be_described():
    described = dataclasses.replace(SMALL, process=process.LogSNR(lambda t: -t))
    with pytest.raises(ValueError, match="process is a LogSNR"):
        model.to_json(described)


def test_reading_runs_nothing_but_the_table(monkeypatch):
    import builtins
    import importlib
    import pickle

    text = model.to_json(SMALL)

    def refuse(*args, **options):
        raise AssertionError("code was run")

    for place, name in (
        (importlib, "import_module"),
        (pickle, "loads"),
        (pickle, "load"),
        (builtins, "eval"),
    ):
        monkeypatch.setattr(place, name, refuse)
    assert model.from_json(text) == SMALL


def test_init_makes_the_parameters_of_the_network():
    params = SMALL.init(jax.random.key(0))
    out = SMALL.network.build().apply(params, jnp.ones((2, 4, 4, 1)), jnp.ones(2))
    assert out.shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(out, 0)  # a U-Net is zero at the start
