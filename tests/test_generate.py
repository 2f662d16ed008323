"""Samples of a model: what they depend on, what guides them, and that weights are arguments of the program."""

import dataclasses
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from gen_jax import generate, samplers
from gen_jax.codec import Latents
from gen_jax.conditioning import Labels
from gen_jax.diffusion import prediction, process
from gen_jax.model import Model, Sampling
from gen_jax.networks import unet
from tests import described
from tests.marks import slow

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def conditional():
    m = described.model(10)
    return m, {"network": described.weights(m)}


@pytest.fixture(scope="module")
def unconditional():
    m = described.model()
    return m, {"network": described.weights(m)}


def test_samples_belong_to_key_index_label_and_weight(conditional):
    draw = lambda num, **options: generate.sample(*conditional, KEY, num, **options)
    images, label = draw(5, guidance=2.0, chunk=3)
    assert images.shape == (5, *described.SHAPE)
    assert images.dtype == np.uint8
    few, its = draw(2, guidance=2.0)
    assert np.abs(few.astype(int) - images[:2]).max() <= 1
    np.testing.assert_array_equal(its, label[:2])
    threes, label = draw(2, label=3, guidance=2.0)
    np.testing.assert_array_equal(label, [3, 3])
    assert not np.array_equal(threes, draw(2, label=4, guidance=2.0)[0])
    assert not np.array_equal(threes, draw(2, label=3, guidance=1.0)[0])


@pytest.mark.parametrize("kind", [list, np.array, jnp.array])
def test_labels_of_each_sample_are_those_of_one_by_one(conditional, kind):
    """Over chunks that the samples do not fill."""
    draw = lambda label, num: generate.sample(*conditional, KEY, num, label=label, chunk=2)
    images, labels = draw(kind([3, 4, 3]), 3)
    np.testing.assert_array_equal(labels, [3, 4, 3])
    for i, label in enumerate([3, 4, 3]):
        assert np.abs(images[i].astype(int) - draw(label, i + 1)[0][i]).max() <= 1


def test_labels_are_named_as_well(conditional):
    m, weights = conditional
    named = dataclasses.replace(m, condition=Labels(10, names=tuple("abcdefghij")))
    images, labels = generate.sample(named, weights, KEY, 2, label=["d", "e"])
    np.testing.assert_array_equal(labels, [3, 4])
    np.testing.assert_array_equal(images, generate.sample(m, weights, KEY, 2, label=[3, 4])[0])


def test_what_is_not_asked_for_is_as_the_model_says(conditional):
    m, weights = conditional
    says = dataclasses.replace(m, sampling=Sampling("ddim", 5, 3.0))
    by_default, _ = generate.sample(says, weights, KEY, 2)
    spelt_out, _ = generate.sample(m, weights, KEY, 2, solver="ddim", nfe=5, guidance=3.0)
    np.testing.assert_array_equal(by_default, spelt_out)
    assert not np.array_equal(by_default, generate.sample(m, weights, KEY, 2)[0])
    recommended = dataclasses.replace(m, sampling=Sampling(None, 8))
    solver, times = samplers.recommended(m.process, 8)
    for column, expected in zip(generate.plan(recommended), solver.plan(m.process, times), strict=True):
        np.testing.assert_array_equal(column, expected)


def test_given_noise_is_where_samples_start(unconditional):
    m, weights = unconditional
    prior = m.process.prior(jax.random.split(KEY, 3)[0], (3, *described.SHAPE))
    default, _ = generate.sample(m, weights, KEY, 3, chunk=2)
    given, _ = generate.sample(m, weights, KEY, 3, chunk=2, x_T=prior)
    assert np.abs(default.astype(int) - given).max() <= 1
    other, _ = generate.sample(m, weights, KEY, 3, x_T=prior[::-1])
    assert not np.array_equal(other, default)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": 10}, "from 0 to 9, got 10"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"solver": "rk4"}, "rk4"),
        ({"x_T": np.zeros((3, 28, 28, 1), np.float32)}, r"x_T must have the shape \(1, 28"),
    ],
)
def test_bad_input_is_told_what_was_expected(conditional, options, said):
    with pytest.raises(ValueError, match=said):
        generate.sample(*conditional, KEY, **{"num": 1, **options})


