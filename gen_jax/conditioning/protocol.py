"""What a condition is to the rest of the package."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Array, Int, Key, PyTree, Shaped

from gen_jax.codec import Batch
from gen_jax.types import Prompt

Index: TypeAlias = Int[Array | np.ndarray, "n"]
"""Numbers of samples."""

Label: TypeAlias = int | str | Sequence[int] | Sequence[str] | Shaped[Array | np.ndarray, "..."]
"""The label of all samples, or one of each; by numbers, or by names."""

NO_WORDS = "Train one whose condition is Text, as experiments/step10_text_to_image.py does."
"""The end of a message to who gives a prompt to a model that can not read."""


@runtime_checkable
class Condition(Protocol):
    """What a network is told; conditions of a batch are a pytree of arrays `[B, ...]`, or None."""

    @property
    def guides(self) -> bool:
        """Whether the network knows both laws, with and without condition, so that one can guide the other."""
        ...

    def init(self, key: Key[Array, ""]) -> PyTree:
        """New parameters of what reads the condition, such as a text encoder; None where nothing has parameters."""
        ...

    def prepare(self, batch: Batch) -> Batch:
        """What a batch of a data set says of the condition, as arrays of numbers: labels, tokens. On the host."""
        ...

    def of_batch(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """The condition of each example of a prepared batch, some of them dropped. May be called inside `jit`."""
        ...

    def null(self, n: int, like: PyTree = None) -> PyTree:
        """`n` times no condition, of the shapes of the condition `like`, where these can differ."""
        ...

    def choose(
        self,
        key: Key[Array, ""],
        index: Index,
        label: Label | None = None,
        prompt: Prompt | None = None,
    ) -> PyTree:
        """Conditions of the samples with these numbers: as asked for, or each its own at random."""
        ...

    def tell(self, params: PyTree | None, cond: PyTree | None) -> tuple[PyTree, ...]:
        """What the network gets after `x_t` and `t`; `params` are those of `init`. May be called inside `jit`."""
        ...
