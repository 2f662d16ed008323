"""Tensors of a file, of an index of shards, or of a folder: which files, and their arrays.

tensors = reading.read("unet", variant="fp16")
tensors["conv_in.weight"]                      # of the file's own memory
"""

import mmap
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from gen_jax import checks, small_files
from gen_jax.pretrained.safetensors import header

NO_HEADER = "is no safetensors file, or cut off"
"""What is said of a file without the header of one."""
PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
_MODEL = re.compile(r"(?P<stem>.+)\.safetensors(?P<index>\.index(?P<variant>\.[^.]+)?\.json)?")
_SHARD = re.compile(r".+-\d{5,}-of-\d{5,}(\.[^.]+)?\.safetensors")
_BESIDE = re.compile(r"[^/\\:\0]+\.safetensors")


@checks.checked
@dataclass(frozen=True, eq=False, repr=False)
class Tensors(Mapping[str, np.ndarray]):
    """Read-only arrays by name, each made when it is asked for, of the file's own memory.

    What was read of the file counts as memory of this process until the array is forgotten. The files must not be
    changed while arrays are in use (`write` replaces a file, which is safe).
    """

    path: Path
    """The file or the index that was read."""
    metadata: Mapping[str, str]
    """Of the header; of shards, those of all headers, and the first one's where they differ."""
    entries: Mapping[str, header.Entry]
    """The type and the place of each, from the header."""
    files: Mapping[str, np.ndarray]
    """For each the mapped data of the file that it is in, as bytes."""

    def __getitem__(self, name: str) -> np.ndarray:
        entry, data = self.entries[name], self.files[name]
        array = data[entry.begin : entry.end].view(entry.dtype).reshape(entry.shape)
        weakref.finalize(array, _give_back, data[entry.begin : entry.end]).atexit = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        size = sum(entry.end - entry.begin for entry in self.entries.values())
        return f"Tensors({len(self):,} of {size:,} bytes in {os.fspath(self.path)!r})"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """By name, without touching the data."""
        return MappingProxyType({name: entry.shape for name, entry in self.entries.items()})

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        """By name, without touching the data; bfloat16 and float8 are those of JAX."""
        return MappingProxyType({name: entry.dtype for name, entry in self.entries.items()})


