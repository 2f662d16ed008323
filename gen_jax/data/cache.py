"""Decoded data sets on disk: a memory-mapped `.npy` file for each array, and a `meta.json` to check them."""

import hashlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_FORMAT = 1  # part of the key: an entry of another format is never read
_VERIFIED = (
    256 * 2**20
)  # bytes: up to this size an array's checksum is verified on each load (about a second a GiB)


def root(cache_dir: str | os.PathLike | None = None) -> Path:
    """Where entries live: `cache_dir`, `$GEN_JAX_CACHE`, `$XDG_CACHE_HOME/gen_jax` or `~/.cache/gen_jax`."""
    place = cache_dir or os.environ.get("GEN_JAX_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(place or os.path.join(base, "gen_jax")).expanduser()


def entry(full_name: str, split: str, data_path: Path) -> str:
    """The path of an entry below `root`: `<name>/<config>/<version>/<split>-<fingerprint>`.

    The fingerprint is of the split and of every file of the prepared set: name, size, time of modification,
    and the 64 KiB at either end (array_record keeps its index at the end). A set that was prepared again is
    another entry.
    """
    digest = hashlib.sha256(f"{_FORMAT} {full_name} {split}".encode())
    for path in sorted(path for path in data_path.iterdir() if path.is_file()):
        stat = path.stat()
        digest.update(f"\n{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(65536))
            file.seek(max(0, stat.st_size - 65536))
            digest.update(file.read())
    return f"{full_name}/{re.sub(r'[^A-Za-z0-9_.]+', '_', split)}-{digest.hexdigest()[:16]}"


def write(
    path: Path, chunks: Iterable[dict[str, np.ndarray]], num_examples: int, extra: dict[str, Any]
) -> None:
    """Write an entry, all of it or nothing: into a directory beside it, renamed when complete.

    `chunks` are dicts of arrays `[n, ...]`, in all `num_examples` rows; `extra` goes into `meta.json`.
    `OSError` where the directory can not be made or the disk is full. An entry that another process finished
    first is left as it is. A process that is killed leaves `.incomplete-*` behind, which can be deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".incomplete-", dir=path.parent, ignore_cleanup_errors=True
    ) as scratch:
        new = (
            Path(scratch) / "entry"
        )  # a directory in it, for the one that is renamed to have the usual permissions
        new.mkdir()
        arrays = _write_arrays(new, chunks, num_examples)
        (new / "meta.json").write_text(json.dumps({"arrays": arrays, **extra}, indent=1))
        try:
            new.rename(path)
        except OSError:
            if not (path / "meta.json").exists():
                raise


def _write_arrays(
    new: Path, chunks: Iterable[dict[str, np.ndarray]], num_examples: int
) -> dict[str, dict[str, Any]]:
    # Appended, not written through a memory map: there a full disk is a SIGBUS, here an OSError.
    arrays: dict[str, dict[str, Any]] = {}
    for chunk in chunks:
        for key, rows in chunk.items():
            with (new / f"{key}.npy").open("ab") as file:
                if key not in arrays:
                    shape = (num_examples, *rows.shape[1:])
                    descr = np.lib.format.dtype_to_descr(rows.dtype)
                    header = {"descr": descr, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    arrays[key] = {"dtype": rows.dtype.name, "shape": shape, "crc32": 0}
                data = np.ascontiguousarray(rows).data.cast("B")
                file.write(data)
                arrays[key]["crc32"] = zlib.crc32(data, arrays[key]["crc32"])
    return arrays


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of an entry, memory-mapped and read-only, and its `meta.json`.

    Type, shape and size are checked, and the checksum of arrays up to 256 MiB. What does not fit is a
    `ValueError` that names the file.
    """
    try:
        file = path / "meta.json"
        meta = json.loads(file.read_text())
        arrays = {}
        for key, expected in meta["arrays"].items():
            file = path / f"{key}.npy"
            arrays[key] = _map(file, expected)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the cached file {file} is damaged: {error}. Delete the directory {path} and load the data set "
            "again: it is decoded anew."
        ) from error
    return arrays, meta


def _map(file: Path, expected: dict[str, Any]) -> np.ndarray:
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    if (array.dtype.name, list(array.shape)) != (expected["dtype"], expected["shape"]):
        raise ValueError(f"expected {expected['dtype']} {expected['shape']}, got {array.dtype} {array.shape}")
    if array.nbytes <= _VERIFIED and zlib.crc32(array.data.cast("B")) != expected["crc32"]:
        raise ValueError("its checksum is not the one in meta.json")
    return array
