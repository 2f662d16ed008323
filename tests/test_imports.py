"""Which part of the library may import which: no two packages import each other, by whatever way round."""

import ast
import graphlib
from pathlib import Path

import pytest

import gen_jax

ROOT = Path(gen_jax.__file__).parent


def package(path):
    """`gen_jax/samplers/times.py` and `gen_jax/samplers/__init__.py` are of samplers, `gen_jax/gmm.py` of gmm."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(source):
    """Names of the modules of gen_jax that a source file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not looked at here: write them out"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_of(source):
    names = [name.split(".") for name in imported(source)]
    return {parts[1] for parts in names if parts[0] == "gen_jax" and len(parts) > 1}


def test_imports_of_functions_count():
    source = (
        "def f():\n    from gen_jax import data, em\n    import gen_jax.vae.loss\nfrom gen_jax.gmm import GMM"
    )
    assert packages_of(source) == {"data", "em", "vae", "gmm"}


def test_packages_do_not_import_each_other():
    """A topological order exists. `gen_jax/__init__.py` is above all and left out."""
    graph = {}
    for path in ROOT.rglob("*.py"):
        if path != ROOT / "__init__.py":
            graph.setdefault(package(path), set()).update(packages_of(path.read_text()) - {package(path)})
    assert graph["samplers"] >= {"diffusion", "keys"}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("diffusion") < order.index("samplers")


def test_a_cycle_is_found():
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).static_order())