@checks.checked
def read(path: str | os.PathLike[str], *, variant: str | None = None) -> Tensors:
    """The tensors of a file, of an index of shards, or of a folder that has one of them.

    Args:
        path: `x.safetensors`, or `x.safetensors.index.json` with its shards beside it, or a folder with one model, of
            which an index is taken before a file.
        variant: which of several in a folder: "fp16" takes `x.fp16.safetensors`. By default the one without, or the only
            one there is.

    Raises:
        ValueError: there is no such file, or none or several in the folder; or a file is pickled (`.ckpt`, `.bin`),
            damaged or hostile. Its header is checked in full here, against the size of the file, before anything is
            allocated.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _choose(path, variant)
    elif variant is not None:
        raise ValueError(f"a variant is of a folder, and {path} is none: name the file alone, or the folder.")
    return _read_shards(path) if path.suffix == ".json" else _read_file(path)


def _choose(folder: Path, variant: str | None) -> Path:
    """The index or the file of the one model in a folder."""
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    models: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name.endswith(".json")):  # an index takes the place of a file
        if (match := _MODEL.fullmatch(name)) and not _SHARD.fullmatch(name):
            models[match["stem"] + (match["variant"] or "")] = name
    if variant is None:
        chosen = [stem for stem in models if stem.rpartition(".")[0] not in models]
    else:
        chosen = [stem for stem in models if stem.endswith(f".{variant}")]
    if len(chosen) == 1:
        return folder / models[chosen[0]]
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled and not models:
        raise ValueError(_pickled(folder / pickled[0]))
    one = "one model" if variant is None else f"one model of the variant {variant!r}"
    raise ValueError(
        f"expected {one} in {folder}: a .safetensors file, or the .safetensors.index.json of shards; got "
        f"{header.short(models[stem] for stem in chosen) if chosen else header.short(names)}. Name the file itself."
    )


def _read_shards(index: Path) -> Tensors:
    """All that an index names, each in the file that it says, and nothing else in those files."""
    files: dict[str, set[str]] = {}
    for name, file in _weight_map(index).items():
        files.setdefault(file, set()).add(name)
    shards = [_read_shard(index, file, names) for file, names in sorted(files.items())]
    return Tensors(
        index,
        MappingProxyType({name: text for shard in reversed(shards) for name, text in shard.metadata.items()}),
        MappingProxyType({name: entry for shard in shards for name, entry in shard.entries.items()}),
        MappingProxyType({name: data for shard in shards for name, data in shard.files.items()}),
    )


def _weight_map(index: Path) -> dict[str, str]:
    found = small_files.json_of(index, "the index of shards").get("weight_map")
    if not header.is_texts(found) or not found:
        raise ValueError(f'{index} is no index of shards: expected "weight_map", names of files by tensors.')
    return found


def _read_shard(index: Path, file: str, names: set[str]) -> Tensors:
    if file.endswith(PICKLED):
        raise ValueError(_pickled(index))
    if not _BESIDE.fullmatch(file):
        raise ValueError(f"{index} names {file[:100]!r}: expected .safetensors files of its own folder.")
    if not (index.parent / file).is_file():
        raise ValueError(f"{index} names {file[:100]!r}, which is not there: download it too.")
    shard = _read_file(index.parent / file)
    if missing := names - set(shard):
        raise ValueError(f"{shard.path} has no {header.short(missing)}, which {index.name} says is in it.")
    if others := set(shard) - names:
        raise ValueError(
            f"{shard.path} has {header.short(others)}, which {index.name} does not say is in it."
        )
    return shard


def _read_file(path: Path) -> Tensors:
    if path.suffix in PICKLED:
        raise ValueError(_pickled(path))
    if not path.is_file():  # to open a pipe would be to wait
        raise ValueError(
            f"expected a .safetensors file, an index or a folder, there is none at {path}: give another path."
        )
    with small_files.named(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(path, file.read(9), size)
        file.seek(8)
        try:
            entries, metadata = header.parse(file.read(length), size - 8 - length)
        except ValueError as error:
            raise ValueError(f"{path} is no sound safetensors file: {str(error).rstrip('.')}.") from None
        data = np.memmap(file, np.uint8, "r", shape=(size,))[8 + length :]
    files = MappingProxyType(dict.fromkeys(entries, data))
    return Tensors(path, MappingProxyType(metadata), MappingProxyType(entries), files)


def _give_back(data: np.ndarray) -> None:
    """Let the system take the pages of a mapped file; a view that still uses them reads them again."""
    mapped = getattr(data, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mapped, "madvise") and data.size:
        start = data.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
        first = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, start + data.size - first)


def _header_length(path: Path, first: bytes, size: int) -> int:
    """In bytes, from the first nine bytes of a file."""
    length = int.from_bytes(first[:8], "little")
    if len(first) == 9 and length <= min(small_files.MOST_BYTES, size - 8) and first[8:] == b"{":
        return length
    if first.startswith(b"PK\x03\x04") or (
        first[:1] == b"\x80" and first[1:2] in (b"\2", b"\3", b"\4", b"\5")
    ):
        raise ValueError(_pickled(path))
    if first.startswith(b"version "):
        raise ValueError(
            f"{path} is a pointer of Git LFS in place of a file: fetch it, as by `git lfs pull`."
        )
    if len(first) == 9 and first[8:] == b"{":
        raise ValueError(
            f"{path} {NO_HEADER}: it says that its header has {length:,} bytes (at most {small_files.MOST_BYTES:,}), and "
            f"the file has {size:,}."
        )
    raise ValueError(
        f"{path} {NO_HEADER}: expected the length of its header in 8 bytes, and then '{{'; got {first!r} at its "
        f"beginning, of {size:,} bytes."
    )


def _pickled(path: Path) -> str:
    return (
        f"{path} is pickled: to read it is to run what its maker wrote, so gen_jax reads no such file. Often there is a "
        ".safetensors file beside it. Else convert it, on a machine with torch that trusts the file: of diffusers, "
        "StableDiffusionPipeline.from_single_file(file) or DiffusionPipeline.from_pretrained(folder), and then "
        ".save_pretrained(new_folder); tensors alone by safetensors.torch.save_file(torch.load(file, weights_only=True), "
        "new_file)."
    )
