"""Folders that are damaged or hostile: a model, or an error that names the file; nothing large is allocated."""

import resource
import shutil
import signal
from collections import Counter

import pytest

from gen_jax import pretrained
from tests.pretrained import mutations

GIBIBYTE = 2**20
"""In KiB, as `ru_maxrss` is."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two models: with one encoder, and with two."""
    root = tmp_path_factory.mktemp("whole")
    mutations.write(root / "one", mutations.model())
    mutations.write(root / "two", mutations.model(xl=True, width=16))
    for name in ("one", "two"):
        pretrained.load(root / name)
    return root


@pytest.fixture
def hurried():
    """No case may wait for ever, as for a pipe."""

    def late(*_):
        raise TimeoutError("reading a folder took more than two minutes")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def outcome(folder, said):
    """`loaded`, or the name of the part or file that the message begins with."""
    signal.alarm(120)
    try:
        pretrained.load(folder)
        return "loaded"
    except ValueError as problem:
        error = problem
    assert type(error) is ValueError, said
    message = str(error)
    assert str(folder) in message, said
    assert len(message) < 2000, said
    assert " " in message.replace(str(folder), "").strip(": "), said
    return message.replace(str(folder), "").strip(": /")[:20]


def read_all(count, whole, tmp_path):
    found, before = Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i, (mutate, rng) in enumerate(mutations.mutants(count)):
        folder, names = tmp_path / f"{i}", ["one", "two"]
        name, other = names if i // len(mutations.MUTATIONS) % 2 else names[::-1]
        shutil.copytree(whole / name, folder)
        said = f"{i}: {mutate.__name__}, {mutate(rng, folder, whole / other)}"
        found[outcome(folder, said)] += 1
        shutil.rmtree(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIBIBYTE
    return found


def test_load_of_40_mutants_is_a_model_or_a_clear_error(whole, hurried, tmp_path):
    found = read_all(40, whole, tmp_path)
    assert 4 < found["loaded"] < 20
    assert len(found) > 12


@pytest.mark.slow
def test_load_of_200_mutants_is_a_model_or_a_clear_error(whole, hurried, tmp_path):
    found = read_all(200, whole, tmp_path)
    assert 20 < found["loaded"] < 100
    assert len(found) > 40


LARGE = {
    "unet": {
        "block_out_channels": [2**24] * 2,
        "layers_per_block": 100,
        "cross_attention_dim": 2**24,
        "transformer_layers_per_block": [100, 100],
        "sample_size": 10**9,
    },
    "vae": {"block_out_channels": [8] * 60, "layers_per_block": 2**31, "latent_channels": 2**31},
    "text_encoder": {"hidden_size": 2**24, "num_hidden_layers": 10**9, "max_position_embeddings": 2**24},
    "scheduler": {"num_train_timesteps": 10**12, "steps_offset": 10**12},
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, each in LARGE.items() for name in each])
def test_load_refuses_what_is_absurdly_large_before_it_makes_anything(part, name, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole / "one", folder)
    (file,) = (f for f in mutations.configs(folder / part) if f.name.endswith("config.json"))
    mutations.put(file, name, LARGE[part][name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=rf"(?s){folder}.*{part}"):
        pretrained.load(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIBIBYTE / 4


@pytest.mark.parametrize("part", ["text_encoder", "vae", "unet", "tokenizer", "scheduler"])
def test_load_names_a_part_that_is_not_there(part, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole / "one", folder)
    shutil.rmtree(folder / part)
    with pytest.raises(ValueError, match=rf"{folder}.*{part}"):
        pretrained.load(folder)
