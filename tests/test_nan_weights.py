"""Weights that are not finite: an error that names the array, where images would be black."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import checks, generate, retouch
from gen_jax.networks import autoencoder_kl, tiling
from gen_jax.vae import latent
from tests import described

KEY = jax.random.key(0)
MODEL = described.model(10)
WEIGHTS = {"network": described.weights(MODEL)}
IMAGES = np.zeros((2, *described.SHAPE), np.uint8)
MASK = np.ones((1, *described.SHAPE), bool)


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.debug_nans(False):
        yield


def broken(weights, value=np.nan, last=True):
    """The same with one number of one array that is not finite, and the place of the array."""
    leaves, tree = jax.tree.flatten_with_path(weights)
    path, leaf = leaves[-1 if last else 0]
    leaf = np.array(leaf)
    leaf.flat[0] = value
    values = [x for _, x in leaves]
    values[-1 if last else 0] = jnp.asarray(leaf)
    return jax.tree.unflatten(tree, values), jax.tree_util.keystr(path)


def draw(weights):
    sampler, index = generate.sampler(MODEL), np.arange(2)
    cond = generate.choose(MODEL, KEY, index)
    return sampler(weights, KEY, generate.plan(MODEL), index, cond)


CALLS = {
    "sample": lambda weights: generate.sample(MODEL, weights, KEY, 2),
    "sampler": draw,
    "vary": lambda weights: retouch.vary(MODEL, weights, KEY, IMAGES),
    "inpaint": lambda weights: retouch.inpaint(MODEL, weights, KEY, IMAGES, MASK, nfe=2),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("on_host", [False, True])
def test_an_array_with_nan_is_named_before_images_are_drawn(name, on_host):
    weights, place = broken(WEIGHTS)
    weights = jax.tree.map(np.asarray, weights) if on_host else weights
    with pytest.raises(ValueError, match="must be finite") as error:
        CALLS[name](weights)
    assert f"weights{place} must be finite, got nan" in str(error.value)
    assert "take an earlier checkpoint" in str(error.value)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_trees_of_every_type_of_floats(value, dtype):
    tree = {"a": [jnp.ones(3, dtype), jnp.arange(3)], "b": jnp.ones((2, 2), dtype)}
    checks.finite_tree("params", tree)
    tree["b"] = tree["b"].at[1, 0].set(value)
    with pytest.raises(ValueError, match=r"params\['b'\] must be finite, got (-?inf|nan) in 1 of 2 rows: 1"):
        checks.finite_tree("params", tree)


def test_an_array_is_read_once_and_a_traced_one_never(monkeypatch):
    read, check = [], checks.Range.check
    monkeypatch.setattr(
        checks.Range, "check", lambda self, name, x: (read.append(name), check(self, name, x))
    )
    tree = {"a": jnp.ones(3), "b": np.ones(3), "c": jax.ShapeDtypeStruct((3,), jnp.float32)}
    for _ in range(3):
        checks.finite_tree("params", tree)
    assert sorted(read) == ["params['a']", *["params['b']"] * 3]  # arrays of numpy change
    weights, _ = broken({"a": jnp.ones(3)})
    jax.eval_shape(lambda w: checks.finite_tree("weights", w), weights)


def test_autoencoders_with_nan_are_named():
    net = autoencoder_kl.AutoencoderKLConfig(in_channels=1, out_channels=1, channels=(8,), groups=4).build()
    params, place = broken(
        jax.tree.map(jnp.zeros_like, jax.eval_shape(net.init, KEY, jnp.zeros((1, 8, 8, 1))))
    )
    for call in (
        lambda: latent.reconstruct(net, params, IMAGES),
        lambda: latent.statistics(net, params, IMAGES),
        lambda: tiling.decode(net, params, jnp.zeros((1, 8, 8, 4))),
    ):
        with pytest.raises(ValueError, match="must be finite, got nan") as error:
            call()
        assert f"params{place}" in str(error.value)
