"""A batch a device: the rule by which rate and average follow it, and when it is looked at."""

import dataclasses
import json

import autoencoding
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step07_vae as step07
import step09_diffusion as step09
import step10_conditional as step10

from gen_jax import launch, training
from gen_jax.training import workdir as run_directory

SLICES = ("cifar10_16", "cifar10_64", "cifar10_256")
SCALED = {"batch_size", "learning_rate", "ema_decay", "batch_per_device"}


def spread(t, noise=1.0, steps=1000):
    """The variance of a parameter about the minimum of a^2/2, of which `t` sees gradients with noise, after many steps.

    The gradient of an image has a standard deviation of `noise`, that of a batch `noise / sqrt(batch_size)`.
    """
    optimizer, _ = t.make_optimizer()
    start = jnp.zeros(2048)

    def step(carry, key):
        theta, state = carry
        gradient = theta + noise / t.batch_size**0.5 * jax.random.normal(key, theta.shape)
        updates, state = optimizer.update(gradient, state, theta)
        return (theta + updates, state), jnp.mean(theta**2)

    keys = jax.random.split(jax.random.key(0), steps)
    _, found = jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), keys))()
    return float(np.mean(found[-200:]))


def test_adam_by_the_rule_ends_as_far_from_the_minimum_as_before():
    """Its steps are `rate g / (noise / sqrt(B))`, so the variance is rate noise / (2 sqrt(B)), for small rates."""
    t = autoencoding.Training(steps=1000, batch_size=16, learning_rate=1e-3)
    closed = t.learning_rate / (2 * t.batch_size**0.5)
    scaled = t.scaled(16 * t.batch_size)
    assert spread(t) == pytest.approx(closed, rel=0.1)
    assert spread(scaled) == pytest.approx(closed, rel=0.1)
    as_before = dataclasses.replace(scaled, learning_rate=t.learning_rate)
    assert spread(as_before) == pytest.approx(closed / 4, rel=0.1)


@pytest.mark.parametrize("k", [0.5, 2, 8])
def test_average_forgets_in_one_step_what_it_did_in_as_many_as_the_batch_is_larger(k):
    """About parameters that stay, the average is `theta + d^n (ema - theta)` after `n` steps."""
    t = launch.Training(batch_size=32, ema_decay=0.999)
    late = jnp.int32(10**6)  # after the average's warm-up

    def after(t, n):
        decay, average = training.ema.warmup(t.ema_decay), {"w": jnp.float32(1.0)}
        for _ in range(n):
            average = training.ema.update(average, {"w": jnp.float32(0.0)}, late, decay)
        return float(average["w"])

    small, large = (int(8 * k), 8) if k > 1 else (8, int(8 / k))
    scaled = t.scaled(int(k * t.batch_size))
    np.testing.assert_allclose(after(scaled, large), after(t, small), rtol=1e-5)
    np.testing.assert_allclose(after(t, small), 0.999**small, rtol=1e-5)


def test_scaled_is_the_same_for_the_same_batch_and_can_be_undone():
    t = launch.Training(batch_size=64, ema_decay=None)
    assert t.scaled(64) == t
    there = launch.Training(batch_size=64).scaled(512)
    assert there.scaled(64).learning_rate == pytest.approx(launch.Training().learning_rate)
    assert there.scaled(64).ema_decay == pytest.approx(launch.Training().ema_decay)
    changed = {f.name for f in dataclasses.fields(t) if getattr(t.scaled(128), f.name) != getattr(t, f.name)}
    assert changed == {"batch_size", "learning_rate"}
    with pytest.raises(ValueError, match="microbatches must divide batch_size 6"):
        launch.Training(microbatches=4).scaled(6)


MAINS = {"step07_vae": step07, "step09_diffusion": step09, "step10_conditional": step10}


class Trained(Exception):
    """In place of a training, with what it would have written to `config.json`."""


@pytest.mark.parametrize("name", MAINS)
def test_a_run_says_the_batch_of_all_devices(name, tmp_path, monkeypatch):
    def fit(step, state, batches, *, config, **options):
        raise Trained(run_directory.plain(config)["options"], batches.batch_size)

    monkeypatch.setattr(training, "fit", fit)
    flags = ["--workdir", str(tmp_path), "--batch-size", "4", "--batch-per-device", "2"]
    config = MAINS[name].parse([*flags, "--learning-rate", "0.01", "--ema-decay", "0.99"])
    with pytest.raises(Trained) as found:
        MAINS[name].main(config)
    options, batch = found.value.args
    assert batch == options["batch_size"] == 2 * jax.device_count() == 16
    assert options["learning_rate"] == pytest.approx(0.01 * 2)
    assert options["ema_decay"] == pytest.approx(0.99**4)
    assert options["batch_per_device"] is None


def test_devices_are_not_asked_for_by_a_command_line(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda *a: pytest.fail("before the processes have joined"))
    config = step09.parse(["--batch-per-device", "4"])
    assert config.training.batch_per_device == 4
    with pytest.raises(ValueError, match=r"launch.resolved\(config\), after launch.start"):
        launch.record("step09_diffusion", config)
    plain = step09.parse([])
    assert launch.resolved(plain) is plain


def test_on_another_number_of_devices_the_same_command_does_not_go_on(monkeypatch):
    """It says which batch it was; with that, and the rate and decay beside it, it goes on."""

    def options(*flags, devices):
        monkeypatch.setattr(jax, "device_count", lambda *a: devices)
        config = launch.resolved(step09.parse(["--batch-size", "64", *flags]))
        return run_directory.plain(launch.record("step09_diffusion", config))

    saved = options("--batch-per-device", "4", devices=64)
    with pytest.raises(ValueError, match=r"options\.batch_size: 256 saved, 32 now") as error:
        run_directory.check_config(saved, options("--batch-per-device", "4", devices=8), launch.may_change())
    assert "options.learning_rate: 0.016 saved" in str(error.value)
    given = saved["options"]
    flags = [
        f"--{name}={given[name.replace('-', '_')]}" for name in ("batch-size", "learning-rate", "ema-decay")
    ]
    run_directory.check_config(saved, options(*flags, devices=8), launch.may_change())
    older = json.loads(json.dumps(saved))
    del older["options"]["batch_per_device"]
    run_directory.check_config(older, saved, launch.may_change())


@pytest.mark.parametrize("name", SLICES)
def test_presets_of_slices_are_the_preset_of_one_chip_scaled(name):
    """As many images, and what follows the batch; nothing else."""
    base, found = step09.parse(["--preset", "cifar10"]), step09.parse(["--preset", name])
    k, t = found.training.batch_size / base.training.batch_size, found.training
    assert t.batch_size % int(name.removeprefix("cifar10_")) == 0
    assert t.steps * t.batch_size == base.training.steps * base.training.batch_size
    assert t.learning_rate == pytest.approx(2e-4 * k**0.5)
    assert t.ema_decay == pytest.approx(0.9999**k)
    assert dataclasses.replace(found, preset="cifar10", training=base.training) == base


@pytest.mark.parametrize("value", [0, -1])
def test_a_batch_a_device_has_an_image(value):
    with pytest.raises(ValueError, match="batch_per_device must be at least 1"):
        launch.Training(batch_per_device=value)
