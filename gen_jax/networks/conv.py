"""Convolution whose output and both gradients are fast on a CPU too, also inside a `lax.scan`.

Let `g` be the cotangent of the output. `sum(g * conv(x, w))` is linear in each of `x`, `w` and `g`, so any two of them
give the third by a bilinear map:

    y   of (x, w)    the output
    x   of (w, g)    the input gradient
    w   of (x, g)    the weight gradient

Each map is a transpose of the other two. One primitive, with the name of what it returns, therefore serves every
derivative, in forward and reverse mode and of any order. On GPU and TPU it lowers to `lax.conv_general_dilated`, on a
CPU to what is fast there (`gen_jax.networks._conv_kernels`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.networks._conv_kernels import Out, Shape, on_cpu, plain
from gen_jax.types import Count

__all__ = ["conv"]


@checks.checked
def conv(
    x: Float[Array, "B H W C"],
    weights: Float[Array, "k l C D"],
    stride: Count = 1,
    *,
    centred: bool = False,
) -> Float[Array, "B h w D"]:
    """Convolution with zero padding: `y[b, i, j] = sum_{k, l} x[b, s i + k - p, s j + l - p] @ w[k, l]`.

    The output has size `ceil(H / stride)`. `centred` has `p = (K - 1) // 2` for a kernel of side `K`, as PyTorch's
    `padding=1` for a side of 3; else `p` is that of "SAME", the same for stride 1 but not for stride 2 and an even `H`.
    Derivatives take the same time inside a `scan` as outside. Raises ValueError for an image or a kernel of no pixels.
    """
    checks.some("x", x[:1], "pixel") if len(x) else None
    checks.some("weights", weights, "pixel")
    return _map(x, weights, "y", x.shape, weights.shape, stride, centred and stride > 1)


_conv_p = Primitive("conv_same")
"""Two of `x`, `w`, `g` to the third, as `out` says."""


def _map(a: Array, b: Array, out: Out, image: Shape, kernel: Shape, stride: int, centred: bool) -> Array:
    """Bind the primitive; `image` and `kernel` are the shapes of `x` and `w`."""
    how = {"out": out, "image": tuple(image), "kernel": tuple(kernel), "stride": stride, "centred": centred}
    return cast(Array, _conv_p.bind(a, b, **how))


def _batched(
    args: tuple[Array, Array],
    dims: tuple[int | None, int | None],
    *,
    out: Out,
    image: Shape,
    kernel: Shape,
    stride: int,
    centred: bool,
) -> tuple[Array, int]:
    """Under `vmap`: with shared weights one larger batch of images; with batched weights `vmap` of the kernel."""
    (a, b), (i, j) = args, dims
    if out != "w" and (j if out == "y" else i) is None:
        images = jnp.moveaxis(a, cast(int, i), 0) if out == "y" else jnp.moveaxis(b, cast(int, j), 0)
        flat = images.reshape(-1, *images.shape[2:])
        left, right = (flat, b) if out == "y" else (a, flat)
        y = _map(left, right, out, (images.shape[0] * image[0], *image[1:]), kernel, stride, centred)
        return y.reshape(images.shape[0], -1, *y.shape[1:]), 0
    how = {"out": out, "image": image, "kernel": kernel, "stride": stride, "centred": centred}
    each = lambda run: jax.vmap(partial(run, **how), dims)
    return lax.platform_dependent(a, b, cpu=each(on_cpu), default=each(plain)), 0


def _form(a: Array, b: Array, *, out: Out, image: Shape, kernel: Shape, **how: Any) -> Array:
    """What takes as many operations, in a primitive of JAX, for `training.cost.flops`: all three maps take as many."""
    x, w = jnp.zeros(image, a.dtype), jnp.zeros(kernel, b.dtype)
    return plain(x, w, out="y", image=image, kernel=kernel, **how)


_LEFT: dict[Out, Callable[..., Array]] = {
    "y": lambda ct, w, **how: _map(w, ct, "x", **how),
    "x": lambda ct, g, **how: _map(ct, g, "w", **how),
    "w": lambda ct, g, **how: _map(ct, g, "x", **how),
}
"""Transposes in the first argument, given the cotangent and the second argument."""
_RIGHT: dict[Out, Callable[..., Array]] = {
    "y": lambda ct, x, **how: _map(x, ct, "w", **how),
    "x": lambda ct, w, **how: _map(ct, w, "y", **how),
    "w": lambda ct, x, **how: _map(x, ct, "y", **how),
}
"""Transposes in the second argument, given the cotangent and the first argument."""


_conv_p.form = _form  # type: ignore[attr-defined]
_conv_p.def_impl(jax.jit(_map, static_argnames=("out", "image", "kernel", "stride", "centred")))
_conv_p.def_abstract_eval(lambda a, b, **how: jax.make_jaxpr(partial(plain, **how))(a, b).out_avals[0])
ad.defbilinear(
    _conv_p,
    lambda ct, a, b, *, out, **how: _LEFT[out](ct, b, **how),
    lambda ct, a, b, *, out, **how: _RIGHT[out](ct, a, **how),
)
batching.primitive_batchers[_conv_p] = _batched
mlir.register_lowering(_conv_p, mlir.lower_fun(plain, multiple_results=False))
mlir.register_lowering(_conv_p, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
