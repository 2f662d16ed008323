"""Tables of numbers: three real data sets that come with the package, and files of the reader's own."""

from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from jaxtyping import Float

TABLES = ("heights", "height_weight", "old_faithful")


def table(source: str | Path) -> Float[np.ndarray, "N C"]:
    """The rows of a table, float64 `[N, C]`.

        "heights"        cm                      [3000, 1]
        "height_weight"  cm, kg                  [247, 2]
        "old_faithful"   eruption, waiting; min  [272, 2]

    `source` is one of these names, or the path of a text file with a row a line, its numbers parted by commas, tabs or
    spaces, with or without a line of names on top.

    Raises:
        ValueError: no such name or file, or rows that are not finite numbers, all as many (it says in which lines).
    """
    if source in TABLES:
        with as_file(files("gen_jax.data") / "tables" / f"{source}.csv") as path:
            return _read(path)
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"no table {str(source)!r}: give one of {', '.join(TABLES)}, or the path of a csv or txt file."
        )
    return _read(path)


def _read(path: Path) -> np.ndarray:
    lines = [line.replace(",", " ").split() for line in path.read_text().splitlines()]
    rows = [(number, words) for number, words in enumerate(lines, start=1) if words]
    if rows and all(_number(word) is None for word in rows[0][1]):
        rows = rows[1:]  # the names of the columns
    if not rows:
        raise ValueError(f"{path} has no rows of numbers.")
    width = len(rows[0][1])
    values = [[_number(word) for word in words] for _, words in rows]
    bad = [
        number
        for (number, _), row in zip(rows, values, strict=True)
        if len(row) != width or any(v is None or not np.isfinite(v) for v in row)
    ]
    if bad:
        shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
        raise ValueError(
            f"{path}: expected {width} finite numbers in every line, not so in {len(bad)}: lines {shown}."
        )
    return np.array(values, np.float64)


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
