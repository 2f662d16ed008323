"""A model of latents that reads texts: what its samples depend on, that weights are arguments, and what is refused."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import generate, model, text, training
from gen_jax.codec import Latents
from gen_jax.conditioning import Condition, Labels, Nothing, Reader, Text
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.networks.unet import UNetConfig
from gen_jax.text import Tokenizer, prompts
from tests.compiling import compilations
from tests.networks.drawn import parameters

KEY = jax.random.key(0)
WORDS = ["a large red seven", "a small blue three", "a green two above a white one"]
TOKENIZER = text.train(WORDS, num_merges=60, length=12)
ENCODER = CLIPTextConfig(TOKENIZER.vocab_size, width=16, layers=1, heads=2, hidden=32, length=12)
AUTOENCODER = AutoencoderKLConfig(1, 1, channels=(8,), blocks=1, latent_channels=2, groups=4, patch=2)
AUTOENCODER = dataclasses.replace(AUTOENCODER, middle_attention=False)
CONDITION = Text((Reader(TOKENIZER, ENCODER),), 0.2)
NETWORK = UNetConfig(
    channels=(8,),
    depth=(1,),
    heads=2,
    context_features=16,
    dense_skips=False,
    groups=4,
    embedding=16,
    time_scale=1000.0,
)
MODEL = Model(
    NETWORK,
    process.VP(),
    "v",
    CONDITION,
    Latents((4, 4, 2), 0.7, 0.1, autoencoder=AUTOENCODER),
    Sampling("ddim", 3, 2.0),
)


@pytest.fixture(scope="module")
def weights():
    learned = MODEL.init(KEY)
    drawn = jax.tree.map(
        lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), MODEL.parts(learned)
    )
    return drawn | {"autoencoder": parameters(AUTOENCODER.build(), jnp.zeros((1, 8, 8, 1)), scale=0.1)}


def draw(weights, num=2, **options):
    return generate.sample(MODEL, weights, KEY, num, **options)[0]


def test_description_is_complete():
    assert model.from_json(model.to_json(MODEL)) == MODEL


def test_condition_keeps_the_protocol():
    assert isinstance(CONDITION, Condition)
    null, chosen = CONDITION.null(3), CONDITION.choose(KEY, np.arange(3))
    jax.tree.map(np.testing.assert_array_equal, null, chosen)  # nothing asked for is the empty text
    batch = {"image": np.zeros((3, 2)), "text": np.array(WORDS, object)}
    seen = jax.jit(CONDITION.of_batch)(KEY, CONDITION.prepare(batch))
    assert jax.tree.map(jnp.shape, seen) == jax.tree.map(jnp.shape, null)


def test_of_batch_drops_whole_texts_at_the_rate_that_was_asked_for():
    n = 5000
    tokens = CONDITION.prepare({"text": np.array(WORDS[:1] * n, object)})["token"]
    seen = np.asarray(CONDITION.of_batch(KEY, {"token": tokens}).prompts[0].tokens[:, 0])
    empty = TOKENIZER.tokens([""])[0]
    dropped = (seen == empty).all(1)
    assert abs(dropped.mean() - 0.2) < 5 * (0.16 / n) ** 0.5
    np.testing.assert_array_equal(seen[~dropped], tokens[~dropped])


def test_samples_belong_to_their_prompt_and_not_to_the_others(weights):
    both = draw(weights, prompt=WORDS[:2])
    assert both.shape == (2, 8, 8, 1)
    assert both.dtype == np.uint8
    one = draw(weights, prompt=WORDS[0])
    assert np.abs(one[0].astype(int) - both[0]).max() <= 1
    assert np.abs(one[1].astype(int) - both[1]).max() > 1
    np.testing.assert_array_equal(one, draw(weights, prompt=[WORDS[0]] * 2, chunk=1))


@pytest.mark.slow
def test_guidance_leads_away_from_the_negative_prompt(weights):
    plain = draw(weights, prompt=WORDS[0])
    np.testing.assert_array_equal(plain, draw(weights, prompt=WORDS[0], negative_prompt=""))
    assert not np.array_equal(plain, draw(weights, prompt=WORDS[0], negative_prompt=WORDS[1]))
    # u + w (c - u) with u = c is c, whatever the weight
    same = draw(weights, prompt=WORDS[0], negative_prompt=WORDS[0], guidance=5.0)
    assert np.abs(same.astype(int) - draw(weights, prompt=WORDS[0], guidance=1.0)).max() <= 1


@pytest.mark.slow  # in CI: tests/text/test_prompts.py
def test_long_and_weighted_prompts_are_read(weights):
    long = " ".join(WORDS * 2)
    assert CONDITION.choose(KEY, np.arange(1), prompt=long).prompts[0].tokens.shape[1] > 1
    a, b = draw(weights, prompt=long), draw(weights, prompt=long, negative_prompt=WORDS[0])
    assert not np.array_equal(a, b)
    plain = draw(weights, prompt="a large red seven")
    assert not np.array_equal(plain, draw(weights, prompt="a large (red:1.5) seven"))
    np.testing.assert_array_equal(plain, draw(weights, prompt="a large (red:1) seven"))


@pytest.mark.slow
def test_embeddings_are_taken_for_a_prompt(weights):
    cond = CONDITION.choose(KEY, np.arange(2), prompt=WORDS[0])
    context = prompts.encode(ENCODER.build().apply, weights["text"]["text_encoder"], cond.prompts[0]).context
    sampler, plan = generate.sampler(MODEL), generate.plan(MODEL)
    by_words, by_vectors = (
        sampler(weights, KEY, plan, np.arange(2), c, np.float32(2)) for c in (cond, context)
    )
    assert np.abs(np.asarray(by_words, int) - np.asarray(by_vectors, int)).max() <= 1


def test_weights_are_arguments_and_nothing_compiles_twice(weights):
    sampler, plan = generate.sampler(MODEL), generate.plan(MODEL)
    of = lambda words: generate.conditions(MODEL, KEY, 2, prompt=words)[0]
    lowered = sampler.lower(weights, KEY, plan, np.arange(2), of(WORDS[0]), np.float32(2), None)
    assert len(lowered.as_text()) < 2e6
    sampler(weights, KEY, plan, np.arange(2), of(WORDS[0]), np.float32(2))
    other = jax.tree.map(lambda x: 1.1 * x, weights)
    key, asked = jax.random.key(7), of(WORDS[1:])
    with compilations() as compiled:
        sampler(other, key, plan, np.arange(2, 4), asked, np.float32(3))
    assert not compiled


def test_attention_can_be_looked_at(weights):
    cond = CONDITION.choose(KEY, np.arange(2), prompt=WORDS[0])
    told = CONDITION.tell(weights["text"], cond)
    net = NETWORK.build()
    x = jnp.ones((2, 4, 4, 2))
    out, found = net.apply(weights["network"], x, jnp.ones(2), *told, mutable=["intermediates"])
    np.testing.assert_array_equal(out, net.apply(weights["network"], x, jnp.ones(2), *told))
    assert jax.tree.leaves(found["intermediates"])


REFUSED = [
    ("label", lambda w: draw(w, label=3), "give it a prompt"),
    ("too few", lambda w: draw(w, prompt=WORDS), "one for each sample"),
    ("not a text", lambda w: draw(w, prompt=[3, 4]), "expected a text"),
    ("bytes", lambda w: draw(w, prompt=[b"\xff", b"a"]), "UTF-8"),
    ("no encoder", lambda w: draw({k: v for k, v in w.items() if k != "text"}, prompt="a"), "text"),
    ("no autoencoder", lambda w: draw({k: v for k, v in w.items() if k != "autoencoder"}), "autoencoder"),
    ("a prompt for nothing", lambda w: Nothing().choose(KEY, np.arange(1), prompt="a"), "unconditional"),
    ("a prompt for labels", lambda w: Labels(3).choose(KEY, np.arange(1), prompt="a"), "labels"),
    ("no captions", lambda w: CONDITION.prepare({"image": np.zeros(1)}), "captions"),
    ("vocabulary", lambda w: Reader(Tokenizer(()), ENCODER), "vocabulary"),
    ("dropout", lambda w: Text((Reader(TOKENIZER, ENCODER),), 1.0), "dropout"),
    ("no guidance", lambda w: _undropped(w, negative_prompt="a"), "guided"),
]


def _undropped(weights, **options):
    m = dataclasses.replace(MODEL, condition=Text((Reader(TOKENIZER, ENCODER),), 0.0))
    return generate.sample(m, weights, KEY, 2, prompt="a", **options)


@pytest.mark.parametrize(("call", "message"), [x[1:] for x in REFUSED], ids=[x[0] for x in REFUSED])
def test_what_can_not_be_done_is_said(weights, call, message):
    with pytest.raises(ValueError, match=message):
        call(weights)


def test_a_prompt_that_is_cut_is_told():
    with pytest.warns(UserWarning, match="seven"):
        CONDITION.prepare({"text": np.array([" above ".join(WORDS * 2)], object)})


@pytest.mark.slow
def test_loss_of_images_is_that_of_their_latents(weights):
    step09 = importlib.import_module("step09_diffusion")
    images = jax.random.randint(KEY, (4, 8, 8, 1), 0, 256).astype(jnp.uint8)
    tokens = CONDITION.prepare({"text": np.array([*WORDS, ""], object)})
    mean, deviation = MODEL.codec.moments({"image": images}, weights["autoencoder"])
    kept = {"latent": mean, "latent_deviation": deviation, **tokens}
    params = {name: weights[name] for name in ("network", "text")}
    loss = step09.make_loss(MODEL, step09.Config())
    aux = training.Aux(jnp.zeros((), jnp.int32), None, {"autoencoder": weights["autoencoder"]})
    value = jax.jit(lambda *args: loss(*args)[0])
    as_they_come, once = value(params, KEY, {"image": images, **tokens}, aux), value(params, KEY, kept)
    np.testing.assert_allclose(as_they_come, once, rtol=1e-5)
    assert abs(once - value(params, jax.random.key(1), kept)) > 1e-3  # latents are drawn anew


def test_two_readers_tell_context_vector_and_sizes(weights):
    """Context by features, the pooled text of the last reader, then a sinusoid of each size; zeros for no text."""
    pooling = dataclasses.replace(ENCODER, width=8, hidden=16, projection=6)
    first, second = Reader(TOKENIZER, ENCODER), Reader(TOKENIZER, pooling, hidden=-2)
    condition = Text((first, second), sizes=(8.0, 8.0, 0.0, 0.0, 8.0, 8.0), size_features=4, zero_null=True)
    condition, params = condition.at(6, 4), condition.init(KEY)
    cond = condition.choose(KEY, np.arange(2), prompt=WORDS[:2])
    vector, context = condition.tell(params, cond)
    outs = [
        reader.encoder.build().apply(params[name], cond.prompts[i].tokens[:, 0])
        for i, (name, reader) in enumerate(zip(condition.names, condition.readers, strict=True))
    ]
    expected = np.concatenate([outs[0].last, outs[1].hidden[-2]], -1)
    np.testing.assert_allclose(context, expected, rtol=1e-5, atol=1e-6)
    angles = np.outer([6, 4, 0, 0, 6, 4], [1, 1e-2])
    waves = np.concatenate([np.cos(angles), np.sin(angles)], 1).ravel()
    np.testing.assert_allclose(vector[:, :6], outs[1].pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vector[:, 6:], np.tile(waves, (2, 1)), atol=1e-5)
    nothing = condition.tell(params, condition.null(2, like=cond))
    assert not nothing[1].any()
    assert not nothing[0][:, :6].any()
    np.testing.assert_array_equal(nothing[0][:, 6:], vector[:, 6:])
    one, against = condition.against(cond, " ".join(WORDS * 2))
    assert jax.tree.map(np.shape, one) == jax.tree.map(np.shape, against)