def test_an_unconditional_model_is_guided_by_a_weaker_one(unconditional):
    m, weights = unconditional
    weaker = jax.tree.map(lambda p: 0.9 * p, weights["network"])
    x, t = jax.random.normal(KEY, (2, *described.SHAPE)) / 10, jnp.float32(100)
    ask = lambda w, *weight: jax.jit(lambda w: generate.denoiser(m, w, None, *weight)(x, t))(w)
    new, old = ask(weights), ask({"network": weaker})
    assert 0.05 < np.abs(new).max() < 0.9  # nowhere clipped
    assert np.abs(new - old).max() > 1e-3
    both = weights | {"guide": weaker}
    for weight, expected in ((1.0, new), (0.0, old), (2.0, 2 * new - old)):
        np.testing.assert_allclose(ask(both, weight), expected, atol=1e-5)
    draw = lambda weights, **options: generate.sample(m, weights, KEY, 2, **options)[0]
    assert not np.array_equal(draw(both, guidance=3.0), draw(both, guidance=1.0))
    np.testing.assert_array_equal(
        draw(weights), draw(both, guidance=1.0)
    )  # what the model says, where it can be done
    with pytest.raises(ValueError, match="guidance 3: there is nothing to be guided by"):
        draw(weights, guidance=3.0)


def test_a_weaker_model_may_be_another_one(unconditional):
    m, weights = unconditional
    other = described.model(network=dataclasses.replace(described.SMALL, channels=(8,), embedding=8))
    both = weights | {"guide": described.weights(other)}
    x, t = jax.random.normal(KEY, (2, *described.SHAPE)) / 10, jnp.float32(100)
    ask = lambda m, weights, *weight, **options: generate.denoiser(m, weights, None, *weight, **options)(x, t)
    expected = 2 * ask(m, weights) - ask(other, {"network": both["guide"]})
    np.testing.assert_allclose(ask(m, both, 2.0, guide_model=other), expected, atol=1e-5)


def test_a_null_label_that_was_never_trained_does_not_guide(conditional):
    m, weights = conditional
    never = dataclasses.replace(m, condition=Labels(10, dropout=0.0))
    with pytest.raises(ValueError, match="nothing to be guided by"):
        generate.sample(never, weights, KEY, 1, guidance=2.0)


def test_rescaled_guidance_has_the_deviation_of_the_conditional_estimate(conditional):
    m, weights = conditional
    unbounded = dataclasses.replace(m, codec=Latents(described.SHAPE))
    x_t, t = jax.random.normal(KEY, (2, *described.SHAPE)), jnp.float32(900)
    label = jnp.array([3, 4])
    ask = lambda *weight, **options: generate.denoiser(unbounded, weights, label, *weight, **options)(x_t, t)
    std = lambda x: np.asarray(x).reshape(2, -1).std(1)
    plain, rescaled = (std(ask(8.0, rescale=amount)) for amount in (0.0, 1.0))
    assert (np.abs(plain / std(ask()) - 1) > 1e-2).all()
    np.testing.assert_allclose(rescaled, std(ask()), rtol=1e-3)


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_rescale_of_the_output_restores_what_the_network_says(conditional, predicts):
    """The deviation of what it says of the condition, `y = (x0_hat - p x_t) / q`."""
    m, weights = conditional
    unbounded = dataclasses.replace(m, codec=Latents(described.SHAPE), predicts=predicts)
    x_t, t, label = jax.random.normal(KEY, (2, *described.SHAPE)), jnp.float32(300), jnp.array([3, 4])
    at = jnp.asarray(m.process.alpha(t)), jnp.asarray(m.process.sigma(t))

    def said(*weight, **options):
        x_0 = generate.denoiser(unbounded, weights, label, *weight, **options)(x_t, t)
        return np.asarray(prediction.from_x0(x_0, x_t, *at, predicts=predicts)).reshape(2, -1)

    plain, whole, half = (said(8.0, rescale=phi, rescale_of="output") for phi in (0.0, 1.0, 0.5))
    np.testing.assert_array_equal(plain, said(8.0))
    np.testing.assert_allclose(whole.std(1), said().std(1), rtol=1e-3)
    np.testing.assert_allclose(half, (plain + whole) / 2, atol=1e-3 * np.abs(plain).max())
    assert np.abs(whole - said(8.0, rescale=1.0)).max() > 1e-2 * np.abs(plain).max()


def test_rescale_reaches_the_samples(conditional):
    draw = lambda **options: generate.sample(*conditional, KEY, 2, guidance=8.0, **options)[0].astype(int)
    plain, data, output = draw(), draw(rescale=1.0), draw(rescale=1.0, rescale_of="output")
    assert min(np.abs(plain - data).max(), np.abs(plain - output).max(), np.abs(data - output).max()) > 1
    with pytest.raises(ValueError, match=r"rescale_of must be .x0. or .output.; got 'noise'"):
        draw(rescale_of="noise")


