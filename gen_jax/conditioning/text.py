"""Texts: what is to be seen, in words."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from gen_jax import keys
from gen_jax.codec import Batch
from gen_jax.conditioning.protocol import Index, Label, Prompt
from gen_jax.networks.text import CLIPTextConfig, TextOutput
from gen_jax.text import Tokenizer, prompts


@dataclass(frozen=True)
class Text:
    """Texts, which an encoder reads; the network attends to what it says of each token. No text is the empty one.

    Args:
        tokenizer: cuts texts into tokens.
        encoder: configuration of the network that reads them. Its parameters are trained together with those of the
            network that attends to it, or come from elsewhere.
        dropout: the probability with which an example loses its text in training, as of `Labels`.

    Raises:
        ValueError: the encoder has another vocabulary or reads fewer tokens than the tokenizer gives, or `dropout` is
            outside [0, 1).
    """

    tokenizer: Tokenizer
    encoder: CLIPTextConfig
    dropout: float = 0.1

    def __post_init__(self) -> None:
        have = self.tokenizer.vocab_size, self.tokenizer.length
        want = self.encoder.vocab_size, self.encoder.length
        if have[0] != want[0] or have[1] > want[1]:
            raise ValueError(
                f"the encoder reads {want[1]} tokens of a vocabulary of {want[0]}, the tokenizer gives {have[1]} of "
                f"{have[0]}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected a dropout in [0, 1), got {self.dropout}.")

    @property
    def guides(self) -> bool:
        """Whether some texts are dropped in training."""
        return self.dropout > 0

    def init(self, key: Key[Array, ""]) -> PyTree:
        """New parameters of the encoder."""
        return self.encoder.build().init(key, jnp.zeros((1, self.tokenizer.length), jnp.int32))

    def prepare(self, batch: Batch) -> Batch:
        """`{"token": int32 [B, L]}` of the captions `batch["text"]`."""
        if "text" not in batch:
            raise ValueError(
                f'expected captions under "text", got {sorted(batch)}: this data set has none, so no model can learn to '
                "read from it."
            )
        return {"token": self.tokenizer.tokens(list(batch["text"]))}

    def of_batch(self, key: Key[Array, ""], batch: Batch) -> prompts.Prompts:
        """The tokens of each example, or with probability `dropout` those of the empty text."""
        tokens = jnp.asarray(batch["token"])
        coin = jax.vmap(jax.random.uniform)(keys.per_example(key, len(tokens)))
        empty = jnp.asarray(self.tokenizer.tokens([""]))
        tokens = jnp.where(coin[:, None] < self.dropout, empty, tokens)[:, None]
        return prompts.Prompts(tokens, jnp.ones(tokens.shape, jnp.float32))

    def null(self, n: int, like: PyTree = None) -> prompts.Prompts:
        """`n` times the empty text, in as many chunks as `like`."""
        chunks = like.tokens.shape[1] if isinstance(like, prompts.Prompts) else 1
        return prompts.read(self.tokenizer, [""] * n, chunks=chunks)

    def alike(self, a: prompts.Prompts, b: prompts.Prompts) -> tuple[prompts.Prompts, prompts.Prompts]:
        """Two conditions with the same number of chunks: what one lacks are chunks of the empty text."""
        most = max(a.tokens.shape[1], b.tokens.shape[1])

        def filled(cond: prompts.Prompts) -> prompts.Prompts:
            n, chunks, _ = cond.tokens.shape
            empty = prompts.read(self.tokenizer, [""] * n, chunks=most - chunks) if most > chunks else None
            return cond if empty is None else jax.tree.map(lambda *x: np.concatenate(x, axis=1), cond, empty)

        return filled(a), filled(b)

    def choose(
        self,
        key: Key[Array, ""],
        index: Index,
        label: Label | None = None,
        prompt: Prompt | None = None,
    ) -> prompts.Prompts:
        """The prompt: one for all, or `prompt[i]` of sample `index[i]`; by default the empty text.

        Weights in brackets are read, and long prompts by chunks, see `gen_jax.text.prompts`. ValueError for a label, and
        for another number of prompts.
        """
        if label is not None:
            raise ValueError(f"label {label} asks for a class, but this model reads texts: give it a prompt.")
        if prompt is None or isinstance(prompt, str | bytes):
            return prompts.read(self.tokenizer, [prompt or ""] * len(index))
        if len(prompt) != len(index):
            raise ValueError(
                f"prompt must be a text or a list of {len(index)}, one for each sample, got {len(prompt)}."
            )
        return prompts.read(self.tokenizer, prompt)

    def tell(self, params: PyTree, cond: PyTree) -> tuple[PyTree, ...]:
        """No vector, and the vectors to attend to, `[B, S, K]`. ValueError without parameters of the encoder."""
        if cond is None:
            return ()
        if params is None and isinstance(cond, prompts.Prompts):
            raise ValueError('expected the parameters of the text encoder, weights["text"], got None.')
        read = cast("Callable[..., TextOutput]", self.encoder.build().apply)
        return None, prompts.encode(read, params, cond).context
