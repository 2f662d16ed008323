"""The experiments of step 10 and the command, on networks that are small, and mostly as they came into the world."""

import dataclasses
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gen_jax import cli, launch, model, pretrained, training
from gen_jax.conditioning import Labels
from tests import described


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    m = described.model(10, sampling=model.Sampling("unipc", 4, 1.5))
    return described.run(tmp_path_factory.mktemp("conditional"), m)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return described.run(tmp_path_factory.mktemp("unconditional"), described.model())


def pictures(workdir):
    names = set()
    for path in workdir.glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1
        names.add(path.name)
    return names


@pytest.mark.slow  # a network to compile for training; in CI: step 9's, and its parts here
def test_conditional_trains_and_draws_its_classes(tmp_path, monkeypatch):
    from configs import step09 as configs

    small = dataclasses.replace(configs.PRESETS["mnist_small"], network=described.SMALL)
    monkeypatch.setitem(configs.PRESETS, "mnist_small", small)
    step10 = importlib.import_module("step10_conditional")
    flags = "--steps 4 --batch-size 16 --num 3 --nfe 4 --steps-per-call 2 --checkpoint-every 2 --log-every 2"
    summary = step10.main(step10.parse([*flags.split(), "--workdir", str(tmp_path)]))
    assert np.isfinite(summary["loss"])
    assert {"classes.png", "interpolation.png", "samples.png", "loss.png"} <= pictures(tmp_path)
    assert np.load(tmp_path / "labels.npy").shape == (3,)
    assert json.loads((tmp_path / "config.json").read_text())["experiment"] == "step10_conditional"


def test_conditional_draws_pictures_of_classes_and_between_noises(conditional, tmp_path):
    step10 = importlib.import_module("step10_conditional")
    run, config = pretrained.load_run(conditional), step10.parse(["--workdir", str(tmp_path), "--nfe", "4"])
    assert (config.labels, config.defaults) == (True, model.Sampling("unipc", 12, 1.5))
    step10.save_classes(config, run, rows=2)
    step10.save_interpolation(config, run, rows=2, columns=3)
    assert pictures(tmp_path) == {"classes.png", "interpolation.png"}
    with pytest.raises(ValueError, match=r"step09_diffusion\.py"):
        step10.main(dataclasses.replace(config, labels=False))


def test_classifier_free_guidance_measures_every_weight(conditional, unconditional, tmp_path, monkeypatch):
    step10, judging = (
        importlib.import_module(name) for name in ("step10_classifier_free_guidance", "judging")
    )
    read = lambda images: (
        np.eye(10)[np.arange(len(images)) % 10 if len(images) else []],
        images.reshape(len(images), -1) / 255.0,
    )
    monkeypatch.setattr(judging, "train", lambda *args, **options: judging.Judge(read, 1.0, np.full(10, 2.0)))
    config = step10.Config(conditional, tmp_path, weights=(0.0, 2.0), nfe=4, num=30, interval=(100.0, 900.0))
    summary = step10.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "config.json").read_text())["options"]["num"] == 30
    assert pictures(tmp_path) == {"weights.png", "trade.png", "law.png"}
    assert summary["accuracy"] == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"train step10_conditional\.py first"):
        step10.main(step10.Config(unconditional, tmp_path))


def test_law_of_guided_samples_is_the_conditional_one_at_weight_1_alone():
    """On two normals: means by the density on the grid against means of the samples, whose error is 0.01."""
    step10 = importlib.import_module("step10_classifier_free_guidance")
    for weight, same in ((1.0, True), (3.0, False)):
        found = step10.law(weight, n=5000)
        assert abs((found["grid"] * found["conditional"]).sum() * 0.01 - 1) < 1e-3
        mean = (found["grid"] * found["tilted"]).sum() * 0.01
        assert (abs(found["samples"].mean() - mean) < 0.04) == same


def test_diversity_is_the_mean_distance_within_a_class():
    judging = importlib.import_module("judging")
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(30, 4)).astype(np.float32), np.repeat([0, 1, 1], 10)
    distances = lambda x: [np.linalg.norm(a - b) for i, a in enumerate(x) for b in x[i + 1 :]]
    found = judging.diversity(x, label, 3)
    np.testing.assert_allclose(found[:2], [np.mean(distances(x[label == k])) for k in (0, 1)], rtol=1e-4)
    assert np.isnan(found[2])


