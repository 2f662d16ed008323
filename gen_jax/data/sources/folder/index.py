"""The index of a folder of images: what the headers of its files say, kept in the cache."""

import hashlib
import json
import logging
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from gen_jax.data import cache, images

_log = logging.getLogger(__name__)
_FORMAT = 2
_THREADS = 16  # more than cores: on a remote disk they wait
_BLOCK = 4096  # files given to the threads at a time


class Stamp(NamedTuple):
    """What changes when a file does."""

    bytes: int
    mtime_ns: int


class File(NamedTuple):
    """An image file: its stamp, and what its header says."""

    bytes: int
    mtime_ns: int
    height: int  # after the EXIF orientation
    width: int
    mode: str  # Pillow's
    problem: (
        str | None
    )  # why it can not be read; "": it has been decoded and is sound; None: only its header was read


class Listing(NamedTuple):
    """The files of a folder and its subfolders, by their paths relative to it, with "/"; hidden ones left out."""

    images: dict[str, Stamp]
    texts: dict[str, Stamp]  # .txt, .jsonl and .csv
    others: int


def walk(root: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """All files below a folder and their relative paths, without hidden files and folders. Links are followed."""

    def visit(
        path: str, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, os.DirEntry[str]]]:
        stat = os.stat(path)
        here = above | {(stat.st_dev, stat.st_ino)}
        if here == above:
            return  # a link to a folder that it is in
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    yield from visit(entry.path, f"{prefix}{entry.name}/", here)
                else:
                    yield prefix + entry.name, entry

    yield from visit(os.fspath(root), "", frozenset())


def has_images(root: Path) -> bool:
    """Whether there is an image file in the folder or below it."""
    endings = images.suffixes()
    return any(os.path.splitext(name)[1].lower() in endings for name, _ in walk(root))


def listing(root: Path) -> Listing:
    """The files of a folder, images sorted bytewise by their relative path."""
    endings = images.suffixes()
    pictures: dict[str, Stamp] = {}
    texts: dict[str, Stamp] = {}
    others = 0
    for name, entry in walk(root):
        ending = os.path.splitext(name)[1].lower()
        if ending in endings:
            pictures[name] = _stamp(entry)
        elif ending in (".txt", ".jsonl", ".csv"):
            texts[name] = _stamp(entry)
        else:
            others += 1
    ordered = dict(sorted(pictures.items(), key=lambda item: os.fsencode(item[0])))
    return Listing(ordered, texts, others)


def build(root: Path, stamps: Mapping[str, Stamp], directory: Path, *, decode: bool) -> dict[str, File]:
    """What each image file is, in the order of `stamps`: from the index in `directory`, or where that does not know the
    file as it is now, from its header. With `decode` each file is decoded once as well.
    """
    known = _read(directory / "index.json", root)
    files: dict[str, File] = {}
    missing: list[str] = []
    for name, stamp in stamps.items():
        file = known.get(name)
        if file is None or (file.bytes, file.mtime_ns) != stamp or (decode and file.problem is None):
            missing.append(name)
        else:
            files[name] = file
    if missing:
        _log.info("%s: reading %d of %d images once, for the index", root, len(missing), len(stamps))
        look = _decode if decode else _header
        for name, file in _each(missing, lambda name: look(root / name, stamps[name])):
            files[name] = file
        files = {name: files[name] for name in stamps}
    if missing or len(known) != len(stamps):
        _write(directory / "index.json", root, files)
    return files


def directory(root: Path, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Where the index and the decoded images of a folder are kept."""
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return cache.root(cache_dir) / "folders" / f"{root.name}-{digest}"


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    try:
        stat = entry.stat()
    except OSError:  # a link to nowhere: it is said when its header is read
        return Stamp(-1, -1)
    return Stamp(stat.st_size, stat.st_mtime_ns)


def _header(path: Path, stamp: Stamp) -> File:
    try:
        height, width, mode = images.header(path)
        return File(*stamp, height, width, mode, None)
    except Exception as error:  # decoders raise errors of every kind
        return File(*stamp, 0, 0, "", why(error))


def _decode(path: Path, stamp: Stamp) -> File:
    file = _header(path, stamp)
    if file.problem is not None:
        return file
    try:
        height, width, _ = images.load(path, 3).shape
    except Exception as error:
        return file._replace(problem=why(error))
    return file._replace(height=height, width=width, problem="")


def why(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {error}"


def _each(names: list[str], look: Callable[[str], File]) -> Iterator[tuple[str, File]]:
    with ThreadPoolExecutor(_THREADS) as pool:
        rest = iter(names)
        while block := list(islice(rest, _BLOCK)):
            yield from zip(block, pool.map(look, block), strict=True)


def _read(path: Path, root: Path) -> dict[str, File]:
    try:
        first, _, files = path.read_text().partition("\n")
        stored = json.loads(first)
        if (stored["format"], stored["folder"]) != (_FORMAT, os.fspath(root)):
            return {}
        if stored["crc32"] != zlib.crc32(files.encode()):
            raise ValueError("its checksum is another")
        return {name: File(*file) for name, *file in json.loads(files)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("the index %s is damaged (%s) and is made anew", path, error)
        return {}


def _write(path: Path, root: Path, files: Mapping[str, File]) -> None:
    rows = [(name, *file) for name, file in files.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=path.parent) as scratch:
            new = Path(scratch) / path.name
            text = json.dumps(rows)
            said = {"format": _FORMAT, "folder": os.fspath(root), "crc32": zlib.crc32(text.encode())}
            new.write_text(f"{json.dumps(said)}\n{text}")
            os.replace(new, path)  # all of it or nothing
    except OSError as error:
        warnings.warn(
            f"the index {path} can not be written ({error}): the headers of the {len(files):,} images of {root} are "
            "read each time. Set GEN_JAX_CACHE or cache_dir= to a writable directory.",
            stacklevel=2,
        )
