"""Layers against their definitions in numpy, and against the identities that they promise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax.networks import layers
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


def attention_by_hand(query, key, value):
    """softmax(q k^T / sqrt(d)) v, one head."""
    logits = query @ key.T / np.sqrt(query.shape[1])
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ value


def test_attention_equals_its_formula():
    x = jax.random.normal(KEY, (1, 3, 2, 8))
    context = jax.random.normal(jax.random.key(1), (1, 5, 4))
    layer = layers.Attention(head_features=4, groups=2)
    params = parameters(layer, x, context, scale=0.3)
    p = jax.tree.map(np.asarray, params["params"])
    h = np.asarray(x[0], np.float64).reshape(6, 8)
    for name in ("self", "cross"):
        norm = p[f"{name}_norm"]
        groups = h.reshape(6, 2, 4)
        normed = (groups - groups.mean((0, 2), keepdims=True)) / np.sqrt(
            groups.var((0, 2), keepdims=True) + 1e-5
        )
        normed = normed.reshape(6, 8) * norm["scale"] + norm["bias"]
        source = normed if name == "self" else np.asarray(context[0])
        q, k, v = (
            np.einsum("lc,chd->lhd", a, p[f"{name}_{part}"]["kernel"]) + p[f"{name}_{part}"]["bias"]
            for part, a in (("query", normed), ("key", source), ("value", source))
        )
        heads = np.stack([attention_by_hand(q[:, i], k[:, i], v[:, i]) for i in range(2)], axis=1)
        h = h + np.einsum("lhd,hdc->lc", heads, p[f"{name}_out"]["kernel"]) + p[f"{name}_out"]["bias"]
    ours = np.asarray(jax.jit(layer.apply)(params, x, context))[0].reshape(6, 8)
    np.testing.assert_allclose(ours, h, atol=1e-4)


def test_res_block_is_the_identity_at_the_start():
    x, emb = jax.random.normal(KEY, (2, 5, 5, 8)), jax.random.normal(KEY, (2, 4))
    y, _ = jax.jit(layers.ResBlock(8).init_with_output)(KEY, x, emb)
    np.testing.assert_array_equal(y, x)