@pytest.mark.slow  # two networks to compile; in CI: the guidance and the loss in tests/test_guidance.py
def test_classifier_guidance_trains_and_leads(unconditional, conditional, tmp_path):
    step10 = importlib.import_module("step10_classifier_guidance")
    config = step10.Config(
        unconditional,
        tmp_path,
        training=launch.Training(steps=4, batch_size=16),
        channels=(4, 8),
        run=training.Options(steps_per_call=2),
        sampling=launch.Sampling(num=12, nfe=4, solver="unipc", guidance=2.0),
    )
    summary = step10.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert {"loss.png", "accuracy.png", "classes.png", "weights.png"} <= pictures(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), np.arange(12) % 10)
    threes = dataclasses.replace(config.sampling, sample_only=True, label=3, num=2)
    step10.main(dataclasses.replace(config, sampling=threes))
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [3, 3])
    with pytest.raises(ValueError, match="knows labels"):
        step10.main(dataclasses.replace(config, checkpoint=conditional))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--num", "0"], "num must be at least 1 sample, got 0"),
        (["--label", "77"], "from 0 to 9, got 77"),
        (["--solver", "eulr"], "Did you mean euler"),
        (["--channels"], "--channels takes a number for each resolution"),
    ],
)
def test_classifier_guidance_looks_at_its_options_before_training(
    unconditional, flags, said, tmp_path, monkeypatch
):
    step10 = importlib.import_module("step10_classifier_guidance")
    monkeypatch.setattr(training, "fit", lambda *args, **options: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=said):
        step10.main(step10.parse(["--checkpoint", str(unconditional), "--workdir", str(tmp_path), *flags]))


@pytest.mark.slow  # five samplers to compile; in CI: tests/test_inverse.py
def test_inpainting_keeps_what_is_known(unconditional, tmp_path):
    step10 = importlib.import_module("step10_inpainting")
    summary = step10.main(step10.Config(unconditional, tmp_path, num=2, nfe=4, resample=2))
    assert pictures(tmp_path) == {"half.png", "centre.png", "scattered.png", "superresolution.png"}
    assert json.loads((tmp_path / "config.json").read_text())["experiment"] == "step10_inpainting"
    for name in ("half", "centre", "scattered"):
        for method in ("replacement", "RePaint"):
            assert summary[f"{name}_{method}_known"] < 1e-6
            assert summary[f"{name}_{method}_hidden"] > 0


def test_the_command_samples_and_says_what_is_wrong(conditional, unconditional, tmp_path, capsys):
    out = tmp_path / "deep" / "eights.npy"
    draw = lambda where, *flags: cli.main(["sample", str(where), "--num", "2", *flags])
    draw(conditional, "--label", "8", "--out", str(out))
    assert np.load(out).shape == (2, *described.SHAPE)
    assert "2 images of the labels 8" in capsys.readouterr().out
    draw(conditional, "--out", str(tmp_path / "all.png"))
    assert pictures(tmp_path) == {"all.png"}
    for arguments, said in (
        ((unconditional, "--label", "3"), "this model is unconditional"),
        ((unconditional, "--guidance", "3"), "nothing to be guided by"),
        ((conditional, "--label", "12"), "from 0 to 9, got 12"),
        ((tmp_path / "none",), "does not exist: train first"),
        ((tmp_path / "depe",), r"depe does not exist: .* Did you mean deep\?"),
        ((tmp_path / "all.png",), "is neither the directory of a run, nor"),
        ((tmp_path / "deep",), "no checkpoint in"),
        ((conditional, "--label", "eight"), "its classes have no names. Got 'eight'"),
        ((conditional, "--solver", "rk4"), "rk4"),
        ((conditional, "--out", "x.jpg"), "must end in .png or .npy"),
    ):
        with pytest.raises(SystemExit, match=said):
            draw(*arguments)


def test_the_command_knows_the_names_of_classes(tmp_path, capsys):
    m = described.model(2, condition=Labels(2, names=("cats", "dogs")))
    run, out = described.run(tmp_path / "run", m), tmp_path / "out.npy"
    draw = lambda *flags: cli.main(["sample", str(run), "--num", "2", "--out", str(out), *flags])
    draw("--label", "dogs")
    named = np.load(out)
    assert "2 images of the labels dogs" in capsys.readouterr().out
    draw("--label", "1")
    np.testing.assert_array_equal(np.load(out), named)
    with pytest.raises(
        SystemExit, match=r"cats, dogs, or a number from 0 to 1\. Got 'dog'\. Did you mean dogs"
    ):
        draw("--label", "dog")


def test_the_command_draws_as_the_run_says(conditional, tmp_path):
    said, spelt = tmp_path / "said.npy", tmp_path / "spelt.npy"
    cli.main(["sample", str(conditional), "--num", "2", "--out", str(said)])
    flags = ["--solver", "unipc", "--nfe", "4", "--guidance", "1.5"]
    cli.main(["sample", str(conditional), "--num", "2", "--out", str(spelt), *flags])
    np.testing.assert_array_equal(np.load(said), np.load(spelt))
    cli.main(["sample", str(conditional), "--num", "2", "--out", str(spelt), "--guidance", "3"])
    assert not np.array_equal(np.load(said), np.load(spelt))


def test_the_command_helps_without_jax():
    """Nothing that takes long to import is imported for it."""
    code = "import sys; from gen_jax import cli\ntry: cli.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sample" in done.stdout
