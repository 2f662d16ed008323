"""How many floating-point operations a function takes: those of its matrix products and convolutions.

They are counted in the program as JAX traced it. XLA's count of the compiled one has the body of a loop once, however
often it runs: the chunks of a convolution on a CPU, microbatches, the iterations of Muon.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval
from jaxtyping import PyTree

from gen_jax import checks


@checks.checked
def flops(f: Callable[..., PyTree], *args: PyTree | None) -> float:
    """Of `f(*args)`, which is traced for the arguments, or their shapes, and not run: 2 for a multiplication and its sum.

    - A `scan` counts as often as it runs; a `while`, of which that is not known, once.
    - Of branches that depend on the platform (`lax.platform_dependent`) the default one counts, of others the largest. So
      the number is the same on every device.
    - A convolution counts what meets the image, and not the zeros around it or in it.
    - What `jax.checkpoint` computes again counts again. Kernels of one's own count what JAX sees in them.
    """
    return float(of_traced(jax.make_jaxpr(f)(*args)))


def of_traced(closed: Any) -> int:
    """Of a traced program, without what no result needs, which is not compiled."""
    used, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _of(used)


def _of(jaxpr: Any) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    shapes = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
    if name == "dot_general":
        ((contracted, _), _) = params["dimension_numbers"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][d] for d in contracted)
    if name == "conv_general_dilated":
        return _convolution(shapes, equation.outvars[0].aval.shape, params)
    if (form := getattr(equation.primitive, "form", None)) is not None:
        args = tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars)
        return _of_form(form, args, tuple(params.items()))
    inner = [_of(each) for each in _programs(params)]
    if name == "cond":
        default = [
            x
            for x, names in zip(inner, params.get("branches_platforms") or (), strict=False)
            if names is None
        ]
        return max(default or inner)
    if name == "shard_map":
        sizes: Mapping[str, int] = params["mesh"].shape
        named = [
            params[key] for key in ("newly_manual_axes", "manual_axes") if key in params
        ]  # by version of JAX
        return math.prod(sizes[axis] for axis in [*named, tuple(sizes)][0]) * sum(inner)
    return (int(params["length"]) if name == "scan" else 1) * sum(inner)


@functools.cache
def _of_form(form: Callable[..., PyTree], args: Sequence[PyTree], params: Sequence[tuple[str, Any]]) -> int:
    """Of a primitive of one's own, which has in `form` a function of JAX that takes as many operations."""
    return of_traced(jax.make_jaxpr(functools.partial(form, **dict(params)))(*args))


def _programs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs among the parameters of an equation: bodies, branches, functions."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if hasattr(each, "eqns"):
                yield each


def _convolution(shapes: Sequence[Sequence[int]], out: Sequence[int], params: Mapping[str, Any]) -> int:
    """2 for each pair of an output and a tap, among which are those that lie on a pixel in every dimension."""
    (image, kernel), numbers, total = shapes, params["dimension_numbers"], 2
    for d, (low, _) in enumerate(params["padding"]):
        size, taps = image[numbers.lhs_spec[2 + d]], kernel[numbers.rhs_spec[2 + d]]
        holes = params["lhs_dilation"][d]
        first = np.arange(out[numbers.out_spec[2 + d]]) * params["window_strides"][d] - low
        place = first[:, None] + np.arange(taps) * params["rhs_dilation"][d]
        total *= int(np.sum((place >= 0) & (place <= (size - 1) * holes) & (place % holes == 0)))
    return total * math.prod(out[d] for d in numbers.out_spec[:2]) * kernel[numbers.rhs_spec[1]]
