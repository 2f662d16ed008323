"""Step 9 as a user runs it, small: what it leaves behind, going on, sampling again, wrong flags."""

import dataclasses
import json
import random
import signal
import subprocess
import time

import jax
import numpy as np
import optax
import pytest
import step09_diffusion as step09
from jax.sharding import Mesh
from PIL import Image

from gen_jax import data, generate, keys, launch, model, pretrained, training
from tests import described
from tests.programs import judged, start


@pytest.fixture(scope="module", autouse=True)
def small_network():
    """A preset whose network is small enough for a test."""
    from configs import step09 as configs

    before = configs.PRESETS["mnist_small"]
    configs.PRESETS["mnist_small"] = dataclasses.replace(before, network=described.SMALL)
    yield
    configs.PRESETS["mnist_small"] = before


def arguments(workdir, *more):
    flags = "--steps 4 --batch-size 16 --num 3 --nfe 3 --steps-per-call 2 --checkpoint-every 2 --log-every 2"
    return [*flags.split(), "--workdir", str(workdir), *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: its directory and its summary."""
    workdir = tmp_path_factory.mktemp("step09")
    return workdir, step09.main(step09.parse(arguments(workdir)))


@pytest.fixture
def plain(monkeypatch):
    """Without the picture of denoising, which `run` draws: a sampler more to compile."""
    monkeypatch.setattr(step09.pictures, "save_denoising", lambda *args: None)


def draw(workdir, *more):
    step09.main(step09.parse(["--sample-only", "--workdir", str(workdir), *more]))
    return np.load(workdir / "samples.npy")


def test_it_leaves_everything_it_promises(run):
    workdir, summary = run
    for name in ("forward", "loss", "samples", "denoising"):
        with Image.open(workdir / f"{name}.png") as image:
            assert min(image.size) > 28
            assert np.asarray(image.convert("L")).std() > 0
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["steps"] == 4
    config = json.loads((workdir / "config.json").read_text())
    assert config["options"]["batch_size"] == 16
    assert config["experiment"] == "step09_diffusion"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert np.isfinite([line["loss"] for line in lines]).all()
    samples = np.load(workdir / "samples.npy")
    assert samples.shape == (3, 28, 28, 1)
    assert samples.dtype == np.uint8


def test_the_run_describes_its_model_and_anyone_draws_the_same(run):
    """The experiment, the library and the command: one key, the same images."""
    workdir, _ = run
    found = pretrained.load_run(workdir)
    assert found.model.network == dataclasses.replace(described.SMALL, time_scale=1.0)
    assert found.model.sampling == model.Sampling("ddpm", 3, 2.0, guide_step=1)
    images, _ = generate.sample(found.model, found.weights, jax.random.key(0), 3)
    np.testing.assert_array_equal(images, np.load(workdir / "samples.npy"))


@pytest.mark.usefixtures("plain")
def test_the_same_command_again_trains_no_further(run):
    workdir, summary = run
    before = (workdir / "metrics.jsonl").read_text()
    again = step09.main(step09.parse(arguments(workdir)))
    assert again["steps"] == summary["steps"]
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow  # in CI: tests/test_generate.py
@pytest.mark.usefixtures("plain")
def test_samples_do_not_depend_on_how_many_are_drawn(run):
    workdir, _ = run
    five, two = draw(workdir, "--num", "5", "--nfe", "4"), draw(workdir, "--num", "2", "--nfe", "4")
    assert np.abs(five[:2].astype(int) - two).max() <= 1
    assert not np.array_equal(draw(workdir, "--num", "2", "--nfe", "4", "--seed", "3"), two)


@pytest.mark.slow  # in CI: tests/test_command.py, --solver
@pytest.mark.usefixtures("plain")
def test_samples_by_another_solver(run):
    workdir, _ = run
    ddim = draw(workdir, "--solver", "ddim", "--nfe", "5", "--num", "2")
    assert ddim.shape == (2, 28, 28, 1)
    assert not np.array_equal(ddim, draw(workdir, "--nfe", "5", "--num", "2"))


def test_the_field_that_does_not_fit_the_checkpoint_is_named(run):
    workdir, _ = run
    with pytest.raises(ValueError, match=r"learning_rate.*saved.*now"):
        step09.main(step09.parse(arguments(workdir, "--learning-rate", "0.5")))
    with pytest.raises(ValueError, match=r"model\.network\.dropout.*saved.*now"):
        step09.main(step09.parse(arguments(workdir, "--dropout", "0.5")))


def test_sampling_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        draw(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batchsize", "3"], "batchsize"),
        (["--preset", "huge"], "--preset must be one of mnist_small"),
        (["--preset", "cifar01"], "got cifar01. Did you mean cifar10"),
        (["--steps", "0"], "steps must be at least 1 step, got 0"),
        (["--batch-size", "0"], "batch_size must be at least 1 image, got 0"),
        (["--microbatches", "0"], "microbatches must be at least 1 part, got 0"),
        (["--log-every", "-1"], "log_every must be at least 0"),
        (["--sample-every", "-1"], "sample_every must be at least 0"),
        (["--keep", "-1"], "keep must be at least"),
        (["--nfe", "0"], "nfe must be at least 1 evaluation, got 0"),
        (["--process", "none"], "process"),
    ],
)
def test_wrong_flags_are_refused(flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        step09.parse(flags)
    assert said in capsys.readouterr().err + str(stopped.value)


def test_a_run_that_is_older_than_the_names_of_its_classes_goes_on():
    describe = lambda **names: {"model": {"condition": {"type": "Labels", "num_classes": 2} | names}}
    training.workdir.check_config(describe(), describe(names=["cats", "dogs"]), launch.may_change())
    with pytest.raises(ValueError, match=r"condition\.num_classes"):
        training.workdir.check_config({"model": {"condition": {}}}, describe(), launch.may_change())


def test_a_label_needs_labels(run, tmp_path):
    workdir, _ = run
    with pytest.raises(ValueError, match="this model is unconditional"):
        draw(workdir, "--label", "3")
    np.savez(tmp_path / "no_labels.npz", image=np.zeros((40, 8, 8, 1), np.uint8))
    flags = ["--labels", "--dataset", str(tmp_path / "no_labels.npz")]
    with pytest.raises(ValueError, match=r"has no labels: .* step09_diffusion\.py --no-labels"):
        step09.main(step09.parse(arguments(tmp_path / "run", *flags)))


def test_a_model_keeps_the_names_of_its_classes(tmp_path):
    """Those of the subfolders, in their order; MNIST's are numbers."""
    flags = ["--labels", "--dataset", str(folder(tmp_path / "pictures", num=4)), "--image-size", "12"]
    config = step09.parse(flags)
    described_ = step09.make_model(config, config.data.source().info())
    assert described_.condition.names == ("cats", "dogs")
    config = step09.parse(["--labels"])
    assert step09.make_model(config, config.data.source().info()).condition.names == ()


def test_presets_are_complete_descriptions():
    """A model of each survives its own file."""
    from configs import step09 as configs

    info = data.Info("set", 100, (32, 32, 3), 10)
    for name, config in configs.PRESETS.items():
        described_ = step09.make_model(config, info)
        assert config.preset == name
        assert model.from_json(model.to_json(described_)) == described_


@pytest.mark.slow  # a second network to compile; in CI: guidance and the U-Net's labels by themselves
def test_it_learns_from_labels_and_draws_for_them(tmp_path):
    summary = step09.main(step09.parse(arguments(tmp_path, "--labels", "--steps", "8", "--num", "40")))
    assert np.isfinite(summary["loss"])
    samples, labels = np.load(tmp_path / "samples.npy"), np.load(tmp_path / "labels.npy")
    assert len(samples) == len(labels) == 40
    assert len(np.unique(labels)) > 5
    assert set(labels) <= set(range(10))
    again = lambda *more: draw(tmp_path, "--nfe", "3", "--num", "4", *more)
    assert np.abs(again().astype(int) - samples[:4]).max() <= 1
    threes = again("--label", "3")
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [3] * 4)
    assert not np.array_equal(threes, again("--label", "4", "--guidance", "5"))
    with pytest.raises(ValueError, match="from 0 to 9, got 10"):
        again("--label", "10")


