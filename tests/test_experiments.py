"""Each experiment as a user runs it, small: what it leaves behind, going on, sampling again, wrong flags."""

import dataclasses
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.sharding import Mesh
from PIL import Image

from gen_jax import data, keys, runs, samplers, training
from gen_jax.diffusion.process import DDPM, VP
from gen_jax.networks import unet

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    """The module of an experiment, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def figures(workdir):
    """The pictures in a directory, all of which must show something."""
    names = set()
    for path in [*workdir.glob("*.png"), *workdir.glob("*.gif")]:
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1
        names.add(path.name)
    return names


def run_step(name, workdir, **options):
    """An experiment without a network; what it returns is what it wrote."""
    module = load(name)
    summary = module.main(module.Config(workdir=workdir, **options))
    assert json.loads((workdir / "summary.json").read_text()) == summary
    return summary, figures(workdir)


def test_step01_sums_become_normal(tmp_path):
    summary, drawn = run_step("step01_normal", tmp_path)
    assert drawn == {"density.png", "parameters.png", "averages.png", "sums.png"}
    distances = [summary[f"distance_to_normal_{n}"] for n in (1, 2, 4, 10)]
    assert distances == sorted(distances, reverse=True)
    np.testing.assert_allclose(distances[0], 0.0577, atol=0.005)  # sup |u - Phi((u - 1/2) sqrt(12))|
    assert distances[-1] < 0.006


def test_step02_fits_the_heights(tmp_path):
    summary, drawn = run_step("step02_maximum_likelihood", tmp_path)
    assert drawn == {"histogram.png", "fit.png", "generated.png"}
    x = data.table("heights")[:, 0]
    np.testing.assert_allclose([summary["mean"], summary["std"]], [x.mean(), x.std()], rtol=1e-5)
    model = scipy.stats.norm(x.mean(), x.std())
    np.testing.assert_allclose(summary["model_P(x<=160)"], model.cdf(160), rtol=1e-3)
    np.testing.assert_allclose(summary["model_P(x>180)"], model.sf(180), rtol=1e-3)
    np.testing.assert_allclose(summary["data_P(x<=160)"], np.mean(x <= 160))


def test_step02_takes_a_file_of_the_reader(tmp_path):
    (tmp_path / "mine.txt").write_text("1\n2\n4\n")
    summary, _ = run_step("step02_maximum_likelihood", tmp_path, data=str(tmp_path / "mine.txt"))
    np.testing.assert_allclose(summary["mean"], 7 / 3, rtol=1e-6)


def test_step03_fits_heights_and_weights(tmp_path):
    summary, drawn = run_step("step03_multivariate_normal", tmp_path)
    assert drawn == {"surface.png", "contour.png", "data.png", "fit.png"}
    x = data.table("height_weight")
    np.testing.assert_allclose(summary["cov"], np.cov(x.T, ddof=0), rtol=1e-4)
    np.testing.assert_allclose(summary["correlation"], np.corrcoef(x.T)[0, 1], rtol=1e-4)


def test_step04_draws_a_mixture(tmp_path):
    summary, drawn = run_step("step04_gaussian_mixture", tmp_path)
    assert drawn == {"data.png", "surface.png", "contour.png", "samples.png"}
    names = "log_likelihood_per_row_of_the_mixture", "log_likelihood_per_row_of_one_normal"
    assert -4.2 < summary[names[0]] < -4.155382
    assert summary[names[1]] < summary[names[0]] - 0.3


def test_step05_finds_the_books_answer(tmp_path):
    summary, drawn = run_step("step05_em", tmp_path, num_restarts=2, max_components=3)
    assert drawn == {"em.gif", "log_likelihood.png", "criteria.png", "generated.png"}
    np.testing.assert_allclose(summary["log_likelihood_per_row"], -4.155382, atol=1e-5)
    assert summary["status"] == "converged"
    assert summary["components_by_bic"] == 2


def test_step06_descends(tmp_path):
    summary, drawn = run_step("step06_neural_network", tmp_path)
    assert drawn == {"rosenbrock.png", "line.png", "curve.png", "loss.png"}
    assert summary["grad_of_3x^2_at_5"] == 30.0
    assert summary["grad_of_rosenbrock_at_(0,2)"] == [-2.0, 400.0]
    np.testing.assert_allclose(summary["rosenbrock_minimum"], [1, 1], atol=0.03)
    np.testing.assert_allclose(summary["line_by_descent"], summary["line_by_least_squares"], rtol=1e-3)
    assert summary["curve_mse"] < 1.3 * summary["noise_variance"]


@pytest.fixture(scope="module")
def step09():
    """The experiment with a network small enough for a test."""
    module = load("step09_diffusion")
    small = dataclasses.replace(unet.mnist_small, channels=(8,), embedding=16)
    before = runs.NETWORKS["mnist_small"]
    runs.NETWORKS["mnist_small"] = small
    yield module
    runs.NETWORKS["mnist_small"] = before


def arguments(workdir, *more):
    flags = "--steps 4 --batch-size 16 --num 3 --nfe 3 --steps-per-call 2 --checkpoint-every 2 --log-every 2"
    return [*flags.split(), "--workdir", str(workdir), *more]


@pytest.fixture(scope="module")
def run(step09, tmp_path_factory):
    """A finished run: its directory and its summary."""
    workdir = tmp_path_factory.mktemp("step09")
    return workdir, step09.main(step09.parse(arguments(workdir)))


@pytest.fixture
def plain(step09, monkeypatch):
    """Without the picture of denoising, which `run` draws: a sampler more to compile."""
    monkeypatch.setattr(step09, "save_denoising", lambda *args: None)


def test_step09_leaves_everything_it_promises(run):
    workdir, summary = run
    for name in ("forward", "loss", "samples", "denoising"):
        with Image.open(workdir / f"{name}.png") as image:
            assert min(image.size) > 28
            assert np.asarray(image.convert("L")).std() > 0
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["steps"] == 4
    config = json.loads((workdir / "config.json").read_text())
    assert config["batch_size"] == 16
    assert config["ema_decay"] is not None, "the preset's values are there"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert np.isfinite([line["loss"] for line in lines]).all()
    samples = np.load(workdir / "samples.npy")
    assert samples.shape == (3, 28, 28, 1)
    assert samples.dtype == np.uint8


@pytest.mark.usefixtures("plain")
def test_step09_same_command_again_trains_no_further(step09, run):
    workdir, summary = run
    before = (workdir / "metrics.jsonl").read_text()
    again = step09.main(step09.parse(arguments(workdir)))
    assert again["steps"] == summary["steps"]
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.usefixtures("plain")
def test_step09_samples_do_not_depend_on_how_many_are_drawn(step09, run):
    workdir, _ = run
    draw = lambda *more: step09.draw_samples(
        step09.parse(["--sample-only", "--workdir", str(workdir), "--solver", "ddpm", *more])
    )
    five, two = draw("--num", "5", "--nfe", "4"), draw("--num", "2", "--nfe", "4")
    assert np.abs(five[:2].astype(int) - two).max() <= 1
    assert not np.array_equal(draw("--num", "2", "--nfe", "4", "--seed", "3"), two)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_step09_samples_with_every_solver(step09, run, solver):
    workdir, _ = run
    flags = ["--sample-only", "--workdir", str(workdir), "--solver", solver, "--nfe", "5", "--num", "2"]
    step09.main(step09.parse(flags))
    assert np.load(workdir / "samples.npy").shape == (2, 28, 28, 1)


@pytest.mark.parametrize("proc", [DDPM(schedule="cosine"), VP()], ids=["cosine", "vp"])
def test_step09_nfe_is_the_number_of_evaluations(step09, proc):
    """Of every solver, or the few less that whole steps leave; none asks outside the process or in pure noise."""
    for name in runs.SOLVERS:
        stages = {"heun": 2, "dpmpp_single": 2, "dpmpp3_single": 3}.get(name, 1)
        for nfe in (5, 10):
            plan = runs.plan(proc, name, nfe)
            assert nfe - stages < plan.nfe <= nfe, name
            assert plan.t.min() >= proc.t_min * (1 - 1e-6), name
            assert plan.t.max() <= proc.t_max, name
            if name not in ("ddpm", "ddim"):
                assert proc.log_snr(np.float64(plan.t[0])) > runs.LEAST_LOG_SNR - 1e-3, name


def test_step09_solver_of_too_few_evaluations_says_so(step09):
    with pytest.raises(ValueError, match="order 4 needs at least 4 steps, got 3"):
        runs.plan(VP(), "pndm", 4)


def test_step09_names_the_field_that_does_not_fit_the_checkpoint(step09, run):
    workdir, _ = run
    with pytest.raises(ValueError, match=r"learning_rate.*saved.*now"):
        step09.main(step09.parse(arguments(workdir, "--learning-rate", "0.5")))


def test_step09_sampling_without_a_checkpoint_says_what_to_do(step09, tmp_path):
    with pytest.raises(ValueError, match="train first"):
        step09.main(step09.parse(["--sample-only", "--workdir", str(tmp_path)]))


def test_step09_rejects_an_unknown_flag(step09):
    with pytest.raises(SystemExit):
        step09.parse(["--batchsize", "3"])


@pytest.fixture
def compare(step09):
    """The comparison, with the small network."""
    return load("samplers_compare")


@pytest.mark.slow
def test_samplers_compare_measures_every_solver(compare, run, tmp_path):
    checkpoint, _ = run
    small = {"num": 6, "chunk": 4, "num_exact": 2, "tolerance": 1e-2, "reference": 12, "num_images": 500}
    config = compare.Config(
        checkpoint, tmp_path, solvers=("ddpm", "unipc", "heun"), evaluations=(10, 5), **small
    )
    summary = compare.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert json.loads((tmp_path / "config.json").read_text())["num"] == 6
    assert figures(tmp_path) == {"compare.png", "grid_ddpm.png", "grid_unipc.png", "grid_heun.png"}
    found = summary["solvers"]
    assert [found[name]["nfe"] for name in config.solvers] == [[5, 10], [5, 10], [5, 9]]
    assert found["ddpm"]["error"] is None, "stochastic"
    for name in ("unipc", "heun"):
        few, many = found[name]["error"]
        assert many < few, name
    for each in found.values():
        assert np.isfinite(each["frechet_distance"]).all()
        assert min(each["standard_error"]) > 0


@pytest.mark.slow
def test_samplers_compare_draws_what_sample_draws(compare, run):
    """One program for all plans: the first samples of a padded plan are those of `samplers.sample` by its own."""
    model = compare.load(compare.Config(run[0]))
    config = compare.Config(num=3, chunk=2, solvers=("sde_dpmpp", "pndm"), evaluations=(6,), reference=8)
    plans = compare.make_plans(model.proc, config)
    drawn = compare.draw_all(model, config, plans)
    x_T, denoise, key = model.start(model.params, jax.random.key(config.seed), jnp.arange(3))
    for name, (plan,) in plans.items():
        expected = jax.jit(lambda plan: samplers.sample(key, denoise, plan, x_T))(plan)
        np.testing.assert_allclose(drawn[name][0].x_0, expected, atol=1e-4, err_msg=name)


def test_samplers_compare_without_a_checkpoint_says_what_to_run(compare, tmp_path):
    with pytest.raises(ValueError, match=r"run python experiments/step09_diffusion.py first"):
        compare.main(compare.Config(tmp_path / "none", tmp_path))


@pytest.mark.slow  # a second network to compile; in CI: guidance and the U-Net's labels by themselves
def test_step09_learns_from_labels_and_draws_for_them(step09, tmp_path):
    summary = step09.main(step09.parse(arguments(tmp_path, "--labels", "--steps", "8", "--num", "40")))
    assert np.isfinite(summary["loss"])
    samples, labels = np.load(tmp_path / "samples.npy"), np.load(tmp_path / "labels.npy")
    assert len(samples) == len(labels) == 40
    assert len(np.unique(labels)) > 5
    assert set(labels) <= set(range(10))
    again = lambda *more: step09.draw_samples(
        step09.parse(["--sample-only", "--workdir", str(tmp_path), "--nfe", "3", "--num", "4", *more])
    )
    assert np.abs(again().astype(int) - samples[:4]).max() <= 1
    threes = again("--label", "3")
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [3] * 4)
    assert not np.array_equal(threes, again("--label", "4", "--guidance", "5"))
    with pytest.raises(ValueError, match="from 0 to 9, got 10"):
        again("--label", "10")


def test_step09_says_that_a_label_needs_labels(step09, run, tmp_path, monkeypatch):
    workdir, _ = run
    with pytest.raises(ValueError, match="train one with --labels"):
        step09.draw_samples(step09.parse(["--sample-only", "--workdir", str(workdir), "--label", "3"]))
    monkeypatch.setattr(data, "load", lambda name, **_: {"image": np.zeros((40, 8, 8, 1), np.uint8)})
    monkeypatch.setattr(data, "info", lambda name, **_: data.Info(name, 40, (8, 8, 1), None))
    with pytest.raises(ValueError, match="has no labels"):
        step09.main(step09.parse(arguments(tmp_path, "--labels")))


@pytest.mark.slow
def test_step09_trains_on_colour_images_of_odd_size(step09, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 11, 9, 3), np.uint8)
    monkeypatch.setattr(data, "load", lambda name, **_: {"image": images})
    summary = step09.main(
        step09.parse(
            arguments(tmp_path, "--dataset", "odd", "--process", "vp", "--predicts", "eps", "--flip")
        )
    )
    assert np.isfinite(summary["loss"])
    assert np.load(tmp_path / "samples.npy").shape == (3, 11, 9, 3)


@pytest.mark.slow  # in CI: the toy of tests/training/test_compile.py
def test_step09_every_way_of_spreading_a_step_gives_the_same_parameters(step09):
    """One device == 8 with jit == 8 with pmap == 8 with FSDP, parameters after 20 steps to 1e-5.

    With momentum, not Adam: a bias in front of a GroupNorm with one channel a group has no gradient but rounding
    errors, which Adam scales up to full steps.
    """
    config = step09.parse([])
    net, proc = runs.build(dataclasses.asdict(config))
    images = data.load("mnist", split="test")["image"][:64]
    feed = data.InMemory.create({"image": images}, 16, key=jax.random.key(1))
    optimizer = optax.sgd(0.05, momentum=0.9)
    step = training.make_step(step09.make_loss(net, proc, config), optimizer)
    params = jax.jit(net.init)(jax.random.key(0), images[:1].astype(np.float32), np.zeros(1, np.float32))
    one = Mesh(np.array(jax.devices()[:1]), (keys.AXIS,))
    assert len(jax.devices()) == 8
    results = {}
    for name, options in {
        "one device": {"mesh": one},
        "jit": {},
        "pmap": {"parallel": "pmap"},
        "fsdp": {"fsdp": True},
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


def start(script, *flags):
    """A script of the project in a process of its own, as a user starts it."""
    environment = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen([sys.executable, ROOT / script, *map(str, flags)], env=environment, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "minutes", "confident"), [("mnist_small", 6, 0.85), ("mnist_best", 60, 0.95)]
)
def test_step09_draws_digits_that_a_judge_can_read(tmp_path, preset, minutes, confident):
    """In time on two cores; the judge is a classifier in PyTorch, the real digits' share of confidence is 0.98."""
    pytest.importorskip("torch")
    script, begin = "experiments/step09_diffusion.py", time.monotonic()
    assert start(script, "--preset", preset, "--workdir", tmp_path).wait() == 0
    elapsed = time.monotonic() - begin
    assert (
        start(script, "--sample-only", "--num", 1000, "--preset", preset, "--workdir", tmp_path).wait() == 0
    )
    command = [sys.executable, ROOT / "benchmarks" / "judge.py", tmp_path / "samples.npy"]
    if preset == "mnist_best":  # which learns from labels
        command += ["--labels", tmp_path / "labels.npy"]
    verdict = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    print(f"{preset}: {elapsed:.0f} s, {verdict}")
    assert verdict["judge_test_accuracy"] >= 0.99
    assert verdict["confident"] >= confident
    assert min(verdict["share_of_each_digit"]) >= 0.04
    assert verdict.get("label_agreement", 1) >= 0.95
    assert elapsed <= 60 * minutes


