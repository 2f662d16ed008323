"""Convolution, whose three maps are fast on a CPU as well, inside a `lax.scan` too.

A convolution is a trilinear form `sum(g * conv(x, w))`, and each two of `x`, `w`, `g` make a bilinear map to the third:
the output, the input gradient, the weight gradient. Each is a transpose of the two others, so that the three, as one
primitive with a name for what comes out, are all that any derivative of a convolution is made of, in forward and reverse
mode and of any order. On GPU and TPU they are `lax.conv_general_dilated` and its transposes. XLA's CPU backend (jax
0.10) is fast with some of their forms only (`benchmarks/conv.py`), and there

- the input gradient is a convolution with flipped weights;
- the weight gradient is made of matrix products: lax's own runs at about 1 GFLOP/s in a `scan` or `while` body;
- a kernel of one tap is a product of matrices, whose rows are pixels: of four axes XLA would move them about;
- in bfloat16, whose convolutions are computed in float32 and whose products run three times as fast, all three are.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

_PIXELS = 3136
"""How many the products take at a time, so that what is made of them stays in the cache."""
_LARGE = 4 * _PIXELS
"""Pixels of a map above which a product for each tap would take too much memory."""
_FEW = 16
"""Channels below which products are not worth their while."""
_LAYOUT = ("NHWC", "HWIO", "NHWC")

Out = Literal["y", "x", "w"]


def conv(
    x: Float[Array, "B H W C"], weights: Float[Array, "k l C D"], stride: int = 1
) -> Float[Array, "B h w D"]:
    """Convolution with zero ("SAME") padding: `y[b, i, j] = sum_{k, l} x[b, s i + k - p, s j + l - p] @ w[k, l]`.

    Output size is `ceil(H / stride)`. All derivatives cost the same in and out of a `scan`; see the module's docstring.
    """
    return _map(x, weights, "y", x.shape, weights.shape, stride)


_conv_p = Primitive("conv_same")
"""`y` of `(x, w)`, `x` of `(w, g)` or `w` of `(x, g)`."""


def _map(a: Any, b: Any, out: Out, image: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> Any:
    """What comes `out` of two of the three; `image` and `kernel` are the shapes of `x` and `w`."""
    return _conv_p.bind(a, b, out=out, image=tuple(image), kernel=tuple(kernel), stride=stride)


# --- what it lowers to ---


def _plain(a, b, *, out, image, kernel, stride):
    """By `lax`."""
    run = lambda x, w: lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=_LAYOUT)
    if out == "y":
        return run(a, b)
    fixed, of = (lambda v: run(v, a), image) if out == "x" else (lambda v: run(a, v), kernel)
    (v,) = jax.linear_transpose(fixed, jax.ShapeDtypeStruct(of, a.dtype))(b)
    return v


def _on_cpu(a, b, *, out, image, kernel, stride):
    """In the forms that XLA's CPU backend is fast with."""
    if stride == kernel[0] == kernel[1] == 1:
        return _rows(a, b, out)
    if out == "w" and stride == 1:
        return _weight_gradient(a, b, kernel)
    if out == "w":
        return _weight_gradient_of_strides(a, b, kernel, stride)
    odd = stride == 1 and kernel[0] % 2 == kernel[1] % 2 == 1
    if out == "x" and odd:
        out, a, b = "y", b, jnp.flip(a, (0, 1)).swapaxes(2, 3)
        image, kernel = a.shape, b.shape
    worth = min(kernel[2:]) >= _FEW and image[1] * image[2] <= _LARGE
    if a.dtype == jnp.bfloat16 and odd and worth:
        return _products(a, b)
    return _plain(a, b, out=out, image=image, kernel=kernel, stride=stride)


