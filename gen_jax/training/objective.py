"""What a loss returns, held to what a step needs, and the loss as a function for optimizers that search along a line."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from gen_jax import checks

Metrics = dict[str, Float[Array, "..."]]
"""Named float32 scalars of one step, or `[K]` vectors for the `K` steps of one call."""

Loss = Callable[..., tuple[Float[Array, ""], Metrics]]
"""`loss(params, key, batch) -> (scalar, metrics)`, both means over the examples of `batch`.

With `make_step(aux=True)` it is `loss(params, key, batch, aux)`. A loss without metrics may return the scalar alone.
"""

Differentiate = Callable[..., tuple[tuple[Float[Array, ""], Metrics], PyTree]]
"""`(params, key, batch) -> ((scalar, metrics), gradient)`, of a loss; after the batch what else the loss takes."""
Build = Callable[[Loss], Differentiate]
"""How a loss is differentiated: at once, or in parts of the batch."""


def with_metrics(loss: Callable[..., Any]) -> Loss:
    """`loss` as a function that returns a scalar and a dict, also where it returns a scalar alone.

    The function raises ValueError for anything else: what came, and what a loss returns.
    """

    def of(*args: PyTree) -> tuple[Any, dict[str, Any]]:
        out = loss(*args)
        value, metrics = out if isinstance(out, tuple) and len(out) == 2 else (out, {})
        _check_value(value)
        _check_metrics(metrics)
        return value, dict(metrics)

    return of


def _check_value(value: Any) -> None:
    known = isinstance(value, (int, float)) or hasattr(value, "dtype")
    if known and jnp.shape(value) == () and jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return
    hint = " Take its mean over the batch." if known and jnp.shape(value) else ""
    raise ValueError(
        "loss must return a number, or (a number, a dict of metrics): a mean over the batch, which is differentiated. It "
        f"returned {_shown(value)}.{hint}"
    )


def _check_metrics(metrics: object) -> None:
    if not isinstance(metrics, Mapping):
        raise ValueError(
            "loss must return (a number, a dict of metrics), where metrics are numbers by name; in the place of the dict "
            f"it returned {_shown(metrics)}. Put it into one: {{'name': number}}."
        )
    for name, value in metrics.items():
        number = isinstance(value, (int, float, np.number)) or hasattr(value, "dtype")
        if not isinstance(name, str) or not number:
            raise ValueError(
                f"loss must return metrics that are numbers by name, but {name!r} is {_shown(value)}."
            )


def _shown(value: Any) -> str:
    """A value, or the shape of one that is traced."""
    if hasattr(value, "dtype"):
        return f"an array {value.dtype} {jnp.shape(value)}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else checks.came(value)


def averaged(build: Build, loss: Loss, axis_name: str) -> Differentiate:
    """The loss and its gradient, averaged over the devices of an axis."""
    return lambda *args: jax.lax.pmean(build(loss)(*args), axis_name)


def value_of(differentiate: Differentiate, *rest: PyTree) -> Callable[[PyTree], Array]:
    """`params -> loss` for optimizers that search along a line; its gradient is the one of `differentiate`."""

    @jax.custom_vjp
    def of(params: PyTree) -> Array:
        return differentiate(params, *rest)[0][0]

    def forward(params: PyTree) -> tuple[Array, PyTree]:
        (value, _), grads = differentiate(params, *rest)
        return value, grads

    of.defvjp(forward, lambda grads, ct: (jax.tree.map(lambda g: (ct * g).astype(g.dtype), grads),))
    return of
