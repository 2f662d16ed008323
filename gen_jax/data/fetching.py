"""Copies of what is in a bucket, for what reads files alone: data sets, caches, weights of Stable Diffusion."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gen_jax import paths
from gen_jax.data import cache
from gen_jax.types import AnyPath

_THREADS = 16  # more than cores: they wait


def fetched(path: AnyPath, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """A file or a directory with all that is in it, here: itself, or a copy in the cache of what is in a bucket.

    What is there already, of the same size and time, is not fetched again; what is no longer in the bucket is removed.
    ValueError where there is nothing.
    """
    if not paths.is_remote(path):
        return path
    root, found = copy_of(path, cache_dir), paths.objects(path)
    if not found:
        raise ValueError(f"{path}: expected an object of this name, or some below it; there is none.")
    old = [name for name, stamp in found.items() if _stamp(root / name) != stamp]
    for file in [file for file in root.rglob("*") if file.is_file() or file.is_symlink()]:
        if file.relative_to(root).as_posix() not in found and not file.parent.name.startswith(".incomplete-"):
            file.unlink(missing_ok=True)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: paths.download(path / name, root / name, found[name]), old))
    return root


def copy_of(path: AnyPath, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where the copy of what is in a bucket is."""
    return cache.root(cache_dir) / "fetched" / str(path).removeprefix("gs://")


def _stamp(file: Path) -> paths.Stamp | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return paths.Stamp(stat.st_size, stat.st_mtime_ns)
