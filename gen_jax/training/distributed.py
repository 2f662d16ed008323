"""Several processes: how they join at the start and agree on when to stop. Several devices on one CPU."""

import contextlib
import importlib.util
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from gen_jax import checks
from gen_jax.training.partners import HEARTBEAT
from gen_jax.types import Count

_Handler = Callable[[int, FrameType | None], object] | int | None
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_distributed() -> None:
    """Join the other processes of the run, if there are any; call it before anything touches a device.

    Several processes are recognised by the three variables `JAX_COORDINATOR_ADDRESS` (host:port of process
    0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or by a cluster that JAX detects itself (Cloud TPU pod,
    SLURM, Open MPI, GKE). Where one of them dies, JAX ends the others within some `partners.HEARTBEAT` seconds;
    within `fit` they end sooner. Does nothing in a single process or when called again. Raises ValueError when
    only some of the variables are set.
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
    elif _in_cluster():
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)


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
def default_parallel(fsdp: bool = False, mesh: jax.sharding.Mesh | None = None) -> Literal["jit", "pmap"]:
    """What is faster: `"pmap"` over several devices of one CPU, where `"jit"` moves activations; else `"jit"`."""
    devices = jax.devices() if mesh is None else [*mesh.devices.flat]
    of_one = devices[0].platform == "cpu" and jax.process_count() == 1 and len(devices) > 1
    return "pmap" if of_one and not fsdp and (mesh is None or len(mesh.axis_names) == 1) else "jit"


def _in_cluster() -> bool:
    """Whether there may be other processes, from what JAX's own detection reads, without its slow queries."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        return True
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "," in os.environ.get(
        "TPU_PROCESS_ADDRESSES", ""
    ):
        return True
    on_tpu_vm = any(Path("/dev").glob("accel[0-9]*")) and importlib.util.find_spec("libtpu") is not None
    return (
        on_tpu_vm and "TPU_SKIP_MDS_QUERY" not in os.environ
    )  # a slice of a pod cannot be told from one host here


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