@pytest.mark.slow
def test_step09_killed_three_times_is_the_same_to_the_bit(tmp_path):
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


@pytest.fixture(scope="module")
def autoencoders():
    """The experiments of steps 7 and 8, which import their neighbour."""
    return load("step07_vae"), load("step08_hvae")


@pytest.fixture(scope="module")
def step07(autoencoders):
    return autoencoders[0]


@pytest.fixture(scope="module")
def step08(autoencoders):
    return autoencoders[1]


SHORT = "--steps 4 --batch-size 16 --num 3 --steps-per-call 2 --checkpoint-every 2 --log-every 2"


def step07_arguments(workdir, *more):
    flags = f"{SHORT} --test-images 16 --test-samples 3 --workdir {workdir} --hidden 8".split()
    return [*flags, *more]


def test_step07_leaves_everything_it_promises_and_goes_on(step07, tmp_path, capsys):
    first = step07_arguments(tmp_path, "--latent", "2", "--labels")
    summary = step07.main(step07.parse(first))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    pictures = {"loss.png", "reconstructions.png", "interpolation.png", "manifold.png", "samples.png"}
    assert figures(tmp_path) == pictures
    np.testing.assert_allclose(
        summary["test_elbo"], summary["test_reconstruction"] - summary["test_kl"], rtol=1e-5
    )
    # the book's loss is twice the bound, but for the constant of a density
    np.testing.assert_allclose(summary["book_loss"], 2 * summary["loss"] - 784 * np.log(2 * np.pi), rtol=1e-3)
    assert np.load(tmp_path / "labels.npy").shape == (3,)
    draw = lambda *more: step07.draw_samples(
        step07.parse(["--sample-only", "--workdir", str(tmp_path), "--num", "2", *more])
    )
    assert not np.array_equal(draw(), draw("--seed", "3"))
    draw("--label", "8")
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [8, 8])
    with pytest.raises(ValueError, match="must be from 0 to 9, got 10"):
        draw("--label", "10")
    capsys.readouterr()
    more = step07.main(step07.parse([*first, "--steps", "6"]))
    assert more["steps"] == 6
    assert "resuming: checkpoint of step 4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="latent"):
        step07.main(step07.parse([*first, "--latent", "3"]))


