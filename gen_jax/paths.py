"""Paths of files here, and of objects in a bucket of Google Cloud, which are read and written like files.

path = paths.path_of("gs://bucket/run")      # with the methods of a pathlib.Path, by etils.epath and gcsfs
path = paths.path_of("~/run")                # a pathlib.Path

A bucket has no directories, and an object is written whole or not at all. So what grows, or what only files can be
written by, is made on this machine and then uploaded.
"""

import functools
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import ArrayLike

from gen_jax.types import AnyPath

if TYPE_CHECKING:
    import fsspec

_URL = re.compile(r"([a-z][a-z0-9]+):/+(.*)", re.DOTALL)  # a pathlib.Path has one slash less


class Stamp(NamedTuple):
    """What changes when a file does."""

    bytes: int
    mtime_ns: int


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether it has a scheme, as in `gs://bucket/run`."""
    return _URL.fullmatch(os.fspath(place)) is not None


def is_remote(path: AnyPath) -> bool:
    """Whether a path, as of `path_of`, is of an object in a bucket."""
    return not isinstance(path, Path)


def path_of(place: str | os.PathLike[str]) -> AnyPath:
    """The path of a file here, with `~` replaced, or of an object in a bucket, `gs://BUCKET/PATH`.

    ValueError for buckets of others, and where the package that reads buckets is not installed.
    """
    found = _URL.fullmatch(os.fspath(place))
    if found is None:
        return Path(place).expanduser()
    scheme, rest = found.groups()
    if scheme == "file":
        return Path("/", unquote(rest))
    if scheme != "gs" or not rest:
        raise ValueError(
            f"expected a path of a mounted file system or gs://BUCKET/PATH, got {os.fspath(place)}: mount what is "
            "stored elsewhere."
        )
    _prepare()
    from etils import epath

    path: AnyPath = epath.Path(f"gs://{rest.rstrip('/')}")
    return path


@functools.cache
def _prepare() -> None:
    """Settings of the packages that read buckets, before they are used first."""
    if importlib.util.find_spec("gcsfs") is None:
        raise ValueError("gs:// needs the package gcsfs, which is not installed: pip install 'gen-jax[tpu]'.")
    os.environ.setdefault("EPATH_USE_TF", "false")  # or epath takes TensorFlow, where that is installed
    from fsspec.config import conf

    conf.setdefault("gs", {}).setdefault("use_listings_cache", False)  # others write there too


def absolute(path: AnyPath) -> AnyPath:
    """The same path, from the root on."""
    return path if is_remote(path) else path.absolute()


def make(path: AnyPath) -> None:
    """Make a directory and those above it. A bucket needs none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def replace(path: AnyPath, data: str | bytes) -> None:
    """Write a file as a whole: a reader sees the old one or the new one."""
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        _store(path).pipe_file(str(path), data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


@contextmanager
def writing(path: AnyPath) -> Iterator[Path]:
    """A place here for what can only write to files: `path` itself, or one whose file or folder is then uploaded."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="gen_jax-") as scratch:
        here = Path(scratch, path.name)
        yield here
        upload(here, path)


def save_array(path: AnyPath, array: ArrayLike) -> None:
    """`numpy.save`, complete or not at all."""
    written = io.BytesIO()
    np.save(written, array)
    replace(path, written.getvalue())


def upload(place: Path, path: AnyPath, last: Sequence[str] = ()) -> None:
    """Write a file as an object, or all files of a folder as objects below `path`, those of the names `last` at last."""
    files = [place] if place.is_file() else [file for file in sorted(place.rglob("*")) if file.is_file()]
    for file in sorted(files, key=lambda file: file.name in last):
        _store(path).put_file(str(file), str(path / file.relative_to(place).as_posix()))


def download(path: AnyPath, file: Path, stamp: Stamp) -> None:
    """Write an object as a file with the time of the object: all of it, or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=file.parent) as scratch:
        new = Path(scratch, file.name)
        _store(path).get_file(str(path), str(new))
        os.utime(new, ns=(stamp.mtime_ns, stamp.mtime_ns))
        os.replace(new, file)


def objects(path: AnyPath) -> dict[str, Stamp]:
    """The objects below a path by what follows it in their names; "" for an object of this very name.

    ValueError for names that are no paths of files, such as those with "..".
    """
    found = {}
    for name, info in _store(path).find(str(path), detail=True).items():
        rest = f"gs://{name}".removeprefix(str(path)).removeprefix("/")
        if name.endswith("/"):  # of size 0, in the place of a directory
            continue
        if rest and any(part in ("", ".", "..") for part in rest.split("/")):
            raise ValueError(f"{path}: expected names of files, got the object {rest!r}.")
        found[rest] = Stamp(info["size"], int(info["mtime"].timestamp() * 1e6) * 1000)
    return found


def size(path: AnyPath) -> int:
    """Bytes of a file."""
    return int(_store(path).info(str(path))["size"]) if is_remote(path) else path.stat().st_size


def modified(path: AnyPath) -> float:
    """When a file was written, by the clock of where it is."""
    return float(_store(path).modified(str(path)).timestamp()) if is_remote(path) else path.stat().st_mtime


def move(path: AnyPath, target: AnyPath) -> None:
    """Move a directory to the place of another one, if there is one."""
    if is_remote(path):
        if target.exists():
            _store(path).rm(str(target), recursive=True)
        for name in objects(path):
            _store(path).cp_file(str(path / name), str(target / name))
        _store(path).rm(str(path), recursive=True)
        return
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    path.rename(target)


def _store(path: AnyPath) -> "fsspec.AbstractFileSystem":
    import fsspec

    return fsspec.core.url_to_fs(str(path))[0]
