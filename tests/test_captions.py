"""Captions that are read once, against reading them in each step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gen_jax import captions, data, text
from gen_jax.conditioning import Reader, Text
from gen_jax.networks.text import CLIPTextConfig
from tests.marks import slow
from tests.networks.drawn import parameters

KEY = jax.random.key(0)
TEXTS = [*["a large red seven", "a small blue three", "", "a green two (above) a white one"] * 5, "red"]
TOKENIZER = text.train(TEXTS, num_merges=40, length=12)
ENCODER = CLIPTextConfig(TOKENIZER.vocab_size, width=16, layers=2, heads=2, hidden=32, length=12)
PROJECTS = dataclasses.replace(ENCODER, width=24, projection=12)
ONE = Text((Reader(TOKENIZER, ENCODER),), 0.5)
TWO = Text(
    (Reader(TOKENIZER, ENCODER, -2), Reader(TOKENIZER, PROJECTS, -2)),
    0.5,
    sizes=(64.0, 48.0, 0.0, 0.0, 64.0, 48.0),
    size_features=8,
    zero_null=True,
)
WEIGHTS = {
    name: parameters(encoder.build(), jnp.zeros((1, 12), jnp.int32))
    for name, encoder in (("text_encoder", ENCODER), ("text_encoder_2", PROJECTS))
}
IMAGE = np.zeros((len(TEXTS), 8, 8, 3), np.uint8)


def source(**more):
    return data.Arrays({"image": IMAGE, "text": np.array(TEXTS, object), **more})


@pytest.mark.parametrize("condition", slow([ONE, TWO], [ONE]), ids=["one reader", "two, sizes, zeros"])
def test_encode_all_is_what_is_read_in_each_step(tmp_path, condition):
    """With the same key the same examples lose their captions."""
    read = captions.encode_all(condition, WEIGHTS, source(), tmp_path, batch_size=8)
    assert set(read.arrays) == {"image", "context"} | ({"pooled", "sizes"} if condition.sizes else set())
    batch = {name: x for name, x in read.arrays.items() if name != "image"}
    asked = captions.of_batch(condition, KEY, batch, captions.empty(condition, WEIGHTS))
    now = condition.of_batch(KEY, condition.prepare({"text": np.array(TEXTS, object)}))
    ready, fresh = condition.tell(None, asked), condition.tell(WEIGHTS, now)
    assert (ready[0] is None) == (fresh[0] is None)
    for ours, theirs in zip(ready, fresh, strict=True):
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    kept = np.asarray(condition.dropped(KEY, len(TEXTS)))
    assert 0 < kept.sum() < len(TEXTS)


def test_encode_all_tells_the_place_of_each_image():
    place = np.arange(4 * len(TEXTS), dtype=np.float32).reshape(-1, 4)
    read = captions.encode_all(TWO, WEIGHTS, source(place=place)).arrays
    np.testing.assert_array_equal(read["sizes"][:, :4], place)
    np.testing.assert_array_equal(read["sizes"][:, 4:], np.tile([64, 48], (len(TEXTS), 1)))
    assert "place" not in read


def test_encode_all_finds_what_it_kept(tmp_path, monkeypatch):
    """The same weights and texts are found again, other ones are not."""
    first = captions.encode_all(ONE, WEIGHTS, source(), tmp_path).arrays["context"]
    other = jax.tree.map(lambda x: x + 1e-3, WEIGHTS)
    captions.encode_all(ONE, other, source(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(captions, "_encoded", lambda *args: pytest.fail("read again"))
    again = captions.encode_all(ONE, WEIGHTS, source(), tmp_path).arrays["context"]
    np.testing.assert_array_equal(again, first)


def test_encode_all_refuses_images_without_captions():
    with pytest.raises(ValueError, match=r"must have captions under .text., got \['image'\]"):
        captions.encode_all(ONE, WEIGHTS, data.Arrays({"image": IMAGE}))