def test_step07_says_what_grey_values_are_to_a_bernoulli(step07, tmp_path, capsys):
    """It trains, on what is a cross-entropy and no likelihood, and says so in the output and the summary."""
    arguments = step07_arguments(tmp_path, "--likelihood", "bernoulli", "--objective", "dreg")
    summary = step07.main(step07.parse([*arguments, "--num-samples", "2"]))
    assert "not a likelihood of them" in summary["nats_are_the_log_of"]
    assert "--binarize dynamic or static" in capsys.readouterr().out
    assert np.isfinite(summary["iwae"])
    with pytest.raises(ValueError, match="label 1 asks for what this model has not learned"):
        step07.draw_samples(
            step07.parse(["--sample-only", "--workdir", str(tmp_path), "--label", "1", "--num", "1"])
        )


def test_step07_starts_from_the_parameters_of_another_run(step07, tmp_path):
    bound = ["--likelihood", "bernoulli", "--binarize", "dynamic"]
    step07.main(step07.parse(step07_arguments(tmp_path / "a", *bound)))
    onwards = [*bound, "--start-from", str(tmp_path / "a"), "--learning-rate", "0"]
    step07.main(step07.parse(step07_arguments(tmp_path / "b", *onwards)))
    a, b = (training.load(tmp_path / name).params for name in "ab")
    jax.tree.map(np.testing.assert_array_equal, a, b)
    with pytest.raises(ValueError, match="holds the parameters of another model"):
        step07.main(step07.parse(step07_arguments(tmp_path / "c", *onwards, "--latent", "3")))


