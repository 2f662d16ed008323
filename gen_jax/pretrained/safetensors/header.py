"""The header of a safetensors file: which tensors the file holds, of what type, and where.

entries, metadata = header.parse(raw, length=data_bytes)   # sound in full: each byte of the data is of one tensor
entries["conv_in.weight"].dtype, entries["conv_in.weight"].shape
begin = header.text(entries, metadata)                     # bytes to begin a file with

A header may be hostile. So nothing is allocated by what it says: its numbers are compared with the size of the file, and
its JSON is read within bounds (`gen_jax.small_files`).
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np

from gen_jax import checks, small_files

MOST_AXES = 64
"""Of an array, as in NumPy."""
METADATA = "__metadata__"
TYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "U64": np.uint64,
        "I64": np.int64,
        "F64": np.float64,
        "C64": np.complex64,
        "F32": np.float32,
        "U32": np.uint32,
        "I32": np.int32,
        "BF16": jnp.bfloat16,
        "F16": np.float16,
        "U16": np.uint16,
        "I16": np.int16,
        "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
        "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
        "F8_E8M0": jnp.float8_e8m0fnu,
        "F8_E4M3": jnp.float8_e4m3fn,
        "F8_E5M2": jnp.float8_e5m2,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
"""Those of whole bytes, in the order in which the package writes tensors. Little-endian."""
NAMES = {dtype: name for name, dtype in TYPES.items()}
ORDER = {dtype: i for i, dtype in enumerate(TYPES.values())}
OF_LESS_THAN_A_BYTE = ("F4", "F6_E2M3", "F6_E3M2")


class Entry(NamedTuple):
    """A tensor: its bytes are `data[begin:end]`, in row-major order."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def parse(raw: bytes, length: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors by name, and the metadata.

    Args:
        raw: the header, JSON and spaces.
        length: of the data behind it, in bytes.

    Raises:
        ValueError: what it says is not sound. That it is so means that the tensors, sorted by `begin`, follow each other
            without a hole or an overlap from 0 to `length`, each as long as its type and shape say.
    """
    if raw[:1] != b"{":
        raise ValueError(f"a header begins with '{{', got {raw[:8]!r}")
    found = small_files.json_object(small_files.decoded(raw))
    metadata = found.pop(METADATA, {})
    if not is_texts(metadata):
        raise ValueError(f"{METADATA} has to be an object of strings, got {_came(metadata)}")
    entries = {name: _entry(name, value) for name, value in found.items()}
    _check_places(entries, length)
    return entries, metadata


def text(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The first bytes of a file: the length of the header, the header, and spaces up to a multiple of 8 bytes.

    ValueError where `parse` would not read it.
    """
    rows = {
        name: {"dtype": NAMES[e.dtype], "shape": e.shape, "data_offsets": (e.begin, e.end)}
        for name, e in entries.items()
    }
    found = json.dumps({METADATA: dict(metadata), **rows}, ensure_ascii=False, separators=(",", ":"))
    raw = found.encode()
    raw += b" " * (-len(raw) % 8)
    if small_files.is_too_large(found) or len(raw) > small_files.MOST_BYTES:
        raise ValueError(f"too much for a header: {len(entries):,} tensors, {len(raw):,} bytes. Take shards.")
    return len(raw).to_bytes(8, "little") + raw


def is_texts(value: object) -> TypeGuard[dict[str, str]]:
    """Whether `value` is a dictionary of strings by strings."""
    return isinstance(value, dict) and all(isinstance(x, str) for pair in value.items() for x in pair)


def short(names: Iterable[str]) -> str:
    """The first of some names and how many more, for messages."""
    first, *more = sorted(names) or [""]
    return f"{first[:100]!r}" + (f" and {len(more):,} more" if more else "")


def _came(value: object) -> str:
    return f"an object of {short(value)}" if isinstance(value, dict) else checks.came(value)


def _entry(name: str, found: object) -> Entry:
    what = f"tensor {short([name])}"
    if not isinstance(found, dict) or set(found) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{what}: expected its dtype, shape and data_offsets, got {_came(found)}")
    kind, shape, offsets = found["dtype"], found["shape"], found["data_offsets"]
    if kind in OF_LESS_THAN_A_BYTE:
        raise ValueError(f"{what} is of the type {kind}, of less than a byte, which gen_jax does not read")
    if not isinstance(kind, str) or kind not in TYPES:
        raise ValueError(f"{what}: expected a dtype of {', '.join(TYPES)}, got {checks.came(kind)}")
    if not _are_sizes(shape) or len(shape) > MOST_AXES:
        raise ValueError(f"{what}: expected a shape of at most {MOST_AXES} sizes, got {checks.came(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{what}: expected data_offsets [begin, end], got {checks.came(offsets)}")
    (begin, end), dtype = offsets, TYPES[kind]
    if (most := math.prod(n or 1 for n in shape) * dtype.itemsize) >= 2**63:
        raise ValueError(f"{what}: no array can have the shape {tuple(shape)}")
    if end - begin != (size := 0 if 0 in shape else most):
        raise ValueError(f"{what}: {kind} {tuple(shape)} takes {size:,} bytes, its place has {end - begin:,}")
    return Entry(dtype, tuple(shape), begin, end)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_places(entries: Mapping[str, Entry], length: int) -> None:
    at = 0
    for name, e in sorted(entries.items(), key=lambda item: item[1][2:]):
        if e.begin != at:
            problem = "overlaps the tensor before it" if e.begin < at else "leaves a hole before it"
            raise ValueError(f"tensor {short([name])} {problem}: it begins at {e.begin:,} in place of {at:,}")
        at = e.end
    if at != length:
        problem = "it is cut off" if at > length else "there is something behind them"
        raise ValueError(f"its tensors take {at:,} bytes and the file has {length:,} for them: {problem}")
