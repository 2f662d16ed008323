"""The directory of a run: whether it has room and the same config, and the JSON files in it."""

import dataclasses
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

Json = dict[str, Any]
"""An object of JSON, as read."""


def prepare(workdir: str | Path, state: PyTree, *, keep: int) -> Path:
    """Make `workdir` and check, before any training, that it has room for `keep + 1` checkpoints of `state`.

    Raises OSError that says what is wrong with the directory or how much room is missing.
    """
    if "://" in str(workdir):
        raise ValueError(
            f"workdir must be a path of a mounted file system, got {workdir}; mount the bucket (gcsfuse)"
        )
    workdir = Path(workdir).expanduser().absolute()
    probe = workdir / f".write_probe_{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write to workdir {workdir} ({error.strerror}); make room or give another workdir",
        ) from error
    need = (keep + 1) * num_bytes(state)
    free = shutil.disk_usage(workdir).free + num_bytes_on_disk(workdir)
    if free < need:
        raise OSError(
            f"workdir {workdir} has {free / 2**20:.0f} MiB free, but {keep + 1} checkpoints of "
            f"{num_bytes(state) / 2**20:.0f} MiB need {need / 2**20:.0f} MiB; "
            "free some room, keep fewer checkpoints, or give another workdir"
        )
    return workdir


def num_bytes(tree: PyTree) -> int:
    """Size of all the arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def num_bytes_on_disk(workdir: Path) -> int:
    """Size of the files already there: the checkpoints of an earlier run make room for new ones."""
    return sum(path.stat().st_size for path in workdir.rglob("*") if path.is_file())


def plain(config: object) -> Json:
    """A dataclass or mapping as what JSON gives back: dicts, lists, numbers and strings."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a dataclass or a mapping, got {type(config).__name__}")
    result: Json = json.loads(json.dumps(dict(config), default=str))
    return result


def check_config(saved: Mapping[str, object], now: Mapping[str, object], may_change: Collection[str]) -> None:
    """Raise ValueError naming each field (dotted path) that differs and is not listed in `may_change`."""
    a, b = _flat(saved), _flat(now)
    allowed = tuple(f"{name}." for name in may_change)
    names = [
        name
        for name in {**a, **b}
        if not _same(a.get(name, ...), b.get(name, ...)) and not f"{name}.".startswith(allowed)
    ]
    if names:
        shown = "".join(f"\n  {name}: {_show(a, name)} saved, {_show(b, name)} now" for name in names)
        raise ValueError(
            f"cannot resume: the config differs from the one of the checkpoint.{shown}\n"
            "Use the saved values to go on, or another workdir to start a new run."
        )


def _same(a: object, b: object) -> bool:
    """Whether two values of a config are equal, NaN with itself too."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b or (a != a and b != b)


def _show(config: Mapping[str, object], name: str) -> str:
    return repr(config[name]) if name in config else "absent"


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def write_json(path: Path, value: object) -> None:
    """Write atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


def write_summary(directory: Path, summary: Mapping[str, object], form: str = "") -> None:
    """Write summary.json, the figures of a run, and print them; `form` is how a number is printed, as in `format`."""
    write_json(directory / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name}: {value:{form}}")
    print(f"figures: {directory}")