@pytest.mark.parametrize("binarize", ["static", "dynamic"])
def test_bits_are_told_apart_from_grey_values(autoencoders, binarize):
    """Static bits are the same in every run, test images are bits in both, and the published figures are of them."""
    autoencoding = sys.modules["autoencoding"]
    options = {"data_dir": None, "labels": True, "binarize": binarize}
    (train, test, classes), (again, _, _) = (autoencoding.load_images("mnist", **options) for _ in range(2))
    assert classes == 10
    assert set(np.unique(test["image"])) == {0, 255}
    np.testing.assert_array_equal(train["image"], again["image"])
    assert (len(np.unique(train["image"])) == 2) == (binarize == "static")
    grey = data.load("mnist", split="test")["image"] / 255
    np.testing.assert_allclose((test["image"] / 255).mean(), grey.mean(), atol=1e-3)
    assert autoencoding.meaning("bernoulli", binarize, train["image"]).startswith("probability of an image")


@pytest.mark.slow  # in CI: the parts of it, in tests/test_vae.py
def test_step07_trains_on_colour_images_of_odd_size(step07, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 11, 9, 3), np.uint8)
    monkeypatch.setattr(data, "load", lambda name, **_: {"image": images})
    flags = "--dataset odd --network conv --channels 4 6 --likelihood discretized_logistic --parallel pmap"
    summary = step07.main(step07.parse(step07_arguments(tmp_path, *flags.split())))
    assert np.isfinite(summary["test_bits_per_dim"])
    assert np.load(tmp_path / "samples.npy").shape == (3, 11, 9, 3)


