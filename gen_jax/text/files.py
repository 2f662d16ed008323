"""The files of a tokenizer in a model folder, as `transformers` writes them."""

import json
import os
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

from gen_jax import checks, small_files
from gen_jax.text.words import END, START

CLIP_LENGTH = 77
_UNLIMITED = 10**6
"""Where a file states no length, `transformers` writes 10^30."""


class Files(NamedTuple):
    """What the files say."""

    vocabulary: dict[str, int]
    merges: tuple[str, ...]
    length: int
    pad: str | None
    added: tuple[str, ...] = ()
    """Tokens behind those that follow from the merges, by their ids."""


class _Token(TypedDict):
    id: int
    content: str


class _BPE(TypedDict):
    vocab: dict[str, int]
    merges: list[str | list[str]]


class _Whole(TypedDict):
    """Of `tokenizer.json`."""

    added_tokens: list[_Token]
    model: _BPE


def read(folder: str | os.PathLike[str]) -> Files:
    """The tokenizer in a folder: `vocab.json` and `merges.txt`, or else `tokenizer.json`. ValueError if neither."""
    folder = Path(folder)
    try:
        return _read(folder)
    except (KeyError, TypeError, AttributeError) as error:  # of JSON of another form
        raise ValueError(
            f"{folder}: expected the files of a tokenizer of CLIP, got {error!r:.200}."
        ) from error


def _read(folder: Path) -> Files:
    vocabulary, merges, added = _vocabulary(folder)
    config = _json(folder / "tokenizer_config.json") | _json(folder / "special_tokens_map.json")
    length, pad = config.get("model_max_length"), config.get("pad_token")
    known = isinstance(length, int | float) and length < _UNLIMITED
    pad = pad.get("content") if isinstance(pad, dict) else pad
    new = sorted((i, token) for token, i in added.items() if i >= 514 + len(merges))
    vocabulary = vocabulary | {token: i for i, token in new}
    others = [token for token, i in added.items() if token not in (START, END) and (i, token) not in new]
    return Files(
        vocabulary,
        merges,
        int(cast(float, length)) if known else CLIP_LENGTH,
        str(pad) if pad else next(iter(others), None),
        tuple(token for _, token in new),
    )


def write(folder: str | os.PathLike[str], found: Files) -> None:
    """The inverse of `read`, for `transformers` too: `vocab.json`, `merges.txt`, and the two files about them."""
    folder = Path(folder)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": found.pad or END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": found.length,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    vocabulary = {token: i for token, i in found.vocabulary.items() if token not in found.added}
    added = {token: found.vocabulary[token] for token in found.added}
    lines = "".join(f"{merge}\n" for merge in found.merges)
    texts = {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": f"#version: 0.2\n{lines}",
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(special, indent=2) + "\n",
    }
    if added:
        texts["added_tokens.json"] = json.dumps(added, ensure_ascii=False, indent=2) + "\n"
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _vocabulary(folder: Path) -> tuple[dict[str, int], tuple[str, ...], dict[str, int]]:
    """Ids, merges, and the tokens that are special or were added."""
    whole = cast(_Whole, _json(folder / "tokenizer.json"))
    added = {token["content"]: token["id"] for token in whole["added_tokens"]} if whole else {}
    listed = _json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    listed = cast(dict[str, _Token], listed)
    added |= {token["content"]: int(i) for i, token in listed.items()}
    added |= _ids(folder / "added_tokens.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = small_files.text_of(folder / "merges.txt").split("\n")
        merges = [line for i, line in enumerate(lines) if line and (i or "#version" not in line)]
        return _ids(folder / "vocab.json"), tuple(merges), added
    if not whole:
        raise ValueError(
            f"there is no tokenizer in {folder}: expected vocab.json and merges.txt, or tokenizer.json."
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    return whole["model"]["vocab"] | added, tuple(merges), added


def _json(path: Path) -> dict[str, object]:
    """A file as a dictionary, empty if it is not there."""
    return small_files.json_of(path) if path.is_file() else {}


def _ids(path: Path) -> dict[str, int]:
    """The ids of tokens in a file."""
    ids: dict[str, int] = {}
    for token, i in _json(path).items():
        if not isinstance(i, int) or isinstance(i, bool):
            raise ValueError(f"{path}: expected a whole number as the id of {token!r}, got {checks.came(i)}.")
        ids[token] = i
    return ids
