"""Compiled programs on disk, for the next process that needs them."""

import hashlib
import os
import platform
import stat
import warnings
from pathlib import Path

import jax


def enable_compilation_cache() -> Path | None:
    """Let JAX keep compiled programs on disk, so that a run that resumes or samples does not compile them again.

    Call it before anything is compiled. They are in `$GEN_JAX_CACHE/programs`, `$XDG_CACHE_HOME/gen_jax/programs` or
    `~/.cache/gen_jax/programs`, for each kind of processor in a directory of its own. JAX runs what it finds there, so
    it must belong to this user and be writable by nobody else, and is never part of a run, which may come from others.

    Returns the directory; None, with a warning, where it is not safe or cannot be made, and there is no cache then. Does
    nothing and returns None where JAX was given a directory already (`JAX_COMPILATION_CACHE_DIR`).
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return None
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(os.environ.get("GEN_JAX_CACHE") or f"{cache}/gen_jax").expanduser().absolute()
    directory = root / "programs" / machine()
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        for path in (root, root / "programs", directory):
            path.mkdir(mode=0o700, exist_ok=True)
            check_private(path)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept on disk: {error}", stacklevel=2)
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # the many small programs take as long as the large ones
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return directory


def check_private(path: Path) -> None:
    """Raise PermissionError unless `path` is a directory of this user in which no other user can write."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{path} is not a directory (nor may it be a link to one)")
    if os.name == "posix" and found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user; set GEN_JAX_CACHE to a directory of your own")
    if os.name == "posix" and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"other users can write in {path}: chmod 700, after a look at what is in it")


def machine() -> str:
    """A name for this kind of processor: programs for one may use instructions that another does not have."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    text = "\n".join([platform.machine(), platform.processor(), *features])
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
