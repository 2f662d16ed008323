import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks.autoencoder import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from tests.networks.drawn import parameters

ENCODERS = {"mlp": lambda **o: MLPEncoder(3, (5,), **o), "conv": lambda **o: ConvEncoder(3, (2, 4), **o)}
DECODERS = {
    "mlp": lambda shape, **o: MLPDecoder(shape, (5,), **o),
    "conv": lambda shape, **o: ConvDecoder(shape, (2, 4), **o),
}
each_kind = pytest.mark.parametrize("kind", ["mlp", "conv"])


@each_kind
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (9, 7, 2)])
def test_any_size_goes_in_and_comes_out(kind, shape):
    x = jnp.zeros((2, *shape))
    (mean, log_std), _ = jax.eval_shape(ENCODERS[kind]().init_with_output, jax.random.key(0), x)
    assert mean.shape == log_std.shape == (2, 3)
    out, _ = jax.eval_shape(DECODERS[kind](shape).init_with_output, jax.random.key(0), mean)
    assert out.shape == x.shape


def test_mlp_encoder_equals_numpy():
    net, x = ENCODERS["mlp"](num_classes=4), np.random.default_rng(0).normal(size=(3, 2, 2, 1))
    x, label = jnp.float32(x), jnp.array([3, 0, 1])
    params = parameters(net, x, label)
    first, last = (jax.tree.map(np.float64, params["params"]["MLP_0"][f"Dense_{i}"]) for i in range(2))
    h = np.concatenate([np.float64(x).reshape(3, -1), np.eye(4)[label]], axis=1)
    h = np.maximum(h @ first["kernel"] + first["bias"], 0) @ last["kernel"] + last["bias"]
    for got, want in zip(net.apply(params, x, label), np.split(h, 2, axis=1), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@each_kind
def test_every_pixel_reaches_the_latent_and_is_reached_by_it(kind):
    """On an odd size: nothing is cropped away or left out."""
    shape = (5, 7, 2)
    encoder, decoder = (
        ENCODERS[kind](activation=jax.nn.silu),
        DECODERS[kind](shape, activation=jax.nn.silu),
    )
    x, z = jnp.ones((1, *shape)), jnp.ones((1, 3))
    params = parameters(encoder, x), parameters(decoder, z)
    reach = jax.jit(jax.grad(lambda x: sum(a.sum() for a in encoder.apply(params[0], x))))(x)
    assert (np.asarray(reach) != 0).all()
    moved = jax.jit(lambda z: decoder.apply(params[1], z))(z + 1) - decoder.apply(params[1], z)
    assert (np.asarray(moved) != 0).all()


@each_kind
def test_labels_condition_and_are_checked(kind):
    shape, label = (4, 4, 1), jnp.array([0, 2])
    options = {"num_classes": 3, "activation": jnp.tanh}
    encoder, decoder = ENCODERS[kind](**options), DECODERS[kind](shape, **options)
    for net, x in ((encoder, jnp.ones((2, *shape))), (decoder, jnp.ones((2, 3)))):
        params = parameters(net, x, label)
        apply = jax.jit(net.apply)
        first, second = (np.asarray(a) for a in jnp.stack(jax.tree.leaves(apply(params, x, label))[:1])[0])
        assert (first != second).any(), "the same input under two labels"
        with jax.debug_nans(False):  # out of range, inside jit: not a number, rather than some other label's
            for wrong in (jnp.array([0, 3]), jnp.array([0, -1])):
                (out, *_) = jax.tree.leaves(apply(params, x, wrong))
                assert np.isfinite(out[0]).all()
                assert np.isnan(out[1]).all()
        with pytest.raises(ValueError, match="needs its label"):
            net.apply(params, x)
        with pytest.raises(ValueError, match="integer label for each of 2"):
            net.apply(params, x, jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="takes no label"):
        ENCODERS[kind]().init(jax.random.key(0), jnp.ones((2, *shape)), label)


@each_kind
def test_outputs_of_an_encoder_are_float32_whatever_it_runs_in(kind):
    net = ENCODERS[kind](dtype=jnp.bfloat16)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    mean, _ = jax.eval_shape(net.apply, params, jnp.zeros((1, 4, 4, 1)))
    assert mean.dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
