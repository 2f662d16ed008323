"""The house style, where a program can check it."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import gen_jax

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "gen_jax").rglob("*.py"))
MOST_ANY = 119
"""How often the word `Any` may occur in the library."""
MOST_LINES = 350
parsed = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in LIBRARY}
each_module = pytest.mark.parametrize("name", parsed)


def docstrings(tree):
    """The nodes of strings that stand by themselves: docstrings, of attributes as well."""
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def flags(tree):
    """Flags such as --workdir in strings other than docstrings, apart from those of pip, pytest and XLA."""
    skip = docstrings(tree)
    strings = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skip
    )
    return [
        s
        for s in strings
        if re.search(r"(?<![\w-])--(?!xla_)[a-z][\w-]*", re.sub(r"pip install [^()`]*", "", s))
    ]


@each_module
def test_messages_name_no_flags_of_commands(name):
    if name != "gen_jax/cli.py" and not name.startswith("gen_jax/launch/"):
        assert flags(parsed[name]) == []


def test_flags_are_found_in_messages_alone():
    code = '''
def f():
    """As with --workdir."""
    raise ValueError(f"take another --workdir than {x}, or `pip install --no-deps {y}`")
'''
    assert flags(ast.parse(code)) == ["take another --workdir than "]


def test_any_is_rare():
    assert sum(len(re.findall(r"\bAny\b", path.read_text())) for path in LIBRARY) <= MOST_ANY


@each_module
def test_aliases_for_type_checkers_are_in_one_module(name):
    """Aliases that differ at run time are in gen_jax/types.py."""
    forks = [
        node
        for node in ast.walk(parsed[name])
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    aliases = [x for fork in forks for x in fork.body if not isinstance(x, ast.Import | ast.ImportFrom)]
    assert not aliases or name == "gen_jax/types.py"


def taken_for_absent(tree):
    """Arguments `x: int | None` of which `x or default` takes 0 for none."""
    return [
        f"{function.name}({arg.arg})"
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for arg in (*function.args.args, *function.args.kwonlyargs)
        if arg.annotation is not None
        and re.fullmatch(r"(int|float|str|[ |])+None", ast.unparse(arg.annotation))
        for node in ast.walk(function)
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or)
        if isinstance(node.values[0], ast.Name) and node.values[0].id == arg.arg
    ]


PLACES = {"gen_jax/data/sources/tfds/prepared.py", "gen_jax/data/cache.py", "gen_jax/training/cache.py"}
"""Where an empty path is none, as in the shell."""


@each_module
def test_what_is_given_is_not_taken_for_what_is_not(name):
    """0 steps are refused, not replaced by the default: `x if x is not None else default`."""
    assert name in PLACES or taken_for_absent(parsed[name]) == []


def test_what_is_taken_for_absent_is_found():
    code = "def f(n: int | None, m: int | None, *, x: float | None = None):\n    return n or 3, x or m, not n"
    assert taken_for_absent(ast.parse(code)) == ["f(n)", "f(x)"]


def test_files_are_short():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in [*LIBRARY, *(ROOT / "experiments").rglob("*.py")]
    }
    assert {name for name, length in lengths.items() if length > MOST_LINES} == set()


def public_objects():
    """`(module.name, object)` of all functions and classes in the `__all__` of a module."""
    for info in pkgutil.walk_packages(gen_jax.__path__, "gen_jax."):
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name, None)  # a submodule may not be imported yet
            ours = getattr(value, "__module__", "").startswith(
                "gen_jax"
            )  # an alias for an array is jaxtyping's
            if ours and (inspect.isfunction(value) or inspect.isclass(value)):
                yield f"{info.name}.{name}", value


def test_public_functions_and_classes_have_docstrings():
    """Written for them: NamedTuples and dataclasses make one up otherwise."""
    found = dict(public_objects())
    assert len(found) > 100
    made_up = lambda value: inspect.isclass(value) and value.__doc__.startswith(f"{value.__name__}(")
    assert [name for name, value in found.items() if not value.__doc__ or made_up(value)] == []
