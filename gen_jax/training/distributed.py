"""Several processes: how they join at the start and agree on when to stop. Several devices on one CPU."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gen_jax import checks
from gen_jax.training.layout import check_shard
from gen_jax.training.partners import HEARTBEAT
from gen_jax.types import Count, Shard

_Handler = Callable[[int, FrameType | None], object] | int | None
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_distributed() -> None:
    """Join the other processes of the run, if there are any; call it before anything touches a device.

    Several processes are recognised by the three variables `JAX_COORDINATOR_ADDRESS` (host:port of process
    0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or by a cluster that JAX detects itself (slices of Cloud TPUs, GKE,
    SLURM, Open MPI). Where one of them dies, JAX ends the others within some `partners.HEARTBEAT` seconds;
    within `fit` they end sooner. Does nothing in a single process or when called again. Raises ValueError when
    only some of the variables are set, and where the processes of a cluster do not find each other.
    """
    if jax.distributed.is_initialized():
        return
    present = [name for name in VARIABLES if name in os.environ]
    if present and len(present) < len(VARIABLES):
        missing = [name for name in VARIABLES if name not in os.environ]
        raise ValueError(
            f"to run several processes set all of {', '.join(VARIABLES)}; missing: {', '.join(missing)}"
        )
    if present:
        address, count, index = (os.environ[name] for name in VARIABLES)
        jax.distributed.initialize(
            address,
            int(count),
            int(index),
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    elif (kind := cluster()) is not None:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"this is {kind}, but its processes did not find each other: {error}\n"
                f"Set {', '.join(VARIABLES)} in each of them; or TPU_SKIP_MDS_QUERY=1 on a TPU VM that is alone."
            ) from error


@checks.checked
def split_cpu_devices(batch_size: Count = 2) -> None:
    """Make two devices of one CPU, which share a batch of an even size; call it before anything touches a device.

    XLA runs a convolution of up to 64 channels on one core (jaxlib 0.10); two devices run two of them at once. Does
    nothing with one core, in one of several processes, or where `JAX_NUM_CPU_DEVICES` or an XLA flag sets the number of
    devices. Where there is a GPU or a TPU, JAX uses that as before.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    said = jax.config.values["jax_num_cpu_devices"] > 0 or "host_platform_device_count" in flags
    if said or batch_size % 2 or (os.cpu_count() or 1) < 2 or jax.distributed.is_initialized():
        return
    with contextlib.suppress(RuntimeError):  # devices are in use already
        jax.config.update("jax_num_cpu_devices", 2)


@checks.checked
def default_parallel(
    shard: Shard | None = None, mesh: jax.sharding.Mesh | None = None
) -> Literal["jit", "pmap"]:
    """What is faster: `"pmap"` over several devices of one CPU, else `"jit"`."""
    check_shard(shard)
    devices = jax.devices() if mesh is None else [*mesh.devices.flat]
    of_one = devices[0].platform == "cpu" and jax.process_count() == 1 and len(devices) > 1
    return "pmap" if of_one and shard is None and (mesh is None or len(mesh.axis_names) == 1) else "jit"


def cluster() -> str | None:
    """What says that there may be other processes, as far as that is known without asking anyone; None: nothing does."""
    told = os.environ.get
    if any(name in os.environ for name in VARIABLES):
        return VARIABLES[0]
    if int(told("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in os.environ:
        return "SLURM"
    if int(told("OMPI_COMM_WORLD_SIZE") or 1) > 1:
        return "Open MPI"
    if int(told("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "slices of TPUs"
    if any("," in told(name, "") for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")):
        return "a slice of TPUs"
    # JAX has looked for TPUs on the PCI bus when it was imported, and left the first variable where there are any. One
    # host cannot be told from a part of a slice: its metadata server can, which the second one forbids to ask.
    asks = "TPU_ML_PLATFORM" in os.environ and "TPU_SKIP_MDS_QUERY" not in os.environ
    return "a TPU VM" if asks else None


class StopRequest:
    """SIGTERM and SIGINT remembered instead of obeyed, so that the run can save first. A context manager.

    A second signal is obeyed at once. Outside the main thread, where Python allows no handlers, it never
    fires.
    """

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, _Handler] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()


@checks.checked
def on_host(tree: PyTree) -> PyTree:
    """The arrays of a tree in the memory of this process, whole, however they are split; every process must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(tree, tiled=True)


@checks.checked
def wait_for_all() -> None:
    """Wait until every process of the run is here, so that all see what process 0 wrote; at once where there is one."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("all are here")


def agreement(mesh: jax.sharding.Mesh) -> Callable[[int | None], int | jax.Array]:
    """`ask(signal) -> array`: the largest signal number of any process, 0 for none, without waiting for it.

    Every process must ask equally often, and reads the same answer, so all stop after the same step.
    """
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    largest = jax.jit(jnp.max, out_shardings=replicated)
    local = mesh.local_mesh.devices.size

    def ask(number: int | None) -> int | jax.Array:
        number = 0 if number is None else number
        if jax.process_count() == 1:
            return number
        return largest(jax.make_array_from_process_local_data(sharding, np.full(local, number, np.int32)))

    return ask