def test_plan_of_a_model_with_a_schedule_is_that_of_its_grid(conditional):
    m, _ = conditional
    schedule = samplers.Schedule("leading", 1, False, karras=True)
    says = dataclasses.replace(m, process=process.DDPM(), sampling=Sampling("euler", 6, schedule=schedule))
    for solver, nfe, predicts in (("pndm", 8, "v"), ("heun", 5, "eps"), ("dpmpp", 7, "v")):
        says = dataclasses.replace(says, predicts=predicts)
        expected = schedule.plan(says.process, solver, nfe, predicts=predicts)
        jax.tree.map(np.testing.assert_array_equal, generate.plan(says, solver, nfe), expected)
    assert generate.plan(says).nfe == 6
    assert (says.sampling.rounds(), says.sampling.rounds("dpmpp")) == (False, True)
    solver, times = samplers.recommended(says.process, 6)
    recommended = dataclasses.replace(says, sampling=Sampling(None, 6, schedule=schedule))
    jax.tree.map(np.testing.assert_array_equal, generate.plan(recommended), solver.plan(says.process, times))
    with pytest.raises(ValueError, match="a schedule needs a discrete process, DDPM; got VP"):
        dataclasses.replace(says, process=process.VP())


@pytest.mark.parametrize("rounded", [False, True])
def test_rounded_asks_the_network_at_the_nearest_time_alone(conditional, rounded):
    """`alpha` and `sigma` stay those of the time that was asked for."""
    m, weights = conditional
    m = dataclasses.replace(m, process=process.DDPM(), codec=Latents(described.SHAPE))
    x_t, t, label = jax.random.normal(KEY, (2, *described.SHAPE)), jnp.float32(300.4), jnp.array([3, 4])
    got = generate.denoiser(m, weights, label, rounded=rounded)(x_t, t)
    time = jnp.full(2, 300.0 if rounded else 300.4)
    said = m.network.build().apply(weights["network"], x_t, time, *m.condition.tell(None, label))
    at = jnp.asarray(m.process.alpha(t)), jnp.asarray(m.process.sigma(t))
    np.testing.assert_allclose(
        got, prediction.to_x0(said, x_t, *at, predicts=m.predicts), rtol=1e-4, atol=1e-4
    )


def test_guided_inside_the_interval_alone_and_rescaled(conditional):
    """An interval between two times of the plan holds none of them: a weight is then no guidance; one of all is all."""
    m, weights = conditional
    plan, index = samplers.named.plan(m.process, "ddim", 4), np.arange(8)
    between, all_times = (float(plan.t[2]) + 1, float(plan.t[1]) - 1), (0.0, m.process.t_max)

    def draw(weight, **options):
        images = generate.sampler(m, **options)(
            weights, KEY, plan, index, np.int32(index % 10), np.float32(weight)
        )
        return np.asarray(images).astype(int)

    guided, inside, outside = draw(8.0), draw(8.0, interval=all_times), draw(8.0, interval=between)
    np.testing.assert_allclose(inside, guided, atol=1)
    np.testing.assert_allclose(outside, draw(1.0), atol=1)
    assert np.abs(guided - outside).max() > 1
    assert np.abs(guided - draw(8.0, rescale=1.0)).max() > 1


def test_one_program_draws_all_labels_and_weights(conditional, monkeypatch):
    m, weights = conditional
    m = dataclasses.replace(m, network=dataclasses.replace(m.network, embedding=24))  # in no cache yet
    weights, traced, sample = {"network": described.weights(m)}, [], samplers.sample
    monkeypatch.setattr(
        samplers, "sample", lambda *args, **options: traced.append(0) or sample(*args, **options)
    )
    for key, label, weight in ((0, 1, 0.5), (1, 7, 3.0)):
        options = {"label": label, "guidance": weight, "nfe": 4, "solver": "unipc"}
        generate.sample(m, weights, jax.random.key(key), 2, **options)
    generate.sample(m, jax.tree.map(lambda p: 2 * p, weights), KEY, 2, guidance=0.1, nfe=4, solver="unipc")
    assert len(traced) == 1


