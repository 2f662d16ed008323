"""Tiles against the whole: equal where the network is local, near otherwise, in a part of the memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax.networks import autoencoder_kl, tiling
from gen_jax.networks.conv import conv
from tests.networks.drawn import parameters

KEY = jax.random.key(0)
CONFIG = autoencoder_kl.AutoencoderKLConfig(
    channels=(8, 8), blocks=1, groups=1, middle_attention=False, in_channels=1, out_channels=1
)


def images(height, width, channels=1, batch=1):
    return jax.random.normal(KEY, (batch, height, width, channels))


@pytest.mark.parametrize("size", [(8, 8), (9, 23), (20, 31)])
@pytest.mark.parametrize(("overlap", "margin"), [(0, 0), (3, 0), (4, 1), (4, 2)])
def test_tiles_of_a_function_of_each_pixel_are_the_whole(size, overlap, margin):
    x = images(*size, channels=2)
    y = jax.jit(lambda x: tiling.tiled(jnp.sin, x, tile=8, overlap=overlap, margin=margin))(x)
    np.testing.assert_allclose(y, jnp.sin(x), atol=1e-6)


def test_tiles_of_a_local_function_are_the_whole_with_a_margin_of_its_radius():
    """Two convolutions of 3 x 3 see 2 pixels far; with a smaller margin the edges of tiles are seen."""
    x, (a, b) = images(30, 25), (jax.random.normal(jax.random.key(i), (3, 3, 1, 1)) for i in (1, 2))
    f = lambda x: conv(jnp.tanh(conv(x, a)), b)
    by = lambda margin: jax.jit(lambda x: tiling.tiled(f, x, tile=12, overlap=6, margin=margin))(x)
    np.testing.assert_allclose(by(2), f(x), atol=1e-5)
    assert np.abs(by(1) - f(x)).max() > 1e-2


@pytest.mark.parametrize(("cell", "to_cell"), [(1, 4), (4, 1), (2, 3)])
def test_tiles_may_change_the_resolution(cell, to_cell):
    """Sums over cells, repeated `to_cell` times, are local to the cell."""
    x = images(10 * cell, 7 * cell)

    def f(x):
        cells = x.reshape(1, x.shape[1] // cell, cell, x.shape[2] // cell, cell).sum((2, 4))
        large = jnp.repeat(jnp.repeat(cells, to_cell, 1), to_cell, 2)
        return {"map": large[..., None], "stack": jnp.stack([large] * 3, axis=-1)}

    y = jax.jit(lambda x: tiling.tiled(f, x, tile=4, overlap=1, cell=cell, to_cell=to_cell))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), y, f(x))


def trained_like():
    """A net whose norms see statistics that are alike in all places: its biases are small."""
    net = CONFIG.build()
    return net, parameters(net, images(8, 8), scale=0.02)


def test_encode_and_decode_are_those_of_the_whole_where_one_tile_is_enough():
    net, params = trained_like()
    x = images(16, 12)
    whole = jax.jit(lambda x: net.apply(params, x, method="encode"))(x)
    tiles = jax.jit(lambda x: tiling.encode(net, params, x, tile=8, overlap=2))(x)
    jax.tree.map(np.testing.assert_array_equal, tiles, whole)
    back = jax.jit(lambda z: tiling.decode(net, params, z, tile=8, overlap=2))(whole[0])
    assert back.shape == x.shape


def test_encode_and_decode_by_tiles_are_near_the_whole():
    """With a margin of the receptive field only the statistics of the norms differ: below 10% of the largest value."""
    net, params = trained_like()
    x, how = images(96, 128), {"tile": 40, "overlap": 24, "margin": 12}
    whole = jax.jit(lambda x: net.apply(params, x, method="encode"))(x)[0]
    tiles = jax.jit(lambda x: tiling.encode(net, params, x, **how))(x)[0]
    assert tiles.shape == whole.shape
    out = jax.jit(lambda z: net.apply(params, z, method="decode"))(whole)
    by_tiles = jax.jit(lambda z: tiling.decode(net, params, z, **how))(whole)
    for ours, exact in ((tiles, whole), (by_tiles, out)):
        assert 0 < np.abs(ours - exact).max() < 0.1 * np.abs(exact).max()


def test_tiles_take_a_part_of_the_memory(optimized):
    """What the compiler reserves for the decoder of an image of 512 x 512 pixels, tiles of 128 x 128."""
    net, params = trained_like()
    z = jax.ShapeDtypeStruct((1, 256, 256, 4), jnp.float32)
    whole = jax.jit(lambda p, z: net.apply(p, z, method="decode"))
    tiles = jax.jit(lambda p, z: tiling.decode(net, p, z, tile=64, overlap=16))
    temporary = lambda f: f.lower(params, z).compile().memory_analysis().temp_size_in_bytes
    assert temporary(tiles) < temporary(whole) / 4


def test_tiles_take_gradients():
    x = images(10, 10)
    value = lambda f: jax.grad(lambda x: jnp.vdot(x, f(x)))(x)
    by_tiles = lambda x: tiling.tiled(jnp.sin, x, tile=6, overlap=2)
    np.testing.assert_allclose(value(by_tiles), value(jnp.sin), atol=1e-5)


@pytest.mark.parametrize(("tile", "overlap", "margin"), [(4, 4, 0), (4, -1, 0), (8, 3, 2)])
def test_tiles_say_what_does_not_fit(tile, overlap, margin):
    with pytest.raises(
        ValueError, match=r"0 <= 2 margin <= overlap < tile|overlap must be at least 0, got -1"
    ):
        tiling.tiled(jnp.sin, images(9, 9), tile=tile, overlap=overlap, margin=margin)


def test_encode_says_what_does_not_fit():
    net = dataclasses.replace(CONFIG, patch=2).build()
    with pytest.raises(ValueError, match="4 must divide"):
        tiling.encode(net, {}, images(10, 8))
