"""The experiments of step 10 and the command, on networks that are small, and mostly as they came into the world."""

import dataclasses
import importlib
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import step09_diffusion
from jax.sharding import Mesh
from PIL import Image

from gen_jax import cli, runs, samplers, training
from gen_jax.networks import unet
from tests.networks.drawn import parameters

SHAPE = (28, 28, 1)


@pytest.fixture(scope="module", autouse=True)
def small_network():
    before = runs.NETWORKS["mnist_small"]
    runs.NETWORKS["mnist_small"] = dataclasses.replace(unet.mnist_small, channels=(8,), embedding=16)
    yield
    runs.NETWORKS["mnist_small"] = before


def new_run(workdir, num_classes, leave_out=(), saved=(0,), steps=1000):
    """A run whose network has learned nothing, with other parameters at each of its checkpoints."""
    config = dataclasses.asdict(step09_diffusion.Config(steps=steps)) | {
        "image_shape": SHAPE,
        "num_classes": num_classes,
    }
    config = {k: str(v) if k in ("workdir", "data_dir") else v for k, v in config.items()}
    net, _ = runs.build(config, num_classes)
    params = parameters(net, jnp.zeros((1, *SHAPE)), jnp.zeros(1), scale=0.02)
    state = training.TrainState.create(params, optax.sgd(0.1), jax.random.key(0), ema=False)
    with training.Checkpoints(workdir / "checkpoints") as checkpoints:
        for step in saved:
            scaled = jax.tree.map(lambda p: p * (1 + step / 10), params)
            state = state._replace(params=scaled, step=jnp.int32(step))
            checkpoints.save(state, {"config": {k: v for k, v in config.items() if k not in leave_out}})
    return workdir


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("conditional"), 10)


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("unconditional"), None)


def pictures(workdir):
    names = set()
    for path in workdir.glob("*.png"):
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1
        names.add(path.name)
    return names


def test_samples_of_a_run_belong_to_key_index_label_and_weight(conditional):
    run = runs.load(conditional)
    draw = lambda num, **options: runs.sample(run, jax.random.key(0), num, nfe=4, **options)
    images, label = draw(5, guidance=2.0, chunk=3)
    assert images.shape == (5, *SHAPE)
    assert images.dtype == np.uint8
    few, its = draw(2, guidance=2.0)
    assert np.abs(few.astype(int) - images[:2]).max() <= 1
    np.testing.assert_array_equal(its, label[:2])
    threes, label = draw(2, label=3, guidance=2.0)
    np.testing.assert_array_equal(label, [3, 3])
    assert not np.array_equal(threes, draw(2, label=4, guidance=2.0)[0])
    assert not np.array_equal(threes, draw(2, label=3, guidance=1.0)[0])
    with pytest.raises(ValueError, match="from 0 to 9, got 10"):
        draw(1, label=10)
    with pytest.raises(ValueError, match="at least 1 image"):
        draw(0)


def test_unconditional_runs_are_guided_by_their_younger_parameters(unconditional, conditional, tmp_path):
    saved = (1, 2, 3)
    assert runs.load(new_run(tmp_path / "interrupted", None, saved=saved)).younger is None  # at 3 of 1,000
    lost = new_run(tmp_path / "lost", None, saved=(1, 3), steps=10)  # nothing left from 2 on but the last
    assert runs.load(lost).younger is None
    run = runs.load(new_run(tmp_path / "whole", None, saved=saved, steps=10))
    weaker = jax.tree.map(lambda p: p * (1.2 / 1.3), run.params)  # from step 2, a fifth of 10
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run.younger, weaker)
    assert runs.load(unconditional).younger is None  # it has a single checkpoint
    assert runs.load(conditional).younger is None
    x, t = jax.random.normal(jax.random.key(0), (2, *SHAPE)) / 10, jnp.float32(100)
    denoise = lambda weight, run=run: runs.denoiser(
        run.net, run.process, run.predicts, run.params, None, weight, run.younger
    )(x, t)
    old = denoise(None, run._replace(params=weaker, younger=None))
    new = denoise(None, run._replace(younger=None))
    assert 0.05 < np.abs(new).max() < 0.9  # nowhere clipped
    assert np.abs(new - old).max() > 1e-3
    np.testing.assert_allclose(denoise(1.0), new, atol=1e-6)
    np.testing.assert_allclose(denoise(0.0), old, atol=1e-6)
    np.testing.assert_allclose(denoise(2.0), 2 * new - old, atol=1e-5)
    draw = lambda weight: runs.sample(run, jax.random.key(0), 2, nfe=4, guidance=weight)[0]
    assert not np.array_equal(draw(3.0), draw(1.0))


def test_runs_of_other_experiments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a run of a diffusion experiment.* no predicts, process"):
        runs.load(new_run(tmp_path, None, ("predicts", "process")))


