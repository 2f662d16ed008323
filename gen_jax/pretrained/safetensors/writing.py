"""Safetensors files from arrays: the bytes that the package `safetensors` writes, one tensor in memory at a time.

writing.write("new.safetensors", {"weight": array})
writing.write("new.safetensors", arrays, max_shard_bytes=10 * 2**30)     # an index, and files of 10 GiB
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from jaxtyping import ArrayLike

from gen_jax import checks
from gen_jax.pretrained.safetensors import header
from gen_jax.pretrained.safetensors.header import Entry
from gen_jax.types import Count


@checks.checked
def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, ArrayLike],
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_bytes: Count | None = None,
) -> None:
    """Write a file, all of it or nothing: into a directory beside it, renamed when complete.

    One tensor at a time is fetched from its device, and `tensors` is asked twice for each, for its type and for its data:
    a Mapping that makes arrays when asked for them needs memory for one.

    Args:
        path: `x.safetensors`. A file that is there is replaced; arrays of it that were read before stay as they are.
        tensors: arrays by name. Those of JAX have to be addressable from this process.
        metadata: of the header; by default `{"format": "pt"}`, without which diffusers and transformers read no file.
        max_shard_bytes: write `x-00001-of-00002.safetensors` and so on, of at most so many bytes of tensors (a larger
            tensor has one of its own), and `x.safetensors.index.json`, as diffusers does. If one is enough, `path`.

    Raises:
        ValueError: a tensor has a name or a type that files can not have; or the index of shards that were written before
            would hide the new file.
    """
    path = Path(path).expanduser()
    metadata = {"format": "pt"} if metadata is None else dict(metadata)
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a file that ends with .safetensors as path, got {path}.")
    if not header.is_texts(metadata):
        raise ValueError(f"metadata must be strings by name, got {checks.came(metadata)}.")
    shards = _shards({name: _entry(name, tensors[name]) for name in tensors}, max_shard_bytes)
    count, index = len(shards), path.with_name(f"{path.name}.index.json")
    if count == 1 and index.exists():
        raise ValueError(f"{index} would hide the new file: remove it and its shards, or take another name.")
    names = [f"{path.stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    names = names if count > 1 else [path.name]
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=path.parent) as scratch:
        for name, shard in zip(names, shards, strict=True):
            _write_file(Path(scratch) / name, shard, tensors, metadata)
        if count > 1:
            _write_index(Path(scratch) / index.name, dict(zip(names, shards, strict=True)))
            names.append(
                index.name
            )  # the last: without it, shards that a crash leaves, new and old, are no model
            index.unlink(missing_ok=True)
        for name in names:
            os.replace(Path(scratch) / name, path.with_name(name))


def _entry(name: str, value: ArrayLike) -> Entry:
    """The type and shape of a tensor, at the beginning of a file."""
    if not isinstance(name, str) or name == header.METADATA:
        raise ValueError(f"a tensor can not have the name {name!r}.")
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        raise ValueError(
            f"tensor {name!r} is spread over the devices of several processes: gather it first, as with "
            "jax.experimental.multihost_utils.process_allgather."
        )
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    dtype = array.dtype.newbyteorder("=") if isinstance(array.dtype, np.dtype) else array.dtype
    if dtype not in header.NAMES:
        raise ValueError(
            f"tensor {name!r}: safetensors files have no {dtype}, but {', '.join(map(str, header.NAMES))}."
        )
    return Entry(dtype, array.shape, 0, math.prod(array.shape) * dtype.itemsize)


def _shards(entries: Mapping[str, Entry], most: int | None) -> list[dict[str, Entry]]:
    """What each file holds: as much as fits, in the order of `entries`, then sorted by type and name."""
    limit = math.inf if most is None else checks.whole("max_shard_bytes", most, "byte")
    shards: list[dict[str, Entry]] = []
    filled: dict[str, Entry] = {}
    size = 0
    for name, entry in entries.items():
        if entry.end > limit:
            shards.append({name: entry})
            continue
        if size + entry.end > limit:
            shards.append(filled)
            filled, size = {}, 0
        filled[name] = entry
        size += entry.end
    return [_placed(shard) for shard in ([*shards, filled] if filled or not shards else shards)]


def _placed(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Sorted, and one behind the other."""
    placed, at = {}, 0
    for name in sorted(entries, key=lambda name: (header.ORDER[entries[name].dtype], name)):
        size = entries[name].end
        placed[name] = entries[name]._replace(begin=at, end=at + size)
        at += size
    return placed


def _write_file(
    path: Path, entries: Mapping[str, Entry], tensors: Mapping[str, ArrayLike], metadata: Mapping[str, str]
) -> None:
    with path.open("xb") as file:
        file.write(header.text(entries, metadata))
        for name, entry in entries.items():
            _write_tensor(file, name, entry, tensors[name])  # all that it takes is forgotten before the next


def _write_tensor(file: BinaryIO, name: str, entry: Entry, value: ArrayLike) -> None:
    if _entry(name, value)[:2] != entry[:2]:
        raise ValueError(f"tensor {name!r} is of another type or shape each time it is asked for.")
    data = np.ascontiguousarray(on_host(value), entry.dtype)
    file.write(data.reshape(-1).view(np.uint8).data)


def on_host(value: ArrayLike) -> np.ndarray:
    """`np.asarray`, which for an array of JAX keeps its copy as long as the array lives: here it is of the pieces."""
    if not isinstance(value, jax.Array):
        return np.asarray(value)
    if value.is_fully_replicated:
        return np.asarray(value.addressable_data(0))
    whole = np.empty(value.shape, value.dtype)
    places = value.sharding.addressable_devices_indices_map(value.shape)
    for i in range(len(places)):
        piece = value.addressable_data(i)
        (device,) = piece.devices()
        whole[places[device]] = np.asarray(piece)
    return whole


def _write_index(path: Path, shards: Mapping[str, Mapping[str, Entry]]) -> None:
    index = {
        "metadata": {"total_size": sum(map(_size, shards.values()))},
        "weight_map": {name: file for file, entries in shards.items() for name in entries},
    }
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _size(entries: Mapping[str, Entry]) -> int:
    """In bytes."""
    return sum(entry.end - entry.begin for entry in entries.values())