def _rows(a, b, out):
    """Of a kernel of one tap: products of matrices whose rows are pixels."""
    rows = lambda v: v.reshape(-1, v.shape[-1])
    if out == "w":
        kind = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.dot(rows(a).T, rows(b), preferred_element_type=kind).astype(a.dtype)[None, None]
    x, matrix = (a, b[0, 0]) if out == "y" else (b, a[0, 0].T)
    return jnp.dot(rows(x), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _chunks(x, *others):
    """The leading axis cut in two, `[n, images, ...]`, so that `images` of a map of that size fit the cache."""
    most = max(_PIXELS // (x.shape[1] * x.shape[2]), 1)
    size = next(c for c in range(min(most, x.shape[0]), 0, -1) if x.shape[0] % c == 0)
    return tuple(v.reshape(-1, size, *v.shape[1:]) for v in (x, *others))


def _products(x, w):
    """Each pixel times all taps of the kernel at once, then a sum of as many shifted maps as there are taps."""
    (rows, columns, channels, features), (_, height, width, _) = w.shape, x.shape
    matrix = w.transpose(2, 0, 1, 3).reshape(channels, -1)
    taps = [(i, j) for i in range(rows) for j in range(columns)]

    def each(x):
        x = jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
        y = jnp.dot(x, matrix, preferred_element_type=jnp.float32)
        y = y.reshape(*y.shape[:3], rows, columns, features)
        shifted = [y[:, i : i + height, j : j + width, i, j] for i, j in taps]
        return jnp.asarray(sum(shifted), w.dtype)

    (parts,) = _chunks(x)
    return lax.map(each, parts).reshape(*x.shape[:3], features)


def _weight_gradient(x, g, shape):
    """One product of all horizontal taps of `x` with all vertical ones of `g`, for stride 1.

    Both have the rows of the padded image, and only the smaller, `x` without its taps, is ever transposed.
    """
    rows, columns, channels, features = shape
    top_bottom, left_right = lax.padtype_to_pads(x.shape[1:3], shape[:2], (1, 1), "SAME")
    (_, height, width, _), kind = x.shape, jnp.promote_types(x.dtype, jnp.float32)

    def add(total, part):
        x, g = part
        x = lax.optimization_barrier(x.transpose(3, 0, 1, 2))  # else the product does it, in float32
        x = jnp.pad(x, ((0, 0), (0, 0), top_bottom, left_right))
        left = jnp.concatenate([x[..., j : j + width] for j in range(columns)])
        g = jnp.pad(g, ((0, 0), (rows - 1, rows - 1), (0, 0), (0, 0)))
        starts = range(rows - 1, -1, -1)
        right = jnp.concatenate([g[:, i : i + height + rows - 1] for i in starts], axis=-1)
        left, right = left.reshape(columns * channels, -1), right.reshape(-1, rows * features)
        return total + jnp.dot(left, right, preferred_element_type=kind), None

    start = jnp.zeros((columns * channels, rows * features), kind)
    total, _ = lax.scan(add, start, _chunks(x, g))
    return total.reshape(columns, channels, rows, features).transpose(2, 0, 1, 3).astype(x.dtype)


def _weight_gradient_of_strides(x, g, shape, stride):
    """One product for each row of the kernel, its horizontal taps side by side on the channel axis."""
    rows, taps, channels, features = shape
    pads = lax.padtype_to_pads(x.shape[1:3], shape[:2], (stride, stride), "SAME")
    (height, width), kind = g.shape[1:3], jnp.promote_types(x.dtype, jnp.float32)

    def add(total, part):
        x, g = part
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        beside = [x[:, :, j : j + stride * (width - 1) + 1 : stride] for j in range(taps)]
        patches = jnp.concatenate(beside, axis=-1)
        below = [patches[:, i : i + stride * (height - 1) + 1 : stride] for i in range(rows)]
        each = [jnp.einsum("bhwp,bhwd->pd", part, g, preferred_element_type=kind) for part in below]
        return total + jnp.stack(each), None

    total, _ = lax.scan(add, jnp.zeros((rows, taps * channels, features), kind), _chunks(x, g))
    return total.reshape(shape).astype(x.dtype)


# --- what it does under transformations ---


def _batched(args, dims, *, out, image, kernel, stride):
    """Images of all of a batch are images; where weights have a batch, each of it is a program of its own."""
    (a, b), (i, j) = args, dims
    if out != "w" and (j if out == "y" else i) is None:  # weights are shared
        images = jnp.moveaxis(a, i, 0) if out == "y" else jnp.moveaxis(b, j, 0)
        flat = images.reshape(-1, *images.shape[2:])
        left, right = (flat, b) if out == "y" else (a, flat)
        y = _map(left, right, out, (images.shape[0] * image[0], *image[1:]), kernel, stride)
        return y.reshape(images.shape[0], -1, *y.shape[1:]), 0
    how = {"out": out, "image": image, "kernel": kernel, "stride": stride}
    each = lambda run: jax.vmap(partial(run, **how), dims)
    return lax.platform_dependent(a, b, cpu=each(_on_cpu), default=each(_plain)), 0


_LEFT: dict[Out, Any] = {
    "y": lambda ct, w, **how: _map(w, ct, "x", **how),
    "x": lambda ct, g, **how: _map(ct, g, "w", **how),
    "w": lambda ct, g, **how: _map(ct, g, "x", **how),
}
"""Transposes in the first argument: what is known is the cotangent and the second."""
_RIGHT: dict[Out, Any] = {
    "y": lambda ct, x, **how: _map(x, ct, "w", **how),
    "x": lambda ct, w, **how: _map(ct, w, "y", **how),
    "w": lambda ct, x, **how: _map(x, ct, "y", **how),
}
"""In the second, of the cotangent and the first."""


_conv_p.def_impl(jax.jit(_map, static_argnames=("out", "image", "kernel", "stride")))
_conv_p.def_abstract_eval(lambda a, b, **how: jax.make_jaxpr(partial(_plain, **how))(a, b).out_avals[0])
ad.defbilinear(
    _conv_p,
    lambda ct, a, b, *, out, **how: _LEFT[out](ct, b, **how),
    lambda ct, a, b, *, out, **how: _RIGHT[out](ct, a, **how),
)
batching.primitive_batchers[_conv_p] = _batched
mlir.register_lowering(_conv_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(_conv_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
