"""Labels: one of a number of classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree, Shaped

from gen_jax import checks, keys
from gen_jax.codec import Batch
from gen_jax.conditioning.protocol import NO_WORDS, Index, Label, Prompt
from gen_jax.data.columns import label_hint, no_label
from gen_jax.types import Count, Fraction, Size


@checks.checked
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

    num_classes: Count
    dropout: Annotated[float, checks.Range(0, 1, below=True)] = 0.1
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.names and not len(self.names) == len(set(self.names)) == self.num_classes:
            raise ValueError(
                f"expected {self.num_classes} different names, one of each class, or (); got {self.names}."
            )

    @property
    def guides(self) -> bool:
        """Whether some labels are dropped in training."""
        return self.dropout > 0

    @checks.checked
    def init(self, key: Key[Array, ""]) -> None:
        """None: the network has the table of labels."""

    @checks.checked
    def prepare(self, batch: Batch) -> Batch:
        """`{"label": batch["label"]}`, int32 `[B]`.

        ValueError, which says what was found, where there are none, or others than integers from 0 to `num_classes - 1`.
        """
        return {"label": check_labels(found(batch), self.num_classes, self.names)}

    @checks.checked
    def check_all(self, label: Shaped[Array | np.ndarray, "N"]) -> None:
        """Raise ValueError where the labels of a whole data set count from 1, so that class 0 would never be trained.

        Where the classes have `names`, it is known which one has the label 0.
        """
        label = check_labels(label, self.num_classes, self.names)
        counts = np.bincount(label, minlength=self.num_classes)
        if self.num_classes > 1 and not self.names and not counts[0] and counts[1:].all():
            raise ValueError(
                f"labels are from 1 to {self.num_classes - 1}, and no example has the label 0 of {self.num_classes} "
                "classes, which are counted from 0: subtract 1 from the labels (or give the names of all classes)."
            )

    @checks.checked
    def of_batch(self, key: Key[Array, ""], batch: Batch) -> Int[Array, "B"]:
        """`batch["label"]` as int32, of which each is dropped with probability `dropout`.

        ValueError as of `prepare`; in compiled code a label that there is not becomes one that no network knows, NaN.
        """
        return drop(key, jnp.asarray(found(batch)), self.num_classes, self.dropout)

    @checks.checked
    def null(self, n: Size, like: PyTree = None) -> Int[Array, "n"]:
        """`n` null labels."""
        return jnp.full(n, self.num_classes, jnp.int32)

    @checks.checked
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

    @checks.checked
    def tell(self, params: PyTree | None, cond: Int[Array | np.ndarray, "B"] | None) -> tuple[PyTree, ...]:
        """The labels; nothing where there are none."""
        return () if cond is None else (cond,)

    @checks.checked
    def numbers(self, label: Label) -> Int[np.ndarray, "..."]:
        """Labels as numbers: a name is the number of its class. ValueError for what is neither."""
        asked = np.asarray(label)
        if asked.dtype.kind == "U":
            asked = np.reshape([self._number(name) for name in asked.ravel().tolist()], asked.shape)
        check_labels(asked, self.num_classes, self.names)
        return asked

    @checks.checked
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


@checks.checked
def check_labels(
    label: Shaped[Array | np.ndarray, "..."], num_classes: Count, names: Sequence[str] = ()
) -> Int[np.ndarray, "..."]:
    """The labels as int32; ValueError, which says what came, unless they are integers from 0 to `num_classes - 1`.

    `names` of the classes are for the message.
    """
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {label.dtype}{label_hint(label)}.")
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        got = f"{label.min()} to {label.max()}" if label.size > 1 else f"{label.item()}"
        known = f" ({_some([f'{i} is {name}' for i, name in enumerate(names)])})" if names else ""
        counted = (
            ": they are counted from 1, so subtract 1"
            if (label.min(), label.max()) == (1, num_classes)
            else ""
        )
        raise ValueError(f"labels must be from 0 to {num_classes - 1}{known}, got {got}{counted}.")
    return label.astype(np.int32)


def found(batch: Batch) -> Shaped[Array | np.ndarray, "B"]:
    """The labels of a batch, integers `[B]`; ValueError, which says what was found instead."""
    label = batch.get("label")
    if label is None:
        raise ValueError(f'expected integers [B] under "label": {no_label(batch)}.')
    label = label if hasattr(label, "dtype") else np.asarray(label)
    if label.ndim != 1 or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f'"label" must be integers [B], got {checks.came(label)}{label_hint(label)}.')
    return label


def _some(names: Sequence[str], most: int = 10) -> str:
    """The first of the names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@checks.checked
def drop(
    key: Key[Array, ""],
    label: Int[Array, "B"],
    null: Count,
    rate: Fraction,
) -> Int[Array, "B"]:
    """Labels of which each is replaced by `null` with probability `rate`, example by example, inside `jit`.

    The coin of an example does not depend on how the batch is spread over devices. Labels are from 0 to `null - 1`, of
    any integer type. Another one is a ValueError; in compiled code it becomes `null + 1`, for which networks give NaN.
    """
    checks.within("label", label, 0, null - 1)
    label = label.astype(jnp.int32)
    coin = jax.vmap(jax.random.uniform)(keys.per_example(key, len(label)))
    known = jnp.where((label >= 0) & (label < null), label, null + 1)
    return jnp.where(coin < rate, null, known)
