"""Compiled programs on disk, for the next process that needs them."""

import importlib
import os
import stat
import time
import warnings
import zlib
from pathlib import Path

import jax

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ZSTD = b"\x28\xb5\x2f\xfd"
_SLACK = 120.0
"""Seconds that the clocks of a machine and of its file system may differ."""


def enable_compilation_cache() -> Path | None:
    """Let JAX keep compiled programs on disk, so that a run that resumes or samples does not compile them again.

    Call it before anything is compiled. They are in `$GEN_JAX_CACHE/programs`, `$XDG_CACHE_HOME/gen_jax/programs` or
    `~/.cache/gen_jax/programs`. JAX runs whatever it finds there, so these directories must belong to the user and be
    writable by nobody else, and they are never part of a run, which may come from a stranger. One cache serves all
    machines: JAX's keys contain the features of the processor, and no path, so a run may move.

    A process that is killed while it writes leaves a program cut short, which JAX cannot read and never writes again.
    So what was written since the last start is read here, and removed where it is damaged.

    Returns the directory. Does nothing and returns None where JAX has one already (`JAX_COMPILATION_CACHE_DIR`), and,
    with a warning, where the directory is not safe or cannot be made.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return None
    home, given = os.environ.get("XDG_CACHE_HOME") or "~/.cache", os.environ.get("GEN_JAX_CACHE")
    root = Path(given or f"{home}/gen_jax").expanduser().absolute()
    directory = root / "programs"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not given:  # data sets are there too, and may have made it with a mode that lets a group write
            root.chmod(root.stat().st_mode & ~_OTHERS)
        directory.mkdir(mode=0o700, exist_ok=True)
        for path in (root, directory):
            _check_private(path)
        _remove_damaged(directory)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept on disk: {error}", stacklevel=2)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # the many small programs take as long as the large ones
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return directory


def _check_private(path: Path) -> None:
    """Raise PermissionError unless `path` is a directory of this user where no other user can write."""
    found = path.stat()
    if os.name != "posix":
        return
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user; set GEN_JAX_CACHE to a directory of your own")
    if found.st_mode & _OTHERS:
        raise PermissionError(
            f"other users can write in {path}; look at what is in it, then make it yours alone: chmod 700 {path}"
        )


def _remove_damaged(directory: Path) -> None:
    """Removes the programs written since the last call that are not whole: JAX compiles those anew, and keeps them."""
    checked, now = directory / ".checked", time.time()
    since = checked.stat().st_mtime - _SLACK if checked.exists() else 0.0
    for path in directory.glob("*-cache"):
        try:
            if path.stat().st_mtime >= since and not _is_whole(path.read_bytes()):
                path.unlink()
        except FileNotFoundError:  # another process has removed it
            continue
    checked.touch()
    os.utime(checked, (now, now))


def _is_whole(entry: bytes) -> bool:
    """Whether a program can be decompressed, as far as that is known here."""
    try:
        if entry.startswith(_ZSTD):
            importlib.import_module("zstandard").ZstdDecompressor().decompress(entry)
        else:
            zlib.decompress(entry)
    except ModuleNotFoundError:  # nor does JAX read it
        return True
    except Exception:  # zlib.error, or one of the other library
        return False
    return True
