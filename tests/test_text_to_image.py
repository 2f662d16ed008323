"""The experiment of text to image on a folder of a user's pictures, with networks that are small."""

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax import cli, launch, pretrained
from gen_jax.conditioning import Text
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.unet import UNetConfig
from tests import described

FIGURES = ("guidance", "attention", "interpolation", "negative")
TEXTS = ["a red square", "a blue square", "a green square"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    for i in range(12):
        image = np.zeros((16, 16, 3), np.uint8)
        image[4:12, 4:12, i % 3] = 200 + i
        Image.fromarray(image).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(TEXTS[i % 3])
    return place


@pytest.fixture(scope="module")
def step10():
    return importlib.import_module("step10_text_to_image")


def config_of(step10, folder, workdir, **changes):
    flags = "--steps 4 --batch-size 8 --num 3 --nfe 2 --solver ddim --steps-per-call 2 --log-every 2"
    sizes = "--text-length 8 --text-features 16 --text-layers 1 --text-merges 8"
    coding = "--autoencoder-steps 2 --autoencoder-batch-size 8"
    config = step10.parse(
        [*flags.split(), *sizes.split(), *coding.split(), "--dataset", str(folder), "--workdir", str(workdir)]
    )
    autoencoder = AutoencoderKLConfig(channels=(4,), blocks=1, latent_channels=2, groups=2, patch=2)
    network = UNetConfig(channels=(4,), depth=(1,), heads=2, embedding=8, groups=2, dense_skips=False)
    small = dataclasses.replace(autoencoder, middle_attention=False)
    return dataclasses.replace(config, autoencoder=small, network=network, **changes)


@pytest.fixture(scope="module")
def trained(step10, folder, tmp_path_factory):
    """A run, of whose figures CI draws one: the others have a program of their own each."""
    workdir, prompting = tmp_path_factory.mktemp("run"), importlib.import_module("prompting")
    captions = lambda directory, run, texts, seed: prompting.save_captions(
        directory / "captions.png", run, texts, seed
    )
    config = config_of(step10, folder, workdir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompting, "save_all", captions)
        yield config, step10.main(config)


slow_run = pytest.mark.slow
"""In CI: the run of tests/test_step10_latent.py, and a model with texts in tests/test_text_model.py."""


@slow_run
def test_it_leaves_everything_it_promises(trained):
    config, summary = trained
    workdir = config.workdir
    assert np.isfinite(summary["loss"])
    assert np.load(workdir / "samples.npy").shape == (3, 16, 16, 3)
    assert set(json.loads((workdir / "captions.json").read_text())) <= set(TEXTS)
    check_pictures(workdir, ("samples", "denoising", "loss", "captions"))
    coded = json.loads((workdir / "autoencoder" / "summary.json").read_text())
    assert np.isfinite(list(coded.values())).all()


def check_pictures(directory, names):
    for name in names:
        with Image.open(directory / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 1, name


@slow_run
def test_figures_show_something(trained, tmp_path):
    run = pretrained.load_run(trained[0].workdir)
    prompting = importlib.import_module("prompting")
    prompting.save_guidance(tmp_path / "guidance.png", run, TEXTS[0], 0)
    prompting.save_attention(tmp_path / "attention.png", run, TEXTS[0], 0)
    prompting.save_interpolation(tmp_path / "interpolation.png", run, (TEXTS[0], TEXTS[1]), 0)
    prompting.save_negative(tmp_path / "negative.png", run, TEXTS, 0)
    check_pictures(tmp_path, FIGURES)


@slow_run
def test_the_run_describes_itself(trained):
    run = pretrained.load_run(trained[0].workdir)
    assert isinstance(run.model.condition, Text)
    assert set(run.weights) == {"network", "text", "autoencoder"}
    assert run.model.codec.image_shape == (16, 16, 3)


@slow_run
def test_the_same_command_goes_on_and_trains_nothing_again(step10, trained, capfd):
    config, _ = trained
    stamps = lambda: {p: p.stat().st_mtime_ns for p in (config.workdir / "latents").rglob("*.npy")}
    before, params = stamps(), jax.tree.leaves(pretrained.load_run(config.workdir).weights)
    step10.main(config)
    assert capfd.readouterr().out.count("already complete") == 2
    assert stamps() == before
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.leaves(pretrained.load_run(config.workdir).weights), params
    )


@slow_run
def test_prompts_of_a_file_are_drawn_by_both_commands(step10, trained, tmp_path):
    config, _ = trained
    file, out = tmp_path / "prompts.txt", tmp_path / "out.npy"
    file.write_text("a red square\na blue square\n")
    asked = dataclasses.replace(config.sampling, sample_only=True, prompts=file)
    step10.main(dataclasses.replace(config, sampling=asked))
    images = np.load(config.workdir / "samples.npy")
    assert images.shape == (2, 16, 16, 3)
    assert json.loads((config.workdir / "captions.json").read_text()) == ["a red square", "a blue square"]
    flags = ["--prompts", str(file), "--nfe", "2", "--solver", "ddim", "--out", str(out)]
    cli.main(["sample", str(config.workdir), *flags])
    np.testing.assert_array_equal(np.load(out), images)


def test_what_can_not_be_is_said_before_any_training(step10, folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for i in range(8):
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(bare / f"{i}.png")
    sized = launch.Data(str(folder), image_size=15)
    workdir = tmp_path / "run"
    config = config_of(step10, folder, workdir)
    both = dataclasses.replace(config.sampling, prompt="a", prompts=tmp_path / "x.txt")
    missing = dataclasses.replace(config.sampling, prompts=tmp_path / "x.txt")
    cases = [
        ({"data": launch.Data(str(bare))}, "no captions"),
        ({"data": sized}, "2 must divide height and width"),
        ({"sampling": both}, "not both"),
        ({"sampling": missing}, "expected a text file"),
        ({"sampling": dataclasses.replace(config.sampling, label=3)}, "give it a prompt"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            step10.main(config_of(step10, folder, workdir, **changes))
    assert not workdir.exists()


def test_a_prompt_for_a_model_that_can_not_read_is_refused(tmp_path, capsys):
    described.run(tmp_path, described.model())
    with pytest.raises(SystemExit, match="unconditional"):
        cli.main(["sample", str(tmp_path), "--prompt", "a red square"])
