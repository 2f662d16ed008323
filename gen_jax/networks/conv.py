"""Convolution whose derivative is fast on a CPU as well, inside a `lax.scan` too.

Forward, and on GPU and TPU throughout, it is `lax.conv_general_dilated`. On XLA's CPU backend (jax 0.10) that operation's
*weight gradient* is not brought to a form its fast kernels know once it stands inside a `scan` or `while` body, where it
runs at about 1 GFLOP/s. A convolution is linear in its weights, so its derivative may be written as any other program
that computes the same linear map: here one made of matrix products, whose transpose, which is what reverse mode runs, is
made of matrix products too. Likewise the input gradient is a convolution with flipped weights, and is written so that
reverse mode meets it in that plain form. Nothing but ordinary operations: `jvp`, `grad` of any order, `vmap`, `pmap`,
`remat` and `export` work as ever.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_CHUNK = 16
"""Images that the weight gradient takes at a time, so that its patches stay in the cache."""
_SMALL_MAP = 64
"""Pixels up to which a map counts as small."""
_LAYOUT = ("NHWC", "HWIO", "NHWC")


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def conv(
    x: Float[Array, "B H W C"], weights: Float[Array, "k l C D"], stride: int = 1
) -> Float[Array, "B h w D"]:
    """Convolution with zero ("SAME") padding: `y[b, i, j] = sum_{k, l} x[b, s i + k - p, s j + l - p] @ w[k, l]`.

    Output size is `ceil(H / stride)`. Reverse mode costs the same in and out of a `scan`; see the module's docstring.
    """
    return _conv(x, weights, stride)


@conv.defjvp
def _conv_jvp(stride, primals, tangents):
    (x, weights), (dx, d_weights) = primals, tangents
    by_weights = lax.platform_dependent(
        x,
        d_weights,
        cpu=partial(_by_weights_on_cpu, stride=stride),
        default=partial(_conv, stride=stride),
    )
    return conv(x, weights, stride), _by_input(dx, weights, stride) + by_weights


def _conv(x, weights, stride):
    return lax.conv_general_dilated(x, weights, (stride, stride), "SAME", dimension_numbers=_LAYOUT)


def _transposed(fun, x, shape):
    """The transpose of the linear `fun`, whose input has that shape, at `x`: `fun` is what *its* transpose runs."""
    (out,) = jax.linear_transpose(fun, jax.ShapeDtypeStruct(shape, x.dtype))(x)
    return out


def _by_input(dx, weights, stride):
    """`conv(dx, weights)` as the transpose of the input gradient: a convolution with flipped weights."""
    if stride != 1 or weights.shape[0] % 2 == 0 or weights.shape[1] % 2 == 0:
        return _conv(dx, weights, stride)
    flipped = jnp.flip(weights, (0, 1)).swapaxes(2, 3)
    return _transposed(lambda g: _conv(g, flipped, 1), dx, (*dx.shape[:3], weights.shape[3]))


def _by_weights_on_cpu(x, d_weights, stride):
    """`conv(x, d_weights)` as the transpose of the weight gradient, written in one of two ways (see benchmarks/conv.py).

    On small maps a convolution with the batch as the channels and the cotangent as the kernel is faster, on large ones
    matrix products over chunks of images.
    """
    if stride == 1 and x.shape[1] * x.shape[2] <= _SMALL_MAP:
        pads = lax.padtype_to_pads(x.shape[1:3], d_weights.shape[:2], (1, 1), "SAME")

        def weight_gradient(g):
            images, kernel = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)
            dw = lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)
            return dw.transpose(1, 2, 0, 3)

        return _transposed(weight_gradient, d_weights, (*x.shape[:3], d_weights.shape[3]))
    size = x.shape[0]
    chunk = next(c for c in range(min(_CHUNK, size), 0, -1) if size % c == 0)
    products = jax.checkpoint(
        lambda part: _products(part, d_weights, stride)
    )  # keeps no patches for reverse mode
    y = lax.map(products, x.reshape(size // chunk, chunk, *x.shape[1:]))
    return y.reshape(size, *y.shape[2:])


def _products(x, weights, stride):
    """One product for each row of the kernel, its horizontal taps side by side on the channel axis."""
    rows, taps, channels, features = weights.shape
    pads = lax.padtype_to_pads(x.shape[1:3], weights.shape[:2], (stride, stride), "SAME")
    height, width = (-(-size // stride) for size in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    patches = jnp.concatenate(
        [x[:, :, j : j + stride * (width - 1) + 1 : stride] for j in range(taps)], axis=-1
    )
    products = [
        jnp.dot(
            patches[:, i : i + stride * (height - 1) + 1 : stride],
            weights[i].reshape(taps * channels, features),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        for i in range(rows)
    ]
    return jnp.asarray(sum(products), x.dtype)
