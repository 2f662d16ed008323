"""Valid calls, one module of examples for a package of the library."""

from typing import Any

from tests.api import (
    bounds,
    densities,
    guidance,
    layers,
    methods,
    models,
    objects,
    pictures,
    processes,
    texts,
    trainings,
)

MODULES = (
    densities,
    pictures,
    texts,
    bounds,
    layers,
    processes,
    guidance,
    trainings,
    models,
    methods,
    objects,
)


def all_of() -> dict[str, Any]:
    """Examples by the name of the function."""
    return {name: example for module in MODULES for name, example in module.EXAMPLES.items()}
