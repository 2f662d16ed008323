"""Checkpoints: Orbax, asynchronous and atomic, each with a checksum that is verified before use."""

import json
import tempfile
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from gen_jax import checks, paths
from gen_jax.training import ema as averages
from gen_jax.training.damage import CheckpointError, first_line, is_whole, reason, refuse_large
from gen_jax.training.distributed import wait_for_all
from gen_jax.training.fingerprint import check_arrays, describe, fingerprint
from gen_jax.training.state import TrainState
from gen_jax.training.workdir import Json
from gen_jax.types import AnyPath, Count, Size

AVERAGE = "ema_params"
"""The item of a checkpoint that holds the average; one of several is in `ema_params.NAME`."""

DIRECTORY = "checkpoints"
"""Name of the directory inside a workdir."""


class NotFiniteError(FloatingPointError):
    """A state that must not replace a good checkpoint."""


def split(state: TrainState) -> dict[str, PyTree]:
    """The state as the items of a checkpoint: plain arrays, with keys as their data.

    They are `params`, the averages, and `rest`: the optimizer's state, the step and the key.
    """
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(state.params)):
        raise ValueError('params that are one array cannot be saved; give it a name, as in {"w": array}')
    opt_state = jax.tree.map(lambda x: _key_data(x) if _is_key(x) else x, state.opt_state)
    rest = {"step": state.step, "opt_state": opt_state, "key": _key_data(state.key)}
    named = averages.by_name(state.ema_params, state.params)
    return {"params": state.params, **{item_of(name): tree for name, tree in named.items()}, "rest": rest}


def join(items: dict[str, PyTree], like: TrainState) -> TrainState:
    """Inverse of `split`, for a state with the averages and the kind of key of `like`."""
    rest, names = items["rest"], averages.by_name(like.ema_params, like.params)
    key, average = _key_of(rest["key"], like.key), {name: items[item_of(name)] for name in names}
    opt_state = jax.tree.map(
        lambda x, old: _key_of(x, old) if _is_key(old) else x, rest["opt_state"], like.opt_state
    )
    return TrainState(rest["step"], items["params"], opt_state, averages.from_names(average), key)


def _is_key(x: object) -> bool:
    return jax.dtypes.issubdtype(getattr(x, "dtype", bool), jax.dtypes.prng_key)


def _key_data(key: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
    """The numbers of keys, or their shape."""
    if not isinstance(key, jax.ShapeDtypeStruct):
        return jax.random.key_data(key)
    data = jax.eval_shape(jax.random.key_data, key)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)


def _key_of(data: Array, like: Array | jax.ShapeDtypeStruct) -> Array:
    """Keys of the kind of others, or of their shape."""
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(jnp.zeros((), like.dtype)))


def item_of(name: str) -> str:
    """The item that holds the average of that name."""
    return f"{AVERAGE}.{name}" if name else AVERAGE


@runtime_checkable
class _Saved(Protocol):
    """What Orbax tells of a checkpoint."""

    step: int


@dataclass(frozen=True)
class FirstFrom:
    """Orbax's policy to keep the first checkpoint at or after a step."""

    step: int

    def should_preserve(self, checkpoints: Sequence[_Saved], *, context: object) -> list[bool]:
        """One True at most; `checkpoints` are those that are there, oldest first."""
        first = next((info.step for info in checkpoints if info.step >= self.step), None)
        return [info.step == first for info in checkpoints]


