"""A model out of the directory of a run: its description from `config.json`, its weights from the checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import jax
from jaxtyping import DTypeLike, PyTree

from gen_jax import model as models
from gen_jax import training
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import migration


class Run(NamedTuple):
    """A trained model, and what is known of its training."""

    model: Model
    weights: Weights
    options: Mapping[str, object]
    """Those of the experiment, such as its `dataset`: what `config.json` says besides the model."""
    step: int
    """Of the checkpoint that the weights are of."""


def load(
    path: str | Path, *, dtype: DTypeLike | None = None, types: Sequence[type] = ()
) -> tuple[Model, Weights]:
    """The model and the weights of a run.

    Args:
        path: the directory of a run: `config.json` and `checkpoints/`.
        dtype: of the weights, by default as they were saved (float32).
        types: configurations of one's own networks that `config.json` names (`gen_jax.model.TYPES` are known).

    Returns:
        The description, and trees of parameters: "network", averaged where the run kept an average; and "guide", those
        of an earlier step, where the model is guided by itself and the run has them (`model.Sampling.guide_step`).

    Raises:
        training.CheckpointError: a ValueError; there is no checkpoint, or none that can be read.
        ValueError: the run is not of a diffusion model, or its weights are of another network than it says.
    """
    run = load_run(path, types=types)
    if dtype is None:
        return run.model, run.weights
    return run.model, jax.tree.map(lambda x: x.astype(dtype), run.weights)


def load_run(path: str | Path, *, types: Sequence[type] = ()) -> Run:
    """`load`, with the options of the experiment and the step."""
    path = Path(path)
    params, saved, step = training.load(path)
    file = path / "config.json"  # may say more than the checkpoint: how to sample can change afterwards
    config = _read(file) if file.exists() else saved
    if "format" in config or not migration.NEEDED & set(config):
        if config.get("format") != models.FORMAT or "model" not in config:
            raise ValueError(
                f"{path}: config.json describes no model of format {models.FORMAT}, which this version reads; its format "
                f"is {config.get('format')!r}. A run of yours needs training.fit(..., config=launch.record(...)), a "
                "newer one a newer gen_jax."
            )
        model = models.from_dict(config["model"], types)
        options = cast("Mapping[str, object]", config.get("options", {}))
    else:
        model, options = migration.from_format_1(config, str(path)), config
    _check_shapes(path, model, params)
    weights, early = {"network": params}, model.sampling.guide_step
    if early is not None and early < step:
        first = training.load(path, first_from=early)
        if first.step < step:
            weights["guide"] = first.params
    return Run(model, weights, options, step)


def _read(file: Path) -> dict[str, object]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(
            f"{file} can not be read: {error}. Remove it to use what the checkpoint says."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected an object, got {type(found).__name__}.")
    return found


def _check_shapes(path: Path, model: Model, params: PyTree) -> None:
    """ValueError, which names an array, unless the network of the description has parameters like these."""
    wanted = jax.eval_shape(model.init, jax.random.key(0))
    have, want = (
        {jax.tree_util.keystr(k): x.shape for k, x in jax.tree.leaves_with_path(tree)}
        for tree in (params, wanted)
    )
    if have != want:
        name = next(name for name in {**want, **have} if have.get(name) != want.get(name))
        raise ValueError(
            f"{path}: the weights are not those of the network that its config.json describes. {name}: expected "
            f"{want.get(name, 'nothing')}, got {have.get(name, 'nothing')}."
        )
