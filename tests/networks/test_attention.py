"""Attention by parts against attention whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks import attention

each_type = pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("bfloat16", 2e-2)])


def drawn(dtype, *, query=30, key=21, heads=2, features=5):
    """Query, key and value; 30 queries are parts of 10 where a table has 220 numbers."""
    shape = lambda n: (2, n, heads, features)
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(k, shape(n), dtype) for k, n in zip(keys, (query, key, key), strict=True)]


def close(ours, theirs, rtol):
    ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
    np.testing.assert_allclose(ours, theirs, atol=rtol * np.abs(theirs).max(), rtol=0)


@each_type
def test_attention_by_parts_is_that_of_the_whole_with_its_gradients(monkeypatch, dtype, rtol):
    monkeypatch.setattr(attention, "TABLE", 220)
    weight = jax.random.normal(jax.random.key(1), (2, 30, 2, 5))

    def value(mix):
        return jax.jit(jax.value_and_grad(lambda *x: (mix(*x).astype(jnp.float32) * weight).sum(), (0, 1, 2)))

    mine = value(lambda *x: attention._mix(*x, None, False))(*drawn(dtype))
    whole = value(jax.nn.dot_product_attention)(*drawn(dtype))
    jax.tree.map(lambda a, b: close(a, b, rtol), mine, whole)


def test_attention_by_parts_is_of_logits_of_any_size(monkeypatch):
    """Their largest is subtracted: exp of 1,000 is infinite."""
    query, key, value = drawn("float32")
    whole = jax.nn.dot_product_attention(1000 * query, key, value)
    monkeypatch.setattr(attention, "TABLE", 220)
    close(attention._mix(1000 * query, key, value, None, False), whole, 1e-5)


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_attention_goes_by_parts_on_a_cpu_alone(monkeypatch, platform, loops):
    monkeypatch.setattr(attention, "TABLE", 220)
    program = jax.export.export(jax.jit(lambda *x: attention._mix(*x, None, False)), platforms=[platform])(
        *drawn("float32")
    )
    assert ("stablehlo.while" in program.mlir_module()) == loops
