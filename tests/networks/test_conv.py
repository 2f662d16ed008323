"""The convolution against `lax`'s own, in value and in every kind of derivative, and the trap it avoids."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gen_jax.networks import _conv_kernels
from gen_jax.networks.conv import conv
from tests.marks import slow

LAYOUT = ("NHWC", "HWIO", "NHWC")


def reference(x, w, stride):
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=LAYOUT)


def reference_centred(x, w, stride):
    """As PyTorch's `padding=k // 2` for odd kernels."""
    pads = [((side - 1) // 2, side // 2) for side in w.shape[:2]]
    return lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=LAYOUT)


def scalar(c, x, w, stride):
    return (jnp.sin(c(x, w, stride))).sum()


DERIVATIVES = {
    "value": lambda c, x, w, s: c(x, w, s),
    "grad of weights": lambda c, x, w, s: jax.grad(lambda w: scalar(c, x, w, s))(w),
    "grad of input": lambda c, x, w, s: jax.grad(lambda x: scalar(c, x, w, s))(x),
    "jvp": lambda c, x, w, s: jax.jvp(lambda x, w: c(x, w, s), (x, w), (x + 1, w - 1))[1],
    "vmap of grad": lambda c, x, w, s: jax.vmap(jax.grad(lambda w, x: scalar(c, x[None], w, s)), (None, 0))(
        w, x
    ),
    "vmap over weights": lambda c, x, w, s: jax.vmap(lambda k: jax.grad(lambda w: scalar(c, x, w, s))(k * w))(
        jnp.arange(1.0, 3)
    ),
    "grad of grad": lambda c, x, w, s: jax.grad(
        lambda x: (jax.grad(lambda w: scalar(c, x, w, s))(w) ** 2).sum()
    )(x),
    "jvp of grad": lambda c, x, w, s: jax.jvp(jax.grad(lambda w: scalar(c, x, w, s)), (w,), (w + 1,))[1],
    "remat": lambda c, x, w, s: jax.grad(jax.checkpoint(lambda w: scalar(c, x, w, s)))(w),
    "sum of grads in a scan": lambda c, x, w, s: lax.scan(
        lambda a, xi: (a + jax.grad(lambda w: scalar(c, xi[None], w, s))(w), None), jnp.zeros_like(w), x
    )[0],
}
SHAPES = {  # image, kernel, channels in and out, stride, batch
    "3x3": ((14, 14), 3, (8, 4), 1, 4),
    "small map": ((7, 7), 3, (3, 5), 1, 4),
    "odd and oblong": ((9, 5), 3, (2, 3), 1, 3),
    "one channel": ((13, 11), 3, (1, 4), 1, 5),
    "1x1": ((6, 7), 1, (3, 2), 1, 2),
    "5x5": ((10, 9), 5, (2, 2), 1, 17),
    "even kernel": ((9, 8), 2, (2, 3), 1, 2),
    "chunks": ((40, 40), 3, (2, 3), 1, 4),
    "oblong kernel": ((8, 9), (3, 1), (3, 2), 1, 2),
    "stride 2": ((10, 10), 3, (2, 3), 2, 4),
    "stride 2, odd": ((9, 7), 3, (2, 3), 2, 3),
    "stride 3, even kernel": ((9, 8), 4, (2, 3), 3, 3),
}


FEW = [(name, False) for name in ("3x3", "odd and oblong", "chunks", "stride 2, odd")]
FEW += [("stride 3, even kernel", True), ("3x3", True)]


@pytest.mark.parametrize(
    ("shape", "centred"),
    slow(
        [*((s, False) for s in SHAPES), *((s, True) for s in SHAPES if "stride" in s), ("3x3", True)],
        but=FEW,
    ),
)
def test_conv_equals_lax_in_every_derivative(shape, centred):
    size, kernel, (channels, features), stride, batch = SHAPES[shape]
    x = jax.random.normal(jax.random.key(0), (batch, *size, channels))
    sides = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    w = jax.random.normal(jax.random.key(1), (*sides, channels, features)) / sides[0]
    every = lambda c: {name: derivative(c, x, w, stride) for name, derivative in DERIVATIVES.items()}
    like = reference_centred if centred else reference
    ours, theirs = jax.jit(lambda: every(partial(conv, centred=centred)))(), jax.jit(lambda: every(like))()
    for name in DERIVATIVES:
        scale = float(jnp.abs(theirs[name]).max())
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5 * scale, err_msg=name)


