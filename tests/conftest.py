"""Eight CPU devices, strict promotion, no silent NaN, and every jaxtyping annotation checked by beartype.

Nearly all time here is that of compilers, so programs are compiled quickly and not to run quickly, as in JAX's own
tests. `JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest` compiles them as users do, for the same results in twice the time.
"""

import atexit
import os
import shutil
import tempfile

import jaxlib.version

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and jaxlib.version.__version_info__ < (0, 11):
    flags += ["--xla_cpu_use_fusion_emitters=false"]  # XLA ends the process at a flag that is no more
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # all processes of this run share what one has compiled
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gen_jax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from jaxtyping import install_import_hook

install_import_hook("gen_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_nans", True)

LONGEST = ("test_experiments.py", "test_processes.py", "test_em.py", "test_loop.py", "test_compile.py")
"""Files that begin first, so that no worker is left with one of them in the end."""


def pytest_collection_modifyitems(items):
    """The longest files first; all else stays in order."""
    place = lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST)
    items.sort(key=place)
