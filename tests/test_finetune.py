"""Stable Diffusion trained further: the objective, what a run leaves, going on, and what diffusers reads."""

import dataclasses
import json
import os
import signal

import finetune_stable_diffusion as finetune
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gen_jax import data, pretrained, training
from gen_jax.conditioning.text import Asked
from gen_jax.data.fitted import placed
from gen_jax.diffusion import process
from gen_jax.diffusion.loss import stratified
from gen_jax.diffusion.loss.noising import draw
from gen_jax.pretrained import lora_writing
from gen_jax.text.prompts import Encoded
from gen_jax.training import lora
from tests import tiny_sd
from tests.marks import slow
from tests.networks.drawn import parameters
from tests.test_captions import ONE
from tests.test_text_model import MODEL, NETWORK

KEY = jax.random.key(0)
SMALL = dataclasses.replace(
    MODEL,
    network=dataclasses.replace(NETWORK, time_scale=1.0, time_offset=-1.0),
    process=process.DDPM(1000, "scaled_linear", 0.00085, 0.012),
    condition=ONE,
)
WORDS = ("red", "green", "blue", "white")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures of 48 x 36 pixels with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(16):
        colour = np.random.default_rng(i).integers(0, 255, (36, 48, 3), np.uint8)
        Image.fromarray(colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {WORDS[i % 4]} seven")
    return folder


def batch(n=8):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=(n, *shape)).astype(np.float32)
    return {"latent": draw(4, 4, 2), "latent_deviation": np.abs(draw(4, 4, 2)), "context": draw(12, 16)}


@pytest.mark.parametrize("predicts", slow(["eps", "v"], but=("eps",)))
def test_loss_is_the_objective_of_diffusers(predicts):
    """`min(SNR, 5) / SNR |eps - eps_hat|^2`, of v `min(SNR, 5) / (SNR + 1) |v - v_hat|^2`, from alphas_cumprod."""
    model = dataclasses.replace(SMALL, predicts=predicts)
    config = finetune.Config(offset_noise=0.1, text_dropout=ONE.dropout)
    net = model.network.build()
    params = parameters(net, jnp.zeros((1, 4, 4, 2)), jnp.zeros(1), None, jnp.zeros((1, 12, 16)))
    empty = Encoded(jnp.full((1, 12, 16), 0.3))
    aux = training.Aux(jnp.int32(0), None, {"empty": empty})
    value, _ = jax.jit(finetune.make_loss(model, config))(params, KEY, batch(), aux)

    key_text, key_latent, key_loss = jax.random.split(KEY, 3)
    x_0 = model.codec.encode(batch(), key=key_latent)
    drawn = draw(key_loss, model.process, x_0, stratified, 0.1)
    step, eps = (
        np.asarray(drawn.t).astype(int) - 1,
        np.asarray(drawn.eps, np.float64),
    )  # diffusers counts from 0
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    bar = np.cumprod(1 - betas)[step][:, None, None, None]
    dropped = np.asarray(ONE.dropped(key_text, 8))
    context = np.where(dropped[:, None, None], 0.3, batch()["context"])
    x_t = bar**0.5 * np.asarray(x_0, np.float64) + (1 - bar) ** 0.5 * eps
    said = jax.jit(net.apply)(params, jnp.float32(x_t), jnp.float32(step + 1), None, jnp.float32(context))
    target = eps if predicts == "eps" else bar**0.5 * eps - (1 - bar) ** 0.5 * np.asarray(x_0)
    snr = bar / (1 - bar)
    weight = np.minimum(snr, 5) / (snr if predicts == "eps" else snr + 1)
    wanted = (weight * (target - np.asarray(said, np.float64)) ** 2).mean()
    assert 0 < dropped.sum() < 8
    np.testing.assert_allclose(value, wanted, rtol=1e-4)


def test_placed_tells_the_picture_and_the_window(pictures):
    """48 x 36 resized to cover 24 x 24 is 32 x 24, of which columns 4 to 28 are taken."""
    found = placed(data.source(pictures, image_size=24))[0]
    np.testing.assert_array_equal(found["place"], [36, 48, 0, 4])
    assert found["image"].shape == (24, 24, 3)


def arguments(name, pictures, workdir, *more):
    flags = "--image-size 32 --steps 4 --batch-size 8 --checkpoint-every 2 --log-every 2 --num 1 --nfe 1 --no-progress"
    places = ["--weights", tiny_sd.ROOT / name, "--dataset", pictures, "--workdir", workdir]
    return [*flags.split(), *map(str, places), *more]


def main(*args):
    return finetune.main(finetune.parse(arguments(*args)))


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    """A LoRA of Stable Diffusion 1.5's tiny likeness: the run's directory, and its summary."""
    workdir = tmp_path_factory.mktemp("lora")
    return workdir, main("tiny-sd15", pictures, workdir, "--lora-rank", "2")


