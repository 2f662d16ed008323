"""Labels of conditional models: checked, hidden from a network, chosen for samples."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, Shaped

from gen_jax import keys
from gen_jax.diffusion.loss import independent


def check(label: Shaped[Array | np.ndarray, "..."], num_classes: int) -> None:
    """Raise ValueError, which says what came, unless `label` are integers from 0 to `num_classes - 1`."""
    label = np.asarray(label)
    if not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {label.dtype}.")
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        got = f"{label.min()} to {label.max()}" if label.size > 1 else f"{label.item()}"
        raise ValueError(f"labels must be from 0 to {num_classes - 1}, got {got}.")


def hide(key: Key[Array, ""], label: Int[Array, "B"], null: int, rate: float) -> Int[Array, "B"]:
    """Labels of which each is the null label with probability `rate`, inside jit and example by example.

    A network that is trained so knows the unconditional law as well, which classifier-free guidance needs (Ho & Salimans
    2022, Algorithm 1). The coin of an example does not depend on how the batch is spread over devices.
    """
    return jnp.where(independent(key, len(label)) < rate, null, label)


def choose(
    label: int | None, num_classes: int | None, key: Key[Array, ""], index: Int[Array | np.ndarray, "n"]
) -> Int[Array, "n"] | None:
    """Labels of samples with the numbers `index`: all `label`, or each one at random; None for an unconditional model.

    Raises ValueError for a label that the model does not have, or that it has not learned from labels.
    """
    if num_classes is None:
        if label is not None:
            raise ValueError(
                f"label {label} asks for what this model has not learned, it is unconditional: train one with --labels, "
                "as experiments/step10_conditional.py does."
            )
        return None
    if label is not None:
        check(np.asarray(label), num_classes)
        return jnp.full(len(index), label, jnp.int32)
    each = keys.per_example(key, len(index), jnp.asarray(index))
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, num_classes, jnp.int32))(each)
