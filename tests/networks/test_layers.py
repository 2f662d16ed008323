"""Layers against their definitions in numpy, and against the identities that they promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax.networks import layers
from gen_jax.networks.conv import conv
from tests.networks.drawn import parameters

KEY = jax.random.key(0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_depth_to_space_inverts_space_to_depth(height, width, patch, channels):
    x = np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)

    @jax.jit
    def there_and_back(x):
        folded = layers.space_to_depth(x, patch)
        return folded, layers.depth_to_space(folded, patch, x.shape)

    folded, back = there_and_back(x)
    assert folded.shape == (2, -(-height // patch), -(-width // patch), patch**2 * channels)
    np.testing.assert_array_equal(back, x)


def test_space_to_depth_keeps_squares_together():
    x = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.space_to_depth(jnp.asarray(x), 2)[0, 0, 1], [2, 3, 6, 7])


@pytest.mark.parametrize("size", [(4, 6), (7, 7), (27, 14), (1, 1)])
def test_pool_is_the_mean_of_squares_with_edges_repeated(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
    corners = [padded[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    np.testing.assert_allclose(layers.pool(jnp.asarray(x)), np.mean(corners, axis=0), atol=1e-6)


@pytest.mark.parametrize("size", [(4, 6), (7, 7), (27, 14)])
def test_pool_undoes_upsample(size):
    x = jax.random.normal(KEY, (2, -(-size[0] // 2), -(-size[1] // 2), 3))
    up = layers.upsample(x, (2, *size, 3))
    assert up.shape == (2, *size, 3)
    np.testing.assert_allclose(layers.pool(up), x, atol=1e-6)


def test_sinusoidal_is_sines_and_cosines_at_geometric_frequencies():
    t = np.array([0.0, 0.5, 3.0, 999.0])
    frequencies = 10_000.0 ** (-np.arange(8) / 7)
    angles = t[:, None] * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(layers.sinusoidal(jnp.asarray(t), 16), expected, atol=1e-3)
    np.testing.assert_array_equal(
        layers.sinusoidal(jnp.array([3]), 16), layers.sinusoidal(jnp.array([3.0]), 16)
    )


def test_sinusoidal_without_endpoint_and_with_cosines_first_is_that_of_stable_diffusion():
    t = np.array([0.0, 0.5, 3.0, 999.0])
    angles = t[:, None] * 10_000.0 ** (-np.arange(8) / 8)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    ours = layers.sinusoidal(jnp.asarray(t), 16, cosines_first=True, endpoint=False)
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_group_norm_standardises_each_group():
    x = 5 + 3 * jax.random.normal(KEY, (2, 6, 5, 12))
    norm = layers.GroupNorm(groups=4)
    y = np.asarray(norm.apply(norm.init(KEY, x), x)).reshape(2, 30, 4, 3)
    np.testing.assert_allclose(y.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((1, 3)), 1, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5, 4, 12), (2, 7, 8), (2, 3, 3, 6)])
def test_group_norm_is_that_of_flax_with_its_gradients(shape):
    x = 2 + 3 * jax.random.normal(KEY, shape)
    groups = 4 if shape[-1] % 4 == 0 else 3
    ours, theirs = layers.GroupNorm(4), nn.GroupNorm(groups, epsilon=1e-5)
    params = parameters(ours, x)
    value = lambda norm: lambda params, x: jnp.sin(norm.apply(params, x)).sum()
    for norm in (ours, theirs):
        assert jax.tree.map(jnp.shape, norm.init(KEY, x)) == jax.tree.map(jnp.shape, params)
    both = [jax.jit(jax.value_and_grad(value(norm), (0, 1)))(params, x) for norm in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both)


def test_group_norm_with_film_is_scaled_and_shifted_once_more():
    x, scale, shift = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(2, 4, 3, 8), (2, 8), (2, 8)])
    )
    norm = layers.GroupNorm(2)
    params = parameters(norm, x)
    plain = norm.apply(params, x) * (1 + scale)[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(norm.apply(params, x, (scale, shift)), plain, atol=1e-5)


def test_group_norm_of_bfloat16_gathers_in_float32():
    x = (100 + jax.random.normal(KEY, (2, 16, 16, 8))).astype(jnp.bfloat16)
    y, _ = layers.GroupNorm(2, dtype=jnp.bfloat16).init_with_output(KEY, x)
    exact, _ = layers.GroupNorm(2).init_with_output(KEY, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), exact, atol=0.02)


def test_group_norm_takes_the_largest_divisor_of_the_channels():
    x = jax.random.normal(KEY, (2, 4, 4, 6))
    y = lambda groups: layers.GroupNorm(groups).init_with_output(KEY, x)[0]
    np.testing.assert_array_equal(y(5), y(3))


def standardised(x, groups, eps):
    """In float64, by numpy."""
    x = np.asarray(x, np.float64)
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    return (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + eps)).reshape(x.shape)


def large_means():
    """`[3, 9, 5, 8]`: a large mean; one for each group; first rows far from all others."""
    x = np.random.default_rng(0).normal(size=(3, 9, 5, 8))
    x[0] += 3e4
    x[1] += np.repeat([1e3, -2e4], 4)
    x[2, :2] += 1e4
    return jnp.asarray(x, jnp.float32)


@pytest.mark.slow  # XLA's old emitters, with which the fast tests compile, round the shift in two ways
@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_group_norm_is_exact_for_large_means(eps):
    """Within 1e-5 of float64, where the one pass over the data has no digit left."""
    x = large_means()
    exact, fast = (
        np.asarray(jax.jit(layers.GroupNorm(2, eps=eps, exact_norm=exact).init_with_output)(KEY, x)[0])
        for exact in (True, False)
    )
    expected = standardised(x, 2, eps)
    np.testing.assert_allclose(exact, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(fast - expected)[:2].max() > 0.1


def test_group_norm_that_is_exact_has_the_gradients_of_flax():
    x = 2 + 3 * jax.random.normal(KEY, (2, 6, 5, 8))
    ours, theirs = layers.GroupNorm(2, exact_norm=True), nn.GroupNorm(2, epsilon=1e-5)
    params = parameters(ours, x)
    value = lambda norm: lambda params, x: jnp.sin(norm.apply(params, x)).sum()
    both = [jax.jit(jax.value_and_grad(value(norm), (0, 1)))(params, x) for norm in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both)


def test_group_norm_that_is_exact_refuses_other_groups():
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        layers.GroupNorm(4, exact_norm=True).init(KEY, jnp.zeros((1, 2, 2, 6)))


def test_layer_norm_is_that_of_numpy_for_large_means_with_the_gradients_of_flax():
    """The mean is rounded to float32, a relative error of 2^-24: 1e-3 of a deviation for a mean of 2e4 deviations."""
    x = large_means()
    y = jax.jit(layers.LayerNorm().init_with_output)(KEY, x)[0]
    np.testing.assert_allclose(y.reshape(-1, 8), standardised(x.reshape(-1, 8), 1, 1e-5), atol=1e-2)
    x = 2 + 3 * jax.random.normal(KEY, (2, 6, 8))
    params = parameters(layers.LayerNorm(), x)
    value = lambda norm: lambda params, x: jnp.sin(norm.apply(params, x)).sum()
    norms = layers.LayerNorm(), nn.LayerNorm(1e-5)
    both = [jax.jit(jax.value_and_grad(value(norm), (0, 1)))(params, x) for norm in norms]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both)


def attention_by_hand(query, key, value):
    """softmax(q k^T / sqrt(d)) v, one head."""
    logits = query @ key.T / np.sqrt(query.shape[1])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ value


def test_attention_equals_its_formula():
    x = jax.random.normal(KEY, (1, 3, 2, 8))
    layer = layers.Attention(head_features=4, groups=2)
    params = parameters(layer, x, scale=0.3)
    p = jax.tree.map(np.asarray, params["params"])
    h = np.asarray(x[0], np.float64).reshape(6, 8)
    groups = h.reshape(6, 2, 4)
    normed = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(groups.var((0, 2), keepdims=True) + 1e-5)
    normed = normed.reshape(6, 8) * p["self_norm"]["scale"] + p["self_norm"]["bias"]
    q, k, v = (
        np.einsum("lc,chd->lhd", normed, p[f"self_{part}"]["kernel"]) + p[f"self_{part}"]["bias"]
        for part in ("query", "key", "value")
    )
    heads = np.stack([attention_by_hand(q[:, i], k[:, i], v[:, i]) for i in range(2)], axis=1)
    h = h + np.einsum("lhd,hdc->lc", heads, p["self_out"]["kernel"]) + p["self_out"]["bias"]
    ours = np.asarray(jax.jit(layer.apply)(params, x))[0].reshape(6, 8)
    np.testing.assert_allclose(ours, h, atol=1e-4)


def test_res_block_is_the_identity_at_the_start():
    x, emb = jax.random.normal(KEY, (2, 5, 5, 8)), jax.random.normal(KEY, (2, 4))
    y, _ = jax.jit(layers.ResBlock(8).init_with_output)(KEY, x, emb)
    np.testing.assert_array_equal(y, x)


def test_res_block_adds_the_embedding_to_the_first_convolution():
    x, emb = jax.random.normal(KEY, (2, 5, 4, 8)), jax.random.normal(jax.random.key(1), (2, 3))
    block = layers.ResBlock(6, groups=2, time="add")
    params = parameters(block, x, emb)
    p = params["params"]
    norm = lambda name, h: layers.GroupNorm(2).apply({"params": p[name]}, h)
    convolve = lambda name, h: layers.Conv(6).apply({"params": p[name]}, h)
    affine = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"].reshape((1,) * (h.ndim - 1) + (-1,))
    h = convolve("Conv_0", nn.silu(norm("GroupNorm_0", x)))
    h = h + affine("Dense_0", nn.silu(emb))[:, None, None]
    expected = affine("Dense_1", x) + convolve("Conv_1", nn.silu(norm("GroupNorm_1", h)))
    np.testing.assert_allclose(jax.jit(block.apply)(params, x, emb), expected, atol=1e-4)


def test_res_block_without_an_embedding_is_one_with_a_shift_of_zero():
    x = jax.random.normal(KEY, (2, 5, 4, 8))
    block = layers.ResBlock(6, groups=2)
    params = parameters(block, x)
    assert set(params["params"]) == {"GroupNorm_0", "Conv_0", "GroupNorm_1", "Conv_1", "Dense_1"}
    zeros = {"kernel": jnp.zeros((1, 12)), "bias": jnp.zeros(12)}
    with_film = {"params": params["params"] | {"Dense_0": zeros}}
    run = jax.jit(block.apply)
    np.testing.assert_allclose(run(params, x), run(with_film, x, jnp.ones((2, 1))), atol=1e-5)


def test_conv_enlarged_is_the_convolution_of_the_enlarged_map(monkeypatch):
    """By the parity of rows and columns, with its gradients."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 4))
    w, g = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in ((1, (3, 3, 4, 6)), (2, (2, 10, 6, 6)))
    )
    run = lambda: jax.jit(jax.value_and_grad(lambda x, w: (layers.conv_enlarged(x, w) * g).sum(), (0, 1)))(
        x, w
    )
    plain = run()
    monkeypatch.setattr(layers, "LARGE_MAP", 1)
    y = layers.conv_enlarged(x, w)
    np.testing.assert_allclose(y, conv(layers.upsample(x, (2, 10, 6)), w), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), run(), plain)
