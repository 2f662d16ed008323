"""Decoded data sets on disk: a memory-mapped `.npy` file for each array, and a `meta.json` to check them."""

import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np

from gen_jax import paths
from gen_jax.types import AnyPath

_FORMAT = 2  # part of the key: an entry of another format is never read
VERIFIED = 256 * 2**20
"""Bytes. The checksum of larger arrays is not verified, which takes about a second a GiB."""


class _Array(TypedDict):
    dtype: str
    shape: list[int]
    crc32: int


def root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Where entries live: `cache_dir`, `$GEN_JAX_CACHE`, `$XDG_CACHE_HOME/gen_jax` or `~/.cache/gen_jax`."""
    place = cache_dir or os.environ.get("GEN_JAX_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place or os.path.join(base, "gen_jax")).expanduser()


def entry(full_name: str, split: str, contents: Iterable[str | bytes]) -> str:
    """The path of an entry below `root`: `<full_name>/<split>-<fingerprint of split and contents>`.

    `ValueError` where the name leads out of it.
    """
    if ".." in full_name.split("/"):
        raise ValueError(f"expected the name of a data set, got {full_name[:100]!r}, which leads elsewhere.")
    digest = hashlib.sha256(f"{_FORMAT} {full_name} {split}".encode())
    for part in contents:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
    return f"{full_name}/{re.sub(r'[^A-Za-z0-9_.]+', '_', split)}-{digest.hexdigest()[:16]}"


def of_files(directory: Path) -> Iterator[str | bytes]:
    """What tells the files of a directory from others: name, size, time of modification and the 64 KiB at either end.

    (The format array_record keeps its index at the end.)
    """
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        stat = path.stat()
        yield f"\n{path.name} {stat.st_size} {stat.st_mtime_ns}"
        with path.open("rb") as file:
            yield file.read(65536)
            file.seek(max(0, stat.st_size - 65536))
            yield file.read()


def write(path: Path, chunks: Iterable[Mapping[str, np.ndarray]], num_examples: int) -> None:
    """Write an entry, all of it or nothing: into a directory beside it, renamed when complete.

    `chunks` are dicts of arrays `[n, ...]`, in all `num_examples` rows. Arrays of strings become JSON. `OSError` where
    the directory can not be made or the disk is full. An entry that another process finished first is left as it is. A
    process that is killed leaves `.incomplete-*` behind, which can be deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".incomplete-", dir=path.parent, ignore_cleanup_errors=True
    ) as scratch:
        new = Path(scratch) / "entry"  # the scratch directory itself is closed to others
        new.mkdir()
        arrays = _write_arrays(new, chunks, num_examples)
        (new / "meta.json").write_text(json.dumps({"arrays": arrays}, indent=1))
        try:
            new.rename(path)
        except OSError:
            if not (path / "meta.json").exists():
                raise


def kept(
    path: AnyPath | None, chunks: Callable[[], Iterable[Mapping[str, np.ndarray]]], num_examples: int
) -> Callable[[], dict[str, np.ndarray]]:
    """How to read an entry, which is written where it is not there; without a path, the arrays of `chunks` in memory.

    Where the entry is there, `chunks` is not called. One in a bucket is read from a copy here.
    """
    if path is None:
        parts = list(chunks())
        arrays = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        return lambda: arrays
    here = _copied(path) if paths.is_remote(path) else path
    if not (here / "meta.json").exists():
        write(here, chunks(), num_examples)
        if paths.is_remote(path):
            paths.upload(here, path, last=["meta.json"])
    return lambda: read(here)


def _copied(path: AnyPath) -> Path:
    """Where the copy of an entry in a bucket is, fetched if there is one."""
    from gen_jax.data.fetching import copy_of, fetched  # which needs `root`

    return fetched(path) if (path / "meta.json").exists() else copy_of(path)


def _write_arrays(
    new: Path, chunks: Iterable[Mapping[str, np.ndarray]], num_examples: int
) -> dict[str, _Array]:
    # Appended, not written through a memory map: there a full disk is a SIGBUS, here an OSError.
    arrays: dict[str, _Array] = {}
    strings: dict[str, list[str]] = {}
    for chunk in chunks:
        for key, rows in chunk.items():
            if rows.dtype.kind in "OU":
                strings.setdefault(key, []).extend(rows.tolist())
                continue
            with (new / f"{key}.npy").open("ab") as file:
                if key not in arrays:
                    shape = (num_examples, *rows.shape[1:])
                    descr = np.lib.format.dtype_to_descr(rows.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    arrays[key] = {"dtype": rows.dtype.name, "shape": list(shape), "crc32": 0}
                data = np.ascontiguousarray(rows).data.cast("B")
                file.write(data)
                arrays[key]["crc32"] = zlib.crc32(data, arrays[key]["crc32"])
    for key, values in strings.items():
        raw = json.dumps(values).encode()
        (new / f"{key}.json").write_bytes(raw)
        arrays[key] = {"dtype": "str", "shape": [num_examples], "crc32": zlib.crc32(raw)}
    return arrays


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an entry, memory-mapped and read-only; strings as an array of objects.

    Type, shape and size are checked, and the checksum of arrays up to 256 MiB. What does not fit is a `ValueError` that
    names the file.
    """
    try:
        file = path / "meta.json"
        arrays = {}
        for key, expected in json.loads(file.read_text())["arrays"].items():
            text = expected["dtype"] == "str"
            file = path / f"{key}.{'json' if text else 'npy'}"
            arrays[key] = (_strings if text else _map)(file, expected)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the cached file {file} is damaged: {error}. Delete the directory {path} and load the data set "
            "again: it is decoded anew."
        ) from None
    return arrays


def _strings(file: Path, expected: _Array) -> np.ndarray:
    raw = file.read_bytes()
    if zlib.crc32(raw) != expected["crc32"]:
        raise ValueError("its checksum is not the one in meta.json")
    return np.array(json.loads(raw), object)


def _map(file: Path, expected: _Array) -> np.ndarray:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if (array.dtype.name, list(array.shape)) != (expected["dtype"], expected["shape"]):
        raise ValueError(f"expected {expected['dtype']} {expected['shape']}, got {array.dtype} {array.shape}")
    if array.nbytes <= VERIFIED and zlib.crc32(array.data.cast("B")) != expected["crc32"]:
        raise ValueError("its checksum is not the one in meta.json")
    return array