def folder(path, num=40):
    """A folder of colour pictures of several sizes, in two classes."""
    rng = np.random.default_rng(0)
    for i in range(num):
        place = path / ("cats", "dogs")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        size = rng.integers(9, 20, 2)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(place / f"{i}.png")
    return path


@pytest.mark.slow  # a network to compile; in CI: tests/data/test_folder.py
@pytest.mark.parametrize("labels", [False, True])
def test_it_trains_on_a_folder_of_images(tmp_path, labels):
    flags = ["--dataset", str(folder(tmp_path / "pictures")), "--image-size", "12", "--process", "vp"]
    flags += ["--predicts", "eps", "--flip", *(["--labels"] if labels else [])]
    summary = step09.main(step09.parse(arguments(tmp_path / "run", *flags)))
    assert np.isfinite(summary["loss"])
    assert np.load(tmp_path / "run" / "samples.npy").shape == (3, 12, 12, 3)
    assert (tmp_path / "run" / "labels.npy").exists() == labels
    if labels:
        draw(tmp_path / "run", "--label", "dogs", "--num", "2", "--nfe", "3")
        np.testing.assert_array_equal(np.load(tmp_path / "run" / "labels.npy"), [1, 1])


@pytest.mark.slow  # in CI: the toy of tests/training/test_compile.py
def test_every_way_of_spreading_a_step_gives_the_same_parameters():
    """One device == 8 with jit == 8 with pmap == 8 with FSDP, parameters after 20 steps to 1e-5.

    With momentum, not Adam: a bias in front of a GroupNorm with one channel a group has no gradient but rounding
    errors, which Adam scales up to full steps.
    """
    config, m = step09.parse([]), described.model()
    images = data.load("mnist", split="test")["image"][:64]
    feed = data.InMemory.create({"image": images}, 16, key=jax.random.key(1))
    optimizer = optax.sgd(0.05, momentum=0.9)
    step = training.make_step(step09.make_loss(m, config), optimizer)
    params = jax.jit(m.init)(jax.random.key(0))
    one = Mesh(np.array(jax.devices()[:1]), (keys.AXIS,))
    assert len(jax.devices()) == 8
    results = {}
    for name, options in {
        "one device": {"mesh": one},
        "jit": {},
        "pmap": {"parallel": "pmap"},
        "fsdp": {"shard": "fsdp"},
    }.items():
        compiled = training.compile_step(step, steps_per_call=10, select=feed.select, **options)
        state = training.TrainState.create(params, optimizer, jax.random.key(2))
        for _ in range(2):
            state, _ = compiled(state, feed.arrays)
        assert compiled.traces == 1
        results[name] = jax.device_get(state.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), results["one device"], jax.device_get(params))
    assert max(jax.tree.leaves(moved)) > 1e-3
    for name in ("jit", "pmap", "fsdp"):
        close = lambda a, b, name=name: np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
        jax.tree.map(close, results["one device"], results[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "minutes", "confident"), [("mnist_small", 6, 0.85), ("mnist_best", 60, 0.95)]
)
def test_it_draws_digits_that_a_judge_can_read(tmp_path, preset, minutes, confident):
    """In time on two cores; the judge is a classifier in PyTorch, the real digits' share of confidence is 0.98."""
    pytest.importorskip("torch")
    script, begin = "experiments/step09_diffusion.py", time.monotonic()
    assert start(script, "--preset", preset, "--workdir", tmp_path).wait() == 0
    elapsed = time.monotonic() - begin
    assert start(script, "--sample-only", "--num", 1000, "--workdir", tmp_path).wait() == 0
    verdict = judged(tmp_path, labels=preset == "mnist_best")
    print(f"{preset}: {elapsed:.0f} s, {verdict}")
    assert verdict["judge_test_accuracy"] >= 0.99
    assert verdict["confident"] >= confident
    assert min(verdict["share_of_each_digit"]) >= 0.04
    assert verdict.get("label_agreement", 1) >= 0.95
    assert elapsed <= 60 * minutes