def test_networks_of_other_sizes_are_refused(unconditional, monkeypatch):
    monkeypatch.setitem(
        runs.NETWORKS, "mnist_small", dataclasses.replace(unet.mnist_small, channels=(16,), embedding=16)
    )
    with pytest.raises(ValueError, match=r"not the mnist_small of this version.* train it anew"):
        runs.load(unconditional)


def test_one_program_draws_all_labels_and_weights(conditional, monkeypatch):
    run, traced, sample = runs.load(conditional), [], samplers.sample
    monkeypatch.setattr(
        samplers, "sample", lambda *args, **options: traced.append(0) or sample(*args, **options)
    )
    draw, plan = (
        runs.sampler(run.net, run.process, run.predicts, run.shape),
        runs.plan(run.process, "unipc", 4),
    )
    for label, weight in ((1, 0.5), (7, 3.0)):
        draw(
            run.params, jax.random.key(0), plan, np.arange(2), np.full(2, label, np.int32), np.float32(weight)
        )
    assert len(traced) == 1


@pytest.mark.parametrize("num", [3, 8])
def test_images_are_the_same_on_one_device_and_on_many(conditional, num):
    """Where they do not divide over the devices as well."""
    run = runs.load(conditional)
    table = runs.plan(run.process, "ddpm", 4)

    def draw(*devices):
        sampler = runs.sampler(
            run.net, run.process, run.predicts, run.shape, Mesh(np.array(devices), ("data",))
        )
        label = np.arange(num, dtype=np.int32)
        return sampler(run.params, jax.random.key(0), table, np.arange(num) + 5, label, jnp.float32(2.0))

    one, many = draw(jax.devices()[0]), draw(*jax.devices())
    assert (len(jax.devices()), one.shape) == (8, (num, *run.shape))
    assert many.sharding.is_fully_replicated
    np.testing.assert_allclose(np.int32(one), np.int32(many), atol=1)  # bytes
    assert np.mean(np.asarray(one) == np.asarray(many)) > 0.99


DRAW = """
import sys, jax, jax.numpy as jnp, numpy as np
from gen_jax import runs, training
from gen_jax.diffusion import process
from gen_jax.networks import unet

training.initialize_distributed()
net, proc = unet.UNet(unet.UNetConfig(channels=(8,), embedding=16, groups=4)), process.DDPM()
params = net.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), jnp.zeros(1))
draw = runs.sampler(net, proc, "v", (6, 6, 1), training.Layout().mesh)
images = draw(params, jax.random.key(1), runs.plan(proc, "ddpm", 3), np.arange(3))
np.save(f"{sys.argv[1]}/{jax.process_index()}_of_{jax.process_count()}.npy", np.asarray(images))
"""


