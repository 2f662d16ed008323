"""Transformer blocks against their formula in numpy, and against what they promise of contexts and masks."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gen_jax.networks import transformer
from tests.networks.drawn import parameters

BLOCK = transformer.Block(heads=2, context_features=5)
MAP = transformer.Transformer(depth=2, heads=2, context_features=5, groups=4)
MASK = jnp.array([[True, False, True], [True, True, False]])


def tokens(count=6, features=8, batch=2, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, count, features))


def pixels(size=(3, 2), features=8, batch=2):
    return tokens(size[0] * size[1], features, batch).reshape(batch, *size, features)


CONTEXT = tokens(3, 5, seed=1)


def apply(net):
    return jax.jit(net.apply)


def layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attention(p, name, x, source, mask):
    """softmax(q k^T / sqrt(d)) v W + b of one example, over the tokens of the mask, and the softmax."""
    project = lambda part, a: (
        np.einsum("nc,chd->hnd", a, p[f"{name}_{part}"]["kernel"])
        + (p[f"{name}_{part}"]["bias"][:, None] if "bias" in p[f"{name}_{part}"] else 0)
    )
    q, k, v = project("query", x), project("key", source), project("value", source)
    weights = np.exp(np.einsum("hnd,hld->hnl", q, k) / np.sqrt(q.shape[-1])) * mask
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("hnl,hld,hdc->nc", weights, v, p[f"{name}_out"]["kernel"])
    return out + p[f"{name}_out"]["bias"], weights


def perceptron(p, x, activation):
    h = x @ p["mlp_in"]["kernel"] + p["mlp_in"]["bias"]
    gelu = np.vectorize(lambda g: g * 0.5 * (1 + math.erf(g / math.sqrt(2))))
    if activation == "geglu":
        value, gate = np.split(h, 2, axis=-1)
        h = value * gelu(gate)
    else:
        h = gelu(h) if activation == "gelu" else h / (1 + np.exp(-1.702 * h))
    return h @ p["mlp_out"]["kernel"] + p["mlp_out"]["bias"]


BLOCKS = {
    "of a U-Net": BLOCK,
    "without context": dataclasses.replace(BLOCK, context_features=None),
    "of CLIP": transformer.Block(2, activation="quick_gelu", bias=True, causal=True),
    "of OpenCLIP": transformer.Block(4, activation="gelu", bias=True, causal=True),
    "narrow": dataclasses.replace(BLOCK, heads=1, expansion=1),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_its_formula(name):
    block, x = BLOCKS[name], tokens()
    given = () if block.context_features is None else (CONTEXT, MASK)
    params = parameters(block, x, *given, scale=0.3)
    ours = apply(block)(params, x, *given)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
    causal = np.tril(np.ones((6, 6))) if block.causal else np.ones((6, 6))
    for i in range(2):
        h = np.asarray(x[i], np.float64)
        normed = layer_norm(h, p["self_norm"])
        h = h + attention(p, "self", normed, normed, causal)[0]
        if given:
            source, mask = np.asarray(CONTEXT[i], np.float64), np.asarray(MASK[i])
            h = h + attention(p, "cross", layer_norm(h, p["cross_norm"]), source, mask)[0]
        h = h + perceptron(p, layer_norm(h, p["mlp_norm"]), block.activation)
        np.testing.assert_allclose(ours[i], h, atol=1e-5 * np.abs(h).max())


def test_block_has_the_same_parameters_whatever_init_is_given():
    init = jax.jit(BLOCK.init)
    with_context = init(jax.random.key(0), tokens(), CONTEXT, MASK)
    for others in ((), (None,), (CONTEXT[:, :0],), (CONTEXT,)):
        without = init(jax.random.key(0), tokens(), *others)
        jax.tree.map(np.testing.assert_array_equal, with_context, without)


NOTHING = {
    "no context": (),
    "a context of length 0": (CONTEXT[:, :0],),
    "a context and a mask of length 0": (CONTEXT[:, :0], MASK[:, :0]),
    "a context that the mask hides": (CONTEXT, MASK & False),
    "a context that the mask hides, huge": (jnp.full_like(CONTEXT, 1e30), MASK & False),
}


@pytest.mark.parametrize("nothing", NOTHING)
def test_block_with_nothing_to_attend_to_is_one_without_cross_attention(nothing):
    x, params = tokens(), parameters(BLOCK, tokens(), CONTEXT, scale=0.3)
    plain = apply(dataclasses.replace(BLOCK, context_features=None))
    np.testing.assert_array_equal(apply(BLOCK)(params, x, *NOTHING[nothing]), plain(params, x))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(BLOCK.apply(p, x, *NOTHING[nothing]) ** 2)))(params)
    own, expected = (
        {name: leaf for name, leaf in found["params"].items() if "cross" not in name}
        for found in (gradient, jax.jit(jax.grad(lambda p: jnp.sum(plain(p, x) ** 2)))(params))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), own, expected)
    crossed = [leaf for name, leaf in gradient["params"].items() if "cross" in name]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(crossed))


def test_block_hides_a_context_for_each_example_alone():
    x, params = tokens(), parameters(BLOCK, tokens(), CONTEXT, scale=0.3)
    mask = jnp.array([[True, True, True], [False, False, False]])
    both, none = apply(BLOCK)(params, x, CONTEXT, mask), apply(BLOCK)(params, x)
    np.testing.assert_allclose(both[0], apply(BLOCK)(params, x, CONTEXT)[0], atol=1e-5)
    np.testing.assert_allclose(both[1], none[1], atol=1e-6)
    assert not np.allclose(both[0], none[0], atol=1e-2)


def test_block_does_not_see_what_the_mask_hides():
    x, params = tokens(), parameters(BLOCK, tokens(), CONTEXT, scale=0.3)
    other = jnp.where(MASK[..., None], CONTEXT, 7.0)
    run = apply(BLOCK)
    np.testing.assert_array_equal(run(params, x, other, MASK), run(params, x, CONTEXT, MASK))
    shorter = jnp.stack([CONTEXT[0, ::2], CONTEXT[1, :2]])
    np.testing.assert_allclose(run(params, x, CONTEXT, MASK), run(params, x, shorter), atol=1e-5)


def test_block_in_bfloat16_has_its_softmax_in_float32():
    half = dataclasses.replace(BLOCK, dtype=jnp.bfloat16)
    x, params = tokens(), parameters(BLOCK, tokens(), CONTEXT, scale=0.3)
    text = str(jax.make_jaxpr(lambda p: half.apply(p, x, CONTEXT, MASK))(params))
    exponentials = [line for line in text.splitlines() if "= exp " in line]
    assert len(exponentials) == 2
    assert all(":f32[" in line for line in exponentials), exponentials
    y16, y32 = apply(half)(params, x, CONTEXT, MASK), apply(BLOCK)(params, x, CONTEXT, MASK)
    assert 0 < float(jnp.abs(y16 - y32).max()) < 0.02 * float(jnp.abs(y32).max())


def test_attention_is_that_of_jax(monkeypatch):
    """Which has the fused kernels of each platform; with the mask for all heads and queries."""
    calls, real = [], jax.nn.dot_product_attention

    def record(*args, **kwargs):
        calls.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    jax.eval_shape(BLOCK.init, jax.random.key(0), tokens(), CONTEXT, MASK)
    assert [None if call["mask"] is None else call["mask"].shape for call in calls] == [None, (2, 1, 1, 3)]


def test_transformer_is_the_identity_at_the_start():
    x = pixels()
    y, _ = jax.jit(MAP.init_with_output)(jax.random.key(0), x, CONTEXT)
    np.testing.assert_array_equal(y, x)


def test_transformer_is_norm_maps_and_blocks():
    """Composed of `flax.linen`'s own norm and of blocks that have been checked."""
    x = 3 + 5 * pixels()
    params = parameters(MAP, x, CONTEXT)["params"]
    h = nn.GroupNorm(4, epsilon=1e-6).apply({"params": params["norm"]}, x).reshape(2, 6, 8)
    h = h @ params["proj_in"]["kernel"] + params["proj_in"]["bias"][None, None]
    for i in range(2):
        h = apply(BLOCK)({"params": params[f"block_{i}"]}, h, CONTEXT, MASK)
    h = h @ params["proj_out"]["kernel"] + params["proj_out"]["bias"][None, None]
    ours = apply(MAP)({"params": params}, x, CONTEXT, MASK)
    np.testing.assert_allclose(ours, x + h.reshape(x.shape), atol=1e-4)