class Checkpoints:
    """The checkpoints of one run: the newest `keep` of them, in `directory/<step>`.

    For each step in `keep_from` the first checkpoint at or after it stays as well. A checkpoint holds the state, the
    caller's `meta` (config, data position; JSON) and checksums. Writing goes on in the background; a directory appears
    under its name only when it is complete. Use as a context manager, or `close`.
    """

    @checks.checked
    def __init__(
        self,
        directory: str | AnyPath,
        *,
        keep: Count = 3,
        keep_from: Sequence[Size] = (),
        create: bool = True,
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        self.directory = paths.absolute(paths.path_of(directory))
        refuse_large(self.directory)
        stays = [policies.LatestN(keep), *map(FirstFrom, keep_from)]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(stays),
                cleanup_tmp_directories=create,
                create=create,
                lightweight_initialize=not create,  # or it looks into those that a run is replacing
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
        there = [path for path in self.directory.glob("*") if path.name.isdigit()]
        return sorted(int(path.name) for path in there if is_whole(path))

    @checks.checked
    def save(self, state: TrainState, meta: Mapping[str, object]) -> None:
        """Start writing `state`; returns once the arrays are copied, so the state may then be donated.

        Raises NotFiniteError, and writes nothing, when a parameter or its average is not finite.
        """
        import orbax.checkpoint as ocp

        items = split(state)
        prints = fingerprint(items)
        step = int(state.step)
        bad = [name for name in items if name != "rest" and not prints[name].finite]
        if bad:
            raise NotFiniteError(f"{' and '.join(bad)} not finite at step {step}: not saved")
        sums = {name: item.checksum for name, item in prints.items()}
        full = {**meta, "step": step, "checksum": sums, "arrays": describe(items)}
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args["meta"] = ocp.args.JsonSave({**full, "crc32": _crc32(full)})
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    @checks.checked
    def restore(
        self, like: TrainState, check: Callable[[Json], None] = lambda meta: None
    ) -> tuple[TrainState, Json] | None:
        """The newest checkpoint that is whole, as `(state, meta)`; None when there is none at all.

        The state has the shapes and shardings of `like`, whatever devices it was saved from. `check(meta)`
        may refuse it before anything is read. Damaged checkpoints newer than the one that is used are moved
        to `<directory>.damaged`.

        Raises CheckpointError when checkpoints exist and none can be read, ValueError when the arrays do not
        fit `like`.
        """
        target = split(like)

        def fits(meta: Json) -> None:
            check(meta)
            check_arrays(meta["arrays"], describe(target))

        found = self.find(lambda meta: target, fits)
        if found is None:
            return None
        items, meta, damaged = found
        self._set_aside(damaged, meta["step"])
        return join(items, like), meta

    @checks.checked
    def find(
        self,
        target: Callable[[Json], dict[str, PyTree]],
        check: Callable[[Json], None] = lambda meta: None,
        *,
        first_from: Size | None = None,
    ) -> tuple[dict[str, PyTree], Json, dict[int, Exception]] | None:
        """`(items, meta, damaged)` of the newest whole checkpoint, or of the first one at or after a step.

        Items are as in `target(meta)`. A checkpoint that goes while it is read is no damaged one: its successor is there.
        """
        damaged: dict[int, Exception] = {}
        while (step := self._next(damaged, first_from)) is not None:
            try:
                meta = self._meta(step)
            except Exception as error:  # the storage layers raise all sorts on damaged files
                damaged[step] = error
                continue
            check(meta)
            try:
                items = self._items(step, target(meta))
                verify(items, meta["checksum"])
            except Exception as error:
                damaged[step] = error
                continue
            there = {
                n: e for n, e in damaged.items() if n > step or (first_from is not None and self._is_there(n))
            }
            return items, meta, there
        if damaged:
            reasons = "".join(f"\n  {reason(self._at(step), error)}" for step, error in damaged.items())
            raise CheckpointError(
                f"no checkpoint in {self.directory} can be read:{reasons}\n"
                "Move the directory away to start again from step 0."
            )
        return None

    def _next(self, tried: Collection[int], first_from: int | None) -> int | None:
        """The next step to read. A run that goes on may have replaced those that were there before."""
        steps = [
            step for step in self.steps() if step not in tried and (first_from is None or step >= first_from)
        ]
        return (max if first_from is None else min)(steps, default=None)

    def _is_there(self, step: int) -> bool:
        return self._at(step).exists()

    def _at(self, step: int) -> AnyPath:
        return self.directory / str(step)

    @checks.checked
    def saved(self, step: int, item: str) -> PyTree:
        """Shapes and dtypes of an item as it is on disk, a tree of dicts and lists; ValueError where it is not there."""
        import orbax.checkpoint as ocp

        if not (self.directory / str(step) / item).is_dir():
            raise ValueError(
                f"there is no item {item!r} of step {step} in {self.directory}, which has the steps {self.steps()}."
            )
        return ocp.StandardCheckpointHandler().metadata(self.directory / str(step) / item).tree

    def _meta(self, step: int) -> Json:
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
                f"checkpoint {self._at(step)} is damaged ({reason(self._at(step), error)}); "
                f"using step {used} instead and moving it to {self.directory.name}.damaged",
                stacklevel=3,
            )
            if jax.process_index() == 0:
                aside = self.directory.with_name(f"{self.directory.name}.damaged")
                paths.move(self._at(step), aside / str(step))
        wait_for_all()
        self._manager.reload()


def prove(state: TrainState, meta: Mapping[str, object]) -> None:
    """Raise ValueError where a state like this, or its shapes, cannot be saved and read back.

    Sizes are looked at, and arrays of one entry, of each type and number of axes, are saved and read back.
    """
    for item, tree in split(state).items():
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            if 0 in x.shape:
                where = item + jax.tree_util.keystr(path)
                raise ValueError(
                    f"{where} has the shape {x.shape}, and an array without entries cannot be saved: leave it out of the "
                    "parameters."
                )
    if jax.process_count() > 1:  # what one process could not save, none could
        return
    kinds = dict.fromkeys((x.dtype, len(x.shape)) for x in jax.tree.leaves(state))
    arrays = {str(i): jnp.zeros((1,) * axes, dtype) for i, (dtype, axes) in enumerate(kinds)}
    small = TrainState(
        jnp.zeros((), jnp.int32), {"w": jnp.zeros(1)}, arrays, None, jnp.zeros((), state.key.dtype)
    )
    try:
        with tempfile.TemporaryDirectory() as scratch, Checkpoints(scratch) as checkpoints:
            checkpoints.save(small, meta)
            checkpoints.restore(small)
    except Exception as error:  # the storage layers raise all sorts
        types = ", ".join(sorted({str(dtype) for dtype, _ in kinds}))
        raise ValueError(f"a state with arrays of {types} cannot be saved: {first_line(error)}") from error


def _crc32(meta: Json) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def verify(items: dict[str, PyTree], sums: dict[str, int]) -> None:
    """Raise CheckpointError when an item's bits are not those that were saved."""
    for name, found in fingerprint(items).items():
        if found.checksum != sums[name]:
            raise CheckpointError(f"the arrays of {name!r} do not match their checksum")
