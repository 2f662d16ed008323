"""Captions of the images of a folder: `metadata.jsonl` or `metadata.csv`, or `NAME.txt` beside `NAME.png`."""

import csv
import io
import logging
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from gen_jax import small_files

_log = logging.getLogger(__name__)
METADATA = ("metadata.jsonl", "metadata.csv")


def find(root: Path, images: Collection[str], texts: Collection[str]) -> dict[str, str | Path]:
    """The captions of the images that have one: the text, or the file that it stands in.

    A metadata file has a row for an image: `file_name`, relative to the folder of the metadata file, and `text`. Other
    columns are left aside.
    """
    there, beside = set(images), set(texts)
    captions: dict[str, str | Path] = {}
    for name in images:
        if (file := posixpath.splitext(name)[0] + ".txt") in beside:
            captions[name] = root / file
    for file in sorted(texts):
        if posixpath.basename(file) in METADATA:
            rows = dict(_rows(root / file, posixpath.dirname(file)))
            if gone := [name for name in rows if name not in there]:
                _log.warning(
                    "%s has %d images that are not there, or unreadable: %s",
                    root / file,
                    len(gone),
                    some(gone),
                )
            captions |= {name: text for name, text in rows.items() if name in there}
    return captions


def of_each(
    root: Path, names: Sequence[str], captions: Mapping[str, str | Path]
) -> Mapping[str, str | Path] | None:
    """The captions where each of `names` has one, None where none has; else a `ValueError` that names those without."""
    without = [name for name in names if name not in captions]
    if len(without) == len(names):
        return None
    if without:
        raise ValueError(
            f"{len(without):,} of {len(names):,} images of {root} have no caption: {some(without)}. Expected one for "
            "each, in metadata.jsonl or metadata.csv (file_name, text) or in NAME.txt beside NAME.png, or none at all."
        )
    return captions


def text(caption: str | Path) -> str:
    """A caption as it is, or read from its file, without the white space around it."""
    return caption if isinstance(caption, str) else _decode(caption).strip()


def _rows(path: Path, folder: str) -> Iterator[tuple[str, str]]:
    columns: set[str] = set()
    for number, row in enumerate(_table(path), start=1):
        columns |= set(row)
        name, caption = row.get("file_name"), row.get("text")
        if not isinstance(name, str) or not isinstance(caption, str | None):
            raise ValueError(
                f'row {number} of {path}: expected strings "file_name" and "text", got {dict(row)!r}.'
            )
        if caption is not None:
            yield posixpath.normpath(posixpath.join(folder, name)), caption
    if "text" not in columns:
        _log.warning(
            '%s has no column "text", so no captions: it has %s. Remove it to have subfolders as classes',
            path,
            ", ".join(sorted(columns)),
        )


def _table(path: Path) -> Iterator[Mapping[str, object]]:
    contents = _decode(path)
    if path.suffix == ".csv":
        try:
            yield from csv.DictReader(io.StringIO(contents, newline=""), restkey="")
        except csv.Error as error:
            raise ValueError(f"{path} is no table: {error}.") from None
        return
    for number, line in enumerate(contents.splitlines(), start=1):
        if line.strip():
            try:
                row = small_files.json_object(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {path}: {error}") from None
            yield row


def _decode(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, there is none.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it in that encoding.") from None


def some(names: Sequence[str]) -> str:
    """The first few of the names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