def test_transformer_gradients_are_derivatives():
    net = dataclasses.replace(MAP, depth=1)
    x, params = pixels((2, 1)), parameters(net, pixels((2, 1)), CONTEXT, scale=0.3)
    value = lambda params, x, context: jnp.mean(jnp.sin(net.apply(params, x, context, MASK)))
    check_grads(jax.jit(value), (params, x, CONTEXT), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-3)


def intermediates(net, params, *args):
    return jax.jit(lambda p: net.apply(p, *args, mutable=["intermediates"])[1]["intermediates"])(params)


def test_cross_attention_is_given_on_request_alone():
    x, params = tokens(), parameters(BLOCK, tokens(), CONTEXT, scale=0.3)
    (found,) = intermediates(BLOCK, params, x, CONTEXT, MASK)["cross_weights"]
    p = jax.tree.map(np.asarray, params["params"])
    h = np.asarray(x[0])
    normed = layer_norm(h, p["self_norm"])
    h = h + attention(p, "self", normed, normed, 1)[0]
    expected = attention(
        p, "cross", layer_norm(h, p["cross_norm"]), np.asarray(CONTEXT[0]), np.asarray(MASK[0])
    )
    np.testing.assert_allclose(found[0], expected[1], atol=1e-5)
    assert not np.any(intermediates(BLOCK, params, x, CONTEXT, MASK & False)["cross_weights"][0])
    count = lambda **how: str(
        jax.make_jaxpr(lambda p: BLOCK.apply(p, x, CONTEXT, MASK, **how))(params)
    ).count("exp ")
    assert count(mutable=["intermediates"]) == count() + 1


