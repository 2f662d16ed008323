"""The devices of a run, in an order in which those that talk most are neighbours."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

from gen_jax import checks
from gen_jax.keys import AXIS
from gen_jax.training.layout import check_shard
from gen_jax.types import Count, Shard


@checks.checked
def make_mesh(
    shard: Shard | None = None,
    *,
    tensor: Count = 1,
    replicas: Count | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """All devices on the axes "replica", "data", "fsdp" and "tensor"; on "data" alone where the others have length 1.

    A batch is split over the first three, parameters over the last two (`Layout`).

    Args:
        shard: the devices of a replica are on "data", with "zero1" or "fsdp" on "fsdp".
        tensor: how many devices, neighbours of one process, share heads and channels of an example.
        replicas: in how many parts the devices are, each with all parameters: then only gradients go from one to another.
            Default: each slice of TPUs is one (`Device.slice_index`), whose chips have faster links than slices have.
        devices: default all of them.

    Raises:
        ValueError: the devices do not divide into these parts.
    """
    check_shard(shard)
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    replicas = slices if replicas is None else replicas
    if replicas % slices or len(devices) % (replicas * tensor):
        raise ValueError(
            f"{len(devices)} devices in {slices} slices do not divide into {replicas} replicas of a multiple of {tensor} "
            f"devices: replicas must be a multiple of {slices}, and replicas times tensor a divisor of {len(devices)}."
        )
    if len(devices) // len({device.process_index for device in devices}) % tensor:
        raise ValueError(
            f"tensor = {tensor} must divide the devices of each process, which has a part of the batch."
        )
    each = len(devices) // (replicas * tensor)
    if shard is None and replicas == tensor == 1:
        return Mesh(np.array(devices), (AXIS,))
    inner = (replicas // slices, *((each, 1) if shard is None else (1, each)), tensor)
    if slices > 1:
        found = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1, 1), devices)
    else:
        found = mesh_utils.create_device_mesh(inner, devices)
    return Mesh(found, ("replica", AXIS, "fsdp", "tensor"))
