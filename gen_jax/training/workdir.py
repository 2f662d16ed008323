"""The directory of a run: whether it can be written and has the same config, and the JSON files in it."""

import dataclasses
import errno
import json
import os
import secrets
import tempfile
import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from gen_jax import paths
from gen_jax.types import AnyPath

DELAY = 10.0
"""Seconds after which a file that another host wrote is seen, on a disk that they share."""
Json = dict[str, Any]
"""An object of JSON, as read."""


def prepare(workdir: str | AnyPath) -> AnyPath:
    """Make `workdir`, and check that files can be written in it. Raises OSError that says what is wrong."""
    if not str(workdir):
        raise ValueError("workdir must be the path of a directory, got an empty one")
    workdir = paths.absolute(paths.path_of(workdir))
    if paths.is_remote(workdir):
        _check_bucket(workdir)
        return workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".write_probe_", dir=workdir) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
    except OSError as error:
        why = "it is a file" if os.path.isfile(workdir) else error.strerror
        room = "make room or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise type(error)(
            error.errno, f"cannot write to workdir {workdir} ({why}); {room}give another workdir"
        ) from error
    return workdir


def _check_bucket(workdir: AnyPath) -> None:
    """OSError where objects cannot be written, read and removed below `workdir`, whatever error the packages have."""
    probe = workdir / f".write_probe_{secrets.token_hex(4)}"
    try:
        paths.replace(probe, b"0" * 4096)
        probe.read_bytes()
        probe.unlink()
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise OSError(
            f"cannot write to workdir {workdir} ({why[:200]}): the bucket must be there, and this machine must have "
            "credentials for it that may create, read and delete objects (gcloud auth application-default login, or "
            "those of the service account of a VM)"
        ) from error


def check_shared(workdir: AnyPath) -> None:
    """Raise ValueError, in every process of a run, unless each of them sees in `workdir` what process 0 writes there."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    mark = int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbits(31))))
    path, first = workdir / f".shared_{mark}", jax.process_index() == 0
    if first:
        path.touch()
    multihost_utils.sync_global_devices("process 0 has written")
    until = time.monotonic() + DELAY
    while not (seen := path.exists()) and time.monotonic() < until:
        list(workdir.iterdir())  # a file system of a network forgets what it knew of the directory
        time.sleep(DELAY / 40)
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.bool_(seen)))
    if first:
        path.unlink()
    if len(blind):
        raise ValueError(
            f"workdir must be one directory for all {jax.process_count()} processes, but what process 0 writes in its "
            f"{workdir} is not seen by process {', '.join(map(str, blind))}: give a directory on a disk that they share."
        )


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


def write_json(path: AnyPath, value: object) -> None:
    """Write atomically: a reader sees the old file or the new one. ValueError for a number that is not finite."""
    paths.replace(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_summary(directory: AnyPath, summary: Mapping[str, object], form: str = "") -> None:
    """Write summary.json, the figures of a run, and print them; `form` is how a number is printed, as in `format`."""
    write_json(directory / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name}: {value:{form}}")
    print(f"figures: {directory}")