def step08_arguments(workdir, *more):
    return [*SHORT.split(), "--test-images", "16", "--test-samples", "3", "--workdir", str(workdir), *more]


def test_step08_leaves_everything_it_promises(step08, tmp_path):
    summary = step08.main(step08.parse(step08_arguments(tmp_path, "--hidden", "8", "--latents", "3", "2")))
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert figures(tmp_path) == {"loss.png", "kl.png", "reconstructions.png", "levels.png", "samples.png"}
    assert summary["test_log_prob"] >= summary["test_elbo"] - 1
    np.testing.assert_allclose(
        summary["test_elbo"],
        summary["test_reconstruction"] - summary["test_kl_1"] - summary["test_kl_2"],
        rtol=1e-5,
    )
    # the book's loss and the loss differ by a constant, that of a density
    np.testing.assert_allclose(summary["book_loss"], summary["loss"] - 784 * np.log(2 * np.pi), rtol=1e-3)
    assert np.load(tmp_path / "samples.npy").shape == (3, 28, 28, 1)
    draw = lambda *more: step08.draw_samples(
        step08.parse(["--sample-only", "--workdir", str(tmp_path), "--num", "2", *more])
    )
    assert not np.array_equal(draw(), draw("--seed", "3"))
    alike = draw("--temperature", "0")
    np.testing.assert_array_equal(alike[0], alike[1])
    with pytest.raises(ValueError, match="levels must be from 0 to 2, got 3"):
        draw("--levels", "3")


