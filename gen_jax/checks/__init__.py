"""Checks of what a user hands over, on the host and before anything is compiled.

A function's annotations say what it takes; `checked` holds a call to them, and `Range` to the values that an annotation
cannot name. What only some function knows it checks with the functions here. Each fault is a ValueError that says what
was expected, what came, and what to do. Values of traced arrays are unknown: they are not checked, unless in
`checkified`.
"""

from gen_jax.checks.held import as_it_is
from gen_jax.checks.signature import checked, checked_in_loops, checkified
from gen_jax.checks.trees import finite_tree, tree
from gen_jax.checks.values import (
    MEND,
    Covariance,
    Factor,
    FieldsAs,
    Probabilities,
    Range,
    as_bytes,
    choice,
    finite,
    float_type,
    floating,
    of_shape,
    one_key,
    one_or_each,
    ordered,
    some,
    whole,
    within,
)
from gen_jax.checks.words import came, counted, extent, nearest, not_finite, spread

__all__ = [
    "MEND",
    "Covariance",
    "Factor",
    "FieldsAs",
    "Probabilities",
    "Range",
    "as_bytes",
    "as_it_is",
    "came",
    "checked",
    "checked_in_loops",
    "checkified",
    "choice",
    "counted",
    "extent",
    "finite",
    "finite_tree",
    "float_type",
    "floating",
    "nearest",
    "not_finite",
    "of_shape",
    "one_key",
    "one_or_each",
    "ordered",
    "some",
    "spread",
    "tree",
    "whole",
    "within",
]
