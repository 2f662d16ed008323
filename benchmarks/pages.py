"""What the pages that benchmarks make have in common. It imports nothing, so that any virtual environment will do."""

import subprocess
from collections.abc import Iterable


def commit() -> str:
    """Of this tree."""
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def row(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def markdown(rows: Iterable[list[str]]) -> str:
    """Rows, the first of them the head, as a table."""
    head, *body = rows
    return "\n".join(map(row, [head, ["---"] * len(head), *body]))
