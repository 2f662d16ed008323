"""Stable Diffusion into files: they are those that were read, diffusers reads them, and nothing is half written."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from gen_jax import pretrained
from gen_jax.codec import Pixels
from gen_jax.diffusion.process import DDPM, VP
from gen_jax.model import Sampling
from gen_jax.networks import unet
from gen_jax.pretrained import components, configs, schedulers
from gen_jax.samplers import Schedule
from tests import small_folder, tiny_sd
from tests.pretrained import stable_diffusion as sd

PARTS = tuple(sd.FILES)
NAMES = {"dtype": "torch_dtype"}
MARKS = ("_diffusers_version", "transformers_version", "backend", "is_local", "local_files_only")

SOLVED = {
    s
    for each in schedulers.SOLVERS.values()
    for s in (each.values() if isinstance(each, dict) else [each])
    if s
}


@functools.cache
def load(name):
    return pretrained.load(tiny_sd.ROOT / name)


@pytest.fixture(scope="module", params=sd.MODELS)
def saved(request, tmp_path_factory):
    """The name of a tiny model, and a folder with "folder" and "one.safetensors" that `save` made of it."""
    root = tmp_path_factory.mktemp(request.param)
    pretrained.save(root / "folder", *load(request.param))
    pretrained.save(root / "one.safetensors", *load(request.param), layout="single")
    return request.param, root


def equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def normal(tensors, keep=False):
    """The tensors by the names of new files; of position_ids if `keep`."""
    name = lambda key: key if key.startswith("text_") else f"text_model.{key}"
    return {key if keep else name(key): x for key, x in tensors.items() if keep or "position_ids" not in key}


@tiny_sd.needs_fixtures
def test_save_is_the_inverse_of_load(saved):
    """Both layouts give the same description and the same bits again."""
    name, root = saved
    m, weights = load(name)
    for path, options in (("folder", {}), ("one.safetensors", {"config": root / "folder"})):
        again, read = pretrained.load(root / path, **options)
        assert again == m
        equal(read, weights)
    assert sorted(p.name for p in root.iterdir()) == ["folder", "one.safetensors"]


@tiny_sd.needs_fixtures
def test_save_writes_the_tensors_that_were_read(saved):
    """Key by key, byte by byte, in the folder and in the one file."""
    name, root = saved
    files = [(root / "folder" / sd.FILES[p], tiny_sd.ROOT / name / sd.FILES[p], p) for p in PARTS]
    files.append((root / "one.safetensors", tiny_sd.ROOT / f"{name}.safetensors", "one"))
    for ours, theirs, part in files:
        if theirs.exists():
            found, expected = (normal(tiny_sd.tensors(f), "text" not in part) for f in (ours, theirs))
            assert set(found) == set(expected)
            for key, tensor in expected.items():
                assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape), key
                assert found[key].tobytes() == tensor.tobytes(), key


@tiny_sd.needs_fixtures
def test_save_writes_the_configurations_that_were_read(saved):
    """But for what says which library wrote them."""
    name, root = saved
    for theirs in sorted((tiny_sd.ROOT / name).rglob("*.json")):
        ours = root / "folder" / theirs.relative_to(tiny_sd.ROOT / name)
        if theirs.name == "tokenizer.json":  # the newer form of vocab.json and merges.txt
            continue
        found, expected = (json.loads(f.read_text()) for f in (ours, theirs))
        if theirs.name == "scheduler_config.json":  # theirs states the defaults too
            assert schedulers.read(found) == schedulers.read(expected)
        else:
            expected = {NAMES.get(k, k): value for k, value in expected.items() if k not in MARKS}
            assert {k: found.get(k) for k in expected} == expected, theirs


@tiny_sd.needs_fixtures
def test_save_writes_half_precision_as_it_is(tmp_path):
    m, weights = pretrained.load(tiny_sd.ROOT / "tiny-sd15", dtype="bfloat16")
    pretrained.save(tmp_path / "folder", m, weights)
    again, read = pretrained.load(tmp_path / "folder", dtype="bfloat16")
    assert again == m
    equal(read, weights)
    config = json.loads((tmp_path / "folder/text_encoder/config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert {str(x.dtype) for x in tiny_sd.tensors(tmp_path / "folder" / sd.FILES["unet"]).values()} == {
        "bfloat16"
    }


@tiny_sd.needs_fixtures
def test_save_refuses_what_is_there_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    m, weights = load("tiny-sd15")
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there already: take another name"):
        pretrained.save(tmp_path / "there", m, weights)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("gen_jax.text.files.write", fail)
    with pytest.raises(OSError, match="no space"):
        pretrained.save(tmp_path / "new", m, weights)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codec": Pixels((8, 8, 3))}, "codec of this model is of Pixels"),
        ({"sampling.schedule": None, "process": VP()}, "process of a Stable Diffusion is DDPM"),
        ({"network.time_offset": 0.0}, r"model.network.time_offset is 0.0 \(one reads -1.0\)"),
        ({"network.sinusoid_cosines_first": False}, "network.sinusoid_cosines_first is False"),
        ({"sampling.solver": "heun_churn"}, "no scheduler of the solver 'heun_churn'"),
        ({"condition.sizes": (1.0,) * 6}, "vector"),
        ({"predicts": "velocity"}, "predicts is 'velocity'"),
    ],
)
def test_save_refuses_models_that_files_can_not_hold(change, says, tmp_path):
    """It names the part and the value, and writes nothing."""
    m, weights = load("tiny-sd15")
    for name, value in change.items():
        part, _, field = name.partition(".")
        m = replace(m, **{part: replace(getattr(m, part), **{field: value}) if field else value})
    with pytest.raises(ValueError, match=says):
        pretrained.save(tmp_path / "new", m, weights)
    assert not list(tmp_path.iterdir())


@tiny_sd.needs_fixtures
def test_save_refuses_other_weights(tmp_path):
    m, weights = load("tiny-sd15")
    with pytest.raises(ValueError, match="have preview"):
        pretrained.save(tmp_path / "new", m, weights | {"preview": {}})
    with pytest.raises(ValueError, match=r"weights\['text'\]"):
        pretrained.save(tmp_path / "new", m, {k: x for k, x in weights.items() if k != "text"})
    with pytest.raises(ValueError, match="unet: the weights are not those of this model"):
        pretrained.save(
            tmp_path / "new", m, weights | {"network": jax.tree.map(lambda x: x[:1], weights["network"])}
        )
    with pytest.raises(ValueError, match="layout must be"):
        pretrained.save(tmp_path / "new", m, weights, layout="ldm")


@tiny_sd.needs_fixtures
def test_save_of_one_file_marks_what_it_predicts(tmp_path):
    """`v_pred` and `ztsnr`, as web UIs have them, which `load` reads."""
    m, weights = load("tiny-sdxl")
    m = replace(m, predicts="v", process=replace(m.process, zero_terminal_snr=True))
    pretrained.save(tmp_path / "one.safetensors", m, weights, layout="single")
    shapes = pretrained.safetensors.read(tmp_path / "one.safetensors").shapes
    assert (shapes["v_pred"], shapes["ztsnr"]) == ((0,), (0,))


@pytest.mark.parametrize("solver", sorted(SOLVED))
def test_schedulers_write_is_the_inverse_of_read(solver):
    for predicts, schedule in (("eps", Schedule()), ("v", Schedule("trailing", 1, False, True))):
        process = DDPM(500, "linear", 0.001, 0.01, zero_terminal_snr=predicts == "v")
        written = schedulers.write(process, predicts, schedule, solver)
        assert schedulers.read(written) == (process, predicts, schedule, solver)


def test_a_distilled_model_is_what_it_was_after_save_and_load(tmp_path):
    """With the input of its network, and the solver, steps and guidance of its pipeline."""
    schedule = Schedule("leading", 1, False, original_steps=25)
    network = replace(small_folder.NETWORK, guidance_features=6)
    m = small_folder.model(network=network, sampling=Sampling("lcm", 4, 8.5, schedule=schedule))
    weights = small_folder.weights(m)
    pretrained.save(tmp_path / "lcm", m, weights)
    again, read = pretrained.load(tmp_path / "lcm")
    assert again == m
    equal(read, weights)


@pytest.mark.parametrize("config", [unet.sd15, unet.sd21, unet.sdxl, unet.sdxl_refiner])
def test_configs_unet_is_the_inverse_of_components(config):
    config = replace(config, guidance_features=256)
    written = configs.unet(config, channels=4, side=64, size_features=256)
    assert components.unet(json.loads(json.dumps(written))) == config


@tiny_sd.needs_fixtures
def test_diffusers_loads_what_save_wrote(saved):
    """The bits of the folder that was read, in every part; and what was computed with it, on other machines too."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    name, root = saved
    found = np.load(tiny_sd.ROOT / name / "expected.npz")
    pipe, before = map(diffusers.DiffusionPipeline.from_pretrained, (root / "folder", tiny_sd.ROOT / name))
    for part in (part for part in PARTS if hasattr(pipe, part)):
        ours, theirs = (getattr(each, part).state_dict() for each in (pipe, before))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    x, t, context = (torch.tensor(found[key]) for key in ("latents", "unet_t", "unet_context"))
    added = {
        key: torch.tensor(found[f"unet_{key}"])
        for key in ("text_embeds", "time_ids")
        if f"unet_{key}" in found
    }
    with torch.no_grad():
        out = pipe.unet(x, t, context, added_cond_kwargs=added).sample.numpy()
        text = pipe.text_encoder(torch.tensor(found["input_ids"])).last_hidden_state.numpy()
        image = pipe.vae.decode(x).sample.numpy()
    for ours, key in ((out, "unet_out"), (text, "text_last"), (image, "vae_decoded")):
        assert sd.relative(ours, found[key]) < 1e-5
    ids = pipe.tokenizer(["a large red seven above a small blue three"], padding="max_length").input_ids
    np.testing.assert_array_equal(ids, found["input_ids"][:1])
