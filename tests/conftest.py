"""Eight CPU devices, strict promotion, no silent NaN, and jaxtyping annotations checked by beartype.

Without the slow tests nearly all time is the compiler's, so programs are then compiled quickly and not to run quickly,
as in JAX's own tests; so with `pytest -m site`. With them (`pytest -m slow`, or `pytest -m ""` for all) they are compiled
as users do it.
"""

import atexit
import gc
import os
import shutil
import tempfile
import threading
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # of two processes on two cores
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # all processes of this run share what one has compiled
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gen_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from jaxtyping import install_import_hook

OFTEN = ("checks", "programs.py", "_references.py", "diffusion/process")
"""What is called for every argument or every time. There the type checker would take most of the tests' time."""
PACKAGE = Path(__file__).parents[1] / "gen_jax"
modules = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.stem != "__init__")
install_import_hook(
    [f"gen_jax.{'.'.join(m.with_suffix('').parts)}" for m in modules if not m.as_posix().startswith(OFTEN)],
    "beartype.beartype",
)

import jax
import jaxlib.version
import pytest
from jax._src.interpreters import mlir

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)

MOST_MAPS = 30_000
MOST_PROGRAMS = 200
LONGEST = ("test_experiments.py", "test_processes.py", "test_solvers.py", "test_em.py", "test_oracle.py")
"""Files that begin first, so that no worker is left with one of them in the end."""


def pytest_configure(config):
    if config.getoption("markexpr") in ("not slow", "site"):
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start
        if jaxlib.version.__version_info__ < (0, 11):  # XLA ends the process at a flag that is no more
            os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


class Contexts(threading.local):
    """Of MLIR, one for many programs. JAX makes one for each, a third of the time of what compiles many small ones.

    What is compiled while another program is lowered gets one of its own.
    """

    left, context, make = 0, None, staticmethod(getattr(mlir, "make_ir_context", None))

    def __call__(self):
        if mlir.ir.Context.current is not None:
            return self.make()
        if not self.left:
            self.left, self.context = MOST_PROGRAMS, self.make()
        self.left -= 1
        return self.context


if hasattr(mlir, "make_ir_context"):  # of JAX's own: another version may have none
    mlir.make_ir_context = Contexts()


def pytest_collection_finish():
    gc.freeze()  # what is there by now stays: collecting among it is a twentieth of the time
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items):
    """The longest files first; all else stays in order."""
    place = lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
    items.sort(key=place)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs where there are many: each has memory maps, and a process may have 65,530 of them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def optimized():
    """Compile as users do: for equality to the last bit, a matter of machine code as well, and for what runs long.

    A program that was compiled before stays as it was: the setting is no part of what JAX finds it by. So what has to be
    equal is put into `jax.jit` of a function of the test's own, functions of `jax.random` as well.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
