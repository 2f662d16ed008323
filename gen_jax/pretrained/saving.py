"""Stable Diffusion into files that diffusers and web UIs read: the inverse of `pretrained.load`.

    pretrained.save("my-model", m, weights)                                 # a folder of diffusers
    pretrained.save("my-model.safetensors", m, weights, layout="single")    # one file, for web UIs

Names and tensors are those of the files that the weights were read from, in the type that the weights have.
"""

import json
import os
import tempfile
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from gen_jax import checks
from gen_jax.diffusion.process import DDPM
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import components, configs, names, parts, safetensors, schedulers, single_file
from gen_jax.pretrained.parts import Place
from gen_jax.pretrained.safetensors.writing import on_host
from gen_jax.pretrained.single_file import Family, View
from gen_jax.pretrained.single_names import How
from gen_jax.pretrained.stable_diffusion import ENCODERS, Files, describe
from gen_jax.samplers import Schedule
from gen_jax.types import FileLayout

__all__ = ["save"]

UNSAID = {"dtype", "param_dtype", "remat", "dropout", "nfe", "guidance", "guide_step"}
"""Fields of a description that files do not hold: of types, training and taste."""

PIPELINES: Mapping[Family, str] = {
    "sd1": "StableDiffusion{}Pipeline",
    "sd2": "StableDiffusion{}Pipeline",
    "sdxl": "StableDiffusionXL{}Pipeline",
    "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline",
}
CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


@checks.checked
def save(
    path: str | os.PathLike[str],
    model: Model,
    weights: Weights,
    layout: FileLayout = "diffusers",
) -> None:
    """Write a Stable Diffusion 1, 2 or XL, its refiner, or one of them for inpainting.

    All is written beside `path` and renamed in the end: what is there has been written in full. One tensor at a time is
    fetched from its device.

    A folder holds all that `pretrained.load` reads from one. One file has no tokenizer and no configuration: it is read
    with `config=`, or where it is as its family always is, without. Marks among its tensors say that a model predicts "v"
    or has no signal at its last time (`v_pred`, `ztsnr`), where that is not what its family does. Text encoders are
    written as they are used: of OpenCLIP in Stable Diffusion 2 that is 23 layers of 24.

    Args:
        path: of a new folder, or with `layout="single"` of a new file `.safetensors`.
        model: its description; `dataclasses.replace` changes how it is drawn from.
        weights: its trees "network", "text" and "autoencoder".
        layout: "diffusers", a folder, or "single", one file by the names of Stable Diffusion's authors.

    Raises:
        ValueError: there is something at `path`; the model has parts or values that these files can not have, which are
            named; the weights are not those of the model.
    """
    path = Path(path).expanduser()
    if layout not in ("diffusers", "single"):
        near = checks.nearest(layout, ("diffusers", "single"))
        raise ValueError(f'layout must be "diffusers" or "single", got {layout!r}.{near}')
    if path.exists():
        raise ValueError(f"{path} is there already: take another name, or remove it first.")
    files = _files(model, weights, layout)
    _check(model, files)
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout == "single":
        safetensors.write(path, _single(files, model))
        return
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=path.parent) as scratch:
        folder = Path(scratch) / path.name
        folder.mkdir()
        _write(folder, files)
        folder.rename(path)


def _files(model: Model, weights: Weights, layout: str) -> Files:
    """What the files shall hold."""
    places, family = parts.places(model), parts.family(model)
    _, text, _ = parts.checked(model)
    if not isinstance(model.process, DDPM):
        raise ValueError(
            f"the process of a Stable Diffusion is DDPM, got {model.process}: diffusers has no scheduler of it here."
        )
    trees = {part: parts.within(weights, place.path) for part, place in places.items()}
    if unknown := set(weights) - {place.path[0] for place in places.values()}:
        raise ValueError(
            f"weights have {', '.join(sorted(unknown))}, which is no part of these files: leave it out."
        )
    solver, schedule = model.sampling.solver or "dpmpp", model.sampling.schedule or Schedule(None, 1, False)
    if any(reader.tokenizer.added for reader in text.readers) and layout == "single":
        raise ValueError(
            "this model has words of textual inversion, and one file has no place for their names: write a folder, or "
            "the model without them."
        )
    encoders = [part for part in ENCODERS if part in places]
    return Files(
        family,
        {part: _tensors(part, place, trees[part]) for part, place in places.items()},
        _configs(model, places, trees),
        schedulers.write(model.process, model.predicts, schedule, solver),
        _pipeline(family, inpaints=model.beside > 0, zeros=text.zero_null),
        {part: reader.tokenizer for part, reader in zip(encoders, text.readers, strict=True)},
    )


def _tensors(part: str, place: Place, tree: PyTree) -> View:
    """The tensors of a part by diffusers' names, each made when it is asked for."""
    wanted, have = place.entries(), names.entries(tree, place.rows)
    if wanted != have:
        wrong = [name for name in {**wanted, **have} if wanted.get(name) != have.get(name)]
        raise ValueError(
            f"{part}: the weights are not those of this model; they differ in {names.some(wrong)}. Take the model that "
            "they came with."
        )
    leaves = names.flat(tree)
    linear = not isinstance(place.config, components.UNetConfig) or components.linear(place.config)

    def how(entry: names.Entry) -> How:
        shape = entry.theirs(linear)
        return How((entry.name,), shape, lambda leaf: entry.from_linen(on_host(leaf), shape))

    return View({name: (leaves, how(entry)) for name, entry in have.items()})


