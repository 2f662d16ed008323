"""Safetensors files as the format says they are, byte by byte, for tests of what reads and writes them."""

import json

import ml_dtypes
import numpy as np

TYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz, "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def framed(header, data=b""):
    """A file of a header, a dictionary or what stands for one, and of data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parts(file):
    """`(header as a dictionary, data)` of the bytes of a file."""
    start = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:start]), file[start:]


def arrays(file):
    """The arrays by name in the bytes of a file."""
    header, data = parts(file)
    header.pop("__metadata__", None)
    array = lambda dtype, a, b: np.frombuffer(data[a:b], TYPES[dtype])
    return {name: array(e["dtype"], *e["data_offsets"]).reshape(e["shape"]) for name, e in header.items()}


def same(a, b):
    """Whether arrays have the same type, shape and bytes."""
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
