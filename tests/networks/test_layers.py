"""Layers against their definitions in numpy, and against the identities that they promise."""

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
        norm = p[f"{name}_norm"]["GroupNorm_0"]
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
