"""Latent diffusion against pixel diffusion, and against exact laws."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import data, generate, gmm, latent
from gen_jax.codec import Latents, Pixels
from gen_jax.conditioning import Nothing
from gen_jax.diffusion import oracle, process
from gen_jax.model import Model, Sampling
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.unet import UNetConfig

KEY = jax.random.key(0)
TINY = UNetConfig(channels=(8, 8), groups=4, embedding=16, time_scale=1000.0)


@dataclass(frozen=True)
class Linear:
    """An autoencoder `z = x A^T`, `x = z A^{-T}` of the `side`^2 pixels of squares, with a given deviation."""

    side: int = 1
    deviation: float = 0.0
    in_channels: int = 1

    @property
    def factor(self) -> int:
        return self.side

    def build(self):
        def apply(params, x, method):
            b, h, w, c = x.shape
            s = self.side
            if method == "encode":
                x = x.reshape(b, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5)
                mean = x.reshape(b, h // s, w // s, s * s * c) @ params.T
                return mean, jnp.full(mean.shape, 2 * np.log(self.deviation) if self.deviation else -jnp.inf)
            x = (x @ jnp.linalg.inv(params).T).reshape(b, h, w, s, s, -1)
            return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * s, w * s, -1)

        return SimpleNamespace(apply=apply, init=lambda key, x: jnp.eye(self.side**2 * self.in_channels))


class Free(Pixels):
    """Pixels whose estimates are not clipped, as latents are not."""

    def bound(self, denoise):
        return denoise


def test_with_an_identity_autoencoder_it_is_pixel_diffusion_to_the_bit():
    pixels = Model(TINY, process.VP(), "v", Nothing(), Free((8, 8, 1)), Sampling("ddim", 4))
    latents = replace(pixels, codec=Latents((8, 8, 1), autoencoder=Linear()))
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), pixels.init(KEY))
    images = jax.random.randint(KEY, (4, 8, 8, 1), 0, 256).astype(jnp.uint8)
    eye = jnp.eye(1)
    np.testing.assert_array_equal(
        pixels.codec.encode({"image": images}), latents.codec.encode({"image": images}, eye, KEY)
    )
    a, _ = generate.sample(pixels, {"network": params}, KEY, 4)
    b, _ = generate.sample(latents, {"network": params, "autoencoder": eye}, KEY, 4)
    assert a.std() > 10  # not all of one value
    np.testing.assert_array_equal(a, b)


def test_with_a_linear_autoencoder_and_the_exact_denoiser_samples_have_the_exact_law():
    # images of 2 x 2 pixels are one latent of 4 numbers; these are a mixture, so images are one, too
    means = jnp.array([[0.3, 0.0, 0.2, -0.1], [-0.3, 0.1, -0.2, 0.2]])
    covs = jnp.stack([0.02 * jnp.eye(4), 0.01 * jnp.eye(4) + 0.005])
    mix = gmm.GMM(jnp.array([0.3, 0.7]), means, covs)
    A = jnp.array([[2.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.3, 0.0], [0.2, 0.0, 1.5, 0.1], [0.0, 0.4, 0.0, 1.2]])
    scale, shift = 2.5, 0.1
    # x = A^-1 z in [-1, 1]; the diffused x_0 = (z - shift) scale is a mixture as well
    z = gmm.GMM(mix.weights, means @ A.T, jnp.einsum("ij,kjl,ml->kim", A, covs, A))
    x_0 = gmm.GMM(z.weights, (z.means - shift) * scale, z.covs * scale**2)
    proc = process.VP()

    @dataclass(frozen=True)
    class Exact:
        def build(self):
            def one(params, x, t):
                den = oracle.mixture(params, proc)
                return den(x.reshape(1, -1), t).reshape(x.shape)

            return SimpleNamespace(apply=jax.vmap(one, in_axes=(None, 0, 0)), init=lambda *_: x_0)

    codec = Latents((1, 1, 4), scale, shift, autoencoder=Linear(2))
    model = Model(Exact(), proc, "x0", Nothing(), codec, Sampling("dpmpp", 40))
    n = 8000
    images, _ = generate.sample(model, {"network": x_0, "autoencoder": A}, KEY, n, chunk=n)
    x = (images.reshape(n, 4) / 127.5 - 1).astype(np.float64)
    mean = np.asarray(mix.weights @ means)
    second = np.einsum("k,kij->ij", mix.weights, covs + jnp.einsum("ki,kj->kij", means, means))
    exact = second - np.outer(mean, mean)
    deviations = np.sqrt(np.diag(exact))
    assert np.abs((x.mean(0) - mean) / deviations).max() < 5 / np.sqrt(n)
    bound = 6 * np.sqrt(2 / n) + 1 / (3 * (127.5 * deviations.min()) ** 2)  # draws, and rounding to bytes
    assert np.abs((np.cov(x.T) - exact) / np.outer(deviations, deviations)).max() < bound
    share = float((x[:, 0] > 0).mean())  # of the first component, as the two hardly overlap there
    side = np.asarray(jax.scipy.stats.norm.cdf(means[:, 0] / jnp.sqrt(covs[:, 0, 0])))
    assert abs(share - float(mix.weights @ side)) < 5 * np.sqrt(0.25 / n) + 0.005


def test_encode_draws_what_the_moments_say():
    codec = Latents((4, 4, 1), 2.0, 0.5, autoencoder=Linear(deviation=0.3))
    images = np.full((2000, 4, 4, 1), 255, np.uint8)
    x_0 = np.asarray(codec.encode({"image": images}, jnp.eye(1), KEY))
    n = x_0.size
    assert abs(x_0.mean() - (1 - 0.5) * 2) < 5 * 0.6 / np.sqrt(n)
    assert abs(x_0.std() / 0.6 - 1) < 5 / np.sqrt(2 * n)
    np.testing.assert_allclose(codec.encode({"image": images}, jnp.eye(1)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_encode_all_is_encode_of_each(tmp_path, kept):
    images = np.random.default_rng(0).integers(0, 256, (37, 8, 8, 1), np.uint8)
    codec = Latents((4, 4, 4), 1.7, -0.2, autoencoder=Linear(2, 0.1))
    A = jnp.array(np.random.default_rng(1).normal(size=(4, 4)), jnp.float32)
    labels = np.arange(37, dtype=np.int32)
    source = data.Arrays({"image": images, "label": labels})
    found = latent.encode_all(codec, A, source, tmp_path if kept else None, batch_size=10)
    assert sorted(found.arrays) == ["label", "latent", "latent_deviation"]
    np.testing.assert_array_equal(found.arrays["label"], labels)
    want = codec.encode({"image": images}, A, KEY)
    np.testing.assert_allclose(codec.encode(found.arrays, key=KEY), want, rtol=1e-5, atol=1e-5)
    if kept:
        (entry,) = tmp_path.iterdir()
        stamp = (entry / "latent.npy").stat().st_mtime_ns
        latent.encode_all(codec, A, source, tmp_path)  # it is there
        assert (entry / "latent.npy").stat().st_mtime_ns == stamp
        latent.encode_all(codec, 2 * A, source, tmp_path)  # other weights
        assert len(list(tmp_path.iterdir())) == 2


def test_what_does_not_fit_is_said():
    images = np.zeros((3, 8, 8, 1), np.uint8)
    codec = Latents((4, 4, 4), autoencoder=Linear(2))
    eye, source = jnp.eye(4), data.Arrays({"image": np.zeros((3, 12, 8, 1), np.uint8)})
    cases = [
        (lambda: codec.encode({"image": images}), "parameters of the autoencoder"),
        (lambda: codec.decode(jnp.zeros((1, 4, 4, 4))), "parameters of the autoencoder"),
        (lambda: codec.encode({"image": images[:, :4]}, eye), r"shape \(8, 8, 1\)"),
        (lambda: codec.encode({"image": images / 255}, eye), "uint8"),
        (lambda: Latents((4, 4)).image_shape, "no autoencoder"),
        (lambda: Latents((4, 4), autoencoder=Linear(2)), "height, width, channels"),
        (lambda: latent.encode_all(codec, eye, source), r"\(8, 8, 1\).*\(12, 8, 1\)"),
        (lambda: AutoencoderKLConfig().latent_shape((50, 48, 3)), "8 must divide"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