@pytest.mark.parametrize("kind", slow(["conditional", "autoguided", "unconditional"], but=("autoguided",)))
def test_weights_are_arguments_of_the_program(kind):
    """Of the network for CIFAR-10: as constants its 36 M parameters would be 285 MB of text."""
    m = described.model(
        10 if kind == "conditional" else None,
        network=dataclasses.replace(unet.cifar10, num_classes=10 if kind == "conditional" else None),
    )
    params = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), jax.eval_shape(m.init, KEY)
    )
    weights = {"network": params} | ({"guide": params} if kind == "autoguided" else {})
    cond = np.zeros(2, np.int32) if kind == "conditional" else None
    weight = None if kind == "unconditional" else np.float32(2)
    draw, plan = generate.sampler(m, generate.local_mesh(1)), generate.plan(m)
    text = draw._program.lower(weights, KEY, plan, np.arange(2), cond, weight, None).as_text()
    assert len(text) < 2e6


class Exact:
    """`E[x_0 | x_t]` of normal data, as the config of a network and the network itself."""

    def __init__(self, std, proc):
        self.std, self.process = std, proc

    def build(self):
        return self

    def apply(self, params, x_t, t):
        alpha, sigma = (
            f(t).reshape(-1, *[1] * (x_t.ndim - 1)) for f in (self.process.alpha, self.process.sigma)
        )
        return params * alpha * self.std**2 * x_t / (alpha**2 * self.std**2 + sigma**2)


def test_latents_are_not_clipped():
    """An exact network on N(0, 3^2) gives samples of that deviation; kept in [-1, 1] it would be 0.91."""
    proc = process.VP()
    m = Model(Exact(3.0, proc), proc, "x0", described.Nothing(), Latents((2,)), Sampling("dpmpp", 30))
    z, _ = generate.sample(m, {"network": jnp.float32(1)}, KEY, 4000, chunk=4000)
    assert z.dtype == np.float32
    assert abs(z.std() / 3 - 1) < 0.03
    scaled = dataclasses.replace(m, codec=Latents((2,), scale=3.0, shift=7.0))
    z, _ = generate.sample(scaled, {"network": jnp.float32(1)}, KEY, 4000, chunk=4000)
    assert abs(z.std() - 1) < 0.03
    assert abs(z.mean() - 7) < 0.1


@pytest.mark.parametrize("num", slow([3, 8], but=(3,)))
def test_images_are_the_same_on_one_device_and_on_many(conditional, num):
    """Where they do not divide over the devices as well."""
    m, weights = conditional
    plan = samplers.named.plan(m.process, "ddpm", 4)

    def draw(*devices):
        draw = generate.sampler(m, Mesh(np.array(devices), ("data",)))
        label = np.arange(num, dtype=np.int32)
        return draw(weights, KEY, plan, np.arange(num) + 5, label, jnp.float32(2.0))

    one, many = draw(jax.devices()[0]), draw(*jax.devices())
    assert (len(jax.devices()), one.shape) == (8, (num, *described.SHAPE))
    assert many.sharding.is_fully_replicated
    np.testing.assert_allclose(np.int32(one), np.int32(many), atol=1)  # bytes
    assert np.mean(np.asarray(one) == np.asarray(many)) > 0.99


DRAW = """
import sys, jax, numpy as np
from gen_jax import generate, samplers, training
from gen_jax.codec import Pixels
from gen_jax.conditioning import Nothing
from gen_jax.diffusion import process
from gen_jax.model import Model
from gen_jax.networks import unet

training.initialize_distributed()
network = unet.UNetConfig(channels=(8,), embedding=16, groups=4)
m = Model(network, process.DDPM(), "v", Nothing(), Pixels((6, 6, 1)))
draw = generate.sampler(m, training.Layout().mesh)
weights = {"network": m.init(jax.random.key(0))}
images = draw(weights, jax.random.key(1), samplers.named.plan(m.process, "ddpm", 3), np.arange(3))
np.save(f"{sys.argv[1]}/{jax.process_index()}_of_{jax.process_count()}.npy", np.asarray(images))
"""


@pytest.mark.slow
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


def test_denoiser_is_that_of_the_network(unconditional):
    m, weights = unconditional
    x_t, t = jax.random.normal(KEY, (2, *described.SHAPE)), jnp.float32(500)
    net = m.network.build()
    by_hand = prediction.as_denoiser(
        lambda x, t: net.apply(weights["network"], x, t), m.process, predicts="v"
    )
    np.testing.assert_allclose(
        generate.denoiser(m, weights)(x_t, t), np.clip(by_hand(x_t, t), -1, 1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nfe": 0}, "nfe must be at least 1, got 0"),
        ({"nfe": -1}, "nfe must be at least 1, got -1"),
        ({"guidance": float("nan")}, "guidance must be finite, got nan"),
    ],
)
def test_numbers_out_of_range_are_not_taken_for_defaults(conditional, options, said):
    with pytest.raises(ValueError, match=said):
        generate.sample(*conditional, KEY, 1, **options)