@pytest.mark.slow  # in CI: the ladder in tests/test_hvae.py
def test_step08_trains_a_ladder_on_colour_images_of_odd_size_and_ends_on_iwae(step08, tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (40, 11, 9, 3), np.uint8)
    monkeypatch.setattr(data, "load", lambda name, **_: {"image": images})
    flags = "--preset best --dataset odd --widths 8 8 8 --latents 2 2 3 3 3 --halvings 0 1 1 --binarize none"
    flags += " --likelihood logistic_mixture --kl-warmup 2 --warmup 1 --balance"
    summary = step08.main(step08.parse(step08_arguments(tmp_path / "a", *flags.split())))
    assert summary["steps_skipped"] == 0
    assert np.isfinite(summary["test_log_prob"])
    assert np.load(tmp_path / "a" / "samples.npy").shape == (3, 11, 9, 3)
    flags += f" --objective iwae --num-samples 2 --start-from {tmp_path / 'a'}"
    summary = step08.main(step08.parse(step08_arguments(tmp_path / "b", *flags.split())))
    assert np.isfinite(summary["iwae"])


def test_step08_says_which_numbers_do_not_fit_together(step08):
    with pytest.raises(ValueError, match="5 latents for 4 levels"):
        step08.stages(step08.parse(["--preset", "best", "--levels-per-stage", "1", "3"]))
    with pytest.raises(SystemExit):
        step08.parse(["--level", "3", "--batchsize", "2"])
