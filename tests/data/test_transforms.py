"""The pixel maps on all 256 values, the random ones on their law and on what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import PartitionSpec as P

from gen_jax import data, keys

ALL = np.arange(256, dtype=np.uint8)
SEEDS = st.integers(0, 2**32 - 1)


def images(seed, n=64, shape=(4, 6, 3)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def test_to_unit_spans_the_interval():
    x = data.to_unit(ALL)
    assert x.dtype == jnp.float32
    assert (float(x[0]), float(x[255])) == (-1.0, 1.0)
    np.testing.assert_allclose(x, ALL.astype(np.float64) / 127.5 - 1, atol=1e-7)


def test_to_uint8_inverts_to_unit():
    np.testing.assert_array_equal(data.to_uint8(data.to_unit(ALL)), ALL)


@given(hnp.arrays(np.float32, 20, elements=st.floats(-3, 3, width=32)))
@settings(max_examples=50, deadline=None)
def test_to_uint8_is_the_nearest_pixel(x):
    nearest = np.abs(np.asarray(data.to_unit(ALL))[:, None] - np.clip(x, -1, 1)[None]).min(0)
    chosen = np.abs(np.asarray(data.to_unit(data.to_uint8(x))) - np.clip(x, -1, 1))
    np.testing.assert_allclose(chosen, nearest, atol=1e-6)


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_flip_is_its_own_mirror(seed):
    x, key = images(seed), jax.random.key(seed)
    once = np.asarray(data.flip(key, x))
    np.testing.assert_array_equal(data.flip(key, once), x)
    for before, after in zip(x, once, strict=True):
        assert (after == before).all() or (after == before[:, ::-1]).all()


def test_flip_mirrors_half():
    x = images(0)
    flipped = [np.asarray(data.flip(jax.random.key(i), x)) != x for i in range(40)]
    share = np.stack(flipped).any((2, 3, 4)).mean()
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(40 * len(x))


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_dequantize_stays_in_its_pixel(seed):
    x = np.tile(ALL, 18).reshape(64, 4, 6, 3)
    y = np.asarray(data.dequantize(jax.random.key(seed), x))
    assert y.min() >= 0
    assert y.max() < 1
    np.testing.assert_array_equal(np.floor(256 * y), x)


def test_dequantize_stays_in_the_brightest_pixel_a_million_times():
    # The naive (255 + u) / 256 in float32 is 1 about eight times in a million.
    y = np.asarray(data.dequantize(jax.random.key(0), np.full((1000, 1000), 255, np.uint8)))
    assert y.max() < 1
    assert y.min() >= 255 / 256


def test_dequantize_is_uniform():
    x = images(1)
    u = np.sort((256 * np.asarray(data.dequantize(jax.random.key(1), x), np.float64) - x).ravel())
    distance = np.abs(u - (np.arange(u.size) + 0.5) / u.size).max()
    assert distance < 1.95 / np.sqrt(u.size)  # Kolmogorov-Smirnov at 0.1 %


@pytest.mark.parametrize("transform", [data.flip, data.dequantize, data.binarize])
def test_transform_does_not_depend_on_the_devices(transform):
    x, key = images(2), jax.random.key(5)
    mesh = jax.make_mesh((8,), (keys.AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.shard_map(transform, mesh=mesh, in_specs=(P(), P(keys.AXIS)), out_specs=P(keys.AXIS))
    np.testing.assert_array_equal(jax.jit(split)(key, x), transform(key, x))


@pytest.mark.parametrize("transform", [data.flip, data.dequantize, data.binarize])
def test_transform_depends_on_the_key_and_the_example(transform):
    x = np.broadcast_to(images(3, 1), (64, 4, 6, 3))
    y = np.asarray(transform(jax.random.key(0), x))
    assert len(np.unique(y.reshape(64, -1), axis=0)) > 1
    assert (y != np.asarray(transform(jax.random.key(1), x))).any()


def test_zero_one_spans_the_interval_and_comes_back():
    x = data.to_zero_one(ALL)
    np.testing.assert_allclose(x, ALL / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.from_zero_one(x), ALL)
    np.testing.assert_array_equal(data.from_zero_one(np.float32([-0.2, 1.3])), [0, 255])


def test_binarize_draws_bits_with_the_grey_values_as_probabilities():
    """All 256 values, 20,000 draws of each: black and white exactly, the rest within five standard errors."""
    x = np.broadcast_to(ALL, (20_000, 256))
    bits = np.asarray(data.binarize(jax.random.key(0), x))
    assert set(np.unique(bits)) == {0.0, 1.0}
    assert not bits[:, 0].any()
    assert bits[:, 255].all()
    p = ALL / 255
    assert (np.abs(bits.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / len(x)) + 2.0**-16).all()
    np.testing.assert_array_less(np.abs(np.corrcoef(bits[:, 100], bits[:, 101])[0, 1]), 0.04)


@pytest.mark.parametrize(("make", "least"), [(data.from_zero_one, 0), (data.to_uint8, -1)])
def test_bytes_as_floats_are_no_numbers_of_the_interval(make, least):
    with pytest.raises(ValueError, match=rf"numbers in \[{least}, 1\].*round\(\).astype\(np.uint8\)"):
        make(np.arange(256.0))
    np.testing.assert_array_equal(make(np.array([-1.2, 1.3])), [0, 255])  # as a network draws them
