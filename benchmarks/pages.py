"""What the pages that benchmarks make have in common. It needs the standard library alone: any environment will do."""

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path


def commit() -> str:
    """Of this tree."""
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """The model of the processor, and how many cores there are; of a system that does not say, its architecture."""
    path = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", path.read_text() if path.exists() else "", re.MULTILINE)
    return f"{named.group(1) if named else os.uname().machine}, {os.cpu_count()} cores"


def versions(*names: str) -> str:
    """Of packages: "jax 0.10.2, flax 0.12.8"."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def row(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def markdown(rows: Iterable[list[str]]) -> str:
    """Rows, the first of them the head, as a table."""
    head, *body = rows
    return "\n".join(map(row, [head, ["---"] * len(head), *body]))
