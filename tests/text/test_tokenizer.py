"""The tokenizer: against transformers, its files, what it cuts, and training."""

import dataclasses
import json
import random
import re
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax import text
from gen_jax.text import words
from tests import tiny_sd
from tests.text import strings

HERE = Path(__file__).parent
FOLDER = HERE / "tiny_tokenizer"  # by make_tiny_tokenizer.py
CASES = json.loads((HERE / "hard_cases.json").read_text())
END = "<|endoftext|>"
TINY = dataclasses.replace(text.Tokenizer.load(FOLDER), pad=END)
SHORT = dataclasses.replace(TINY, length=8)
PADS = (END, "!")


@pytest.mark.parametrize("pad", PADS)
def test_hard_strings_have_the_ids_of_transformers(pad):
    tokenizer = dataclasses.replace(TINY, pad=pad)
    assert CASES["strings"] == strings.HARD
    wrong = {s: ids for s, ids in zip(strings.HARD, CASES[pad], strict=True) if tokenizer.encode(s) != ids}
    assert wrong == {}


@pytest.mark.parametrize("pad", PADS)
def test_random_strings_have_the_ids_of_transformers(pad):
    transformers = pytest.importorskip("transformers")
    vocab, merges = str(FOLDER / "vocab.json"), str(FOLDER / "merges.txt")
    peer = transformers.CLIPTokenizer(
        vocab, merges, pad_token=pad, bos_token="<|startoftext|>", eos_token=END
    )
    tokenizer = dataclasses.replace(TINY, pad=pad)
    each = list(strings.at_random(3000))
    theirs = peer(each, add_special_tokens=False)["input_ids"]
    wrong = [(s, ids) for s, ids in zip(each, theirs, strict=True) if tokenizer.encode(s) != ids]
    assert wrong == []
    whole = peer(each, padding="max_length", max_length=77, truncation=True)["input_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(tokenizer.tokens(each), whole)


@tiny_sd.needs_fixtures
@pytest.mark.parametrize(
    ("model", "suffix"), [("tiny-sd15", ""), ("tiny-sd21", ""), ("tiny-sdxl", ""), ("tiny-sdxl", "_2")]
)
def test_prompts_of_a_folder_have_the_ids_of_transformers(model, suffix):
    prompts = ["a large red seven above a small blue three", "Two GREEN nines, it's 42!", "blurry grey", ""]
    tokenizer = text.Tokenizer.load(tiny_sd.ROOT / model / f"tokenizer{suffix}")
    expected = np.load(tiny_sd.ROOT / model / "expected.npz")[f"input_ids{suffix}"]
    np.testing.assert_array_equal(tokenizer.tokens(prompts), expected)


@pytest.mark.parametrize(
    "files", [("vocab.json", "merges.txt", "tokenizer_config.json"), ("tokenizer.json",)]
)
def test_folder_is_read_by_either_kind_of_file(files, tmp_path):
    for name in files:
        shutil.copy(FOLDER / name, tmp_path)
    assert text.Tokenizer.load(tmp_path) == dataclasses.replace(TINY, pad="!")


def test_padding_is_as_the_files_say(tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / name, tmp_path)
    assert text.Tokenizer.load(tmp_path) == TINY  # CLIP's own where there is no other file
    said = {"model_max_length": 16, "pad_token": {"content": "!", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    assert text.Tokenizer.load(tmp_path) == dataclasses.replace(TINY, pad="!", length=16)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": END}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": int(1e30)}))
    assert text.Tokenizer.load(tmp_path) == TINY


def changed(name, change):
    def write(folder):
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed("vocab.json", lambda v: v.update({"a</w>": 0, "!": 320})), "other ids of !, a</w>"),
        (changed("vocab.json", lambda v: v.pop("red</w>")), "does not hold a tokenizer of CLIP"),
        (
            lambda folder: (folder / "merges.txt").write_text("#version: 0.2\nr e\nre dd\n"),
            "merge 1 is 're dd'",
        ),
        (
            lambda folder: (folder / "merges.txt").write_bytes(b"\xff\xfe"),
            "merges.txt: it is not UTF-8",
        ),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "vocab.json: expected a JSON object"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "vocab.json: it is not JSON"),
        (lambda folder: (folder / "merges.txt").unlink(), "there is no tokenizer in"),
    ],
)
def test_files_that_do_not_fit_are_refused(spoil, message, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / name, tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        text.Tokenizer.load(tmp_path)


def test_file_of_another_kind_of_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {}}}))
    with pytest.raises(ValueError, match="added_tokens"):
        text.Tokenizer.load(tmp_path)


def test_tokens_have_start_end_and_padding():
    start, end = TINY.vocab_size - 2, TINY.vocab_size - 1
    found = SHORT.tokens(["red", "", b"red"])
    (red,) = SHORT.encode("red")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(
        found, [[start, red, *[end] * 6], [start, *[end] * 7], [start, red, *[end] * 6]]
    )
    other = dataclasses.replace(SHORT, pad="!").tokens(["!"])
    np.testing.assert_array_equal(other, [[start, 0, end, 0, 0, 0, 0, 0]])
    assert SHORT.tokens([]).shape == (0, 8)
    np.testing.assert_array_equal(SHORT.tokens(np.array(["red"], object)), found[:1])


