"""Which device is where; that training on any mesh is the same is in test_compile.py."""

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from gen_jax import training


@dataclass(frozen=True)
class Chip:
    """What `make_mesh` looks at."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def chips(slices: int, each: int, per_process: int = 4) -> list[Chip]:
    return [Chip(i, i // each, i // per_process) for i in range(slices * each)]


def ids(mesh) -> np.ndarray:
    return np.vectorize(lambda device: device.id)(mesh.devices)


def shape(mesh) -> tuple[int, ...]:
    return tuple(mesh.shape.get(name, 1) for name in ("replica", "data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("options", "devices", "expected"),
    [
        ({}, chips(1, 8), (1, 8, 1, 1)),
        ({"shard": "fsdp"}, chips(1, 8), (1, 1, 8, 1)),
        ({"shard": "zero1"}, chips(1, 8), (1, 1, 8, 1)),
        ({"shard": "fsdp", "tensor": 2}, chips(1, 8), (1, 1, 4, 2)),
        ({"shard": "fsdp", "replicas": 4}, chips(1, 8), (4, 1, 2, 1)),
        ({"tensor": 4}, chips(1, 8), (1, 2, 1, 4)),
        ({"shard": "fsdp"}, chips(2, 16), (2, 1, 16, 1)),
        ({}, chips(2, 16), (2, 16, 1, 1)),
        ({"shard": "fsdp", "tensor": 2, "replicas": 4}, chips(2, 16), (4, 1, 4, 2)),
    ],
)
def test_make_mesh_has_every_device_once(options, devices, expected):
    mesh = training.make_mesh(**options, devices=devices)
    assert shape(mesh) == expected
    assert sorted(ids(mesh).ravel()) == list(range(len(devices)))


def test_make_mesh_keeps_a_replica_in_a_slice_and_tensor_in_a_process():
    mesh = training.make_mesh("fsdp", tensor=2, replicas=4, devices=chips(2, 16))
    for replica in mesh.devices:
        assert len({device.slice_index for device in replica.ravel()}) == 1
    for neighbours in mesh.devices.reshape(-1, 2):
        assert len({device.process_index for device in neighbours}) == 1


def test_make_mesh_is_of_all_devices_by_default():
    assert training.make_mesh().axis_names == ("data",)
    assert list(training.make_mesh().devices) == jax.devices()


@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        ({"tensor": 3}, chips(1, 8), "8 devices in 1 slices do not divide"),
        ({"replicas": 3}, chips(1, 8), "replicas must be a multiple of 1"),
        ({"replicas": 1}, chips(2, 4), "replicas must be a multiple of 2"),
        ({"tensor": 8}, chips(1, 8), r"tensor = 8 must divide the devices of each process"),
        ({"tensor": 0}, chips(1, 8), "tensor must be at least 1"),
        ({"shard": "zero"}, chips(1, 8), 'shard must be None, "zero1" or "fsdp"'),
    ],
)
def test_make_mesh_refuses(options, devices, message):
    with pytest.raises(ValueError, match=message):
        training.make_mesh(**options, devices=devices)
