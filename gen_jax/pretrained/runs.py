"""A model out of the directory of a run: its description from `config.json`, its weights from the checkpoints."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import jax
from jaxtyping import DTypeLike, PyTree

from gen_jax import checks, parameters, paths, small_files, training
from gen_jax import model as models
from gen_jax.codec import Autoencoder, Latents
from gen_jax.conditioning import Labels
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import migration
from gen_jax.types import AnyPath

AUTOENCODER = "autoencoder"
"""The directory of the autoencoder in that of a run of latent diffusion."""


class Run(NamedTuple):
    """A trained model, and what is known of its training."""

    model: Model
    weights: Weights
    options: Mapping[str, object]
    """Those of the experiment, such as its `dataset`: what `config.json` says besides the model."""
    step: int
    """Of the checkpoint that the weights are of."""


def load(
    path: str | AnyPath, *, dtype: DTypeLike | None = None, types: Sequence[type] = ()
) -> tuple[Model, Weights]:
    """The model and the weights of a run.

    Args:
        path: the directory of a run: `config.json` and `checkpoints/`.
        dtype: of the weights, by default as they were saved (float32).
        types: configurations of one's own networks that `config.json` names (`gen_jax.model.TYPES` are known).

    Returns:
        The description, and trees of parameters: "network", averaged where the run kept an average; "text" where an
        encoder was trained with it; "autoencoder" where the model is one of latents; and "guide", those of an earlier
        step, where the model is guided by itself and the run has them (`model.Sampling.guide_step`).

    Raises:
        training.CheckpointError: a ValueError; there is no checkpoint, or none that can be read.
        ValueError: the run is not of a diffusion model, or its weights are of another network than it says.
    """
    run = load_run(path, types=types)
    if dtype is None:
        return run.model, run.weights
    return run.model, jax.tree.map(lambda x: x.astype(dtype), run.weights)


@checks.checked
def load_run(path: str | AnyPath, *, types: Sequence[type] = ()) -> Run:
    """`load`, with the options of the experiment and the step."""
    path = paths.path_of(path)
    params, saved, step = training.load(path)
    file = path / "config.json"  # may say more than the checkpoint: how to sample can change afterwards
    config = _read(file) if file.exists() else saved
    if "format" in config or not migration.NEEDED & set(config):
        if config.get("format") != models.FORMAT or "model" not in config:
            raise ValueError(f"{path}: {_no_model(config, saved)}")
        with small_files.named(file if file.exists() else path):
            model = models.from_dict(config["model"], types)
        options = cast("Mapping[str, object]", config.get("options", {}))
    else:
        model, options = migration.from_format_1(config, str(path)), config
    _check_trained(file, model, saved, types)  # before its network is built, which may be a very large one
    hint = "Its config.json and its checkpoints are of two runs: give each a directory of its own."
    parameters.check_tree(model, params, f"{path}: the weights", hint)
    weights, early = model.parts(params), model.sampling.guide_step
    if early is not None and early < step:
        first = training.load(path, first_from=early)
        if first.step < step:
            weights["guide"] = model.parts(first.params)["network"]
    if isinstance(model.codec, Latents) and model.codec.autoencoder is not None:
        weights["autoencoder"] = load_autoencoder(path / AUTOENCODER, model.codec.autoencoder)
    return Run(model, weights, options, step)


@checks.checked
def load_autoencoder(path: str | AnyPath, config: Autoencoder) -> PyTree:
    """The parameters of an autoencoder that was trained as `vae.latent` does, from the directory of its run.

    ValueError where there is no checkpoint, or it is of another autoencoder.
    """
    image = jax.ShapeDtypeStruct((1, config.factor, config.factor, config.in_channels), "float32")
    shapes = jax.eval_shape(config.build().init, jax.random.key(0), image)
    path = paths.path_of(path)
    found = training.load(path).params
    if not isinstance(found, Mapping) or "autoencoder" not in found:
        raise ValueError(
            f"{path}: expected the path of a run of vae.latent, whose parameters have an autoencoder; this one has "
            f"{checks.came(found)}."
        )
    params = found["autoencoder"]
    hint = "Give the directory of an autoencoder of this kind."
    parameters.check_like(
        shapes, params, f"{path}: the weights are not those of the autoencoder {config}", hint
    )
    return params


def _read(file: AnyPath) -> dict[str, object]:
    try:
        return small_files.json_of(file)
    except ValueError as error:
        said = str(error).removeprefix(f"{file}: ").removesuffix(" Fetch it again.")  # it is one's own
        raise ValueError(
            f"{file} can not be read: {said} Remove it to use what the checkpoint says."
        ) from None


def _no_model(config: Mapping[str, object], saved: Mapping[str, object]) -> str:
    """What a config.json without a model that can be read is of, and what to do with it."""
    form, experiment = config.get("format"), config.get("experiment")
    if form not in (None, models.FORMAT):
        return (
            f"config.json is of format {checks.came(form)}, and this version of gen_jax reads format {models.FORMAT}: "
            "take a newer gen_jax for a newer run."
        )
    if isinstance(saved.get("model"), Mapping):
        return "config.json has no model, but the checkpoint has: remove config.json to use what the checkpoint says."
    if not isinstance(experiment, str):
        return (
            "config.json describes no model. A run of yours is read where training.fit got "
            "config=launch.record(name, options, model=model.to_dict(model))."
        )
    return (
        f"this is a run of {experiment}, and its config.json describes no diffusion model, which is all that is read "
        f"here. Draw from it with its own script, experiments/{experiment}.py, by its options workdir and sample-only."
    )


def _check_trained(file: AnyPath, model: Model, saved: Mapping[str, object], types: Sequence[type]) -> None:
    """ValueError where a model is not the one that was trained, but for what may be changed afterwards.

    That are the sampling and the names of classes. Arrays tell another network, and not another process.
    """
    if not isinstance(saved.get("model"), Mapping) or not file.exists():
        return
    trained = models.from_dict(saved["model"], types)
    if _fixed(model) != _fixed(trained):
        raise ValueError(
            f"{file} describes another model than the checkpoints of this run: of a model that is trained only the "
            "sampling and the names of the classes may change. Is it damaged? Remove it to use what the checkpoint says."
        )


def _fixed(model: Model) -> Model:
    condition = model.condition
    if isinstance(condition, Labels):
        condition = dataclasses.replace(condition, names=())
    return dataclasses.replace(model.undrawn(), condition=condition)
