"""`Tokenizer`: CLIP's byte-pair encoding, with the standard library alone.

    t = Tokenizer.load("stable-diffusion/tokenizer")      # or text.train(captions, num_merges=100)
    t.encode("a large red seven")                         # [320, 3638, 736, 5757]
    t.tokens(["a large red seven", ""])                   # int32 [2, 77], for a text encoder

All of it follows from the merges: token 0 to 255 are the bytes, 256 to 511 the bytes at the end of a word, then comes one
token for each merge, and in the end the start and the end of a text. So any text has tokens, in any script.
"""

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Int

from gen_jax import checks, small_files
from gen_jax.text import files
from gen_jax.text.words import BYTES, END, START, STOP, normal, to_bytes, words
from gen_jax.types import Size, Text

_MOST_CACHED = 100_000


@checks.checked
@dataclass(frozen=True)
class Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016) of words, as in CLIP.

    The two neighbours in a word whose merge stands first are joined, as long as there are any.

    Args:
        merges: two tokens and a blank between them, in the order of their rank: `"r e", "re d</w>"`.
        length: tokens of a text with its start, its end and the padding behind it; CLIP reads 77.
        pad: the token behind the end of a text: `<|endoftext|>` in Stable Diffusion 1.x and the first encoder of XL, `!`
            (id 0) in 2.x and the second encoder of XL. It is found in texts too, before all else, as `transformers` does:
            where `!` pads, a `!` in a text has its id 0, and not 256 as the end of a word.
        added: tokens with ids behind all others, of textual inversion. They are found in texts before words are, in
            capitals or not, as `transformers` does; `"<cat>"` stands for `"<cat>"`, `"<cat>_1"`, `"<cat>_2"` and so on,
            as far as they were added, as in diffusers.

    Raises:
        ValueError: a merge of tokens that are not there before it or that make a known one; no room in `length`; an
            unknown `pad`; an added token that is known, or empty.
    """

    merges: tuple[str, ...]
    length: Annotated[int, checks.Range(3)] = 77
    pad: str = END
    added: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*BYTES.values(), *(byte + STOP for byte in BYTES.values()), START, END}
        for rank, merge in enumerate(self.merges):
            left, _, right = merge.partition(" ")
            if left not in known or right not in known or left + right in known:
                raise ValueError(
                    f"merge {rank} is {merge!r}: expected two tokens that are bytes or of merges before it, with a blank "
                    "between them, which make a token that is new."
                )
            known.add(left + right)
        if self.pad not in known:
            raise ValueError(f"pad must be a known token, got {self.pad!r}.{checks.nearest(self.pad, known)}")
        for token in self.added:
            if not token.split() or token in known:
                raise ValueError(
                    f"expected tokens to add that are not empty and not in the vocabulary, got {token!r}: choose another "
                    "name, such as '<my-cat>'."
                )
            known.add(token)

    @classmethod
    @checks.checked
    def load(cls, folder: str | os.PathLike[str]) -> "Tokenizer":
        """The tokenizer of a model folder.

        It has `vocab.json` and `merges.txt`, or `tokenizer.json`; length and padding are in `tokenizer_config.json` or
        `special_tokens_map.json`.

        Raises:
            ValueError: the files are not there, or their vocabulary is not the one that follows from their merges.
        """
        folder = Path(folder).expanduser()
        with small_files.named(folder):
            found = files.read(folder)
            tokenizer = cls(found.merges, found.length, found.pad or END, found.added)
        if found.vocabulary != tokenizer.vocabulary:
            theirs, ours = found.vocabulary, tokenizer.vocabulary
            differ = sorted(token for token in {*theirs, *ours} if theirs.get(token) != ours.get(token))
            raise ValueError(
                f"{folder} does not hold a tokenizer of CLIP: expected a vocabulary of {len(ours)} tokens that follows "
                f"from the merges (bytes, bytes at the end of a word, merges, start, end), got {len(theirs)} tokens, "
                f"and other ids of {', '.join(differ[:3])}."
            )
        return tokenizer

    @checks.checked
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that `load` reads, into a folder that is there; `transformers` reads them too."""
        if not Path(folder).expanduser().is_dir():
            raise ValueError(f"folder must be there, got {folder}: make it first.")
        files.write(
            Path(folder).expanduser(),
            files.Files(self.vocabulary, self.merges, self.length, self.pad, self.added),
        )

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token, as in `vocab.json`."""
        singles = list(BYTES.values())
        merged = (merge.replace(" ", "") for merge in self.merges)
        tokens = [*singles, *(byte + STOP for byte in singles), *merged, START, END, *self.added]
        return {token: i for i, token in enumerate(tokens)}

    @property
    def vocab_size(self) -> int:
        """Tokens that there are: 514, the merges and those that were added; 49,408 in CLIP."""
        return 514 + len(self.merges) + len(self.added)

    @checks.checked
    def encode(self, text: Text) -> list[int]:
        """The ids of a text, without start and end, of any length; of none for the empty text.

        Raises:
            ValueError: it is not a text, or not one in UTF-8.
        """
        ids = []
        for i, part in enumerate(self._special.split(checked(text))):
            if i % 2:
                ids.append(self.vocabulary[part])
                continue
            for j, piece in enumerate(self._new.split(normal(part)) if self.added else [part]):
                if j % 2:
                    ids += self._chains[_form(piece)]
                else:
                    for word in words(piece):
                        ids += self._of_word(word)
        return ids

    @checks.checked
    def tokens(self, texts: Iterable[Text]) -> Int[np.ndarray, "N L"]:
        """Texts as a text encoder reads them: start, ids, end, then padding; int32 `[N, length]`.

        What does not fit is cut, and a warning says what (`gen_jax.text.prompts` reads longer texts, by chunks). A text
        may be empty.

        Raises:
            ValueError: one of them is not a text in UTF-8, or `texts` is a single one.
        """
        ids = [self.encode(text) for text in listed(texts)]
        self.warn_of_cut(ids, self.length - 2)
        return self.framed(ids)

    @checks.checked
    def framed(self, ids: Sequence[Sequence[int]]) -> Int[np.ndarray, "N L"]:
        """Ids with start and end, cut or padded to `length`."""
        out = np.full((len(ids), self.length), self.vocabulary[self.pad], np.int32)
        for row, each in zip(out, ids, strict=True):
            framed = [self.vocabulary[START], *each[: self.length - 2], self.vocabulary[END]]
            row[: len(framed)] = framed
        return out

    @checks.checked
    def warn_of_cut(self, ids: Sequence[Sequence[int]], room: Size) -> None:
        """Warn, with the words, if some of the texts with these ids have more than `room` of them."""
        long = [each for each in ids if len(each) > room]
        if long:
            first = long[0]
            warnings.warn(
                f"{len(long)} of {len(ids)} texts are longer than the {room} tokens that are read. Of the first one, "
                f"with {len(first)} tokens, this is cut: {self.decode(first[room:])!r}.",
                stacklevel=3,
            )

    @checks.checked
    def decode(self, ids: Iterable[int] | Int[np.ndarray, "L"]) -> str:
        """The words of ids, with one blank between them; start, end and padding are left out.

        It encodes to the same ids again, unless they begin or end within a character. ValueError for an unknown id.
        """
        if isinstance(ids, str):
            raise ValueError(f"ids must be whole numbers, got {checks.came(ids)}.")
        out, rest = bytearray(), list[int]()
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"expected ids from 0 to {self.vocab_size - 1}, got {i}.")
            token = self._by_id[i]
            if rest[:1] == [i]:  # what the added token before it stands for
                del rest[0]
            elif token in self.added:
                out += b" " * (bytes(out[-1:]) not in (b"", b" ")) + f"{token} ".encode()
                rest = self._chains[_form(token)][1:]
            elif token not in (START, END, self.pad):
                out += bytes(self._byte[char] for char in token.removesuffix(STOP))
                out += b" " if token.endswith(STOP) else b""
        return out.decode(errors="replace").strip(" ")

    @cached_property
    def _special(self) -> re.Pattern[str]:
        longest_first = sorted({START, END, self.pad}, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    @cached_property
    def _new(self) -> re.Pattern[str]:
        longest_first = sorted(self._chains, key=len, reverse=True)
        return re.compile("(" + "|".join(r"\s+".join(map(re.escape, t.split())) for t in longest_first) + ")")

    @cached_property
    def _chains(self) -> dict[str, list[int]]:
        """The ids that an added token stands for, in the form that it has in texts."""
        chains: dict[str, list[int]] = {}
        for token in self.added:
            parts = [token]
            while (after := f"{token}_{len(parts)}") in self.added:
                parts.append(after)
            chains.setdefault(_form(token), [self.vocabulary[part] for part in parts])
        return chains

    @cached_property
    def _by_id(self) -> list[str]:
        return list(self.vocabulary)

    @cached_property
    def _byte(self) -> dict[str, int]:
        return {char: byte for byte, char in BYTES.items()}

    @cached_property
    def _ranks(self) -> dict[tuple[str, ...], int]:
        return {tuple(merge.split(" ")): rank for rank, merge in enumerate(self.merges)}

    @cached_property
    def _cache(self) -> dict[str, list[int]]:
        return {}

    def _of_word(self, word: str) -> list[int]:
        """The ids of a word."""
        ids = self._cache.get(word)
        if ids is None:
            parts = to_bytes(word)
            while ranked := [(self._ranks[pair], pair) for pair in pairwise(parts) if pair in self._ranks]:
                parts = join(parts, min(ranked)[1])
            ids = [self.vocabulary[part] for part in parts]
            if len(self._cache) >= _MOST_CACHED:
                self._cache.clear()
            self._cache[word] = ids
        return ids


def _form(token: str) -> str:
    """An added token as it is in texts of form NFC and lower case, with one blank for white space."""
    return " ".join(normal(token).split())


def join(parts: Sequence[str], pair: tuple[str, ...]) -> list[str]:
    """`parts` with each `pair` of neighbours as one, from the left."""
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def checked(text: Text) -> str:
    """A text as a `str`. ValueError for what is none, or not UTF-8."""
    if not isinstance(text, str | bytes):
        raise ValueError(f"expected a text, got {text!r} ({type(text).__name__}).")
    try:
        return text.decode() if isinstance(text, bytes) else text.encode().decode()
    except UnicodeError as error:
        raise ValueError(f"expected a text in UTF-8, got {text!r}: {error}.") from None


def listed(texts: Iterable[Text], name: str = "texts") -> list[Text]:
    """The texts. ValueError for a single text, which would be read letter by letter."""
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name} must be a list of texts, got the single text {texts!r}: write [{texts!r}].")
    return list(texts)
