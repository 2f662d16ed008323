"""The directory of a run: whether it can be written and has the same config, and the JSON files in it."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

Json = dict[str, Any]
"""An object of JSON, as read."""


def prepare(workdir: str | Path) -> Path:
    """Make `workdir`, and check that files can be written in it. Raises OSError that says what is wrong."""
    if re.match(r"\w+:/", str(workdir)):  # a Path has one slash less
        raise ValueError(
            f"workdir must be a path of a mounted file system, got {workdir}; mount the bucket (gcsfuse)"
        )
    if not str(workdir):
        raise ValueError("workdir must be the path of a directory, got an empty one")
    workdir = Path(workdir).expanduser().absolute()
    probe = workdir / f".write_probe_{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise type(error)(
            error.errno,
            f"cannot write to workdir {workdir} ({error.strerror}); make room or give another workdir",
        ) from error
    return workdir


def plain(config: object) -> Json:
    """A dataclass or mapping as what JSON gives back: dicts, lists, numbers and strings.

    JSON has no numbers that are not finite: they become "NaN", "Infinity" and "-Infinity".
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        raise ValueError(f"config must be a dataclass or a mapping, got {type(config).__name__}")
    result: Json = json.loads(json.dumps(dict(config), default=str), parse_constant=str)
    return result


def check_config(saved: Mapping[str, object], now: Mapping[str, object], may_change: Collection[str]) -> None:
    """Raise ValueError naming each field (dotted path) that differs and is not listed in `may_change`."""
    if isinstance(may_change, str):
        raise ValueError(f"may_change must be a list of names, got {may_change!r}: ({may_change!r},).")
    a, b = _flat(plain(saved)), _flat(plain(now))
    allowed = tuple(f"{name}." for name in may_change)
    names = [
        name
        for name in {**a, **b}
        if a.get(name, ...) != b.get(name, ...) and not f"{name}.".startswith(allowed)
    ]
    if names:
        shown = "".join(f"\n  {name}: {_show(a, name)} saved, {_show(b, name)} now" for name in names)
        raise ValueError(
            f"cannot resume: the config differs from the one of the checkpoint.{shown}\n"
            "Use the saved values to go on, or another workdir to start a new run."
        )


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
    """Write atomically: a reader sees the old file or the new one. ValueError for a number that is not finite."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def write_summary(directory: Path, summary: Mapping[str, object], form: str = "") -> None:
    """Write summary.json, the figures of a run, and print them; `form` is how a number is printed, as in `format`."""
    write_json(directory / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name}: {value:{form}}")
    print(f"figures: {directory}")
