"""Textual inversion: new words of a model, against transformers' tokenizer, and what stays as it was."""

import functools
import re

import jax
import numpy as np
import pytest

from gen_jax import pretrained
from gen_jax.pretrained import inversion, safetensors
from gen_jax.text import Tokenizer
from tests import tiny_sd

RNG = np.random.default_rng(0)
CAT, DOG = RNG.standard_normal((3, 24), np.float32), RNG.standard_normal((1, 24), np.float32)
TEXTS = [
    "a photo of <cat> and two <dog>",
    "a<CAT>b, it's <cat>!",
    "<cat><dog> <cat>_1 <cat>_2 42",
    "no new word, but cat> and <|endoftext|>",
    "Ärger mit <DOG>\n<cat>",
]


@functools.cache
def load(name="tiny-sd15"):
    return pretrained.load(tiny_sd.ROOT / name)


def words():
    return {"<cat>": CAT, "<dog>": {"<dog>": DOG}}


@tiny_sd.needs_fixtures
def test_add_gives_new_words_their_vectors():
    """Ids follow the vocabulary, the embeddings of the new ids are the vectors, the end is where it was."""
    m, weights = load()
    new, grown = inversion.add(m, weights, words())
    (reader,), (before,) = new.condition.readers, m.condition.readers
    n = before.tokenizer.vocab_size
    assert reader.tokenizer.added == ("<cat>", "<cat>_1", "<cat>_2", "<dog>")
    assert (reader.encoder.vocab_size, reader.encoder.end) == (n + 4, n - 1)
    assert reader.tokenizer.encode("<cat> <dog>") == [n, n + 1, n + 2, n + 3]
    table = grown["text"]["text_encoder"]["params"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[n:], np.concatenate([CAT, DOG]))
    assert reader.tokenizer.decode([n, n + 1, n + 2, n + 3]) == "<cat> <dog>"


@tiny_sd.needs_fixtures
def test_add_changes_nothing_for_other_prompts():
    """To the bit, of what the network attends to and of the pooled text."""
    m, weights = load()
    new, grown = inversion.add(m, weights, words())
    ids = m.condition.readers[0].tokenizer.tokens(["a large red seven", "cat", "cat>"])
    np.testing.assert_array_equal(
        ids, new.condition.readers[0].tokenizer.tokens(["a large red seven", "cat", "cat>"])
    )
    said = [
        jax.jit(model.condition.readers[0].encoder.build().apply)(w["text"]["text_encoder"], ids)
        for model, w in ((m, weights), (new, grown))
    ]
    np.testing.assert_array_equal(said[0].last, said[1].last)
    np.testing.assert_array_equal(said[0].pooled, said[1].pooled)


@tiny_sd.needs_fixtures
def test_add_reads_files_of_diffusers_and_of_web_uis(tmp_path):
    m, weights = load()
    expected = inversion.add(m, weights, {"<cat>": CAT})
    for name in ("<any>", "emb_params"):
        safetensors.write(tmp_path / "x.safetensors", {name: CAT})
        model, grown = inversion.add(m, weights, {"<cat>": tmp_path / "x.safetensors"})
        assert model == expected[0]
        for a, b in zip(*map(jax.tree.leaves, (grown, expected[1])), strict=True):
            np.testing.assert_array_equal(a, b)


@tiny_sd.needs_fixtures
def test_add_gives_both_encoders_of_xl_theirs(tmp_path):
    m, weights = load("tiny-sdxl")
    second = RNG.standard_normal((3, 32), np.float32)
    safetensors.write(tmp_path / "x.safetensors", {"clip_l": CAT, "clip_g": second})
    new, grown = inversion.add(m, weights, {"<cat>": tmp_path / "x.safetensors"})
    assert [r.tokenizer.added for r in new.condition.readers] == [("<cat>", "<cat>_1", "<cat>_2")] * 2
    for name, rows in (("text_encoder", CAT), ("text_encoder_2", second)):
        table = grown["text"][name]["params"]["token_embedding"]["embedding"]
        np.testing.assert_array_equal(table[-3:], rows)
    with pytest.raises(ValueError, match="for text_encoder_2, got those for text_encoder alone"):
        inversion.add(m, weights, {"<cat>": {"clip_l": CAT}})


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("word", "vectors", "says"),
    [
        ("red</w>", CAT, "not in the vocabulary, got 'red</w>'"),
        (" ", CAT, "not empty"),
        ("<cat>", CAT[:, :20], r"24 numbers each.*\(3, 20\)"),
        ("<cat>", {"a": CAT, "b": CAT}, "expected one array.*got a, b"),
        ("<cat>", {"clip_g": CAT}, "got those for text_encoder_2 alone"),
    ],
)
def test_add_refuses_vectors_of_another_model(word, vectors, says):
    with pytest.raises(ValueError, match=says):
        inversion.add(*load(), {word: vectors})


@tiny_sd.needs_fixtures
def test_saved_words_are_read_again(tmp_path):
    new, grown = inversion.add(*load(), words())
    pretrained.save(tmp_path / "new", new, grown)
    again, read = pretrained.load(tmp_path / "new")
    assert again == new
    for a, b in zip(*map(jax.tree.leaves, (read, grown)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="no place for their names"):
        pretrained.save(tmp_path / "x.safetensors", new, grown, layout="single")


@tiny_sd.needs_fixtures
def test_ids_of_new_words_are_those_of_transformers(tmp_path):
    """With the words added, and from a folder that was saved with them; a word of several as diffusers writes it out."""
    transformers = pytest.importorskip("transformers")
    new, grown = inversion.add(*load(), words())
    tokenizer = new.condition.readers[0].tokenizer
    theirs = transformers.CLIPTokenizer.from_pretrained(tiny_sd.ROOT / "tiny-sd15/tokenizer")
    theirs.add_tokens(list(tokenizer.added))
    pretrained.save(tmp_path / "new", new, grown)
    saved = transformers.CLIPTokenizer.from_pretrained(tmp_path / "new/tokenizer")
    assert Tokenizer.load(tmp_path / "new/tokenizer") == tokenizer
    for text in TEXTS:
        whole = re.sub("(?i)<cat>(?!_)", "<cat> <cat>_1 <cat>_2", text)
        for each in (theirs, saved):
            assert tokenizer.encode(text) == each(whole, add_special_tokens=False).input_ids, text