def test_text_that_fits_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SHORT.tokens(["red red red red red red"])


def test_what_is_cut_is_said():
    with pytest.warns(
        UserWarning, match=r"1 of 2 texts .* the 6 tokens .* 8 tokens, this is cut: 'seven two'"
    ):
        found = SHORT.tokens(["red red red red red red seven two", "red"])
    np.testing.assert_array_equal(found[0, 1:7], SHORT.encode("red") * 6)
    assert found[0, 7] == TINY.vocab_size - 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (b"\xff\xfe", "text in UTF-8"),
        ("\ud800", "text in UTF-8"),
        (3, "expected a text, got 3"),
        (None, "got None"),
    ],
)
def test_what_is_no_text_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TINY.encode(wrong)
    with pytest.raises(ValueError, match=message):
        TINY.tokens(["red", wrong])


def test_single_text_is_not_taken_for_a_list():
    with pytest.raises(ValueError, match=r"write \['red'\]"):
        TINY.tokens("red")


@settings(deadline=None)
@given(st.text())
def test_decoded_text_has_the_same_ids(string):
    for pad in PADS:
        tokenizer = dataclasses.replace(TINY, pad=pad)
        ids = [i for i in tokenizer.encode(string) if i not in {tokenizer.vocabulary[s] for s in (END, pad)}]
        assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_decode_leaves_out_what_is_no_word():
    assert TINY.decode(TINY.tokens(["A red, it's 42"])[0]) == "a red , it 's 4 2"
    assert TINY.decode(TINY.encode("größer 😀")[:-1]) == "größer �"
    with pytest.raises(ValueError, match=f"0 to {TINY.vocab_size - 1}, got {TINY.vocab_size}"):
        TINY.decode([TINY.vocab_size])


def test_tokens_follow_from_the_merges():
    tokenizer = text.Tokenizer(("r e", "re d</w>"))
    assert tokenizer.vocab_size == len(tokenizer.vocabulary) == 516
    assert [tokenizer.vocabulary[t] for t in ("!", "!</w>", "re", "red</w>", END)] == [0, 256, 512, 513, 515]
    assert tokenizer.encode("red reed") == [
        513,
        512,
        tokenizer.vocabulary["e"],
        tokenizer.vocabulary["d</w>"],
    ]
    assert hash(tokenizer) == hash(text.Tokenizer(("r e", "re d</w>")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merges": ("re d</w>", "r e")}, "merge 0 is 're d</w>'"),
        ({"merges": ("r e", "r e")}, "merge 1 is 'r e'"),
        ({"merges": ("red",)}, "merge 0 is 'red'"),
        ({"merges": (), "length": 2}, "length must be at least 3, got 2"),
        ({"merges": (), "pad": "[PAD]"}, "pad"),
    ],
)
def test_tokenizer_says_what_does_not_fit(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        text.Tokenizer(**fields)


def by_definition(captions, num_merges):
    """Algorithm 1 of Sennrich et al. 2016, counted anew for each merge."""
    split = [words.to_bytes(word) for caption in captions for word in words.words(caption)]
    merges = []
    for _ in range(num_merges):
        pairs = [pair for parts in split for pair in pairwise(parts)]
        pairs = [pair for pair in pairs if "".join(pair) not in ("".join(m) for m in merges)]
        if not pairs:
            break
        best = max(sorted(set(pairs)), key=pairs.count)  # the first one of those that are as frequent
        merges.append(best)
        for parts in split:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return tuple(map(" ".join, merges))


@pytest.mark.parametrize("num_merges", [0, 7, 40, 1000])
def test_training_is_by_definition_and_in_any_order(num_merges):
    captions = [
        "a large red seven",
        "a small red three",
        "lower lowest low",
        "aaaa aaaaa aaa",
        "größe größer",
        "!!! !!",
    ]
    expected = by_definition(captions, num_merges)
    for seed in range(3):
        random.Random(seed).shuffle(captions)
        assert text.train(iter(captions), num_merges=num_merges).merges == expected


def test_trained_words_are_single_tokens():
    captions = ["a large red seven above a small blue three", "a small green zero"]
    tokenizer = text.train(captions, num_merges=1000, length=16)
    assert len(tokenizer.merges) < 100
    assert [len(tokenizer.encode(c)) for c in captions] == [9, 4]
    assert (
        tokenizer.decode(tokenizer.tokens(["Purple, a red"])[0]) == "purple , a red"
    )  # letters that it knows


@pytest.mark.parametrize(
    ("captions", "num_merges", "message"),
    [
        (["a", 3], 10, "expected a text, got 3"),
        ([b"\xff"], 10, "UTF-8"),
        (["a"], -1, "at least 0"),
        ("ab", 1, "list"),
    ],
)
def test_training_says_what_does_not_fit(captions, num_merges, message):
    with pytest.raises(ValueError, match=message):
        text.train(captions, num_merges=num_merges)