def _configs(
    model: Model, places: Mapping[str, Place], trees: Mapping[str, PyTree]
) -> dict[str, configs.Config]:
    """The config.json of each part."""
    network, text, codec = parts.checked(model)
    height, width, _ = codec.shape
    one = lambda height, width: height if height == width else [height, width]
    coding = places["vae"].config
    assert isinstance(coding, components.AutoencoderKLConfig)
    found = {
        "unet": configs.unet(
            network,
            channels=places["unet"].channels or 0,
            side=one(height, width),
            size_features=text.size_features,
            upcast=parts.family(model) == "sd2",
        ),
        "vae": configs.autoencoder(
            coding,
            side=one(height * coding.factor, width * coding.factor),
            scale=codec.scale,
            shift=codec.shift,
        ),
    }
    for part, place in places.items():
        if isinstance(place.config, components.CLIPTextConfig):
            dtype = next(iter(names.flat(trees[part]).values())).dtype.name
            found[part] = configs.text(place.config, dtype=dtype)
    return found


def _pipeline(family: Family, *, inpaints: bool, zeros: bool) -> dict[str, object]:
    """model_index.json, but for the scheduler."""
    none = {name: [None, None] for name in ("image_encoder", "feature_extractor")}
    if family in ("sd1", "sd2"):
        told = {"safety_checker": [None, None], "requires_safety_checker": False}
    else:
        told = {"force_zeros_for_empty_prompt": zeros}
    if family == "sdxl_refiner":
        told |= {"requires_aesthetics_score": True, "text_encoder": [None, None], "tokenizer": [None, None]}
    return {"_class_name": PIPELINES[family].format("Inpaint" if inpaints else ""), **none, **told}


def _check(model: Model, files: Files) -> None:
    """ValueError if what would be read from these files is another model."""
    try:
        read = describe(files)
    except ValueError as error:
        raise ValueError(f"files of Stable Diffusion can not have such a model: {error}") from None
    ours, theirs = model.sampling, read.sampling
    if ours.schedule is None or ours.solver is None:
        model = replace(model, sampling=theirs)
    if different := list(_differ(model, read, "model")):
        raise ValueError(f"files of Stable Diffusion can not say that {', that '.join(different[:5])}.")


def _differ(ours: object, theirs: object, where: str) -> Iterator[str]:
    """In what a description is another than the one that is read, but for `UNSAID`."""
    if is_dataclass(ours) and type(ours) is type(theirs):
        for field in fields(ours):
            if field.name not in UNSAID:
                both = getattr(ours, field.name), getattr(theirs, field.name)
                yield from _differ(*both, f"{where}.{field.name}")
    elif (
        isinstance(ours, tuple)
        and isinstance(theirs, tuple)
        and len(ours) == len(theirs)
        and any(map(is_dataclass, ours))
    ):
        for i, both in enumerate(zip(ours, theirs, strict=True)):
            yield from _differ(*both, f"{where}[{i}]")
    elif ours != theirs:
        yield f"{where} is {ours!r} (one reads {theirs!r})"


def _single(files: Files, model: Model) -> Mapping[str, np.ndarray]:
    """The tensors of one file, with the marks and the list of positions that are expected in it."""
    joined = single_file.join(files.tensors, files.family)
    more: dict[str, np.ndarray] = {}
    assert isinstance(model.process, DDPM)
    if model.predicts == "v" and files.family != "sd2":
        more["v_pred"] = np.zeros(0, np.float32)
    if model.process.zero_terminal_snr:
        more["ztsnr"] = np.zeros(0, np.float32)
    for part, prefix in single_file.PREFIXES[files.family].items():
        if prefix.endswith(".transformer."):
            length = files.tensors[part]["text_model.embeddings.position_embedding.weight"].shape[0]
            more[f"{prefix}text_model.embeddings.position_ids"] = np.arange(length)[None]
    return ChainMap(more, joined)  # type: ignore[arg-type]


def _write(folder: Path, files: Files) -> None:
    """All files of a folder of diffusers."""
    index = dict(files.pipeline) | {"scheduler": ["diffusers", files.scheduler["_class_name"]]}
    for part, tensors in files.tensors.items():
        (folder / part).mkdir()
        text = part in ENCODERS
        stem = "model" if text else "diffusion_pytorch_model"
        safetensors.write(folder / part / f"{stem}.safetensors", tensors)
        _json(folder / part / "config.json", files.configs[part])
        index[part] = CLASSES.get(part) or ["transformers", *_listed(files.configs[part]["architectures"])]
    for part, tokenizer in files.tokenizers.items():
        name = part.replace("text_encoder", "tokenizer")
        (folder / name).mkdir()
        tokenizer.save(folder / name)
        index[name] = CLASSES["tokenizer"]
    (folder / "scheduler").mkdir()
    _json(folder / "scheduler" / "scheduler_config.json", files.scheduler)
    _json(folder / "model_index.json", index)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
