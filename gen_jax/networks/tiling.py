"""Encode and decode images that are larger than memory: tile by tile, blended where tiles overlap.

    decode = jax.jit(lambda params, z: tiling.decode(net, params, z, tile=64, overlap=16))

Only the activations of one tile are in memory, beside the image and its latents.

Equal to the whole image where a network is local: with a `margin` of its receptive field. The norms and the attention of
`networks.autoencoder_kl` see a whole tile, so that tiles of one image differ a little in brightness and contrast. The
blending turns such steps into slopes; larger tiles make them smaller.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from gen_jax import checks, programs
from gen_jax.networks.autoencoder_kl import AutoencoderKL
from gen_jax.types import Count, Size

__all__ = ["decode", "encode", "tiled"]


@checks.checked
def encode(
    net: AutoencoderKL,
    params: PyTree,
    x: Float[Array, "B H W C"],
    *,
    tile: Count = 64,
    overlap: Size = 16,
    margin: Size = 0,
) -> tuple[Float[Array, "B h w L"], Float[Array, "B h w L"]]:
    """Mean and log variance of `q(z | x)`, as `net.apply(params, x, method="encode")`, tile by tile.

    `tile`, `overlap` and `margin` are in pixels of the latent (`tiled`). Raises ValueError as `encode` and `tiled` do.
    """
    checks.tree("params", params)
    net.config.latent_shape(x.shape[1:])
    options = "encode", tile, overlap, margin, net.config.factor, 1
    mean, log_variance = programs.run(_coder, net, options, params, x)
    return mean, log_variance


@checks.checked
def decode(
    net: AutoencoderKL,
    params: PyTree,
    z: Float[Array, "B h w L"],
    *,
    tile: Count = 64,
    overlap: Size = 16,
    margin: Size = 0,
) -> Float[Array, "B H W D"]:
    """Images of latents, as `net.apply(params, z, method="decode")`, tile by tile.

    `tile`, `overlap` and `margin` are in pixels of the latent (`tiled`). Raises ValueError as `decode` and `tiled` do.
    """
    checks.tree("params", params)
    image: Array = programs.run(
        _coder, net, ("decode", tile, overlap, margin, 1, net.config.factor), params, z
    )
    return image


def _coder(
    net: AutoencoderKL, method: str, tile: int, overlap: int, margin: int, cell: int, to_cell: int
) -> Callable[[PyTree, Array], PyTree]:
    """`(params, x)` to what a method of the network returns, by parts."""
    sizes = {"tile": tile, "overlap": overlap, "margin": margin, "cell": cell, "to_cell": to_cell}
    return lambda params, x: tiled(lambda x: net.apply(params, x, method=method), x, **sizes)


@checks.checked
def tiled(
    f: Callable[[Array], PyTree],
    x: Float[Array, "B H W C"],
    *,
    tile: Count,
    overlap: Size,
    margin: Size = 0,
    cell: Count = 1,
    to_cell: Count = 1,
) -> PyTree:
    """`f(x)` by parts of `tile x tile` cells, one after the other, blended linearly where they overlap.

    A cell is a square of `cell` pixels a side in `x`, and of `to_cell` pixels in each array that `f` returns. Tiles are
    spread evenly. The weight of a tile is 0 within `margin` cells of an edge that it shares with others, and rises to 1
    over the next `overlap - 2 margin`.

    Args:
        f: of images `[B, h, w, C]` to a tree of arrays `[B, h', w', ...]`.
        x: images of whole cells.
        tile: cells of a side of a tile; fewer where the image is smaller.
        overlap: cells that neighbours share at least.
        margin: cells at an edge that are wrong since `f` sees no further, the radius of its receptive field.
        cell, to_cell: see above.

    Raises:
        ValueError: not `0 <= 2 margin <= overlap < tile`, or images that are not of whole cells.
    """
    if not 0 <= 2 * margin <= overlap < tile:
        raise ValueError(
            f"expected 0 <= 2 margin <= overlap < tile, got margin={margin}, overlap={overlap} and tile={tile}."
        )
    if any(size % cell or not size for size in x.shape[1:3]):
        raise ValueError(f"x must be images of whole cells of {cell} x {cell} pixels, got {checks.came(x)}.")
    if all(size <= tile * cell for size in x.shape[1:3]):
        return f(x)
    return programs.run(_blender, f, (tile, overlap, margin, cell, to_cell), x)


def _blender(
    f: Callable[[Array], PyTree], tile: int, overlap: int, margin: int, cell: int, to_cell: int
) -> Callable[[Array], PyTree]:
    """`tiled` of some sizes."""
    return lambda x: _blended(f, x, tile, overlap, margin, cell, to_cell)


def _blended(
    f: Callable[[Array], PyTree],
    x: Float[Array, "B H W C"],
    tile: int,
    overlap: int,
    margin: int,
    cell: int,
    to_cell: int,
) -> PyTree:
    """`tiled` of more than one tile."""
    rows, columns = (_axis(size // cell, tile, overlap, margin, to_cell) for size in x.shape[1:3])
    high, wide = (min(tile, size // cell) for size in x.shape[1:3])
    part = lambda at: jax.lax.dynamic_slice(
        x, (0, cell * at[0], cell * at[1], 0), (len(x), cell * high, cell * wide, x.shape[3])
    )
    shapes = jax.eval_shape(f, jax.eval_shape(part, (0, 0)))
    size = [to_cell * (n // cell) for n in x.shape[1:3]]
    whole = jax.tree.map(lambda s: jnp.zeros((s.shape[0], *size, *s.shape[3:]), s.dtype), shapes)

    def add(whole: PyTree, step: tuple[Int[Array, ""], Int[Array, ""]]) -> tuple[PyTree, None]:
        i, j = step
        at = jnp.asarray(rows[0])[i], jnp.asarray(columns[0])[j]
        weight = jnp.asarray(rows[1])[i][:, None] * jnp.asarray(columns[1])[j][None, :]

        def put(total: Array, y: Array) -> Array:
            corner: list[Array | int] = [0, to_cell * at[0], to_cell * at[1], *[0] * (y.ndim - 3)]
            there = jax.lax.dynamic_slice(total, corner, y.shape)
            weighted = y * weight.reshape(1, *weight.shape, *[1] * (y.ndim - 3)).astype(y.dtype)
            return jax.lax.dynamic_update_slice(total, there + weighted, corner)

        return jax.tree.map(put, whole, f(part(at))), None

    i, j = np.indices((len(rows[0]), len(columns[0]))).reshape(2, -1)
    return jax.lax.scan(add, whole, (jnp.asarray(i), jnp.asarray(j)))[0]


def _axis(
    cells: int, tile: int, overlap: int, margin: int, to_cell: int
) -> tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n p"]]:
    """Where tiles start along an axis, in cells, and the weights of their pixels, which sum to 1 at each pixel."""
    tile = min(tile, cells)
    count = 1 if tile == cells else -(-(cells - overlap) // (tile - overlap))
    starts = np.round(np.linspace(0, cells - tile, count)).astype(np.int32)
    place = (np.arange(tile * to_cell) + 0.5) / to_cell
    slope = lambda distance: np.clip((distance - margin) / max(overlap - 2 * margin, 1e-9), 0, 1)
    weights = np.ones((count, len(place)))
    weights[1:] *= slope(place)
    weights[:-1] *= slope(tile - place)
    total = np.zeros(cells * to_cell)
    spans = [slice(s * to_cell, (s + tile) * to_cell) for s in starts]
    for span, weight in zip(spans, weights, strict=True):
        total[span] += weight
    shares = [weight / total[span] for span, weight in zip(spans, weights, strict=True)]
    return starts, np.stack(shares).astype(np.float32)
