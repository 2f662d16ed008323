"""How the three maps of a convolution are computed: `plain` by `lax`, `on_cpu` in the forms that are fast on a CPU.

XLA's CPU backend (jax 0.10) is fast with some forms only (`benchmarks/conv.py`). So on a CPU

- the input gradient is a convolution with flipped weights;
- the weight gradient is a sum of matrix products: lax's own runs at about 1 GFLOP/s inside a `scan` or `while`;
- a 1 x 1 convolution is one matrix product with a row for each pixel: with four axes XLA would transpose them;
- in bfloat16 all three are matrix products, which run three times as fast as its convolutions (computed in float32);
- where there are fewer pixels than channels, most of the time of a convolution goes into its weights, and the output is
  one matrix product of the weights as they are.

Both functions take two of the three arrays `x`, `w`, `g` and return the third (see `gen_jax.networks.conv`).
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

PIXELS = 3136
"""Pixels that the matrix products take at a time, so that their operands stay in the cache."""
LARGE = 4 * PIXELS
"""Pixels of a map above which one product for each tap would take too much memory."""
FEW = 16
"""Channels below which matrix products do not pay."""
WIDE = 512
"""Channels from which on a batch of at most twice as many pixels is few, see above."""
LAYOUT = ("NHWC", "HWIO", "NHWC")

Out = Literal["y", "x", "w"]
"""Which of the three is computed: the output, the input gradient or the weight gradient."""
Shape = tuple[int, ...]


def plain(a: Array, b: Array, *, out: Out, image: Shape, kernel: Shape, stride: int, centred: bool) -> Array:
    """By `lax.conv_general_dilated` and its transposes."""
    pads = _pads(image, kernel, stride, centred)
    run = lambda x, w: lax.conv_general_dilated(x, w, (stride, stride), pads, dimension_numbers=LAYOUT)
    if out == "y":
        return run(a, b)
    fixed, of = (lambda v: run(v, a), image) if out == "x" else (lambda v: run(a, v), kernel)
    (v,) = jax.linear_transpose(fixed, jax.ShapeDtypeStruct(of, a.dtype))(b)
    return v


def _pads(image: Shape, kernel: Shape, stride: int, centred: bool) -> Sequence[tuple[int, int]]:
    """Zeros before and behind the rows, and the columns (see `gen_jax.networks.conv.conv`)."""
    if centred:
        return [((side - 1) // 2, side // 2) for side in kernel[:2]]
    return lax.padtype_to_pads(image[1:3], kernel[:2], (stride, stride), "SAME")


def on_cpu(a: Array, b: Array, *, out: Out, image: Shape, kernel: Shape, stride: int, centred: bool) -> Array:
    """In the forms that XLA's CPU backend is fast with."""
    if stride == kernel[0] == kernel[1] == 1:
        return _rows(a, b, out)
    if out == "w" and stride == 1:
        return _weight_gradient(a, b, kernel)
    if out == "w":
        return _strided_weight_gradient(a, b, kernel, stride, centred)
    odd = stride == 1 and kernel[0] % 2 == kernel[1] % 2 == 1
    if out == "x" and odd:
        out, a, b = "y", b, jnp.flip(a, (0, 1)).swapaxes(2, 3)
        image, kernel = a.shape, b.shape
    if out == "y" and odd and min(kernel[2:]) >= WIDE and image[0] * image[1] * image[2] <= 2 * WIDE:
        return _gathered(a, b)
    worth = min(kernel[2:]) >= FEW and image[1] * image[2] <= LARGE
    if a.dtype == jnp.bfloat16 and odd and worth:
        return _products(a, b)
    return plain(a, b, out=out, image=image, kernel=kernel, stride=stride, centred=centred)


def _rows(a: Array, b: Array, out: Out) -> Array:
    """All three maps of a 1 x 1 convolution: matrix products with a row for each pixel."""
    rows = lambda v: v.reshape(-1, v.shape[-1])
    if out == "w":
        kind = jnp.promote_types(a.dtype, jnp.float32)
        return jnp.dot(rows(a).T, rows(b), preferred_element_type=kind).astype(a.dtype)[None, None]
    x, matrix = (a, b[0, 0]) if out == "y" else (b, a[0, 0].T)
    return jnp.dot(rows(x), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _gathered(x: Float[Array, "B H W C"], w: Float[Array, "k l C D"]) -> Float[Array, "B H W D"]:
    """The output: one product, in which the row of a pixel has the channels of all its neighbours."""
    (rows, columns), (_, height, width, _) = w.shape[:2], x.shape
    x = jnp.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
    near = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return _rows(jnp.concatenate(near, axis=-1), w.reshape(1, 1, -1, w.shape[-1]), "y")


def _chunks(x: Array, *others: Array) -> tuple[Array, ...]:
    """Split the batch axis into `[chunks, images, ...]`, so that the images of a chunk fit the cache."""
    most = max(PIXELS // (x.shape[1] * x.shape[2]), 1)
    size = next(c for c in range(min(most, x.shape[0]), 0, -1) if x.shape[0] % c == 0)
    return tuple(v.reshape(-1, size, *v.shape[1:]) for v in (x, *others))


def _products(x: Float[Array, "B H W C"], w: Float[Array, "k l C D"]) -> Float[Array, "B H W D"]:
    """The output: one product of each pixel with all taps of the kernel, then the sum of the shifted maps of the taps."""
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


def _weight_gradient(x: Array, g: Array, shape: Shape) -> Array:
    """For stride 1: one product of all horizontal taps of `x` with all vertical taps of `g`.

    Both have the rows of the padded image. Only `x` before its taps are taken, the smaller array, is transposed.
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


def _strided_weight_gradient(x: Array, g: Array, shape: Shape, stride: int, centred: bool) -> Array:
    """For any stride: one product for each row of the kernel, its horizontal taps side by side as channels."""
    rows, taps, channels, features = shape
    pads = _pads(x.shape, shape, stride, centred)
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
