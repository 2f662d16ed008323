"""Labels: one of a number of classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree, Shaped

from gen_jax import checks, keys
from gen_jax.codec import Batch
from gen_jax.conditioning.protocol import NO_WORDS, Index, Label, Prompt


@dataclass(frozen=True)
class Labels:
    """Integer labels `0, ..., num_classes - 1`; `num_classes` is the null label, which stands for no label.

    Args:
        num_classes: how many there are.
        dropout: the probability with which an example loses its label in training. A network trained so knows the
            unconditional law as well, which classifier-free guidance needs (Ho & Salimans 2022, Algorithm 1). With 0
            the null label is never trained, and guidance is refused.
        names: of the classes, in order, as a folder of pictures has them; () where they have none.

    Raises:
        ValueError: fewer than 1 class, `dropout` outside [0, 1), or another number of names, or a name twice.
    """

    num_classes: int
    dropout: float = 0.1
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_classes < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                "expected at least 1 class and a dropout in [0, 1), got "
                f"num_classes={self.num_classes} and dropout={self.dropout}."
            )
        if self.names and not len(self.names) == len(set(self.names)) == self.num_classes:
            raise ValueError(
                f"expected {self.num_classes} different names, one of each class, or (); got {self.names}."
            )

    @property
    def guides(self) -> bool:
        """Whether some labels are dropped in training."""
        return self.dropout > 0

    def init(self, key: Key[Array, ""]) -> None:
        """None: the network has the table of labels."""

    def prepare(self, batch: Batch) -> Batch:
        """`{"label": batch["label"]}`."""
        return {"label": batch["label"]}

    def of_batch(self, key: Key[Array, ""], batch: Batch) -> Int[Array, "B"]:
        """`batch["label"]`, of which each is dropped with probability `dropout`."""
        return drop(key, jnp.asarray(batch["label"]), self.num_classes, self.dropout)

    def null(self, n: int, like: PyTree = None) -> Int[Array, "n"]:
        """`n` null labels."""
        return jnp.full(n, self.num_classes, jnp.int32)

    def choose(
        self,
        key: Key[Array, ""],
        index: Index,
        label: Label | None = None,
        prompt: Prompt | None = None,
    ) -> Int[Array, "n"]:
        """All `label`, or `label[i]` of sample `index[i]`, or each one at random, by `fold_in(key, index)`.

        ValueError for a label out of range, an unknown name, or another number of them.
        """
        if prompt is not None:
            raise ValueError(f"prompt {prompt!r} asks for words, but this model knows labels. {NO_WORDS}")
        if label is not None:
            one = checks.one_or_each("label", self.numbers(label), len(index))
            return jnp.broadcast_to(jnp.asarray(one, jnp.int32), len(index))
        each = keys.per_example(key, len(index), jnp.asarray(index))
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, self.num_classes, jnp.int32))(each)

    def tell(self, params: PyTree, cond: PyTree) -> tuple[PyTree, ...]:
        """The labels; nothing where there are none."""
        return () if cond is None else (cond,)

    def numbers(self, label: Label) -> Int[np.ndarray, "..."]:
        """Labels as numbers: a name is the number of its class. ValueError for what is neither."""
        asked = np.asarray(label)
        if asked.dtype.kind == "U":
            asked = np.reshape([self._number(name) for name in asked.ravel().tolist()], asked.shape)
        check_labels(asked, self.num_classes, self.names)
        return asked

    def name(self, number: int) -> str:
        """The name of a class, or its number where the classes have no names."""
        return self.names[number] if self.names else f"{number}"

    def _number(self, name: str) -> int:
        if name in self.names:
            return self.names.index(name)
        numbers = f"a number from 0 to {self.num_classes - 1}"
        known = (
            f"{_some(self.names)}, or {numbers}" if self.names else f"{numbers}; its classes have no names"
        )
        raise ValueError(f"a label of this model is {known}. Got {name!r}.{checks.nearest(name, self.names)}")


def check_labels(
    label: Shaped[Array | np.ndarray, "..."], num_classes: int, names: Sequence[str] = ()
) -> None:
    """Raise ValueError, which says what came, unless `label` are integers from 0 to `num_classes - 1`.

    `names` of the classes are for the message.
    """
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {label.dtype}.")
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        got = f"{label.min()} to {label.max()}" if label.size > 1 else f"{label.item()}"
        known = f" ({_some([f'{i} is {name}' for i, name in enumerate(names)])})" if names else ""
        raise ValueError(f"labels must be from 0 to {num_classes - 1}{known}, got {got}.")


def _some(names: Sequence[str], most: int = 10) -> str:
    """The first of the names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def drop(key: Key[Array, ""], label: Int[Array, "B"], null: int, rate: float) -> Int[Array, "B"]:
    """Labels of which each is replaced by `null` with probability `rate`, example by example, inside `jit`.

    The coin of an example does not depend on how the batch is spread over devices.
    """
    coin = jax.vmap(jax.random.uniform)(keys.per_example(key, len(label)))
    return jnp.where(coin < rate, null, label)
