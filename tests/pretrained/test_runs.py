"""Runs on disk: of this version, of the previous one, guided by themselves, of other experiments, damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import generate, model, pretrained
from gen_jax.conditioning import Labels
from gen_jax.diffusion import process
from gen_jax.networks import unet
from gen_jax.pretrained import migration
from tests import described

OLD = Path(__file__).parent / "run_0_1"
"""A run of step10_conditional.py of gen_jax 0.1 (commit ea0c4a2): 20 steps. It drew samples.npz."""


def test_a_run_is_read_back(tmp_path):
    m = described.model(10)
    described.run(tmp_path, m, saved=(1, 2))
    run = pretrained.load_run(tmp_path)
    assert (run.model, run.step, run.options) == (m, 2, {"dataset": "mnist"})
    expected = jax.tree.map(lambda p: p * 1.2, described.weights(m))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run.weights["network"], expected)
    assert set(run.weights) == {"network"}
    again, weights = pretrained.load(tmp_path, dtype=jnp.bfloat16)
    assert again == m
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype("bfloat16")}


def test_config_json_says_how_to_sample(tmp_path):
    m = described.model()
    described.run(tmp_path, m)
    other = dataclasses.replace(m, sampling=model.Sampling("ddim", 7, 1.0))
    (tmp_path / "config.json").write_text(json.dumps({"format": 2, "model": model.to_dict(other)}))
    assert pretrained.load(tmp_path)[0] == other


def test_a_run_of_the_previous_version_draws_the_same_images():
    run = pretrained.load_run(OLD)
    assert run.model.condition == Labels(10, 0.1)
    assert run.model.network == dataclasses.replace(unet.mnist_small, time_scale=1.0, num_classes=10)
    assert run.model.process == process.DDPM(schedule="cosine")
    assert run.model.sampling == model.Sampling("ddim", 4, 1.5)
    assert run.options["dataset"] == "mnist"
    images, labels = generate.sample(run.model, run.weights, jax.random.key(0), 4)
    with np.load(OLD / "samples.npz") as then:
        np.testing.assert_array_equal(labels, then["labels"])
        difference = np.abs(images.astype(int) - then["images"])
    assert difference.max() <= 2
    assert (difference == 0).mean() > 0.98


def test_presets_of_the_previous_version_do_not_follow_those_of_this_one():
    """Their counts of parameters, as gen_jax 0.1 reported them."""
    old = json.loads((OLD / "config.json").read_text()) | {"num_classes": None}
    for preset, classes, channels, count in (
        ("mnist_small", None, 1, 462_428),
        ("mnist_best", 10, 1, 2_423_476),
        ("mnist", None, 1, 2_202_729),
        ("cifar10", None, 3, 35_554_179),
    ):
        config = old | {"preset": preset, "num_classes": classes, "image_shape": [28, 28, channels]}
        m = migration.from_format_1(config, "a run")
        shapes = jax.eval_shape(m.init, jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(shapes)) == count, preset


def test_an_unconditional_run_is_guided_by_its_own_earlier_parameters(tmp_path):
    at = lambda step: described.model(sampling=model.Sampling("ddpm", 4, 2.0, guide_step=step))
    load = lambda name, step, saved: (
        pretrained.load_run(described.run(tmp_path / name, at(step), saved)).weights
    )
    assert "guide" not in load("interrupted", 200, (1, 2, 3))
    assert "guide" not in load("lost", 2, (1, 3))  # nothing left from 2 on but the last
    assert "guide" not in load("single", 1, (0,))
    weights = load("whole", 2, (1, 2, 3))
    weaker = jax.tree.map(lambda p: p * (1.2 / 1.3), weights["network"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weights["guide"], weaker)


def test_runs_of_other_experiments_are_refused(tmp_path):
    config = json.loads((OLD / "config.json").read_text())
    missing = {name: x for name, x in config.items() if name not in ("predicts", "process")}
    with pytest.raises(ValueError, match=r"not a run of a diffusion experiment.* no predicts, process"):
        migration.from_format_1(missing, "a run")
    with pytest.raises(ValueError, match=r"presets mnist_small, .* got 'huge'"):
        migration.from_format_1(config | {"preset": "huge"}, "a run")
    with pytest.raises(ValueError, match="checkpoint"):
        pretrained.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "keeps", "says"),
    [
        (
            {"format": 2, "experiment": "step07_vae", "options": {}},
            False,
            r"a run of step07_vae, .* no diffusion model.* experiments/step07_vae\.py, .* workdir and sample-only",
        ),
        ({"experiment": "autoencoder"}, False, r"a run of autoencoder, .* no diffusion model"),
        ({"format": 2, "experiment": "step09_diffusion"}, True, r"has no model, .* remove config\.json"),
        ({"format": 2, "experiment": "step09_diffusion"}, False, r"a run of step09_diffusion, .*no diff"),
        ({"format": 9, "model": {}}, False, r"of format 9, and this version of gen_jax reads format 2"),
        ({"lr": 1e-3}, False, r"describes no model.* config=launch\.record\("),
    ],
)
def test_a_run_without_a_model_says_what_it_is(tmp_path, config, keeps, says):
    m = described.model()
    described.run(tmp_path, m, **({} if keeps else {"model": None}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=says) as error:
        pretrained.load(tmp_path)
    assert str(error.value).count(f"{tmp_path}: ") == 1
    assert "its format is 2" not in str(error.value)


def test_weights_of_another_network_are_refused(tmp_path):
    """Also where the checkpoint does not say which model it is of."""
    m = described.model()
    described.run(tmp_path, m, model=None)
    wider = dataclasses.replace(m, network=dataclasses.replace(m.network, channels=(16,)))
    (tmp_path / "config.json").write_text(json.dumps({"format": 2, "model": model.to_dict(wider)}))
    with pytest.raises(ValueError, match=r"not those of the network.*expected \(.*, got \("):
        pretrained.load(tmp_path)


OTHERS = {
    "process": lambda m: dataclasses.replace(m, process=process.VP()),
    "predicts": lambda m: dataclasses.replace(m, predicts="eps"),
    "time_scale": lambda m: dataclasses.replace(m, network=dataclasses.replace(m.network, time_scale=1001.0)),
    "blocks": lambda m: dataclasses.replace(m, network=dataclasses.replace(m.network, blocks=10**9)),
    "dropout": lambda m: dataclasses.replace(m, condition=Labels(3, 0.2)),
}


@pytest.mark.parametrize("field", OTHERS)
def test_a_config_of_another_training_is_refused(tmp_path, field):
    """The weights fit it, and would draw something else."""
    m = described.model(3)
    described.run(tmp_path, m)
    (tmp_path / "config.json").write_text(model.to_json(OTHERS[field](m)))
    with pytest.raises(ValueError, match="describes another model than the checkpoints of this run"):
        pretrained.load(tmp_path)


def test_names_of_classes_may_change(tmp_path):
    m = described.model(2)
    described.run(tmp_path, m)
    named = dataclasses.replace(m, condition=Labels(2, names=("cats", "dogs")))
    (tmp_path / "config.json").write_text(model.to_json(named))
    assert pretrained.load(tmp_path)[0] == named


def test_a_damaged_config_says_so(tmp_path):
    described.run(tmp_path, described.model())
    deep = '{"a":' * 10**5
    texts = "", "{", "[]", '{"format": 2, "model": {"type": "Model"}}', '{"format": 9, "model": {}}', deep
    for text in texts:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json|model|format") as error:
            pretrained.load(tmp_path)
        assert str(error.value).count(str(tmp_path)) == 1
        assert ".." not in str(error.value)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ValueError, match=r"config\.json can not be read: .*there is none"):
        pretrained.load(tmp_path)


def test_a_moved_run_is_read(tmp_path):
    shutil.copytree(OLD, tmp_path / "moved")
    assert pretrained.load_run(tmp_path / "moved").step == 20
