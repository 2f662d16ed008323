"""Prompts: the grammar of weights, chunks of long texts, and what weights do to the output of an encoder."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_jax import text
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.text import prompts
from tests.networks.drawn import parameters

TOKENIZER = text.train(["a large red seven above a small blue three"], num_merges=1000, length=8)
NET = CLIPTextConfig(
    TOKENIZER.vocab_size, width=16, layers=2, heads=2, hidden=24, length=8, projection=6
).build()
PARAMS = parameters(NET, np.zeros((1, 8), np.int32))
APPLY = jax.jit(NET.apply)
EXAMPLES = [  # those of AUTOMATIC1111's stable-diffusion-webui, modules/prompt_parser.py
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            *(("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1)),
            *(("hill", 0.55), (", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)),
        ],
    ),
]
OTHERS = [
    ("", []),
    ("()", []),
    ("(red:1.3)", [("red", 1.3)]),
    ("(red : 1.3 )", [("red ", 1.3)]),
    ("(red:-.5)(blue:+2.)", [("red", -0.5), ("blue", 2.0)]),
    ("[red]", [("red", 1 / 1.1)]),
    ("[red:1.3]", [("red:1.3", 1 / 1.1)]),
    ("(red:0)", [("red", 0.0)]),
    ("red:1.3) :)", [("red:1.3) :)", 1.0)]),
    ("(a:b:1.5)", [("a:b", 1.5)]),
    ("(red:1.2.3)", [("red:1.2.3", 1.1)]),
    ("(red:1.3", [("red:1.3", 1.1)]),
    ("]red[", [("]red", 1.0)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
    (r"\[a\] \\ \x (b\))", [(r"[a] \ \x ", 1.0), ("b)", 1.1)]),
    ("two\nlines (of\ntext:2)", [("two\nlines ", 1.0), ("of\ntext", 2.0)]),
]


@pytest.mark.parametrize(("prompt", "expected"), EXAMPLES + OTHERS)
def test_weights_are_read_by_the_grammar(prompt, expected):
    found = prompts.parse(prompt)
    assert [words for words, _ in found] == [words for words, _ in expected]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in expected], rtol=1e-12)


@settings(deadline=None)
@given(st.text())
def test_escaped_text_is_itself(words):
    escaped = "".join("\\" + c if c in "\\()[]" else c for c in words)
    assert prompts.parse(escaped) == ([(words, 1.0)] if words else [])


@settings(deadline=None)
@given(st.text("ab :.1()[]\\"))
def test_every_prompt_has_a_meaning(words):
    parts = prompts.parse(words)
    assert all(np.isfinite(weight) and part for part, weight in parts)
    assert all(before[1] != after[1] for before, after in pairwise(parts))


def test_prompts_have_ids_and_weights_token_by_token():
    found = prompts.read(TOKENIZER, ["a (red:1.3) seven [blue three]", ""])
    np.testing.assert_array_equal(found.tokens[:, 0], TOKENIZER.tokens(["a red seven blue three", ""]))
    down = 1 / 1.1
    np.testing.assert_allclose(found.weights[:, 0], [[1, 1, 1.3, 1, down, down, 1, 1], [1] * 8], rtol=1e-6)
    assert (found.tokens.dtype, found.weights.dtype) == (np.int32, np.float32)


def test_brackets_are_characters_where_they_do_not_weigh():
    found = prompts.read(TOKENIZER, ["(red)"], weighted=False)
    np.testing.assert_array_equal(found.tokens[:, 0], TOKENIZER.tokens(["(red)"]))
    np.testing.assert_array_equal(found.weights, np.ones((1, 1, 8)))
    np.testing.assert_array_equal(prompts.read(TOKENIZER, [r"\(red\)"]).tokens, found.tokens)


LONG = "a large red seven above a (small:2) blue three"


def test_long_prompt_has_chunks():
    found = prompts.read(TOKENIZER, [LONG, "red"])
    assert found.tokens.shape == found.weights.shape == (2, 2, 8)
    np.testing.assert_array_equal(
        found.tokens.reshape(4, 8),
        TOKENIZER.tokens(["a large red seven above a", "small blue three", "red", ""]),
    )
    np.testing.assert_array_equal(found.weights[0, 1], [1, 2, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.weights[1], np.ones((2, 8)))


def test_number_of_chunks_can_be_given():
    assert prompts.read(TOKENIZER, ["red"], chunks=3).tokens.shape == (1, 3, 8)
    assert prompts.read(TOKENIZER, []).tokens.shape == (0, 1, 8)
    with pytest.warns(UserWarning, match="the 6 tokens that are read.*'small blue three'"):
        found = prompts.read(TOKENIZER, [LONG], chunks=1)
    np.testing.assert_array_equal(found.weights, np.ones((1, 1, 8)))
    with pytest.raises(ValueError, match="chunks must be at least 1, got 0"):
        prompts.read(TOKENIZER, ["red"], chunks=0)


def test_prompts_say_what_does_not_fit():
    with pytest.raises(ValueError, match="write"):
        prompts.read(TOKENIZER, "red")
    with pytest.raises(ValueError, match="UTF-8"):
        prompts.read(TOKENIZER, [b"\xff"])


@pytest.mark.parametrize("restore_mean", [False, True])
def test_weight_of_one_is_the_encoder_to_the_bit(restore_mean, optimized):
    ids = TOKENIZER.tokens(["a red seven", "blue"])
    found = prompts.read(TOKENIZER, ["a (red:1.0) [(seven)]", "blue"])
    plain = APPLY(PARAMS, ids)
    encode = jax.jit(lambda p, x: prompts.encode(NET.apply, p, x, restore_mean=restore_mean))
    context, pooled = encode(PARAMS, found)
    np.testing.assert_array_equal(context, plain.last)
    np.testing.assert_array_equal(pooled, plain.pooled)
    other = encode(PARAMS, prompts.read(TOKENIZER, ["a (red:1.5) seven", "blue"])).context
    np.testing.assert_array_equal(other[1], context[1])  # weights of one prompt do not change another
    assert np.abs(other[0] - context[0]).max() > 1e-2


def test_weights_multiply_the_output_of_each_token():
    found = prompts.read(TOKENIZER, [LONG, "(red:0.5) [blue]"])
    plain = np.asarray(APPLY(PARAMS, found.tokens.reshape(4, 8)).hidden[-2]).reshape(2, 2, 8, 16)
    encode = lambda **how: np.asarray(prompts.encode(APPLY, PARAMS, found, hidden=-2, **how).context)
    expected = plain * found.weights[..., None]
    np.testing.assert_allclose(encode(), expected.reshape(2, 16, 16), rtol=1e-5)
    restored = encode(restore_mean=True).reshape(plain.shape)
    np.testing.assert_allclose(restored.mean((2, 3)), plain.mean((2, 3)), rtol=1e-4)
    ratio = restored / expected  # one number for each chunk
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :, :1, :1], ratio.shape), rtol=1e-4)


def test_chunks_are_encoded_on_their_own():
    found = prompts.read(TOKENIZER, [LONG.replace("(small:2)", "small")])
    context, pooled = prompts.encode(APPLY, PARAMS, found)
    parts = APPLY(PARAMS, TOKENIZER.tokens(["a large red seven above a", "small blue three"]))
    np.testing.assert_allclose(context[0], jnp.concatenate(parts.last), atol=1e-6)
    np.testing.assert_allclose(pooled, parts.pooled[:1], atol=1e-6)


def test_weights_can_be_differentiated_where_they_are_one():
    states = jax.random.normal(jax.random.key(0), (1, 1, 8, 16))
    total = lambda s, w: jnp.sum(prompts.weigh(s, w, restore_mean=True) ** 2)
    gradient = jax.jit(jax.grad(total))(states, jnp.ones((1, 1, 8)))
    np.testing.assert_allclose(gradient, 2 * states, rtol=1e-6)


def test_ready_embeddings_pass():
    array = jnp.ones((2, 5, 16))
    ready = prompts.Encoded(array, jnp.ones((2, 6)))
    assert prompts.encode(NET.apply, PARAMS, array) == prompts.Encoded(array, None)
    assert prompts.encode(NET.apply, PARAMS, ready) is ready
    with pytest.raises(ValueError, match=r"\(prompts, tokens, features\), got \(5, 16\)"):
        prompts.encode(NET.apply, PARAMS, array[0])


def test_prompts_and_weights_do_not_compile_anew():
    traced = []

    @jax.jit
    def encode(params, x):
        traced.append(x)
        return prompts.encode(NET.apply, params, x).context

    for prompt in ("red", "(blue:1.5) three", ""):
        encode(PARAMS, prompts.read(TOKENIZER, [prompt]))
    assert len(traced) == 1
