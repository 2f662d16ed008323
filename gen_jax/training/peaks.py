"""What devices can do: operations a second of the dense matrix products that they are fastest at."""

import functools
import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gen_jax import checks

TPUS = {
    "TPU v2": 46e12 / 2,
    "TPU v3": 123e12 / 2,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
}
"""FLOP/s of a device in bfloat16. A device is a chip, and of v2, v3 and 7x half of one.

Sources: Jouppi et al. 2020 ("A domain-specific supercomputer for training deep neural networks") for v2; then
cloud.google.com/tpu/docs/v3, v4, v5e, v5p, v6e, tpu7x.
"""

GPUS = {
    "V100": 125e12,
    "V100 PCIE": 112e12,
    "T4": 65e12,
    "A10G": 70e12,
    "A100": 312e12,
    "L4": 121e12,
    "L40S": 362e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
"""The same of GPUs, by words of their names: tensor cores in bfloat16 without sparsity. V100 and T4 have no bfloat16:
theirs are in float16. Source: NVIDIA's data sheets, which give most of them with sparsity, twice as much."""


@checks.checked
def peak(devices: Sequence[jax.Device]) -> float | None:
    """FLOP/s that these devices can do together, in bfloat16 by their makers' tables; None where one is not in them.

    Of CPUs it is what a product in float32 reaches on all cores, for each process that has some of the devices. It is
    measured once in a process, in a twentieth of a second.
    """
    if all(device.platform == "cpu" for device in devices):
        return _measured() * len({device.process_index for device in devices})
    each = [_of_kind(device.device_kind) for device in devices]
    return None if None in each else sum(x for x in each if x is not None)


def _of_kind(kind: str) -> float | None:
    """By the whole name of a TPU, and the words of a GPU's; a part of one (MIG) is not known."""
    if kind.startswith("TPU"):
        return TPUS.get(kind)
    words = set(re.split(r"[\s-]+", kind))
    known = [name for name in GPUS if set(name.split()) <= words]
    return GPUS[max(known, key=len)] if known and "MIG" not in words else None


@functools.cache
def _measured(size: int = 768, seconds: float = 0.05) -> float:
    """FLOP/s of the fastest product of two matrices among those that are done in so many seconds."""
    x = jax.device_put(jnp.ones((size, size)), jax.local_devices(backend="cpu")[0])
    product, best = jax.jit(jnp.dot).lower(x, x).compile(), float("inf")
    jax.block_until_ready(product(x, x))
    until = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < until:
        jax.block_until_ready(product(x, x))
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
