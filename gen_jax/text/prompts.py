r"""Prompts as users of web UIs write them: weights in brackets, and texts longer than an encoder reads.

    found = prompts.read(tokenizer, ["a (red:1.3) seven", ""])           # on the host: ids and weights, [N, chunks, L]
    context, pooled = prompts.encode(net.apply, params, found)           # inside jit: [N, chunks L, K], [N, P]

The grammar is that of AUTOMATIC1111's stable-diffusion-webui:

    (words)          weight 1.1 times what it is outside
    (words:1.3)      weight 1.3 times what it is outside; a decimal number, which may have a sign
    [words]          weight 1 / 1.1 times what it is outside
    \( \) \[ \] \\   the character itself

Brackets nest, and their weights multiply: `((words))` has 1.21. A closing bracket that closes none is a character; an
opening bracket that is not closed weighs all that follows. A colon and a number not right before the `)` of an open round
bracket are text. There are no schedules, no alternatives and no BREAK. A word ends where its weight changes:
`(un)happy` is two.

A long prompt is cut into chunks of `length - 2` tokens. Each gets a start, an end and padding, is encoded on its own, and
the outputs stand behind each other in the context. The prompts of a batch have the same number of chunks; what a shorter
one lacks are chunks of the empty text.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from gen_jax import checks
from gen_jax.networks.text import TextOutput
from gen_jax.text.tokenizer import Tokenizer, checked, listed
from gen_jax.types import Count, Text

_FACTORS = {")": 1.1, "]": 1 / 1.1}
_CLOSES = {"(": ")", "[": "]"}
_PIECE = re.compile(
    r"\\(?P<escaped>[\[\]()\\])|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<text>[^\[\]():\\]+|.)",
    re.DOTALL,
)


class Prompts(NamedTuple):
    """Prompts for an encoder of texts of `L` tokens; a pytree of arrays."""

    tokens: Int[Array | np.ndarray, "N C L"]
    """Ids of each chunk."""
    weights: Float[Array | np.ndarray, "N C L"]
    """Of each token; 1 for start, end and padding."""


class Encoded(NamedTuple):
    """What a network is told of prompts; a pytree of arrays."""

    context: Float[Array, "N S K"]
    """Vectors to attend to, of all chunks."""
    pooled: Float[Array, "N P"] | None = None
    """One vector for a prompt, of its first chunk."""


@checks.checked
def parse(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt and their weights: `"a (red:1.3) (((seven)))"` has `a `, 1.0; `red`, 1.3; ` `, 1.0; ..."""
    texts: list[str] = []
    spans: list[tuple[int, int, float]] = []
    opened: dict[str, list[int]] = {")": [], "]": []}
    for found in _PIECE.finditer(prompt):
        piece, weight = found.group(), found["weight"]
        if piece in _CLOSES:
            opened[_CLOSES[piece]].append(len(texts))
        elif weight is not None and opened[")"]:
            spans.append((opened[")"].pop(), len(texts), float(weight)))
        elif opened.get(piece):
            spans.append((opened[piece].pop(), len(texts), _FACTORS[piece]))
        else:
            texts.append(found["escaped"] or piece)
    spans += [(start, len(texts), _FACTORS[mark]) for mark, starts in opened.items() for start in starts]
    parts: list[tuple[str, float]] = []
    for i, text in enumerate(texts):
        factors = [factor for start, stop, factor in spans if start <= i < stop]
        total = math.prod(factors, start=1.0)
        if parts and parts[-1][1] == total:
            text = parts.pop()[0] + text
        parts.append((text, total))
    return parts


