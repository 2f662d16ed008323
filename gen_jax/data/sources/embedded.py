"""MNIST as it comes with the package: four gzipped IDX files, verified each time they are read."""

import gzip
import hashlib
import struct
import zlib
from importlib.resources import files
from importlib.resources.abc import Traversable

import numpy as np

from gen_jax.data import splits
from gen_jax.data.protocol import Arrays, Info, Source
from gen_jax.data.sources.request import Request

SIZES = {"train": 60_000, "test": 10_000}

_FILES = {  # split -> key -> (file, sha256 of its unzipped contents)
    "train": {
        "image": (
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        "label": (
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    },
    "test": {
        "image": (
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        "label": (
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    },
}


def find(request: Request) -> Source | None:
    """MNIST, where "mnist" is asked for and no directory of TFDS sets."""
    if request.name.lower() != "mnist" or request.data_dir is not None:
        return None
    rows = splits.select("mnist", request.split, SIZES)
    count = sum(part.stop - part.start for _, part in rows)
    return Arrays(lambda: mnist(request.split), Info("mnist", count, (28, 28, 1), 10))


def mnist(split: str, root: Traversable | None = None) -> dict[str, np.ndarray]:
    """One split of MNIST: `{"image": uint8 [N, 28, 28, 1], "label": int32 [N]}`.

    `split` is "train" (60,000), "test" (10,000), or a slice or sum of these ("train[:10%]", "train+test"). `root` is
    the directory of the files, by default the one in the package. `ValueError` for a file that is missing, damaged
    or not the original, and for a split that does not exist.
    """
    root = files("gen_jax.data").joinpath("mnist") if root is None else root
    parts = [(_read(root, name), rows) for name, rows in splits.select("mnist", split, SIZES)]
    arrays = {key: np.concatenate([a[key][rows] for a, rows in parts]) for key in ("image", "label")}
    return {"image": arrays["image"][..., None], "label": arrays["label"].astype(np.int32)}


def parse_idx(raw: bytes) -> np.ndarray:
    """The array in an IDX file of unsigned bytes: 0, 0, 8 (the type), rank, big-endian sizes, data."""
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ValueError(f"expected an IDX file of unsigned bytes, got one that begins with {raw[:4]!r}")
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    data = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if data.size != np.prod(shape):
        raise ValueError(f"expected {np.prod(shape)} bytes of data for the shape {shape}, got {data.size}")
    return data.reshape(shape)


def _read(root: Traversable, split: str) -> dict[str, np.ndarray]:
    return {key: parse_idx(_verified(root, *entry)) for key, entry in _FILES[split].items()}


def _verified(root: Traversable, name: str, sha256: str) -> bytes:
    path = root.joinpath(name + ".gz")
    try:
        raw = gzip.decompress(path.read_bytes())
        found = hashlib.sha256(raw).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raw, found = b"", f"{type(error).__name__}: {error}"
    if found != sha256:
        raise ValueError(
            f"{path} is damaged: expected a gzip file whose contents have the sha256 {sha256}, got {found}. "
            "Install the package again: pip install --force-reinstall --no-deps gen-jax (or `git checkout` "
            "the file)."
        )
    return raw
