"""Valid calls, one module of examples for a package of the library."""

import importlib
from typing import Any

MODULES = (
    *("densities", "pictures", "texts", "bounds", "layers", "processes", "guidance", "trainings"),
    *("models", "methods", "objects"),
)


def all_of(*modules: str) -> dict[str, Any]:
    """Examples by the name of the function, in some of the modules or in all of them."""
    found = [importlib.import_module(f"tests.api.{name}").EXAMPLES for name in modules or MODULES]
    return {name: example for each in found for name, example in each.items()}
