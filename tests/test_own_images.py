"""Images and labels as people have them: another range, another type, other names. What is right, and what is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import linen as nn

from gen_jax import codec, data, hvae, likelihoods, plots, training, vae
from gen_jax.hvae import gaussian
from gen_jax.networks.autoencoder import MLPDecoder, MLPEncoder

KEY = jax.random.key(0)
BYTES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 1)).astype(np.uint8)
GREY = (BYTES / 255).astype(np.float32)
UNIT = (BYTES / 127.5 - 1).astype(np.float32)
LOGITS = np.random.default_rng(1).normal(size=BYTES.shape).astype(np.float32)
FAMILIES = [
    likelihoods.Bernoulli(),
    likelihoods.DiscretizedGaussian(),
    likelihoods.DiscretizedLogistic(),
    likelihoods.LogisticMixture(2),
]


def refused(call, *said):
    """The message of a ValueError, which has these words."""
    with pytest.raises(ValueError, match=r"[\s\S]") as found:
        call()
    for word in said:
        assert word in str(found.value), str(found.value)


# --- range and type of images ---


@pytest.mark.parametrize(
    "transform",
    [data.to_unit, data.to_zero_one, lambda x: data.binarize(KEY, x), lambda x: data.dequantize(KEY, x)],
)
def test_only_bytes_are_made_numbers(transform):
    refused(lambda: transform(GREY), "uint8", "float32", "with values from 0 to 1", "data.from_zero_one")
    refused(lambda: transform(UNIT), "with values from -1 to 1", "data.to_uint8")
    refused(lambda: transform(BYTES > 9), "bool", "multiplied by 255")
    refused(lambda: transform(BYTES.astype(np.int32) + 1), "int32", "256")
    refused(lambda: jax.eval_shape(transform, GREY), "uint8", "float32")
    wide = transform(BYTES.astype(np.int64))
    np.testing.assert_array_equal(wide, transform(BYTES))
    np.testing.assert_array_equal(transform(BYTES.tolist()), wide)


def test_bytes_are_not_made_bytes_again():
    refused(lambda: data.to_uint8(BYTES), "x must be numbers in [-1, 1], got an array uint8", "to 25")
    refused(lambda: data.from_zero_one(BYTES), "x must be numbers in [0, 1]")
    refused(lambda: jax.eval_shape(data.to_uint8, BYTES), "uint8")
    np.testing.assert_array_equal(data.from_zero_one(BYTES > 99), np.where(BYTES > 99, 255, 0))
    np.testing.assert_array_equal(data.from_zero_one(GREY.astype(np.float16)), BYTES)
    np.testing.assert_array_equal(data.to_uint8(UNIT), BYTES)


def test_the_codec_says_what_it_found():
    pixels = codec.Pixels((6, 5, 1))
    refused(
        lambda: pixels.encode({"image": GREY}), "uint8", "float32", "values from 0 to 1", "data.from_zero_one"
    )
    refused(lambda: codec.check_data(pixels, {"image": UNIT}), "values from -1 to 1")
    for bad, what in ((np.nan, "NaN"), (np.inf, "infinite values")):
        holed = GREY.copy()
        holed[[1, 3], 2] = bad
        said = f"with {what} in 2 of 4 rows, the first of them row 1", "Mend these rows first"
        refused(lambda holed=holed, said=said: codec.check_data(pixels, {"image": holed}), *said)
        refused(lambda holed=holed, said=said: data.to_unit(holed), *said)
    refused(
        lambda: codec.check_data(pixels, {"image": BYTES // 128}), "0 and 1 alone", "multiply them by 255"
    )
    refused(lambda: codec.check_data(pixels, {"picture": BYTES}), '"image"', "'picture'")
    codec.check_data(pixels, {"image": BYTES})
    latents = codec.Latents((3,))
    refused(lambda: codec.check_data(latents, {"latent": np.array([[1, np.nan, 2]])}), '"latent"', "nan")
    refused(lambda: latents.encode({"z": np.zeros((2, 3))}), '"latent"', "'z'")


def test_a_loss_on_unscaled_floats_says_so_at_its_first_step():
    loss = lambda params, key, batch: (jnp.sum(params * data.to_unit(batch["image"])), {})
    refused(lambda: jax.jit(loss)(jnp.ones(()), KEY, {"image": GREY}), "uint8", "float32")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_data_of_a_likelihood_lie_between_0_and_1(family):
    out = np.repeat(LOGITS, family.outputs(1), -1)
    fine = family.log_prob(out, GREY)
    assert np.isfinite(fine).all()
    refused(lambda: family.log_prob(out, BYTES), "x must be in [0, 1]", "data.to_zero_one")
    refused(lambda: family.log_prob(out, BYTES.astype(np.float32)), "values from", "data.to_zero_one")
    refused(lambda: family.log_prob(out, UNIT), "values from -1 to 1", "(x + 1) / 2")
    refused(lambda: jax.eval_shape(family.log_prob, out, BYTES), "x must be floating, got uint8")
    with jax.debug_nans(False):
        compiled = jax.jit(family.log_prob)
        np.testing.assert_allclose(compiled(out, GREY), fine, rtol=1e-5)
        assert np.isnan(compiled(out, UNIT)).all()
        assert np.isnan(compiled(out, BYTES.astype(np.float32))).all()


def test_bits_of_any_type_have_their_log_probability():
    bits = GREY > 0.5
    expected = scipy.stats.bernoulli.logpmf(bits, 1 / (1 + np.exp(-np.float64(LOGITS)))).sum((1, 2, 3))
    for x in (bits, bits.astype(np.uint8), bits.astype(int), bits.astype(np.float16)):
        np.testing.assert_allclose(likelihoods.Bernoulli().log_prob(LOGITS, x), expected, rtol=1e-5)


MODELS = {
    "vae": vae.VAE(MLPEncoder(2, ()), MLPDecoder((6, 5, 1), ()), likelihoods.Bernoulli(), 2),
    "hvae": hvae.HVAE((MLPEncoder(2, ()),), (MLPDecoder((6, 5, 1), ()),), likelihoods.Bernoulli(), (2,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_vae_takes_the_data_of_its_likelihood(name):
    model, losses = MODELS[name], {"vae": vae.loss, "hvae": hvae.loss}[name]
    params = model.init(KEY, GREY)
    assert np.isfinite(model.elbo(params, KEY, GREY).value).all()
    for bound in (model.elbo, lambda p, k, x: model.iwae(p, k, x, 2)):
        refused(
            lambda bound=bound: bound(params, KEY, BYTES), "x must be floating, got uint8", "data.binarize"
        )
        refused(lambda bound=bound: bound(params, KEY, 255 * GREY), "x must be in [0, 1]")
    loss = losses(model)
    refused(lambda: jax.eval_shape(loss, params, KEY, {"image": BYTES}), "data.binarize")
    refused(lambda: jax.eval_shape(loss, params, KEY, {"picture": GREY}), '"image"', "'picture'")
    with jax.debug_nans(False):
        assert np.isnan(jax.jit(loss)(params, KEY, {"image": 255 * GREY})[0])


def test_discretized_values_lie_between_minus_1_and_1():
    x, mean, std = UNIT, np.zeros_like(UNIT), np.full_like(UNIT, 0.5)
    inner = np.abs(x) < 1
    up, low = ((np.float64(x) + s / 255) / 0.5 for s in (1, -1))
    expected = np.log(scipy.stats.norm.cdf(up) - scipy.stats.norm.cdf(low))
    got = np.asarray(likelihoods.discretized_log_prob(x, mean, std))
    np.testing.assert_allclose(got[inner], expected[inner], rtol=1e-4)
    refused(lambda: likelihoods.discretized_log_prob(BYTES, mean, std), "x must be in [-1, 1]")
    refused(lambda: likelihoods.discretized_log_prob(x, mean, -std), "std must be above 0")
    refused(lambda: likelihoods.discretized_logistic_log_prob(255 * GREY, mean, std), "x must be in [-1, 1]")


# --- precision ---


def test_divergences_of_a_bfloat16_encoder_are_summed_in_float32():
    """4096 numbers of 0.0078: in bfloat16 their sum stops growing at 2."""
    mean, log_std = jnp.full((1, 4096), 0.125, jnp.bfloat16), jnp.zeros((1, 4096), jnp.bfloat16)
    exact = 4096 * 0.125**2 / 2
    np.testing.assert_allclose(vae.kl_to_prior(vae.Posterior(mean, log_std)).sum(), exact, rtol=1e-6)
    q, p = hvae.Gaussian(mean, log_std), gaussian.standard(mean)
    np.testing.assert_allclose(gaussian.kl(q, p), exact, rtol=1e-6)
    expected = scipy.stats.norm.logpdf(0.125) * 4096
    np.testing.assert_allclose(gaussian.log_prob(p, mean), expected, rtol=1e-6)
    bound = vae.Elbo.of(jnp.zeros(1, jnp.bfloat16), jnp.full((1, 4096), 0.0078125, jnp.bfloat16))
    np.testing.assert_allclose(bound.value, -32, rtol=1e-6)


def test_the_posterior_of_a_bfloat16_encoder_is_float32():
    class Rough(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Dense(4, dtype=jnp.bfloat16)(x.reshape(len(x), -1))
            return h[:, :2], h[:, 2:]

    model = vae.VAE(Rough(), MLPDecoder((6, 5, 1), ()), likelihoods.Bernoulli(), 2)
    params = model.init(KEY, GREY)
    mean, log_std = (np.float64(a) for a in model.encode(params, GREY))
    assert model.encode(params, GREY).mean.dtype == jnp.float32
    expected = (mean**2 + np.exp(2 * log_std) - 1).sum(1) / 2 - log_std.sum(1)
    np.testing.assert_allclose(model.elbo(params, KEY, GREY).kl, expected, rtol=1e-5)


# --- the rest ---


def test_temperatures_are_not_negative():
    model = MODELS["hvae"]
    params = model.init(KEY, GREY)
    refused(lambda: model.sample(KEY, params, 2, temperature=-1.0), "temperature must be at least 0, got -1")
    refused(lambda: model.sample(KEY, params, -3), "n must be at least 0, got -3")
    assert model.sample(KEY, params, 0).shape == (0, 6, 5, 1)
    assert MODELS["vae"].sample(KEY, MODELS["vae"].init(KEY, GREY), 0).shape == (0, 6, 5, 1)


def test_no_examples_have_no_bounds():
    for model in MODELS.values():
        params, none = model.init(KEY, GREY), GREY[:0]
        assert model.elbo(params, KEY, none).value.shape == (0,)
        assert model.log_prob(params, KEY, none, 3).shape == (0,)
    for family in FAMILIES:
        out = np.repeat(LOGITS, family.outputs(1), -1)
        assert family.log_prob(out[:0], GREY[:0]).shape == (0,)


@pytest.mark.parametrize("where", ["params", "nested", "a namedtuple"])
@pytest.mark.parametrize("name", ["batch_stats", "cache"])
def test_what_a_network_writes_is_not_trained(where, name):
    tree = {"params": {"w": jnp.ones(2)}, name: {"norm": {"mean": jnp.zeros(2)}}}
    params = {"params": tree, "nested": {"network": tree}, "a namedtuple": vae.Params(tree, tree)}[where]
    refused(lambda: training.TrainState.create(params, optax.sgd(0.1), KEY), name)
    fine = {"params": {"cache": {"w": jnp.ones(2)}}}  # a layer of this name
    assert training.TrainState.create(fine, optax.sgd(0.1), KEY).step == 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_pictures_have_any_number_of_channels(tmp_path, channels):
    images = np.arange(2 * 3 * 4 * channels, dtype=np.uint8).reshape(2, 3, 4, channels)
    shown = plots.tile(images, 1, 0)
    assert shown.shape == ((6, 4, channels) if channels in (1, 3, 4) else (6, 4 * channels, 1))
    last = shown[3:, -4:, -1]
    np.testing.assert_array_equal(last, images[1, :, :, -1])
    plots.save_grid(tmp_path / "grid.png", images)
    plots.save_image(tmp_path / "image.png", images[0])
    plots.save_captioned(tmp_path / "captioned.png", images, ["a", "b"])


def test_a_path_begins_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "table.csv").write_text("1,2\n3,4\n")
    np.save(tmp_path / "set.npy", BYTES)
    np.testing.assert_array_equal(data.table("~/table.csv"), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(data.load("~/set.npy")["image"], BYTES)
    plots.save_image("~/image.png", BYTES[0])
    assert (tmp_path / "image.png").exists()
    refused(
        lambda: plots.save_image("~/nowhere/image.png", BYTES[0]), "nowhere/image.png", "can not be written"
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_floats_of_any_width_are_batched_and_encoded(dtype):
    z = (np.arange(12).reshape(4, 3) / 8).astype(dtype)
    batches = data.batches({"latent": z}, 4, key=KEY)
    x_0 = codec.Latents((3,), scale=2.0).encode(batches.arrays)
    assert x_0.dtype == jnp.float32
    np.testing.assert_array_equal(x_0, np.arange(12).reshape(4, 3) / 4)
