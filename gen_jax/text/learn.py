"""Merges learned from texts: byte-pair encoding."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated

from gen_jax import checks
from gen_jax.text.tokenizer import Tokenizer, checked, join, listed
from gen_jax.text.words import END, to_bytes, words
from gen_jax.types import Size, Text


@checks.checked
def train(
    captions: Iterable[Text],
    *,
    num_merges: Size,
    length: Annotated[int, checks.Range(3)] = 77,
    pad: str = END,
) -> Tokenizer:
    """A tokenizer whose merges are learned from captions (Sennrich et al. 2016, Algorithm 1).

    The most frequent pair of neighbours within a word becomes one token, `num_merges` times over; of pairs that are as
    frequent, the first in the order of their characters. So the result depends neither on the order of the captions nor
    on chance. It has fewer merges where every word is one token before.

    Args:
        captions: texts, cut into words as `Tokenizer.encode` does it.
        num_merges: at most; the vocabulary has 514 tokens besides.
        length, pad: of the `Tokenizer`.

    Raises:
        ValueError: a caption that is no text in UTF-8, a single text for a list of them, or a negative `num_merges`.
    """
    counts = Counter(word for caption in listed(captions, "captions") for word in words(checked(caption)))
    split = {word: to_bytes(word) for word in counts}
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    def count(word: str, sign: int) -> None:
        for pair in pairwise(split[word]):
            pairs[pair] += sign * counts[word]
            where[pair].add(word)

    for word in counts:
        count(word, 1)
    merges: dict[str, str] = {}
    while len(merges) < num_merges:
        new = (pair for pair, n in pairs.items() if n > 0 and "".join(pair) not in merges)
        best = min(new, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None:
            break
        merges["".join(best)] = " ".join(best)
        for word in where[best]:
            count(word, -1)
            split[word] = join(split[word], best)
            count(word, 1)
    return Tokenizer(tuple(merges.values()), length, pad)
