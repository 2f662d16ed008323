"""Where CLIP's tokenizer cuts a text into words, and the characters that stand for its bytes.

The rules are those of the tokenizer of Radford et al. 2021 (CLIP) as the `transformers` library states them, without its
packages `tokenizers` and `regex`.
"""

import re
import unicodedata
from collections.abc import Iterator

START, END = "<|startoftext|>", "<|endoftext|>"
STOP = "</w>"
"""The end of a word; a part of the last token of each word."""

_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _VISIBLE]
BYTES = {byte: chr(byte) for byte in _VISIBLE} | {byte: chr(256 + i) for i, byte in enumerate(_OTHERS)}
"""The visible character that stands for a byte (the table of GPT-2, Radford et al. 2019), in the order of the tokens."""

_SPACES = frozenset("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | set(map(chr, range(0x2000, 0x200B)))
"""White space outside ASCII."""

# The package `tokenizers`, and so transformers, has letters and digits of Unicode 16, lower case of Unicode 17 and form
# NFC of Unicode 9. Python 3.11 has Unicode 14, others have newer ones: these are the differences.
_LETTERS = (
    "1c89-1c8a a7cb-a7cd a7d2-a7d4 a7da-a7dc 105c0-105f3 10d4a-10d65 10d6f-10d85 10ec2-10ec4 1123f-11240 11380-11389 "
    "1138b 1138e 11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 "
    "11f12-11f33 1342f 13441-13446 13460-143fa 16100-1611d 16d40-16d6c 18cff 1b132 1b155 "
    "1df25-1df2a 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d 31350-323af"
)
_DIGITS = (
    "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 "
    "1e5f1-1e5fa"
)
_LOWER = {code: code + 1 for code in (0x1C89, 0xA7CC, 0xA7CE, 0xA7D2, 0xA7D4, 0xA7DA)}
_LOWER |= {0xA7CB: 0x264, 0xA7DC: 0x19B}
_LOWER |= {code: code + 0x20 for code in range(0x10D50, 0x10D66)}
_LOWER |= {code: code + 0x1B for code in range(0x16EA0, 0x16EB9)}
_APART = (
    "7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1aff 1df6-1dfa a82c 105c0-105ff "
    "10d00-10fff 11070 1133b 11380-113ff 1145e 11800-1184f 11900-11aff 11d00-11fff 16100-1613f "
    "16d40-16d7f 16fe0-16fff 1e08f 1e100-1e5ff"
)
"""Marks that are new since: form NFC of Unicode 9 neither moves nor joins them."""


def _codes(ranges: str) -> Iterator[int]:
    for each in ranges.split():
        first, _, last = each.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1)


class _Shapes(dict[int, str]):
    """For `str.translate`: ASCII stays, another letter becomes z, a digit 0, white space a blank, all else `~`.

    A "z" and a "0" make up neither a special token nor a contraction.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        others = {"L": "z", "N": "0"}.get(unicodedata.category(char)[0], " " if char in _SPACES else "~")
        self[code] = char if code < 128 else others
        return self[code]


_shapes = _Shapes(dict.fromkeys(_codes(_LETTERS), "z") | dict.fromkeys(_codes(_DIGITS), "0"))
_apart = re.compile(f"([{''.join(map(chr, _codes(_APART)))}])")
_WORD = re.compile(
    r"<\|(?:startoftext|endoftext)\|>|'(?:[stmd]|re|ve|ll)|[a-z]+|[0-9]|[^\sa-z0-9]+", re.ASCII
)


def words(text: str) -> Iterator[str]:
    """The words of a text: `"It's 42!"` has `it 's 4 2 !`.

    The text is brought to Unicode's form NFC and to lower case, character by character. A word is one of the contractions
    `'s 't 're 've 'm 'll 'd`, a run of letters (Unicode's L), one digit (N), or a run of what is neither these nor white
    space.
    """
    text, shapes = _normal(text)
    for found in _WORD.finditer(shapes):
        word = text[found.start() : found.end()]
        if word in (START, END):  # spelt with capitals: the ones as they are were cut out before
            yield from (word[:2], word[2:-2], word[-2:])
        else:
            yield word


def normal(text: str) -> str:
    """A text in form NFC and lower case, in which added tokens are found."""
    return _normal(text)[0]


def _normal(text: str) -> tuple[str, str]:
    """A text in form NFC and lower case, and its shapes."""
    if text.isascii():
        return text.lower(), text.lower()
    text = "".join(unicodedata.normalize("NFC", part) for part in _apart.split(text))
    text = text.replace("Σ", "σ").translate(_LOWER).lower()  # lower() alone takes ς at the end of a word
    return text, text.translate(_shapes)


def to_bytes(word: str) -> list[str]:
    """A word in UTF-8, as the tokens of its single bytes; the last one has the end of the word."""
    parts = [BYTES[byte] for byte in word.encode()]
    parts[-1] += STOP
    return parts
