"""Texts: what is to be seen, in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from gen_jax import checks, keys
from gen_jax.codec import Batch
from gen_jax.conditioning.protocol import Index, Label, Prompt
from gen_jax.networks.layers import sinusoidal
from gen_jax.networks.text import CLIPTextConfig, TextOutput
from gen_jax.text import Tokenizer, prompts
from gen_jax.types import Count, Size
from gen_jax.types import Text as Words

Read: TypeAlias = "prompts.Prompts | prompts.Encoded"
"""A prompt as tokens, or as what an encoder said of it."""


@checks.checked
@dataclass(frozen=True)
class Reader:
    """A text encoder with its tokenizer.

    Args:
        tokenizer: cuts texts into tokens.
        encoder: configuration of the network that reads them.
        hidden: which of its layers is taken, -2 for the last but one, without the final norm; None: the last one, after
            the norm.

    Raises:
        ValueError: the encoder has another vocabulary or reads fewer tokens than the tokenizer gives, or no such layer.
    """

    tokenizer: Tokenizer
    encoder: CLIPTextConfig
    hidden: int | None = None

    def __post_init__(self) -> None:
        have = self.tokenizer.vocab_size, self.tokenizer.length
        want = self.encoder.vocab_size, self.encoder.length
        if have[0] != want[0] or have[1] > want[1]:
            raise ValueError(
                f"the encoder reads {want[1]} tokens of a vocabulary of {want[0]}, the tokenizer gives {have[1]} of "
                f"{have[0]}: take both of one model."
            )
        layers = self.encoder.layers + 1  # with the embeddings
        if self.hidden is not None and not -layers <= self.hidden < layers:
            raise ValueError(
                f"hidden must be from {-layers} to {layers - 1} or None, got {self.hidden}: the encoder has "
                f"{self.encoder.layers} layers, and the embeddings before them."
            )

    @checks.checked
    def read(
        self, params: PyTree | None, read: prompts.Prompts | prompts.Encoded | Float[Array, "..."]
    ) -> prompts.Encoded:
        """What the encoder says of prompts; what is encoded stays as it is. May be called inside `jit`."""
        apply = cast("Callable[..., TextOutput]", self.encoder.build().apply)
        return prompts.encode(apply, params, read, hidden=self.hidden)


class Asked(NamedTuple):
    """The condition of a batch of samples; a pytree of arrays with one row for each."""

    prompts: tuple[Read, ...]
    """For each reader."""
    sizes: Float[Array | np.ndarray, "B numbers"] | None = None
    """Numbers that the network is told besides, see `Text`."""
    shown: Bool[Array | np.ndarray, "B"] | None = None
    """False: zeros in place of what the encoders say. None: True for all."""


@checks.checked
@dataclass(frozen=True)
class Text:
    """Texts, which encoders read; the network attends to what they say of each token.

        context = concat(context of each reader)                            [B, S, K]
        vector = concat(pooled of the last reader, sinusoid(each size))     [B, P + n size_features], if there are sizes

    No text is the empty one, or with `zero_null` zeros in place of context and pooled.

    Args:
        readers: encoders with their tokenizers. Their parameters are `{"text_encoder": ..., "text_encoder_2": ...}`,
            trained together with those of the network that attends to them, or from elsewhere.
        dropout: the probability with which an example loses its text in training, as of `Labels`.
        sizes: numbers that the network is told of each image, as in Stable Diffusion XL: height and width of the original
            picture, top and left of the crop, height and width to draw; () for none.
        null_sizes: those that guidance leads away from; () for the same.
        size_features: of the sinusoid of each size.
        zero_null: see above; a text that is empty because somebody asks for it is read.

    Raises:
        ValueError: no reader, `dropout` outside [0, 1), or another number of `null_sizes`.

    Source: Podell et al. 2023, Section 2.2, for the sizes.
    """

    readers: tuple[Reader, ...]
    dropout: Annotated[float, checks.Range(0, 1, below=True)] = 0.1
    sizes: tuple[float, ...] = ()
    null_sizes: tuple[float, ...] = ()
    size_features: Annotated[int, checks.Range(2)] = 256
    zero_null: bool = False

    def __post_init__(self) -> None:
        if not self.readers:
            raise ValueError("expected at least one reader of texts, got none.")
        if self.null_sizes and len(self.null_sizes) != len(self.sizes):
            raise ValueError(f"expected as many null_sizes as sizes, got {self.null_sizes} and {self.sizes}.")

    @property
    def guides(self) -> bool:
        """Whether some texts are dropped in training."""
        return self.dropout > 0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the readers, among the parameters: "text_encoder", "text_encoder_2", ..."""
        return tuple("text_encoder" + (f"_{i}" if i > 1 else "") for i in range(1, len(self.readers) + 1))

    @checks.checked
    def init(self, key: Key[Array, ""]) -> dict[str, PyTree]:
        """New parameters of the encoders."""
        each = zip(self.names, self.readers, jax.random.split(key, len(self.readers)), strict=True)
        shape = lambda reader: jnp.zeros((1, reader.tokenizer.length), jnp.int32)
        return {name: reader.encoder.build().init(k, shape(reader)) for name, reader, k in each}

    @checks.checked
    def prepare(self, batch: Batch) -> Batch:
        """`{"token": int32 [B, L]}` of the captions `batch["text"]`; "token_2" for a second reader, and so on."""
        if "text" not in batch:
            raise ValueError(
                f'expected captions under "text", got {sorted(batch)}: this data set has none, so no model can learn to '
                "read from it."
            )
        texts = list(batch["text"])
        return {
            name.replace("text_encoder", "token"): reader.tokenizer.tokens(texts)
            for name, reader in zip(self.names, self.readers, strict=True)
        }

    @checks.checked
    def of_batch(self, key: Key[Array, ""], batch: Batch) -> Asked:
        """The tokens of each example, or with probability `dropout` those of no text."""
        tokens = [jnp.asarray(batch[name.replace("text_encoder", "token")]) for name in self.names]
        dropped = self.dropped(key, len(tokens[0]))
        if not self.zero_null:
            empty = [jnp.asarray(reader.tokenizer.tokens([""])) for reader in self.readers]
            tokens = [jnp.where(dropped[:, None], e, t) for e, t in zip(empty, tokens, strict=True)]
        read = [prompts.Prompts(t[:, None], jnp.ones(t[:, None].shape, jnp.float32)) for t in tokens]
        asked = self._asked(len(dropped), tuple(read), self.sizes)
        return asked._replace(shown=~dropped) if self.zero_null else asked

    @checks.checked
    def dropped(self, key: Key[Array, ""], n: Size) -> Bool[Array, "{n}"]:
        """Which of `n` examples lose their text in training."""
        return jax.vmap(jax.random.uniform)(keys.per_example(key, n)) < self.dropout

    @checks.checked
    def null(self, n: Size, like: PyTree = None) -> Asked:
        """`n` times no text, in as many chunks as `like`, and of its sizes where there are no others for it."""
        chunks = _chunks(like.prompts[0]) if isinstance(like, Asked) else 1
        asked = self._asked(n, self._read([""] * n, chunks), self.null_sizes or self.sizes)
        if self.zero_null:
            asked = asked._replace(shown=np.zeros(n, bool))
        return asked._replace(sizes=like.sizes) if isinstance(like, Asked) and not self.null_sizes else asked

    @checks.checked
    def choose(
        self,
        key: Key[Array, ""],
        index: Index,
        label: Label | None = None,
        prompt: Prompt | None = None,
    ) -> Asked:
        """The prompt: one for all, or `prompt[i]` of sample `index[i]`; by default the empty text.

        Weights in brackets are read, and long prompts by chunks, see `gen_jax.text.prompts`. ValueError for a label, and
        for another number of prompts.
        """
        if label is not None:
            raise ValueError(f"label {label} asks for a class, but this model reads texts: give it a prompt.")
        return self._asked(len(index), self._read(_each(prompt, len(index))), self.sizes)

    @checks.checked
    def against(self, cond: Asked, prompt: Prompt) -> tuple[Asked, Asked]:
        """The condition, and negative prompts for it, in the same number of chunks.

        What one lacks are chunks of the empty text.
        """
        n = len(jax.tree.leaves(cond)[0])
        null = self._asked(n, self._read(_each(prompt, n)), self.null_sizes or self.sizes)
        if not self.null_sizes:
            null = null._replace(sizes=cond.sizes)
        most = max(_chunks(read) for asked in (cond, null) for read in asked.prompts)
        return self._filled(cond, most), self._filled(null, most)

    @checks.checked
    def at(self, height: Count, width: Count) -> "Text":
        """With this size in place of those of the original picture and of the picture to draw."""

        side = float(height), float(width)

        def sized(sizes: tuple[float, ...]) -> tuple[float, ...]:
            return (*side, *sizes[2:4], *(side if len(sizes) == 6 else sizes[4:]))

        if not self.sizes:
            return self
        null = sized(self.null_sizes) if self.null_sizes else ()
        return replace(self, sizes=sized(self.sizes), null_sizes=null)

    @checks.checked
    def tell(
        self, params: PyTree | None, cond: Asked | prompts.Encoded | Float[Array, "..."] | None
    ) -> tuple[PyTree, ...]:
        """The vector, None where there are no sizes, and the vectors to attend to, `[B, S, K]`.

        `cond` may also be what encoders said, an `Encoded` or vectors to attend to. ValueError without parameters of the
        encoders.
        """
        if cond is None:
            return ()
        if not isinstance(cond, Asked):
            ready = self.readers[0].read(None, cond)
            cond = self._asked(len(ready.context), (ready,), self.sizes)
        context, pooled = self.encode(params, cond)
        if cond.shown is not None:
            context = jnp.where(cond.shown[:, None, None], context, 0)
            pooled = None if pooled is None else jnp.where(cond.shown[:, None], pooled, 0)
        if cond.sizes is None:
            return None, context
        if pooled is None:
            raise ValueError(
                "expected a pooled vector beside the vectors to attend to: Encoded(context, pooled)."
            )
        waves = sinusoidal(
            jnp.asarray(cond.sizes).reshape(-1), self.size_features, cosines_first=True, endpoint=False
        )
        return jnp.concatenate([pooled, waves.reshape(len(pooled), -1)], axis=-1), context

    @checks.checked
    def encode(self, params: PyTree | None, asked: Asked) -> prompts.Encoded:
        """What all readers say, before anything is hidden: contexts by features, and what the last one pooled."""
        encoded = [self._encode(params, i, read) for i, read in enumerate(asked.prompts)]
        return prompts.Encoded(jnp.concatenate([e.context for e in encoded], axis=-1), encoded[-1].pooled)

    def _encode(self, params: PyTree, i: int, read: Read) -> prompts.Encoded:
        if isinstance(read, prompts.Encoded):
            return read
        if not isinstance(params, Mapping) or self.names[i] not in params:
            raise ValueError(
                f'expected the parameters of {self.names[i]} in weights["text"], got params {checks.came(params)}.'
            )
        return self.readers[i].read(params[self.names[i]], read)

    def _asked(self, n: int, read: tuple[Read, ...], sizes: Sequence[float]) -> Asked:
        return Asked(read, np.tile(np.asarray(sizes, np.float32), (n, 1)) if sizes else None)

    def _read(self, texts: Sequence[Words], chunks: int | None = None) -> tuple[Read, ...]:
        """The texts for each reader, all in as many chunks as the most that one needs."""
        found = [prompts.read(reader.tokenizer, texts, chunks=chunks) for reader in self.readers]
        return self._filled(Asked(tuple(found)), max(map(_chunks, found))).prompts

    def _filled(self, asked: Asked, chunks: int) -> Asked:
        """With so many chunks: those that are missing are of the empty text."""

        def fill(reader: Reader, read: Read) -> Read:
            missing = chunks - _chunks(read)
            if not missing or isinstance(read, prompts.Encoded):
                return read
            empty = prompts.read(reader.tokenizer, [""] * len(read.tokens), chunks=missing)
            filled: prompts.Prompts = jax.tree.map(lambda *x: np.concatenate(x, axis=1), read, empty)
            return filled

        return asked._replace(prompts=tuple(map(fill, self.readers, asked.prompts)))


def _chunks(read: Read) -> int:
    return read.tokens.shape[1] if isinstance(read, prompts.Prompts) else 1


def _each(prompt: Prompt | None, n: int) -> Sequence[Words]:
    """A prompt for each of `n` samples."""
    if prompt is None or isinstance(prompt, str | bytes):
        return [prompt or ""] * n
    if not hasattr(prompt, "__len__") or len(prompt) != n:
        raise ValueError(
            f"prompt must be a text or a list of {n}, one for each sample, got {checks.came(prompt)}."
        )
    return prompt