@pytest.mark.parametrize("remat", [False, True])
def test_attention_maps_are_distributions_over_tokens(remat):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, context, mask):
            kind = nn.remat(transformer.Transformer) if remat else transformer.Transformer
            for i, half in enumerate((x, x[:, ::2, ::2])):
                y = kind(2, 2, 5, groups=4, name=f"level_{i}")(half, context, mask)
            return y

    x, net = pixels((5, 3)), Two()
    params = parameters(net, x, CONTEXT, MASK)
    found = intermediates(net, params, x, CONTEXT, MASK)
    maps = transformer.attention_maps(found, (5, 3))
    assert maps.shape == (2, 5, 3, 3)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
    assert np.all(maps[~jnp.broadcast_to(MASK[:, None, None], maps.shape)] == 0)
    fine = [found["level_0"][f"block_{i}"]["cross_weights"][0].mean(1) for i in range(2)]
    alone = transformer.attention_maps({"level_0": found["level_0"]}, (5, 3))
    np.testing.assert_allclose(alone.reshape(2, 15, 3), sum(fine) / 2, atol=1e-6)


def test_attention_maps_say_what_does_not_fit():
    with pytest.raises(ValueError, match="cross-attention"):
        transformer.attention_maps({}, (4, 4))
    weights = {"block_0": {"cross_weights": (jnp.ones((1, 2, 6, 3)) / 3,)}}
    with pytest.raises(ValueError, match="6 pixels"):
        transformer.attention_maps(weights, (4, 4))
