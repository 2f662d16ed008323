"""Textual inversion: new words whose vectors were learned, for the text encoders of a Stable Diffusion.

    m, weights = inversion.add(m, weights, {"<cat>": "learned_embeds.safetensors"})
    images, _ = generate.sample(m, weights, key, 4, prompt="a photo of <cat> on a beach")

A word of several vectors stands for as many tokens, "<cat>", "<cat>_1", "<cat>_2" and so on, as in diffusers.

Source: Gal et al. 2022, Section 3.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from gen_jax import checks
from gen_jax.conditioning import Reader, Text
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import parts, safetensors
from gen_jax.pretrained.names import some
from gen_jax.text.words import END

__all__ = ["Vectors", "add"]

Vectors: TypeAlias = "str | os.PathLike[str] | ArrayLike | Mapping[str, ArrayLike]"
"""Of a word: a file, an array [n, d] or [d], or arrays by name."""

ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
"""The text encoder that vectors of a name are for; of any other name they are for the only one."""

EMBEDDING = ("params", "token_embedding", "embedding")


@checks.checked
def add(model: Model, weights: Weights, words: Mapping[str, Vectors]) -> tuple[Model, Weights]:
    """The model and the weights with new words, which prompts may have then; prompts without them mean what they did.

    Args:
        model: a Stable Diffusion.
        weights: of it; they stay as they are.
        words: for each new word its vectors: a `.safetensors` file with one tensor (`learned_embeds.safetensors`, or
            `emb_params` of web UIs), or for Stable Diffusion XL with `clip_l` and `clip_g`; or these arrays.

    Raises:
        ValueError: a word that is known, a file with other tensors, vectors of another size than the tokens of a text
            encoder, or none for one of them.
    """
    _, condition, _ = parts.checked(model)
    places = {p: place for p, place in parts.places(model).items() if place.path[0] == "text"}
    found = {word: _vectors(word, vectors, list(places)) for word, vectors in words.items()}
    trees, readers = dict(parts.within(weights, ("text",))), list[Reader]()
    for (part, place), reader in zip(places.items(), condition.readers, strict=True):
        tree = parts.within(weights, place.path)
        added = [(word, _checked(word, vectors, part, reader)) for word, vectors in found.items()]
        readers.append(_reader(reader, [(word, len(rows)) for word, rows in added]))
        trees[place.path[1]] = _grown(tree, [rows for _, rows in added])
    text: Text = replace(condition, readers=tuple(readers))
    return replace(model, condition=text), {**weights, "text": trees}


def _vectors(word: str, given: Vectors, encoders: Sequence[str]) -> dict[str, np.ndarray]:
    """The vectors of a word by text encoder."""
    if isinstance(given, str | os.PathLike):
        given = cast("Mapping[str, ArrayLike]", safetensors.read(given))
    named = given if isinstance(given, Mapping) else {word: given}
    if set(named) <= set(ENCODERS):
        return {ENCODERS[name]: np.asarray(x) for name, x in named.items()}
    if len(named) == len(encoders) == 1:
        return dict(zip(encoders, map(np.asarray, named.values()), strict=True))
    expected = "one array" if len(encoders) == 1 else "clip_l and clip_g"
    raise ValueError(
        f"expected {expected} as the vectors of {word!r}, got {some(list(named)) or 'none'}. Were they learned for "
        "another Stable Diffusion?"
    )


def _checked(word: str, vectors: Mapping[str, np.ndarray], part: str, reader: Reader) -> np.ndarray:
    """The rows `[n, d]` that a text encoder gets."""
    if part not in vectors:
        raise ValueError(
            f"expected vectors of {word!r} for {part}, got those for {', '.join(vectors)} alone."
        )
    if np.asarray(vectors[part]).dtype.kind in "OSUc":
        raise ValueError(f"expected numbers as the vectors of {word!r}, got {checks.came(vectors[part])}.")
    rows, width = np.atleast_2d(vectors[part]), reader.encoder.width
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        raise ValueError(
            f"expected vectors of {word!r} with {width} numbers each, as the tokens of {part} have, got the shape "
            f"{vectors[part].shape}. Were they learned for another Stable Diffusion?"
        )
    checks.within(f"the vectors of {word!r}", rows)
    return rows


def _reader(reader: Reader, words: Sequence[tuple[str, int]]) -> Reader:
    """The reader that knows words of so many tokens."""
    tokens = [word + (f"_{i}" if i else "") for word, n in words for i in range(n)]
    tokenizer = replace(reader.tokenizer, added=(*reader.tokenizer.added, *tokens))
    end = tokenizer.vocabulary[END] if reader.encoder.end is None else reader.encoder.end
    encoder = replace(
        reader.encoder, vocab_size=tokenizer.vocab_size, end=end
    )  # it is not the highest id now
    return replace(reader, tokenizer=tokenizer, encoder=encoder)


def _grown(tree: PyTree, rows: Sequence[np.ndarray]) -> PyTree:
    """The parameters of a text encoder with more tokens."""
    *path, leaf = EMBEDDING
    embedding = parts.within(tree, (*path, leaf))
    table: Array = jnp.concatenate([embedding, *(jnp.asarray(x, embedding.dtype) for x in rows)])
    module = {**parts.within(tree, tuple(path)), leaf: table}
    return {**tree, "params": {**tree["params"], path[-1]: module}}
