"""What the pages of benchmarks have in common: makes the list in README.md.

    python benchmarks/pages.py      # makes that list anew; all else of the page is of growth.py

It needs the standard library alone: any environment will do.
"""

import argparse
import ast
import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Kept:
    """What has been found, by name, in a JSON file: a second run of a command that was stopped goes on from there.

    Of what the findings are is kept with them (`of`, JSON): a file of something else is refused with a ValueError.
    """

    def __init__(self, path: Path, of: Any):
        self.path, of = path, json.loads(json.dumps(of))
        known = json.loads(path.read_text()) if path.exists() else {"of": of, "found": {}}
        if known["of"] != of:
            raise ValueError(f"{path} is of {known['of']}, not of {of}: remove it, or give another place.")
        self.of, self.found = of, known["found"]

    def __call__(self, name: str, find: Callable[[], Any]) -> Any:
        """The finding of that name, found now if it was not before."""
        if name not in self.found:
            self.found[name] = find()
            self.path.write_text(json.dumps({"of": self.of, "found": self.found}, indent=1))
        return self.found[name]


def commit() -> str:
    """Of this tree, with "-dirty" where more than pages has changed since."""
    git = lambda *args: subprocess.run(
        ["git", *args], capture_output=True, text=True, check=True
    ).stdout.strip()
    pages = (":(top,exclude)benchmarks/*.md", ":(top,exclude)benchmarks/*.png")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *pages)
    return git("describe", "--always") + ("-dirty" if changed else "")


def machine() -> str:
    """The model of the processor, and how many cores there are; of a system that does not say, its architecture."""
    path = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", path.read_text() if path.exists() else "", re.MULTILINE)
    return f"{named.group(1) if named else os.uname().machine}, {os.cpu_count()} cores"


def versions(*names: str) -> str:
    """Of packages: "jax 0.10.2, flax 0.12.8"."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def code(solver: Any) -> str:
    """How a solver is written, without defaults but with its order: `UniPC(3)`, `SDEDPMSolverPP(2, 0.3)`."""
    parts, skipped = [], False
    for field in dataclasses.fields(solver):
        value = getattr(solver, field.name)
        said = (
            code(value)
            if dataclasses.is_dataclass(value)
            else json.dumps(value)
            if value != float("inf")
            else "inf"
        )
        if value == field.default and field.name != "order":
            skipped = True
        else:
            parts.append(f"{field.name}={said}" if skipped else said)
    return f"{type(solver).__name__}({', '.join(parts)})"


def row(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def markdown(rows: Iterable[list[str]]) -> str:
    """Rows, the first of them the head, as a table."""
    head, *body = rows
    return "\n".join(map(row, [head, ["---"] * len(head), *body]))


def table_of(path: Path) -> list[list[str]]:
    """The rows of the table in a page that `markdown` has made, without its head; none of a page that is not there."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line[2:-2].split(" | ") for line in lines if line.startswith("| ")][2:]


def scripts() -> str:
    """Every program in this directory, and the first line of its docstring."""
    trees = {path.name: ast.parse(path.read_text()) for path in sorted(HERE.glob("*.py"))}
    programs = {name: tree for name, tree in trees.items() if isinstance(tree.body[-1], ast.If)}
    lines = {name: (ast.get_docstring(tree) or "").splitlines()[0] for name, tree in programs.items()}
    return "\n".join(f"- `{name}`: {line}" for name, line in lines.items())


def main() -> None:
    """Replace the list in README.md."""
    argparse.ArgumentParser(description="Makes the list of benchmarks in README.md anew.").parse_args()
    page = HERE / "README.md"
    page.write_text(
        re.sub(r"(?:^- `\w+\.py`: .*\n?)+", scripts() + "\n", page.read_text(), flags=re.MULTILINE)
    )


if __name__ == "__main__":
    main()
