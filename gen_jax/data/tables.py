"""Tables of numbers: three real data sets that come with the package, and files of the reader's own."""

import csv
import os
import re
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gen_jax import checks

TABLES = ("heights", "height_weight", "old_faithful")


@checks.checked
def table(source: str | os.PathLike[str]) -> Float[np.ndarray, "N C"]:
    """The rows of a table, float64 `[N, C]`.

        "heights"        cm                      [3000, 1]
        "height_weight"  cm, kg                  [247, 2]
        "old_faithful"   eruption, waiting; min  [272, 2]

    `source` is one of these names, or the path of a text file with a row a line, with or without a line of names on top.
    Its numbers are parted by semicolons or tabs where each row has one, else by commas or else by blanks. Where it is not
    the comma that parts them, `1,5` is 1.5. What pandas, R and spreadsheets write is read as it is meant: UTF-8 or UTF-16
    with a mark at its beginning, numbers and names in quotes, and the numbers of the rows, a first column without a name
    among named ones, which is left out.

    Raises:
        ValueError: no such name or file, or rows that are not finite numbers, all as many (it says in which lines), such
            as those with a missing value; or another number of names than of columns.
    """
    if source in TABLES:
        with as_file(files("gen_jax.data") / "tables" / f"{source}.csv") as path:
            return _read(path)
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"no table {os.fspath(source)!r}: give one of {', '.join(TABLES)}, or the path of a text file as source."
        )
    return _read(path)


class _Lines(NamedTuple):
    """The cells of a file, line by line."""

    separator: str
    """None of it is in a cell; a blank stands for any white space."""
    numbers: list[int]
    """Of the lines in the file."""
    cells: list[list[str]]


def _read(path: Path) -> np.ndarray:
    try:
        lines = _cells(_text(path))
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}.") from None
    first = lines.cells[0] if lines.cells else []
    names = first if first and all(_number(cell, lines.separator) is None for cell in first) else None
    rows = lines.cells[names is not None :]
    if not rows:
        raise ValueError(f"{path} has no rows of numbers.")
    width = len(rows[0])
    bad = [
        (number, cells)
        for number, cells in zip(lines.numbers[names is not None :], rows, strict=True)
        if len(cells) != width or not all(_is_number(cell, lines.separator) for cell in cells)
    ]
    if bad:
        shown, advice = _faults(bad, width, lines.separator)
        raise ValueError(
            f"{path}: expected {checks.counted(width, 'finite number')} in every line, not so in {len(bad):,}: {shown}"
            f"{', ...' if len(bad) > MOST_LINES else '.'}{advice}"
        )
    values = np.array([[_number(cell, lines.separator) for cell in cells] for cells in rows], np.float64)
    return values if names is None else values[:, _data(path, names, values, lines.separator) :]


MOST_LINES = 5
"""Lines of a file whose fault is said."""
_ADVICE = {
    "A value is missing there: fill it in, or leave out the line.": r"|na|n/a|#n/a|nan|null|none|nil|missing|[-.?]",
    "Write thousands without a comma: 1500.": r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?",
    "Make a number of a date, such as the days since the first.": r"\d+([-/.:])\d+\1\d+.*",
    "Write the unit into the name of the column, not behind the numbers.": r"[+-]?[\d.,]+\s*([^\W\d_]+\d?|%)",
}
"""What to do with cells that are no number, by what they look like."""


def _faults(bad: list[tuple[int, list[str]]], width: int, separator: str) -> tuple[str, str]:
    """What is wrong with the first of the bad lines, and what to do: the number of cells, or a cell that is no number."""
    said: list[str] = []
    advice: dict[str, None] = {}
    for number, cells in bad[:MOST_LINES]:
        if len(cells) != width:
            said.append(f"line {number} has {checks.counted(len(cells), 'cell')}")
            continue
        column, cell = next((i, cell) for i, cell in enumerate(cells, 1) if not _is_number(cell, separator))
        said.append(f"line {number} has {repr(cell[:40]) if cell else 'nothing'} in column {column}")
        advice |= {f" {do}": None for do, like in _ADVICE.items() if re.fullmatch(like, cell, re.IGNORECASE)}
    return ", ".join(said), "".join(advice)


def _data(path: Path, names: list[str], values: np.ndarray, separator: str) -> int:
    """The first column of data: 1 where the one before it numbers the rows, as pandas and R write it, else 0."""
    width, start = values.shape[1], values[0, 0]
    counts = width > 1 and start in (0, 1) and np.array_equal(values[:, 0], start + np.arange(len(values)))
    if len(names) == width > 1 and not names[0] and all(names[1:]):  # pandas
        return 1
    if counts and (names[0] == "Unnamed: 0" or (separator == " " and len(names) == width - 1)):  # and R
        return 1
    if separator != " " and len(names) != width:
        raise ValueError(
            f"{path}: expected a name for each of {width} columns, got {len(names)}: {', '.join(names[:10])}. Of numbers "
            "with decimal commas, part the columns by semicolons, or write points."
        )
    return 0


def _text(path: Path) -> str:
    """A file as text: UTF-8, or UTF-16 with a mark at its beginning."""
    raw = path.read_bytes()
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}.") from None


def _cells(text: str) -> _Lines:
    """The cells of each line that is not empty; columns that are empty in all lines are left out."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    separator = _separator([line for _, line in lines])
    if separator == " ":
        cells = [[cell.strip('"') for cell in line.split()] for _, line in lines]
    else:
        cells = [
            [cell.strip() for cell in row]
            for row in csv.reader([line for _, line in lines], delimiter=separator)
        ]
    if cells and cells[0][0].startswith("#"):  # numpy's mark of a line of names
        cells[0] = list(filter(None, [cells[0][0].lstrip("# "), *cells[0][1:]]))
    return _Lines(separator, [number for number, _ in lines], _without_empty(cells))


def _without_empty(cells: list[list[str]]) -> list[list[str]]:
    """Cells without the columns that are empty in all rows, as a mark at the end of each line makes one."""
    rows = cells[1:] or cells
    width = max(map(len, rows), default=0)
    empty = {i for i in range(width) if all(i >= len(row) or not row[i] for row in rows)}
    without = [[cell for i, cell in enumerate(row) if i not in empty] for row in cells]
    named = [cell for cell in cells[0] if cell] if cells else []
    if cells and len(named) == width - len(empty):  # names may be parted by fewer marks than numbers
        without[0] = named
    elif cells and any(cells[0][i] for i in empty if i < len(cells[0])):
        return cells
    return without


def _separator(lines: list[str]) -> str:
    """What parts the numbers: a semicolon, a tab, a comma or a blank."""
    rows = lines[1:] or lines  # the first line may be names
    for mark, some in ((";", rows), ("\t", lines)):
        if some and all(mark in line for line in some):
            return mark
    if not any("," in line for line in rows):
        return " "
    parted = [re.sub(r"\s*,\s*", ",", line).split() for line in rows]
    by_blanks = all(len(cells) > 1 and all(cell.count(",") <= 1 for cell in cells) for cells in parted)
    return " " if by_blanks else ","


def _number(cell: str, separator: str) -> float | None:
    """A number; where the comma parts no cells, it is a decimal comma."""
    if separator != "," and cell.count(",") == 1 and "." not in cell:
        cell = cell.replace(",", ".")
    try:
        return None if "_" in cell else float(cell)  # Python alone reads 1_5 as 15
    except ValueError:
        return None


def _is_number(cell: str, separator: str) -> bool:
    number = _number(cell, separator)
    return number is not None and bool(np.isfinite(number))