@pytest.mark.parametrize("size", [7, 14])
def test_conv_weight_gradient_stays_fast_inside_a_scan(size):
    """The compiled loop must hold no convolution that XLA's CPU backend does not bring to its fast form.

    A convolution in fast form names its dimensions b01f_01io->b01f; lax's own weight gradient in a loop does not.
    """
    x = jax.random.normal(jax.random.key(0), (3, 4, size, size, 8))
    w = jax.random.normal(jax.random.key(1), (3, 3, 8, 8))

    def slow_convolutions(c):
        two_layers = lambda w, x: jnp.sum(c(jnp.tanh(c(x, w, 1)), w, 1) ** 2)
        steps = lambda w, x: lax.scan(lambda w, x: (w - jax.grad(two_layers)(w, x), None), w, x)[0]
        lines = jax.jit(steps).lower(w, x).compile().as_text().splitlines()
        return [
            line for line in lines if " convolution(" in line and "dim_labels=b01f_01io->b01f" not in line
        ]

    assert slow_convolutions(reference), "XLA has changed: see whether the trap is still there"
    assert not slow_convolutions(conv)


THREE = {
    "y": lambda c, x, w, g: c(x, w, 1),
    "x": lambda c, x, w, g: jax.vjp(lambda x: c(x, w, 1), x)[1](g)[0],
    "w": lambda c, x, w, g: jax.vjp(lambda w: c(x, w, 1), w)[1](g)[0],
}


@pytest.mark.parametrize("out", THREE)
@pytest.mark.parametrize(("batch", "size"), [(4, 14), (7, 5), (2, 40)])
def test_conv_in_bfloat16_is_made_of_products_that_accumulate_in_float32(out, batch, size):
    """Within the rounding of what goes in and comes out; no product reads float32, which is three times slower."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (batch, size, size, 16), (3, 3, 16, 32), (batch, size, size, 32)
    x, w, g = (jax.random.normal(k, s).astype(jnp.bfloat16) for k, s in zip(keys, shapes, strict=True))
    run = jax.jit(lambda *args: THREE[out](conv, *args))
    exact = THREE[out](reference, *(v.astype(jnp.float32) for v in (x, w, g)))
    ours = run(x, w, g)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), exact, rtol=2**-8, atol=2**-8 * float(jnp.abs(exact).max())
    )
    program = run.lower(x, w, g).as_text()
    dots = [line for line in program.splitlines() if "dot_general" in line]
    assert dots
    assert "stablehlo.convolution" not in program
    for line in dots:
        assert re.search(r": \(tensor<[^>]*bf16>, tensor<[^>]*bf16>\) -> tensor<[^>]*f32>", line), line


def test_conv_on_other_platforms_is_that_of_lax():
    x, w = jnp.zeros((4, 14, 14, 16), jnp.bfloat16), jnp.zeros((3, 3, 16, 16), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda w, x: conv(conv(x, w), w).astype(jnp.float32).sum(), (0, 1)))
    for platform, products in (("tpu", 0), ("cuda", 0), ("cpu", 1)):
        program = gradient.trace(w, x).lower(lowering_platforms=(platform,)).as_text()
        assert ("dot_general" in program) == bool(products), platform
        assert ("stablehlo.convolution" in program) != bool(products), platform


def test_conv_in_bfloat16_accumulates_in_float32():
    x = jnp.ones((32, 16, 16, 1), jnp.bfloat16)
    w = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda w: conv(x, w).astype(jnp.float32).sum())(w)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(gradient, np.float32), 32 * 16 * 16, rtol=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_few_pixels_of_many_channels_are_one_product(monkeypatch, dtype):
    """Other than by lax, the result is the same; in both directions."""
    monkeypatch.setattr(_conv_kernels, "WIDE", 16)
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 18), dtype)
    w = jax.random.normal(jax.random.key(1), (3, 3, 18, 17), dtype) / 12
    program = jax.jit(conv).lower(x, w).as_text()
    assert "stablehlo.dot_general" in program
    assert "stablehlo.convolution" not in program
    theirs = reference(x.astype("float32"), w.astype("float32"), 1)
    rtol = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(
        np.asarray(conv(x, w), np.float32), theirs, atol=rtol * np.abs(theirs).max(), rtol=0
    )
    ours, theirs = (
        jax.grad(lambda x: scalar(c, x, w, 1).astype(jnp.float32))(x).astype(jnp.float32)
        for c in (conv, reference)
    )
    np.testing.assert_allclose(ours, theirs, atol=2 * rtol * np.abs(theirs).max(), rtol=0)
