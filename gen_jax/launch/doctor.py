"""What a machine is, and what a run on it would meet: `gen-jax doctor`."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax

from gen_jax import checks, training
from gen_jax.training import distributed
from gen_jax.training import workdir as run_directory
from gen_jax.types import AnyPath

PACKAGES = ("gen_jax", "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "gcsfs", "numpy")
OLDEST = (3, 11)
"""Python."""


@dataclass(frozen=True)
class Finding:
    """A line of the answer."""

    name: str
    says: str
    wrong: bool = False

    def __str__(self) -> str:
        return f"{'WRONG' if self.wrong else 'ok':5}  {self.name:10}  {self.says}"


@checks.checked
def examine(workdir: AnyPath | None = None) -> Iterator[Finding]:
    """Look at versions, processes, devices, the cache of programs and `workdir`, one after the other.

    It joins the other processes as a run does, so on several hosts it is called on all of them at once.
    """
    yield Finding("python", f"{platform.python_version()} ({sys.executable})", sys.version_info < OLDEST)
    yield Finding("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES if _version(name)))
    yield Finding("machine", f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores")
    yield from _tried("processes", _processes)
    yield from _tried("devices", _devices)
    yield from _tried("programs", _programs)
    if workdir is not None:
        yield from _tried("workdir", lambda: _workdir(workdir))


def _tried(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (OSError, RuntimeError, ValueError) as error:
        yield Finding(name, str(error), wrong=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processes() -> Iterator[Finding]:
    kind = distributed.cluster()
    training.initialize_distributed()
    number = f"number {jax.process_index()} of {jax.process_count()}"
    yield Finding("processes", "one, alone" if kind is None else f"{number}, as {kind} says")


def _devices() -> Iterator[Finding]:
    """Found by looking, so this is where a TPU that another process holds is noticed."""
    ours, all_of_them = jax.local_devices(), jax.device_count()
    yield Finding("devices", f"{len(ours)} of {ours[0].device_kind} here, {all_of_them} in all")
    if ours[0].platform == "cpu" and "TPU_ML_PLATFORM" in os.environ:
        yield Finding("devices", "there is a TPU, but JAX uses the CPU: look at JAX_PLATFORMS", wrong=True)


def _programs() -> Iterator[Finding]:
    before = jax.config.values["jax_compilation_cache_dir"]
    place = training.enable_compilation_cache() or before
    yield Finding("programs", f"kept in {place}" if place else "not kept on disk", wrong=place is None)


def _workdir(workdir: AnyPath) -> Iterator[Finding]:
    path = run_directory.prepare(workdir)
    run_directory.check_shared(path)
    shared = "" if jax.process_count() == 1 else ", and seen by all processes"
    yield Finding("workdir", f"{path} can be written{shared}")
