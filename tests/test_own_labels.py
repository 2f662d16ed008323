"""Labels and batches as people have them: other names, types and numbers. What is right, and what is said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import data
from gen_jax.conditioning import Labels, check_labels, drop
from gen_jax.networks import layers, unet
from gen_jax.networks.autoencoder import MLPEncoder
from gen_jax.networks.text import CLIPTextConfig
from tests.test_own_images import BYTES, KEY, refused

# --- labels ---


def test_a_null_label_is_beyond_any_type_of_label():
    """256 is 0 in uint8."""
    label = np.arange(256, dtype=np.uint8)
    for dropped in (drop(KEY, label, 256, 1.0), jax.jit(lambda x: drop(KEY, x, 256, 1.0))(label)):
        assert dropped.dtype == jnp.int32
        np.testing.assert_array_equal(dropped, 256)
    kept = Labels(256, 0.0).of_batch(KEY, {"label": label})
    np.testing.assert_array_equal(kept, np.arange(256))
    assert Labels(256).prepare({"label": label})["label"].dtype == np.int32


def test_labels_counted_from_1_are_found():
    label = np.arange(60) % 10 + 1
    refused(
        lambda: Labels(10).prepare({"label": label}),
        "from 0 to 9, got 1 to 10",
        "counted from 1, so subtract 1",
    )
    assert data.Arrays({"image": np.repeat(BYTES, 15, 0), "label": label}).info().num_classes == 11
    refused(lambda: Labels(11).check_all(label), "no example has the label 0", "subtract 1")
    Labels(10).check_all(label - 1)
    Labels(11, names=tuple(map(str, range(11)))).check_all(label)
    np.testing.assert_array_equal(check_labels(label - 1, 10), label - 1)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"labels": np.arange(4)}, 'rename "labels" to "label"'),
        ({"y": np.eye(4)}, 'rename "y" to "label"; of one-hot codes take .argmax(-1)'),
        ({"label": np.eye(4)}, "of one-hot codes take .argmax(-1)"),
        ({"label": np.arange(4)[:, None]}, "take [:, 0]"),
        ({"label": np.array(["cat", "dog"])}, "np.unique(names, return_inverse=True)[1]"),
        ({"label": np.arange(4.0)}, "take .astype(np.int32)"),
        ({"label": np.zeros(0)}, "take .astype(np.int32)"),
        (
            {"label": np.array([0, np.nan, 1, np.nan])},
            "it has NaN in 2 of 4 rows, the first of them row 1: give",
        ),
        (
            {"label": np.array([0, 0.5, 1, 1.5])},
            "2 of 4 are no whole numbers, such as 0.5 in row 1: labels are",
        ),
        ({"image": BYTES}, '"image" uint8 [4, 6, 5, 1]'),
    ],
)
def test_labels_of_another_form_are_told_what_to_become(batch, said):
    refused(lambda: Labels(4).prepare(batch), "label", said)
    refused(lambda: Labels(4).of_batch(KEY, batch), said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"labels": np.arange(4)}, "rename"),
        ({"label": np.eye(4)}, "argmax"),
        ({"label": np.arange(4)[:, None]}, "take"),
        ({"label": np.array(list("abcd"))}, "return_inverse"),
        ({"label": np.array([0, np.nan, 1, 2])}, "NaN in 1 of 4 rows, the first of them row 1"),
        ({"label": np.array([0, 1, 2, 0.5])}, "1 of 4 are no whole numbers, such as 0.5 in row 3"),
    ],
)
def test_labels_are_not_left_out_without_a_word(tmp_path, more, said):
    with pytest.warns(UserWarning, match=said):
        assert data.Arrays({"image": BYTES, **more}).info().num_classes is None
    np.savez(tmp_path / "set.npz", image=BYTES, **more)
    if "labels" in more:
        with pytest.warns(UserWarning, match=said):
            assert data.info(tmp_path / "set.npz").num_classes is None
    else:
        refused(lambda: data.info(tmp_path / "set.npz"), "label", said)


def test_labels_as_they_should_be_raise_no_warning(tmp_path):
    np.savez(tmp_path / "set.npz", image=BYTES, label=np.array([0, 1, 2, 1], np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.info(tmp_path / "set.npz").num_classes == 3
        assert data.Arrays({"image": BYTES, "label": [0, 1, 2, 1]}).info().num_classes == 3
        assert data.Arrays({"image": BYTES}).info().num_classes is None


UNET = unet.UNetConfig(channels=(4,), groups=2, embedding=4, num_classes=3)


def test_a_label_that_a_network_does_not_have_is_no_other_one():
    x, t = jnp.zeros((2, 4, 4, 1)), jnp.ones(2)
    net, label = UNET.build(), jnp.array([0, 3])
    params = jax.jit(net.init)(KEY, x, t, label)
    params = jax.tree.map(lambda a: a + 0.1, params)
    for wrong in (-1, 4):
        asked = jnp.array([0, wrong])
        refused(lambda asked=asked: net.apply(params, x, t, asked), "cond must be at least 0 and at most 3")
        with jax.debug_nans(False):
            y = np.asarray(jax.jit(net.apply)(params, x, t, asked))
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).all()
        with jax.debug_nans(False):
            unknown = jax.jit(lambda label: drop(KEY, label, 3, 0.0))(asked)
            assert np.isnan(np.asarray(jax.jit(net.apply)(params, x, t, unknown))[1]).all()
    encoder = MLPEncoder(2, (), num_classes=3)
    params = encoder.init(KEY, x, jnp.array([0, 2]))
    refused(lambda: encoder.apply(params, x, jnp.array([0, 3])), "label must be at least 0 and at most 2")


def test_an_id_outside_of_a_vocabulary_is_no_other_one():
    net = CLIPTextConfig(9, width=4, layers=1, heads=1, hidden=4, length=3).build()
    ids = np.array([[0, 8, 2]])
    params = net.init(KEY, ids)
    for wrong in (-1, 9):
        refused(
            lambda wrong=wrong: net.apply(params, np.where(ids == 2, wrong, ids)),
            "ids must be at least 0 and at most 8",
        )
        with jax.debug_nans(False):
            last = np.asarray(jax.jit(net.apply)(params, np.where(ids == 2, wrong, ids)).last)
        assert np.isnan(last[0, 2]).all()


def test_an_untrained_null_label_does_not_guide():
    assert not Labels(3, dropout=0.0).guides
    refused(lambda: unet.UNetConfig(dropout=1.5), "dropout must be at least 0 and below 1, got 1.5")
    refused(lambda: Labels(3, dropout=1.5), "dropout must be at least 0 and below 1, got 1.5")


# --- what belongs to an example belongs to each ---


def test_a_condition_of_another_batch_does_not_broadcast():
    x = jnp.zeros((3, 4, 4, 4))
    block = layers.ResBlock(4, groups=2)
    params = block.init(KEY, x, jnp.zeros((3, 5)))
    for other in (1, 2):
        refused(
            lambda other=other: block.apply(params, x, jnp.zeros((other, 5))), "emb must be one for each of 3"
        )
    refused(
        lambda: layers.GroupNorm(2).init(KEY, x, (jnp.zeros((1, 4)), jnp.zeros((1, 4)))),
        "film must be one for each of 3",
    )


def test_leaves_of_a_batch_are_as_long():
    both = {"image": BYTES, "label": np.arange(3)}
    refused(lambda: data.batches(both, 2, key=KEY), "label", "3")
    info = data.Info("mine", 5, (6, 5, 1), None)
    refused(
        lambda: data.Arrays({"image": BYTES}, info).gather(np.arange(2)), "info says 5 examples", "have 4"
    )