@checks.checked
def read(
    tokenizer: Tokenizer, prompts: Iterable[Text], *, chunks: Count | None = None, weighted: bool = True
) -> Prompts:
    """Prompts as ids and weights, on the host.

    Args:
        tokenizer: of the encoder, whose `length` is that of a chunk.
        prompts: texts; one may be empty.
        chunks: that each prompt gets. A warning says what does not fit into them and is cut. None: as many as the longest
            needs. Programs are compiled once for each number of chunks.
        weighted: read brackets as weights; else they are characters like any other.

    Returns:
        int32 and float32 numpy arrays `[N, chunks, length]`.

    Raises:
        ValueError: a prompt that is not a text in UTF-8, a single text for a list of them, or fewer than 1 chunk.
    """
    room = tokenizer.length - 2
    ids: list[list[int]] = []
    weights: list[list[float]] = []
    for prompt in map(checked, listed(prompts, "prompts")):
        parts = parse(prompt) if weighted else [(prompt, 1.0)]
        pieces = [(tokenizer.encode(text), weight) for text, weight in parts]
        ids.append([i for piece, _ in pieces for i in piece])
        weights.append([weight for piece, weight in pieces for _ in piece])
    if chunks is None:
        chunks = max([1, *(-(-len(each) // room) for each in ids)])
    tokenizer.warn_of_cut(ids, chunks * room)
    tokens = tokenizer.framed([each[i * room : (i + 1) * room] for each in ids for i in range(chunks)])
    out = np.ones((len(ids), chunks, tokenizer.length), np.float32)
    for row, each in zip(out, weights, strict=True):
        inner = row[:, 1:-1].reshape(-1)
        inner[: len(each)] = each[: len(inner)]
        row[:, 1:-1] = inner.reshape(chunks, room)
    return Prompts(tokens.reshape(out.shape), out)


@checks.checked
def encode(
    apply: Callable[[PyTree, Int[Array, "B L"]], TextOutput],
    params: PyTree | None,
    prompts: Prompts | Encoded | Float[Array, "..."],
    *,
    hidden: int | None = None,
    restore_mean: bool = False,
) -> Encoded:
    """The outputs of a text encoder for prompts, their chunks behind each other. May be called inside `jit`.

    Args:
        apply: of the encoder, such as `networks.text.CLIPText`.
        params: of the encoder; not needed for what is encoded.
        prompts: of `read`. What is encoded is returned as it is: an `Encoded`, or vectors to attend to, `[N, S, K]`.
        hidden: take the output of this layer, such as -2 for the last but one, without the final norm; None takes the
            last one after the norm.
        restore_mean: see `weigh`.

    Returns:
        `context` `[N, chunks L, K]`, weighted, and `pooled` `[N, P]`, which weights do not change.

    Raises:
        ValueError: an array that has not three axes.
    """
    if isinstance(prompts, Encoded):
        return prompts
    if not isinstance(prompts, Prompts):
        if prompts.ndim != 3:
            raise ValueError(
                f"prompts must be vectors to attend to, of shape (prompts, tokens, features), got {prompts.shape}."
            )
        return Encoded(prompts)
    checks.tree("params", params)
    n, chunks, length = prompts.tokens.shape
    try:
        out = apply(params, jnp.asarray(prompts.tokens).reshape(n * chunks, length))
    except ValueError as error:
        raise ValueError(f"prompts or params do not fit the encoder: {error}") from error
    layers = len(out.hidden)
    if hidden is not None and not -layers <= hidden < layers:
        raise ValueError(
            f"hidden must be from {-layers} to {layers - 1}, the outputs that there are, got {hidden}."
        )
    states = out.last if hidden is None else out.hidden[hidden]
    states = states.reshape(n, chunks, length, -1)
    context = weigh(states, jnp.asarray(prompts.weights), restore_mean=restore_mean)
    return Encoded(context.reshape(n, chunks * length, -1), out.pooled.reshape(n, chunks, -1)[:, 0])


@checks.checked
def weigh(
    states: Float[Array, "N C L K"], weights: Float[Array, "N C L"], *, restore_mean: bool = False
) -> Float[Array, "N C L K"]:
    """The output of an encoder for each token, times the weight of the token; the same bits where all weights are 1.

    With `restore_mean` each chunk is scaled to have the mean over tokens and features that it had, `mean(states) /
    mean(weighted)` times. Source: AUTOMATIC1111's stable-diffusion-webui, `modules/sd_emphasis.py`, "No norm", and
    "Original" with the mean, which is there one of all prompts in a batch and here of each prompt. Do not restore a mean
    that is about 0, as that of an encoder trained from nothing.
    """
    wide = states.astype(jnp.promote_types(states.dtype, jnp.float32))
    weighted = wide * weights[..., None]
    plain = jnp.all(weights == 1, axis=2)[..., None, None]
    if restore_mean:
        before, after = (x.mean((2, 3), keepdims=True) for x in (wide, weighted))
        weighted = weighted * (before / jnp.where(plain, 1, after))
    return jnp.where(plain, states, weighted.astype(states.dtype))