@pytest.mark.slow
def test_killed_three_times_it_is_the_same_to_the_bit(tmp_path):
    """The default network itself; tests/training/test_processes.py has the same with a small model."""
    flags = "--steps 60 --log-every 10 --checkpoint-every 20 --num 4 --nfe 5 --sample-every 60"
    flags = flags.split()
    script, whole, broken = "experiments/step09_diffusion.py", tmp_path / "whole", tmp_path / "broken"
    assert start(script, *flags, "--workdir", whole).wait() == 0
    seed = random.randrange(2**32)
    print(f"seed of the instants: {seed}")
    instants = random.Random(seed)
    for target in (10, 20, 40):
        process = start(script, *flags, "--workdir", broken)
        log = broken / "metrics.jsonl"
        while not log.exists() or f'"step": {target}' not in log.read_text():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(instants.uniform(0.0, 3.0))
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert start(script, *flags, "--workdir", broken).wait() == 0
    for ema in (True, False):
        (a, *_), (b, *_) = (training.load(workdir, ema=ema) for workdir in (whole, broken))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    losses = [
        [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (whole, broken)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--num 0", "at least 1 sample, got 0"),
        ("--label 3", "unconditional"),
        ("--labels --label 10", "from 0 to 9, got 10"),
        ("--labels --label-dropout 0 --guidance 3", "nothing to be guided by"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_training(tmp_path, flags, said):
    with pytest.raises(ValueError, match=said):
        step09.main(step09.parse(arguments(tmp_path / "run", *flags.split())))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_wrong_input_is_said_in_a_line(tmp_path):
    flags = ["--dataset", str(tmp_path / "none.npz"), "--workdir", str(tmp_path / "run")]
    done = start("experiments/step09_diffusion.py", *flags, stderr=subprocess.PIPE)
    _, said = done.communicate(timeout=120)
    assert done.returncode == 2
    assert "none.npz" in said
    assert "Traceback" not in said


def test_unreadable_files_are_refused_or_left_out_by_a_flag(tmp_path):
    place = folder(tmp_path / "pictures", num=6)
    (place / "cats" / "broken.png").write_bytes(b"no picture")
    flags = ["--dataset", str(place), "--image-size", "12"]
    with pytest.raises(ValueError, match=r"broken\.png"):
        step09.parse(flags).data.source()
    with pytest.warns(UserWarning, match=r"broken\.png"):
        assert len(step09.parse([*flags, "--unreadable", "skip"]).data.source()) == 6
    cropped = step09.parse([*flags, "--crop", "random", "--unreadable", "skip"]).data
    with pytest.warns(UserWarning, match=r"broken\.png"):
        assert isinstance(data.batches(cropped.source(), 4, key=jax.random.key(0)), data.Stream)
