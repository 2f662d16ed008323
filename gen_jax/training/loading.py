"""Parameters of a run that has been trained, from its checkpoints."""

import contextlib
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from gen_jax import checks, paths
from gen_jax.training import ema as averages
from gen_jax.training import lock
from gen_jax.training.checkpoint import AVERAGE, DIRECTORY, CheckpointError, Checkpoints
from gen_jax.training.damage import reason
from gen_jax.training.fingerprint import check_arrays, describe
from gen_jax.training.workdir import Json
from gen_jax.types import AnyPath, Size


class Loaded(NamedTuple):
    """What sampling needs of a run."""

    params: PyTree
    config: Json
    step: int


@checks.checked
def load(
    workdir: str | AnyPath,
    *,
    like: PyTree | None = None,
    ema: bool | str = True,
    dtype: DTypeLike | None = None,
    first_from: Size | None = None,
) -> Loaded:
    """The averaged parameters, the config and the step of a run, from its newest whole checkpoint, on one device.

    Args:
        workdir: the directory that `fit` was given.
        like: a tree of arrays, or of ShapeDtypeStructs, with the structure of the parameters. Dicts and lists come back
            as they were without it; NamedTuples and the classes of flax.nnx and Equinox need it.
        ema: the average, or the last parameters where there is none; False: the last parameters; a name: that average of
            several.
        dtype: to cast floating-point arrays to. Averages are float32 or better, whatever the parameters were.
        first_from: read the first checkpoint at or after this step instead of the newest.

    Raises CheckpointError where there is no such directory, or no checkpoint in it; ValueError where its arrays do not
    fit `like`, or it has several averages or none of that name.
    """
    kind = None if dtype is None else checks.float_type("dtype", dtype)
    workdir = paths.path_of(workdir)
    directory = workdir / DIRECTORY
    _check_there(workdir)
    if not directory.is_dir():
        raise _missing(workdir)

    def fits(meta: Json) -> None:
        item = _chosen(meta, ema)
        if like is not None:
            arrays = {k: array for k, array in meta["arrays"].items() if k.split("/")[0] == item}
            check_arrays(arrays, describe({item: _shapes(item, like)}))

    with Checkpoints(directory, create=False) as checkpoints:

        def target(meta: Json) -> dict[str, PyTree]:
            item = _chosen(meta, ema)
            tree = checkpoints.saved(meta["step"], item) if like is None else _shapes(item, like)
            return {item: _on_one_device(tree)}

        found = checkpoints.find(target, fits, first_from=first_from)
    if found is None:
        raise _missing(workdir)
    items, meta, damaged = found
    for step, error in damaged.items():
        place = checkpoints.directory / str(step)
        warnings.warn(f"checkpoint {place} is damaged ({reason(place, error)})", stacklevel=2)
    (params,) = items.values()
    if kind is not None:
        cast = lambda x: x.astype(kind) if jnp.issubdtype(x.dtype, jnp.floating) else x
        params = jax.tree.map(cast, params)
    return Loaded(params, meta.get("config", {}), meta["step"])


_WHAT_TO_DO = "train first, or give the workdir of a run that has been trained"


def _missing(workdir: AnyPath) -> CheckpointError:
    """Why there is no checkpoint: a run may be in the directory that has not come so far."""
    by, training = lock.holder(workdir / lock.FILE), False
    with contextlib.suppress(OSError):
        training = bool(by and lock.is_held(workdir / lock.FILE))
    if training:
        return CheckpointError(
            f"{workdir} is being trained, by {by}, and has no checkpoint yet: wait for the first one."
        )
    return CheckpointError(f"no checkpoint in {workdir / DIRECTORY}: {_WHAT_TO_DO}")


def _check_there(workdir: AnyPath) -> None:
    """CheckpointError where there is no such directory, with those beside it that have a similar name."""
    if workdir.is_dir():
        return
    why = "is a file, not the directory of a run" if workdir.exists() else "does not exist"
    beside = paths.absolute(workdir).parent
    names = [path.name for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
    raise CheckpointError(f"the path {workdir} {why}: {_WHAT_TO_DO}.{checks.nearest(workdir.name, names)}")


def _chosen(meta: Json, ema: bool | str) -> str:
    """The item of a checkpoint that holds the parameters asked for."""
    items = [item for item in meta["checksum"] if item.split(".")[0] == AVERAGE]
    if ema is False or (ema is True and not items):
        return "params"
    wanted = items if ema is True else [item for item in items if item == f"{AVERAGE}.{ema}"]
    if len(wanted) != 1:
        names = ", ".join(repr(item.removeprefix(f"{AVERAGE}.")) for item in items if item != AVERAGE)
        raise ValueError(
            f"ema must name one of the averages of the run, {names or 'which has no names'}; got {ema!r}"
        )
    return wanted[0]


def _shapes(item: str, like: PyTree) -> PyTree:
    """Shapes and dtypes of an item of parameters like these."""
    return jax.eval_shape(averages.start, like) if item.split(".")[0] == AVERAGE else like


def _on_one_device(tree: PyTree) -> PyTree:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)