def test_images_are_drawn_by_all_processes_for_each(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    base = {name: x for name, x in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environments = [base, *(base | joined | {"JAX_PROCESS_ID": f"{i}"} for i in range(2))]
    started = [subprocess.Popen([sys.executable, "-c", DRAW, str(tmp_path)], env=e) for e in environments]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    alone, first, second = (np.load(tmp_path / f"{name}.npy") for name in ("0_of_1", "0_of_2", "1_of_2"))
    assert alone.shape == (3, 6, 6, 1)
    assert np.ptp(alone) > 100
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(np.int32(alone), np.int32(first), atol=1)


@pytest.mark.slow  # a network to compile for training; in CI: step 9's, and its parts here
def test_conditional_trains_and_draws_its_classes(tmp_path):
    step10 = importlib.import_module("step10_conditional")
    flags = "--steps 4 --batch-size 16 --num 3 --nfe 4 --steps-per-call 2 --checkpoint-every 2 --log-every 2"
    summary = step10.main(step10.parse([*flags.split(), "--workdir", str(tmp_path)]))
    assert np.isfinite(summary["loss"])
    assert {"classes.png", "interpolation.png", "samples.png", "loss.png"} <= pictures(tmp_path)
    assert np.load(tmp_path / "labels.npy").shape == (3,)


def test_conditional_draws_pictures_of_classes_and_between_noises(conditional, tmp_path):
    step10 = importlib.import_module("step10_conditional")
    run, config = runs.load(conditional), step10.parse(["--workdir", str(tmp_path), "--nfe", "4"])
    assert (config.labels, config.guidance, config.solver) == (True, 1.5, "unipc")
    step10.save_classes(config, run, rows=2)
    step10.save_interpolation(config, run, rows=2, columns=3)
    assert pictures(tmp_path) == {"classes.png", "interpolation.png"}
    with pytest.raises(ValueError, match=r"step09_diffusion\.py"):
        step10.main(dataclasses.replace(config, labels=False))


def test_rescaled_guidance_has_the_deviation_of_the_conditional_estimate(conditional, monkeypatch):
    monkeypatch.setattr(runs.prediction, "clipped", lambda denoise: denoise)
    run, label = runs.load(conditional), jnp.array([3, 4])
    x_t, t = jax.random.normal(jax.random.key(0), (2, *SHAPE)), jnp.float32(900)
    estimate = lambda *weight, **options: runs.denoiser(
        run.net, run.process, run.predicts, run.params, label, *weight, **options
    )(x_t, t)
    std = lambda x: np.asarray(x).reshape(2, -1).std(1)
    plain, rescaled = (std(estimate(8.0, rescale=amount)) for amount in (0.0, 1.0))
    assert (np.abs(plain / std(estimate()) - 1) > 1e-2).all()
    np.testing.assert_allclose(rescaled, std(estimate()), rtol=1e-3)


def test_sampler_guides_inside_the_interval_alone_and_rescales(conditional):
    """An interval between two times of the plan holds none of them: a weight is then no guidance; one of all is all."""
    run = runs.load(conditional)
    plan, index = runs.plan(run.process, "ddim", 4), np.arange(8)
    between, all_times = (float(plan.t[2]) + 1, float(plan.t[1]) - 1), (0, run.process.t_max)

    def draw(weight, **options):
        sampler = runs.sampler(run.net, run.process, run.predicts, run.shape, **options)
        images = sampler(run.params, jax.random.key(0), plan, index, index % 10, np.float32(weight))
        return np.asarray(images).astype(int)

    guided, inside, outside = draw(8.0), draw(8.0, interval=all_times), draw(8.0, interval=between)
    np.testing.assert_allclose(inside, guided, atol=1)
    np.testing.assert_allclose(outside, draw(1.0), atol=1)
    assert np.abs(guided - outside).max() > 1
    assert np.abs(guided - draw(8.0, rescale=1.0)).max() > 1


def test_classifier_free_guidance_measures_every_weight(conditional, unconditional, tmp_path, monkeypatch):
    step10, judging = (
        importlib.import_module(name) for name in ("step10_classifier_free_guidance", "judging")
    )
    read = lambda images: (
        np.eye(10)[np.arange(len(images)) % 10 if len(images) else []],
        images.reshape(len(images), -1) / 255.0,
    )
    monkeypatch.setattr(judging, "train", lambda *args, **options: judging.Judge(read, 1.0, np.full(10, 2.0)))
    config = step10.Config(conditional, tmp_path, weights=(0.0, 2.0), nfe=4, num=30, interval=(100, 900))
    summary = step10.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
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
        unconditional, tmp_path, steps=4, batch_size=16, channels=(4, 8), num=12, nfe=4, steps_per_call=2
    )
    summary = step10.main(config)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert {"loss.png", "accuracy.png", "classes.png", "weights.png"} <= pictures(tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), np.arange(12) % 10)
    step10.main(dataclasses.replace(config, sample_only=True, label=3, num=2))
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), [3, 3])
    with pytest.raises(ValueError, match="knows labels"):
        step10.main(dataclasses.replace(config, checkpoint=conditional))


@pytest.mark.slow  # five samplers to compile; in CI: tests/test_inverse.py
def test_inpainting_keeps_what_is_known(unconditional, tmp_path):
    step10 = importlib.import_module("step10_inpainting")
    summary = step10.main(step10.Config(unconditional, tmp_path, num=2, nfe=4, resample=2))
    assert pictures(tmp_path) == {"half.png", "centre.png", "scattered.png", "superresolution.png"}
    for name in ("half", "centre", "scattered"):
        for method in ("replacement", "RePaint"):
            assert summary[f"{name}_{method}_known"] < 1e-6
            assert summary[f"{name}_{method}_hidden"] > 0


def test_the_command_samples_and_says_what_is_wrong(conditional, unconditional, tmp_path, capsys):
    out = tmp_path / "deep" / "eights.npy"
    draw = lambda where, *flags: cli.main(["sample", str(where), "--num", "2", "--nfe", "4", *flags])
    draw(conditional, "--label", "8", "--out", str(out))
    assert np.load(out).shape == (2, *SHAPE)
    assert "2 images of the labels 8" in capsys.readouterr().out
    draw(conditional, "--out", str(tmp_path / "all.png"))
    assert pictures(tmp_path) == {"all.png"}
    for arguments, said in (
        ((unconditional, "--label", "3"), "train one with --labels"),
        ((conditional, "--label", "12"), "from 0 to 9, got 12"),
        ((tmp_path / "none",), "train first"),
        ((conditional, "--solver", "rk4"), "--solver must be one of ddpm"),
        ((conditional, "--out", "x.jpg"), "must end in .png or .npy"),
    ):
        with pytest.raises(SystemExit, match=said):
            draw(*arguments)


def test_the_command_helps_without_jax():
    """Nothing that takes long to import is imported for it."""
    code = "import sys; from gen_jax import cli\ntry: cli.main(['--help'])\nfinally: assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sample" in done.stdout
