"""Many samples in files, drawn by all processes of a run, as they come; and how they are read again.

    generate.write(model, weights, jax.random.key(0), 50_000, "samples")
    for images in generate.read("samples"):                 # one file after the other
        ...
    metrics.frechet_distance(real, generate.moments("samples", features))

    samples/index.json                      what they are: how many, key, plan, guidance, checksums of model and weights
    samples/samples-00007-of-00050.npy      uint8 [1000, H, W, C]
    samples/labels-00007-of-00050.npy       of a model with labels
    samples/shard-00007-of-00050.json       checksums of the two, written last: the shard is complete

A run that was killed goes on by the same call: shards that are complete and whole are not drawn again. Each is drawn by
one process, and has the bits that it has where one process draws all.
"""

import contextlib
import functools
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Int, Num, Shaped

from gen_jax import checks, metrics, paths, small_files
from gen_jax.training import lock, on_host, wait_for_all
from gen_jax.training import workdir as run_directory
from gen_jax.types import AnyPath, Count

Arrays: TypeAlias = Mapping[str, Shaped[np.ndarray, "n ..."]]
INDEX = "index.json"
SHARD = 1000
"""Samples in a file."""
MOST = 99_999
"""Files: their names have five digits."""


@checks.checked
def write_shards(
    directory: str | AnyPath,
    draw: Callable[[Int[np.ndarray, "n"]], Arrays],
    num: Count,
    *,
    shard: Count = SHARD,
    says: Mapping[str, object] | None = None,
) -> AnyPath:
    """Draw the samples 0 to `num - 1` into files of a directory; every process of a run must call it.

    Args:
        directory: it is made where it is not there, and must be the same for all processes.
        draw: `draw(index) -> {"samples": [n, ...], ...}`: arrays of the samples with these numbers, a file each.
        num: how many samples.
        shard: samples in a file.
        says: what determines the samples: numbers and words by name. A later call must say the same.

    Returns:
        The directory, in which all shards are complete.

    Raises:
        ValueError: the directory has samples of other settings, or is not the same for all processes.
        WorkdirInUse: another run writes there.
    """
    said: Mapping[str, object] = run_directory.plain({"num": num, "shard": shard, **(says or {})})
    names, place = _names(said), run_directory.prepare(directory)
    with lock.of_run(place):
        run_directory.check_shared(place)
        stamp = _begin(place, said)
        for number in range(jax.process_index(), len(names), jax.process_count()):
            if not _is_whole(place, names[number], stamp):
                first = number * shard
                _save(place, names[number], stamp, draw(np.arange(first, min(first + shard, num))))
        wait_for_all()
    return place


@checks.checked
def read(
    directory: str | AnyPath, name: str = "samples", *, shared: bool = False
) -> Iterator[Shaped[np.ndarray, "n ..."]]:
    """The arrays of this name, shard after shard; with `shared` those of this process's part of the shards.

    Raises:
        ValueError: there are no such samples, or not all are drawn; on the way, where a file is damaged.
    """
    place = paths.path_of(directory)
    names = _names(small_files.json_of(place / INDEX, "a directory of samples has one"))
    stamp = zlib.crc32((place / INDEX).read_bytes())
    found = [(_sums(place, each, stamp), place / f"{name}-{each}.npy") for each in names]
    for sums, _ in found:
        if name not in sums:
            raise ValueError(
                f"name must be one of {', '.join(sums)}, got {name!r}.{checks.nearest(name, sums)}"
            )
    mine = found[jax.process_index() :: jax.process_count()] if shared else found
    return (_load(path, sums[name]) for sums, path in mine)


@checks.checked
def moments(
    directory: str | AnyPath, features: Callable[[np.ndarray], Num[np.ndarray, "n D"]] | None = None
) -> metrics.Moments:
    """Mean and covariance of features of the samples in a directory, read one shard after the other.

    Each process of a run reads its part, so all of them must call it, and all get the whole: to rounding what
    `metrics.moments` gives of the features of all samples at once.

    Args:
        directory: of `write` or `write_shards`.
        features: `features(samples [n, ...]) -> [n, D]`; None: the numbers of a sample, in one row.

    Raises:
        ValueError: as of `read`, or there are fewer than 2 samples.
    """
    rows = (lambda x: x.reshape(len(x), -1)) if features is None else features
    tallies = (metrics.tally(rows(samples)) for samples in read(directory, shared=True))
    first = next(tallies, None)
    mine = None if first is None else functools.reduce(metrics.join, tallies, first)
    return metrics.settle(functools.reduce(metrics.join, _of_all(mine)))