class Stop(training.Callback):
    """Asks for the end as a scheduler of jobs does."""

    def on_log(self, step, values):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow  # in CI: its loss and its file here, its loop in tests/training/test_aux.py
@tiny_sd.needs_fixtures
def test_run_leaves_what_it_promises(run):
    workdir, summary = run
    for name in ("samples_before", "samples", "loss"):
        assert (workdir / f"{name}.png").exists()
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert json.loads((workdir / "config.json").read_text())["options"]["lora_rank"] == 2
    low, step = training.load(workdir).params, training.load(workdir).step
    assert step == 4
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(low))
    assert summary["parameters"] == sum(x.size for x in jax.tree.leaves(low))


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("flags", "said"), [(["--solver", "eulr"], "Did you mean euler"), (["--batch-size", "17"], "at most 16")]
)
def test_options_are_looked_at_before_anything_is_encoded(pictures, tmp_path, flags, said, monkeypatch):
    monkeypatch.setattr(finetune, "encode", lambda *args: pytest.fail("it encodes"))
    with pytest.raises(ValueError, match=said):
        main("tiny-sd15", pictures, tmp_path, *flags)


@pytest.mark.slow  # in CI: tests/training/test_loop.py, and tests/training/test_aux.py with frozen weights
@tiny_sd.needs_fixtures
def test_run_that_was_stopped_is_one_that_was_not_to_the_bit(run, pictures, tmp_path, monkeypatch):
    workdir, _ = run
    monkeypatch.setattr(finetune, "draw", lambda *args: None)
    fit = training.fit
    with monkeypatch.context() as stopped:
        stopped.setattr(training, "fit", lambda *args, **options: fit(*args, callbacks=[Stop()], **options))
        with pytest.raises(training.Preempted):
            main("tiny-sd15", pictures, tmp_path, "--lora-rank", "2")
    assert training.load(tmp_path).step < 4
    main("tiny-sd15", pictures, tmp_path, "--lora-rank", "2")
    a, b = (training.load(path).params for path in (workdir, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow  # in CI: tests/pretrained/test_saving.py
@tiny_sd.needs_fixtures
def test_whole_network_is_saved_as_a_folder(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "draw", lambda *args: None)
    main("tiny-sdxl", pictures, tmp_path)
    _, weights = pretrained.load(tmp_path / "model_4")
    _, before = pretrained.load(tiny_sd.ROOT / "tiny-sdxl")
    jax.tree.map(np.testing.assert_array_equal, weights["network"], training.load(tmp_path).params)
    jax.tree.map(np.testing.assert_array_equal, weights["text"], before["text"])
    change = jax.tree.map(lambda a, b: np.abs(a - b).max(), weights["network"], before["network"])
    assert min(jax.tree.leaves(change)) >= 0 < max(jax.tree.leaves(change))


@tiny_sd.needs_fixtures
@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl"])
def test_lora_in_a_file_is_that_of_diffusers(name, tmp_path):
    """diffusers with the file says what the network with the merged weights says."""
    diffusers = pytest.importorskip("diffusers", reason="needs the extra bench")
    torch = pytest.importorskip("torch", reason="needs the extra bench")
    m, weights = pretrained.load(tiny_sd.ROOT / name)
    rng = np.random.default_rng(0)
    low = lora.init(KEY, weights["network"], 3)
    low = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), low)
    xl = name == "tiny-sdxl"
    lora_writing.write(tmp_path / "lora.safetensors", low, weights["network"], alpha=1.5, xl=xl)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_sd.ROOT / name, local_files_only=True)
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    found = np.load(tiny_sd.ROOT / name / "expected.npz")
    given = lambda name: torch.tensor(found[name])
    added = {"text_embeds": given("unet_text_embeds"), "time_ids": given("unet_time_ids")} if xl else {}
    with torch.no_grad():
        said = pipe.unet(given("latents"), given("unet_t"), given("unet_context"), added_cond_kwargs=added)
    theirs = said.sample.numpy().transpose(0, 2, 3, 1)
    sizes = found["unet_time_ids"] if xl else None
    ready = Encoded(found["unet_context"], found["unet_text_embeds"] if xl else None)
    told = m.condition.tell(None, Asked((ready,), sizes))
    x_t, t = jnp.asarray(found["latents"].transpose(0, 2, 3, 1)), jnp.asarray(found["unet_t"] + 1.0)
    apply = jax.jit(m.network.build().apply)
    ours = apply(lora.merge(weights["network"], low, 0.5), x_t, t, *told)
    plain = apply(weights["network"], x_t, t, *told)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert np.abs(ours - plain).max() > 1e-2 * np.abs(theirs).max()
