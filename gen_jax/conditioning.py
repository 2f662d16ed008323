"""What a network is told besides `x_t` and `t`: nothing, or labels.

A condition is a part of `gen_jax.model.Model`. It says what the network gets, what "nothing" is, how a part of the
examples loses its condition in training, and how conditions of samples are chosen.

    Nothing                  net(params, x_t, t)
    Labels(num_classes)      net(params, x_t, t, label), label `num_classes` standing for "no label"
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree, Shaped

from gen_jax import keys
from gen_jax.codec import Batch

Index: TypeAlias = Int[Array | np.ndarray, "n"]
"""Numbers of samples."""


@runtime_checkable
class Condition(Protocol):
    """What a network is told; conditions of a batch are a pytree of arrays `[B, ...]`, or None."""

    @property
    def guides(self) -> bool:
        """Whether the network knows both laws, with and without condition, so that one can guide the other."""
        ...

    def of_batch(self, key: Key[Array, ""], batch: Batch) -> PyTree:
        """The condition of each example of a batch for training, some of them dropped. May be called inside `jit`."""
        ...

    def null(self, n: int) -> PyTree:
        """`n` times no condition."""
        ...

    def choose(self, key: Key[Array, ""], index: Index, label: int | None = None) -> PyTree:
        """Conditions of the samples with these numbers: as asked for, or each its own at random."""
        ...


@dataclass(frozen=True)
class Nothing:
    """An unconditional model."""

    @property
    def guides(self) -> bool:
        """False: there is no condition to be guided by."""
        return False

    def of_batch(self, key: Key[Array, ""], batch: Batch) -> None:
        """None."""

    def null(self, n: int) -> None:
        """None."""

    def choose(self, key: Key[Array, ""], index: Index, label: int | None = None) -> None:
        """None; ValueError where a label is asked for."""
        if label is not None:
            raise ValueError(
                f"label {label} asks for a class, but this model is unconditional. Train one whose condition is "
                "Labels, as experiments/step10_conditional.py does."
            )


@dataclass(frozen=True)
class Labels:
    """Integer labels `0, ..., num_classes - 1`; `num_classes` is the null label, which stands for no label.

    Args:
        num_classes: how many there are.
        dropout: the probability with which an example loses its label in training. A network trained so knows the
            unconditional law as well, which classifier-free guidance needs (Ho & Salimans 2022, Algorithm 1). With 0
            the null label is never trained, and guidance is refused.

    Raises:
        ValueError: fewer than 1 class, or `dropout` outside [0, 1).
    """

    num_classes: int
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.num_classes < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                "expected at least 1 class and a dropout in [0, 1), got "
                f"num_classes={self.num_classes} and dropout={self.dropout}."
            )

    @property
    def guides(self) -> bool:
        """Whether some labels are dropped in training."""
        return self.dropout > 0

    def of_batch(self, key: Key[Array, ""], batch: Batch) -> Int[Array, "B"]:
        """`batch["label"]`, of which each is dropped with probability `dropout`."""
        return drop(key, jnp.asarray(batch["label"]), self.num_classes, self.dropout)

    def null(self, n: int) -> Int[Array, "n"]:
        """`n` null labels."""
        return jnp.full(n, self.num_classes, jnp.int32)

    def choose(self, key: Key[Array, ""], index: Index, label: int | None = None) -> Int[Array, "n"]:
        """All `label`, or each one at random, by `fold_in(key, index)`. ValueError for a label out of range."""
        if label is not None:
            check_labels(np.asarray(label), self.num_classes)
            return jnp.full(len(index), label, jnp.int32)
        each = keys.per_example(key, len(index), jnp.asarray(index))
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, self.num_classes, jnp.int32))(each)


def check_labels(label: Shaped[Array | np.ndarray, "..."], num_classes: int) -> None:
    """Raise ValueError, which says what came, unless `label` are integers from 0 to `num_classes - 1`."""
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {label.dtype}.")
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        got = f"{label.min()} to {label.max()}" if label.size > 1 else f"{label.item()}"
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {got}.")


def drop(key: Key[Array, ""], label: Int[Array, "B"], null: int, rate: float) -> Int[Array, "B"]:
    """Labels of which each is replaced by `null` with probability `rate`, example by example, inside `jit`.

    The coin of an example does not depend on how the batch is spread over devices.
    """
    coin = jax.vmap(jax.random.uniform)(keys.per_example(key, len(label)))
    return jnp.where(coin < rate, null, label)
