"""Latent diffusion as a user runs it, small: what it leaves behind, going on between its stages, wrong input."""

import dataclasses
import importlib
import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from gen_jax import generate, launch, model, pretrained
from gen_jax.codec import Latents
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.unet import UNetConfig
from tests import described, gcs

TINY = AutoencoderKLConfig(
    1, 1, channels=(4,), blocks=1, latent_channels=2, middle_attention=False, groups=4, patch=4
)
FLAGS = "--steps 4 --batch-size 16 --num 3 --nfe 3 --steps-per-call 2 --checkpoint-every 2 --log-every 2 --judged 24"


@pytest.fixture(scope="module", autouse=True)
def small():
    """Data, networks, and a judge that is not trained: it sees pixels."""
    from configs import step09
    from configs import step10_latent_diffusion as configs

    judging, recipes = importlib.import_module("judging"), importlib.import_module("recipes")
    patch = pytest.MonkeyPatch()
    patch.setattr(recipes, "seconds_a_step", lambda *args: 1.0)  # three programs less to compile
    training = launch.Training(batch_size=16)
    pixels = dataclasses.replace(step09.PRESETS["mnist_small"], network=described.SMALL, training=training)
    patch.setitem(step09.PRESETS, "mnist_small", pixels)
    config = dataclasses.replace(
        configs.PRESETS["mnist"],
        network=UNetConfig(channels=(8,), groups=4, embedding=16, dense_skips=False),
        autoencoder=TINY,
    )
    patch.setitem(configs.PRESETS, "mnist", config)
    read = lambda images: (np.eye(10)[: len(images)], images[:, ::7, ::7].reshape(len(images), -1) / 255.0)
    patch.setattr(judging, "train", lambda *args, **options: judging.Judge(read, 1.0, np.ones(10)))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small data set with labels, and a test set."""
    path, rng = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for split, num in (("train", 64), ("test", 32)):
        for i in range(num):
            place = path / split / str(i % 3)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(place / f"{i}.png")
    return path


def main(workdir, digits, *more):
    step10 = importlib.import_module("step10_latent_diffusion")
    flags = (
        f"{FLAGS} --autoencoder-steps 4 --autoencoder-batch-size 16 --workdir {workdir} --dataset {digits}"
    )
    return step10.main(step10.parse([*flags.split(), *more]))


def stamps(directory):
    return {path.name: path.stat().st_mtime_ns for path in (directory / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits):
    """A run that was killed between its stages, and went on: its directory, its summary, and stamps of the first part."""
    workdir, step09 = tmp_path_factory.mktemp("latent"), importlib.import_module("step09_diffusion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step09, "learn", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(workdir, digits, "--no-compare")
    before = stamps(workdir / "autoencoder")
    return workdir, main(workdir, digits, "--no-compare"), before


def check_pictures(workdir, names):
    for name in names:
        with Image.open(workdir / f"{name}.png") as image:
            assert np.asarray(image.convert("L")).std() > 0


def test_it_leaves_everything_it_promises(run):
    workdir, summary, _ = run
    assert json.loads((workdir / "summary.json").read_text()) == summary
    check_pictures(workdir, ("forward", "loss", "samples", "denoising", "autoencoder/reconstructions"))
    assert np.load(workdir / "samples.npy").shape == (3, 28, 28, 1)
    autoencoder = summary["autoencoder"]
    assert autoencoder == json.loads((workdir / "autoencoder" / "summary.json").read_text())
    assert set(autoencoder) == {"scale", "shift", "psnr", "kl_nats"}
    assert np.isfinite(list(autoencoder.values())).all()


def test_killed_between_its_stages_it_goes_on(run):
    workdir, summary, before = run
    assert summary["steps"] == 4
    assert stamps(workdir / "autoencoder") == before
    assert len(list((workdir / "latents").iterdir())) == 1
    assert not {"pixel", "latent", "seconds"} & set(summary)


@pytest.mark.slow
def test_pixels_and_latents_are_compared(tmp_path, digits):
    summary = main(tmp_path, digits)
    check_pictures(tmp_path, ["pixel_latent"])
    assert np.isfinite(summary["autoencoder"]["frechet_distance"])
    for side in ("pixel", "latent"):
        assert np.isfinite(list(summary[side].values())).all()
        for name in ("frechet_distance", "seconds_a_sample", "flops_of_evaluation"):
            assert summary[side][name] > 0
    assert summary["pixel"]["flops_of_evaluation"] > summary["latent"]["flops_of_evaluation"]
    assert summary["pixel"]["flops_of_decoding"] < summary["latent"]["flops_of_decoding"]
    assert summary["seconds"] == json.loads((tmp_path / "times.json").read_text())
    assert summary["pixel"]["steps"] == 10
    assert pretrained.load_run(tmp_path / "pixels").model.network.channels == described.SMALL.channels


@pytest.mark.slow
def test_a_run_that_was_killed_is_one_that_was_not_to_the_bit(tmp_path, digits, run):
    main(tmp_path, digits, "--no-compare")
    both = (jax.tree.leaves(pretrained.load(path)[1]) for path in (tmp_path, run[0]))
    for ours, other in zip(*both, strict=True):
        np.testing.assert_array_equal(ours, other)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_one_here_to_the_bit(tmp_path, digits, run, monkeypatch):
    """With its data there too, and an autoencoder that is copied; of another machine, which has no latents yet."""
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path))
    with gcs.reached() as bucket:
        bucket.put_all("digits", digits)
        bucket.put_all("autoencoder", run[0] / "autoencoder")
        monkeypatch.chdir(tmp_path)
        url = f"{bucket.url}/run"
        summary = main(
            url, f"{bucket.url}/digits", "--no-compare", "--autoencoder", f"{bucket.url}/autoencoder"
        )
        there = {name.removeprefix(f"{bucket.bucket}/run/").split("/")[0] for name in bucket.names()}
        assert json.loads(bucket.objects[f"{bucket.bucket}/run/summary.json"].data) == summary
        weights = pretrained.load(url)[1]
        main(url, f"{bucket.url}/digits", "--sample-only", "--num", "2")
        samples = np.load(io.BytesIO(bucket.objects[f"{bucket.bucket}/run/samples.npy"].data))
    assert samples.shape == (2, 28, 28, 1)
    assert {path.name for path in run[0].iterdir()} - {".lock"} <= there
    assert not list(tmp_path.glob("gs:*"))
    for ours, other in zip(*map(jax.tree.leaves, (weights, pretrained.load(run[0])[1])), strict=True):
        np.testing.assert_array_equal(ours, other)


def test_pixels_are_trained_for_as_long_as_the_autoencoder_and_the_latents():
    step10 = importlib.import_module("step10_latent_diffusion")
    config = step10.parse(["--steps", "1000", "--autoencoder-steps", "400"])
    seconds = {"autoencoder_step": 0.3, "encoding": 20.0, "latent_step": 0.1, "pixel_step": 0.2}
    assert step10.equal_steps(config, seconds) == (400 * 0.3 + 20 + 1000 * 0.1) / 0.2


def test_the_run_describes_its_model_and_anyone_draws_the_same(run):
    workdir, summary, _ = run
    found = pretrained.load_run(workdir)
    scale, shift = (summary["autoencoder"][name] for name in ("scale", "shift"))
    assert found.model.codec == Latents((7, 7, 2), scale, shift, autoencoder=TINY)
    images, _ = generate.sample(found.model, found.weights, jax.random.key(0), 3)
    np.testing.assert_array_equal(images, np.load(workdir / "samples.npy"))


def test_it_takes_an_autoencoder_that_is_trained(tmp_path, digits, run):
    latents = importlib.import_module("latents")
    step10 = importlib.import_module("step10_latent_diffusion")
    whole = run[0]
    flags = f"--dataset {digits} --workdir {tmp_path} --autoencoder {whole / 'autoencoder'}".split()
    config = step10.parse(flags)
    encoded = latents.encode(config, config.data.source())
    assert stamps(tmp_path / "autoencoder") == stamps(whole / "autoencoder")
    assert encoded.source.arrays["latent"].shape == (64, 7, 7, 2)
    other = step10.parse([*flags, "--autoencoder", str(digits), "--workdir", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="directory of a trained autoencoder"):
        latents.encode(other, other.data.source())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--image-size 30", "4 must divide height and width"),
        ("--prompt zero", "unconditional"),
        ("--label 1", "unconditional"),
        ("--labels --label 3", r"from 0 to 2 .*got 3"),
        ("--num 0", "at least 1 sample, got 0"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(tmp_path, digits, flags, said):
    with pytest.raises(ValueError, match=said):
        main(tmp_path / "run", digits, *flags.split())
    assert not (tmp_path / "run").exists()


def test_presets_are_complete_descriptions(digits):
    """A model of each survives its own file, with labels and in colour."""
    from configs import step10_latent_diffusion as configs

    step10 = importlib.import_module("step10_latent_diffusion")
    for name, config in configs.PRESETS.items():
        assert config.preset == name
        assert step10.parse(["--preset", name]) == config
        fitted = step10.of_channels(dataclasses.replace(config, labels=True), 3)
        info = dataclasses.replace(fitted.data.source().info(), image_shape=(32, 32, 3))
        codec = Latents((8, 8, 2), 1.5, 0.5, autoencoder=fitted.autoencoder)
        made = step10.make_model(fitted, info, codec)
        assert made.codec.image_shape == (32, 32, 3)
        assert model.from_json(model.to_json(made)) == made
