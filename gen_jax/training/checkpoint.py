"""Checkpoints: Orbax, asynchronous and atomic, each with a checksum that is verified before use."""

import json
import shutil
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from gen_jax.training.fingerprint import check_arrays, describe, fingerprint
from gen_jax.training.state import TrainState

ITEMS = ("params", "ema_params", "rest")
"""What a step directory holds apart from `meta`; `rest` is the optimizer's state, the step and the key."""


DIRECTORY = "checkpoints"
"""Name of the directory inside a workdir."""


class CheckpointError(ValueError):
    """No checkpoint, or none that can be read."""


class NotFiniteError(FloatingPointError):
    """A state that must not replace a good checkpoint."""


class Loaded(NamedTuple):
    """What sampling needs of a run."""

    params: PyTree
    config: dict[str, Any]
    step: int


def split(state: TrainState) -> dict[str, PyTree]:
    """The state as the items of a checkpoint: plain arrays, with the key as its data."""
    rest = {"step": state.step, "opt_state": state.opt_state, "key": jax.random.key_data(state.key)}
    average = {} if state.ema_params is None else {"ema_params": state.ema_params}
    return {"params": state.params, **average, "rest": rest}


def join(items: dict[str, PyTree], key_impl: Any) -> TrainState:
    """Inverse of `split`."""
    rest = items["rest"]
    key = jax.random.wrap_key_data(rest["key"], impl=key_impl)
    return TrainState(rest["step"], items["params"], rest["opt_state"], items.get("ema_params"), key)


