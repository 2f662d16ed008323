"""Arrays in files: `.npy`, and `.npz` with the arrays "image" and perhaps "label" and "text", or a single one."""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from gen_jax import checks
from gen_jax.data import splits
from gen_jax.data.cache import VERIFIED
from gen_jax.data.columns import label_hint, warn_of_labels
from gen_jax.data.images import check_channels, to_pixels
from gen_jax.data.protocol import Arrays, Info, Source
from gen_jax.data.sources.request import Request


@runtime_checkable
class Readable(Protocol):
    """A file, or a member of an archive."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""


class Stored(NamedTuple):
    """An array in a file, of which only the header has been read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]  # memory-mapped where the file is not compressed


def find(request: Request) -> Source | None:
    """The arrays of a file, where the name ends in .npy or .npz. There is one split, "train".

    Images are [N, H, W] or [N, H, W, C], labels integers [N], captions strings [N]. `ValueError` where there is no such
    file, where it is damaged, or where its arrays are not these.
    """
    path = Path(request.name).expanduser()
    if path.suffix.lower() not in (".npy", ".npz"):
        return None
    with _naming(path):
        if not path.is_file():  # to open a pipe would be to wait
            raise FileNotFoundError("there is no such file")
        arrays = _npz(path) if path.suffix.lower() == ".npz" else {"image": _npy(path)}
    arrays = _choose(path, arrays)
    sizes = {"train": arrays["image"].shape[0]}
    rows = [part for _, part in splits.select(request.name, request.split, sizes)]
    labels = _take(arrays["label"].read(), rows) if "label" in arrays else None
    height, width, channels = (*arrays["image"].shape[1:], 1)[:3]
    info = Info(
        name=request.name,
        num_examples=sum(part.stop - part.start for part in rows),
        image_shape=(height, width, channels),
        num_classes=None if labels is None else int(labels.max()) + 1,
        has_text="text" in arrays,
    )
    return Arrays(lambda: _read(request.name, arrays, rows), info)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of reading a file as a `ValueError` that names it."""
    try:
        yield
    except Exception as error:  # zipfile, zlib, lzma and numpy's parser raise errors of every kind
        raise ValueError(
            f"the file {path.absolute()} can not be read: {str(error)[:500] or type(error).__name__}. Expected one of "
            "numpy.save or numpy.savez."
        ) from None


def _read(name: str, arrays: dict[str, Stored], rows: list[slice]) -> dict[str, np.ndarray]:
    columns = {key: _take(array.read(), rows) for key, array in arrays.items()}
    image = to_pixels(name, columns["image"], "before they are saved")
    columns["image"] = image[..., None] if image.ndim == 3 else image
    if "label" in columns:
        checks.as_it_is(f"the labels of {name}", columns["label"])
        columns["label"] = columns["label"].astype(np.int32)
    return columns


def _take(array: np.ndarray, rows: list[slice]) -> np.ndarray:
    return array[rows[0]] if len(rows) == 1 else np.concatenate([array[part] for part in rows])


def _choose(path: Path, arrays: dict[str, Stored]) -> dict[str, Stored]:
    """The image, the label and the caption among the arrays of a file."""
    if "image" not in arrays and len(arrays) == 1:
        arrays = {"image": next(iter(arrays.values()))}
    listed = ", ".join(f'"{key}" {array.dtype} {array.shape}' for key, array in arrays.items())
    image = arrays.get("image")
    if image is None or len(image.shape) not in (3, 4) or image.dtype.kind not in "buif":
        raise ValueError(
            f'expected in {path} an array of numbers "image" [N, H, W, C] or [N, H, W], or such a single array; '
            f"got {listed or 'nothing'}."
        )
    check_channels(f"{path}", image.shape[1:])
    chosen: dict[str, Stored] = {key: arrays[key] for key in ("image", "label", "text") if key in arrays}
    kinds = {"label": "iu", "text": "U"}
    if any(
        chosen[key].shape != image.shape[:1] or chosen[key].dtype.kind not in kinds[key]
        for key in chosen
        if key != "image"
    ):
        raise ValueError(
            f'expected in {path} "label" as integers [N] and "text" as strings [N] for N images, got {listed}'
            f"{label_hint(chosen['label']) if 'label' in chosen else ''}."
        )
    warn_of_labels(f"{path}", arrays)
    return chosen


def _npy(path: Path) -> Stored:
    with path.open("rb") as file:
        shape, _, dtype = _header(file)
        _check_size(shape, dtype, path.stat().st_size - file.tell())

    def map_() -> np.ndarray:
        with _naming(path):
            return np.load(path, mmap_mode="r", allow_pickle=False)

    return Stored(shape, dtype, map_)


def _npz(path: Path) -> dict[str, Stored]:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        return {member.filename.removesuffix(".npy"): _member(path, archive, member) for member in members}


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Stored:
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        length = file.tell()
    _check_size(shape, dtype, member.file_size - length)

    def unpack() -> np.ndarray:
        with _naming(path), np.load(path, allow_pickle=False) as arrays:
            return arrays[member.filename.removesuffix(".npy")]

    def map_() -> np.ndarray:
        with _naming(path):
            # the local header of a member: 30 bytes, its name and an extra field
            with path.open("rb") as raw:
                raw.seek(member.header_offset + 26)
                name, extra = np.frombuffer(raw.read(4), "<u2").tolist()
            begin = member.header_offset + 30 + name + extra
            if member.file_size <= VERIFIED:
                whole = np.memmap(path, np.uint8, "r", begin, (member.file_size,))
                if zlib.crc32(whole.data) != member.CRC:
                    raise ValueError(f"{member.filename} in it does not match its checksum")
            return np.memmap(path, dtype, "r", begin + length, shape, "F" if fortran else "C")

    return Stored(shape, dtype, map_ if member.compress_type == zipfile.ZIP_STORED else unpack)


def _check_size(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """ValueError unless so many bytes hold the array, before anything is made for it."""
    if min(shape, default=0) < 0 or (not dtype.hasobject and math.prod(shape) * dtype.itemsize != size):
        raise ValueError(f"its header says {dtype} {shape}, and {size:,} bytes follow")


def _header(file: Readable) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