def _names(said: Mapping[str, object]) -> list[str]:
    """Of the shards, such as 00007-of-00050."""
    num, shard = said.get("num"), said.get("shard")
    if not isinstance(num, int) or not isinstance(shard, int) or not 0 < num <= shard * MOST:
        raise ValueError(
            f"shard must be such that there are at most {MOST:,} files, got {num} samples, {shard} in each."
        )
    count = -(-num // shard)
    return [f"{number:05d}-of-{count:05d}" for number in range(count)]


def _begin(place: AnyPath, said: Mapping[str, object]) -> int:
    """The checksum of the index, which the first process writes. ValueError where it says something else."""
    path = place / INDEX
    if jax.process_index() == 0 and not path.exists():
        _put(path, json.dumps(said, indent=1).encode())
    wait_for_all()
    there = small_files.json_of(path)
    other = [name for name in {**there, **said} if there.get(name, ...) != said.get(name, ...)]
    if other:
        shown = "".join(f"\n  {name}: {there.get(name)!r} there, {said.get(name)!r} now" for name in other)
        raise ValueError(
            f"directory {place} has other samples.{shown}\nAsk for the same ones, or give another directory."
        )
    return zlib.crc32(path.read_bytes())


def _save(place: AnyPath, name: str, stamp: int, arrays: Arrays) -> None:
    """The files of a shard, each complete or not there, and at last their checksums."""
    sums = {}
    for kind, array in arrays.items():
        file = io.BytesIO()
        np.save(file, array)
        sums[kind] = _put(place / f"{kind}-{name}.npy", file.getbuffer())
    _put(place / f"shard-{name}.json", json.dumps({"index": stamp, "crc32": sums}).encode())


def _put(path: AnyPath, data: bytes | memoryview) -> int:
    """Write a file, complete or not at all; its checksum."""
    paths.replace(path, bytes(data))
    return zlib.crc32(data)


def _is_whole(place: AnyPath, name: str, stamp: int) -> bool:
    """Whether a shard is complete, is of this index, and has the bits that were written."""
    with contextlib.suppress(ValueError, OSError):
        sums = _sums(place, name, stamp)
        return all(zlib.crc32((place / f"{kind}-{name}.npy").read_bytes()) == sums[kind] for kind in sums)
    return False


def _sums(place: AnyPath, name: str, stamp: int) -> dict[str, object]:
    """The checksums of the files of a shard. ValueError where it is not complete."""
    said = small_files.json_of(place / f"shard-{name}.json", f"shard {name} is not complete, draw it")
    sums = said.get("crc32")
    if said.get("index") != stamp or not isinstance(sums, dict) or not sums:
        raise ValueError(
            f"{place}: shard {name} is not of the samples that {INDEX} describes: draw it again."
        )
    return sums


def _load(path: AnyPath, crc32: object) -> Shaped[np.ndarray, "n ..."]:
    """An array. ValueError where it is not what was written."""
    with small_files.named(path):
        data = path.read_bytes()
        if zlib.crc32(data) != crc32:
            raise ValueError("it does not match its checksum: draw it again, by the call that wrote it.")
        array: np.ndarray = np.load(io.BytesIO(data))
    return array


def _of_all(mine: metrics.Tally | None) -> list[metrics.Tally]:
    """The tallies of all processes; None of one that has no shard."""
    if jax.process_count() == 1:
        return [] if mine is None else [mine]
    known = [0, 0] if mine is None else [mine.num, len(mine.mean)]
    nums, sizes = np.asarray(on_host(np.array([known], np.int32))).T
    numbers = np.zeros((sizes.max() + 1, sizes.max()))
    if mine is not None:
        numbers[:] = np.concatenate([mine.mean[None], mine.scatter])
    bits = numbers.view(np.uint32)[None]  # numbers would be rounded to float32
    found = np.asarray(on_host(bits)).view(np.float64)
    return [metrics.Tally(int(n), x[0], x[1:]) for n, x in zip(nums, found, strict=True) if n]