@dataclass(frozen=True)
class FirstFrom:
    """Orbax's policy to preserve the first checkpoint at or after a step."""

    step: int

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One True at most; `checkpoints` are those that are there, oldest first."""
        first = next((info.step for info in checkpoints if info.step >= self.step), None)
        return [info.step == first for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run: the newest `keep` of them, in `directory/<step>`.

    With a `milestone` the first one at or after that step stays as well. Each holds the state, the step, the caller's
    `meta` (config, data position; JSON) and checksums. Writing goes on in the background; a directory appears under its
    name only when it is complete. Use as a context manager, or `close`.
    """

    def __init__(
        self, directory: str | Path, *, keep: int = 3, milestone: int | None = None, create: bool = True
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
        self.directory = Path(directory).absolute()
        stays: list[Any] = [policies.LatestN(keep), *([] if milestone is None else [FirstFrom(milestone)])]
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={name: ocp.StandardCheckpointHandler() for name in ITEMS}
            | {"meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(stays),
                cleanup_tmp_directories=create,
                create=create,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are complete, oldest first."""
        self._manager.wait_until_finished()
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Start writing `state`; returns once the arrays are copied, so the state may then be donated.

        Raises NotFiniteError, and writes nothing, when a parameter or its average is not finite.
        """
        import orbax.checkpoint as ocp

        items = split(state)
        prints = fingerprint(items)
        bad = [name for name in items if name != "rest" and not prints[name].finite]
        if bad:
            raise NotFiniteError(f"{' and '.join(bad)} not finite at step {int(state.step)}: not saved")
        sums = {name: item.checksum for name, item in prints.items()}
        meta = {**meta, "step": int(state.step), "checksum": sums, "arrays": describe(items)}
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args["meta"] = ocp.args.JsonSave({**meta, "crc32": _crc32(meta)})
        self._manager.save(meta["step"], args=ocp.args.Composite(**args), force=True)

    def restore(
        self, like: TrainState, check: Callable[[dict[str, Any]], None] = lambda meta: None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest checkpoint that is whole, as `(state, meta)`; None when there is none at all.

        The state has the shapes and shardings of `like`, whatever devices it was saved from. `check(meta)`
        may refuse it before anything is read. Damaged checkpoints newer than the one that is used are moved
        to `<directory>.damaged`.

        Raises CheckpointError when checkpoints exist and none can be read, ValueError when the arrays do not
        fit `like`.
        """
        target = split(like)

        def fits(meta: dict[str, Any]) -> None:
            check(meta)
            check_arrays(meta["arrays"], describe(target))

        found = self.find(lambda step: target, fits)
        if found is None:
            return None
        items, meta, damaged = found
        self._set_aside(damaged, meta["step"])
        return join(items, jax.random.key_impl(like.key)), meta

    def find(
        self,
        target: Callable[[int], dict[str, PyTree]],
        check: Callable[[dict[str, Any]], None] = lambda meta: None,
        *,
        first_from: int | None = None,
    ) -> tuple[dict[str, PyTree], dict[str, Any], dict[int, Exception]] | None:
        """`(items, meta, damaged)` of the newest whole checkpoint, or of the first one at or after a step.

        Items are as in `target(step)`.
        """
        damaged: dict[int, Exception] = {}
        steps = [step for step in self.steps() if first_from is None or step >= first_from]
        for step in sorted(steps, reverse=first_from is None):
            try:
                meta = self._meta(step)
            except Exception as error:  # the storage layers raise all sorts on damaged files
                damaged[step] = error
                continue
            check(meta)
            try:
                items = self._items(step, target(step))
                verify(items, meta["checksum"])
                return items, meta, damaged
            except Exception as error:
                damaged[step] = error
        if damaged:
            reasons = "".join(f"\n  step {step}: {_first_line(error)}" for step, error in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read:{reasons}\n"
                "Move the directory away to start again from step 0."
            )
        return None

    def saved(self, step: int, item: str) -> PyTree:
        """Shapes and dtypes of an item as it is on disk, a tree of dicts and lists; None where there is none."""
        metadata = self._manager.item_metadata(step).get(item)
        return None if metadata is None else metadata.tree

    def _meta(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as ocp

        meta = dict(self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta)
        if meta.pop("crc32", None) != _crc32(meta):
            raise CheckpointError("its metadata does not match its checksum")
        return meta

    def _items(self, step: int, like: dict[str, PyTree]) -> dict[str, PyTree]:
        import orbax.checkpoint as ocp

        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = {name: ocp.args.StandardRestore(abstract[name]) for name in like}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**args)))

    def _set_aside(self, damaged: dict[int, Exception], used: int) -> None:
        """A damaged checkpoint would block the saving of its step and count among the `keep` newest."""
        if not damaged:
            return
        for step, error in damaged.items():
            warnings.warn(
                f"checkpoint {self.directory / str(step)} is damaged ({_first_line(error)}); "
                f"using step {used} instead and moving it to {self.directory.name}.damaged",
                stacklevel=3,
            )
            if jax.process_index() == 0:
                aside = self.directory.with_name(f"{self.directory.name}.damaged")
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                (self.directory / str(step)).rename(aside / str(step))
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.reload()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _crc32(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def verify(items: dict[str, PyTree], sums: dict[str, int]) -> None:
    """Raise CheckpointError when an item's bits are not those that were saved."""
    for name, found in fingerprint(items).items():
        if found.checksum != sums[name]:
            raise CheckpointError(f"the arrays of {name!r} do not match their checksum")


def load(
    workdir: str | Path, *, like: PyTree | None = None, ema: bool = True, first_from: int | None = None
) -> Loaded:
    """The averaged parameters (the last ones without an average or with `ema=False`), config and step of a run.

    Reads the newest whole checkpoint of `workdir`, or the first one at or after step `first_from`, onto one device.
    Trees of dicts come back as they were; give `like` (any tree of arrays, or of ShapeDtypeStructs, of that structure)
    for parameters that are NamedTuples or other classes. Raises CheckpointError when there is none, ValueError when its
    arrays do not fit `like`.
    """
    directory = Path(workdir) / DIRECTORY
    missing = CheckpointError(
        f"no checkpoint in {directory}: train first (the same command without --sample-only writes one), "
        "or name the --workdir of a run that has been trained"
    )
    if not directory.is_dir():
        raise missing

    def fits(meta: dict[str, Any]) -> None:
        part = lambda item: {k: array for k, array in meta["arrays"].items() if k.split("/")[0] == item}
        item = "ema_params" if ema and part("ema_params") else "params"
        if like is not None:
            check_arrays(part(item), describe({item: like}))

    with Checkpoints(directory, create=False) as checkpoints:

        def target(step: int) -> dict[str, PyTree]:
            item = "ema_params" if ema and checkpoints.saved(step, "ema_params") is not None else "params"
            return {item: _on_one_device(checkpoints.saved(step, item) if like is None else like)}

        found = checkpoints.find(target, fits, first_from=first_from)
    if found is None:
        raise missing
    items, meta, damaged = found
    for step, error in damaged.items():
        warnings.warn(f"checkpoint {directory / str(step)} is damaged ({_first_line(error)})", stacklevel=2)
    (params,) = items.values()
    return Loaded(params, meta.get("config", {}), meta["step"])


def _on_one_device(tree: PyTree) -> PyTree:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)
