"""Stable Diffusion from its files: a folder as diffusers writes it, or one file as web UIs have it.

    m, weights = pretrained.load("stable-diffusion-v1-5", dtype="bfloat16")
    m, weights = pretrained.load("sd_xl_base_1.0.safetensors", config="stable-diffusion-xl-base-1.0")
    images, _ = generate.sample(m, weights, jax.random.key(0), 1, prompt="a lighthouse at dawn", nfe=20)

What model it is follows from the shapes of its tensors, and of a folder from what its files say. How to draw from it is
as its `scheduler_config.json` says, with the grids of diffusers.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import DTypeLike, PyTree

from gen_jax import checks, small_files
from gen_jax.codec import Latents
from gen_jax.conditioning import Reader, Text
from gen_jax.generate import Weights
from gen_jax.model import Model, Sampling
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.networks.unet import UNetConfig
from gen_jax.pretrained import (
    components,
    fields,
    names,
    parts,
    safetensors,
    schedulers,
    seen,
    single_file,
    vocabulary,
)
from gen_jax.pretrained.single_file import Family, View
from gen_jax.pretrained.single_names import How
from gen_jax.text import Tokenizer
from gen_jax.types import Predicts

_log = logging.getLogger(__name__)

ENCODERS = ("text_encoder", "text_encoder_2")
PARTS = ("unet", "vae", *ENCODERS)

SCHEDULER: Mapping[str, object] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
}
"""What a scheduler_config.json says of all of them, for files that have none."""

ASSUMED: Mapping[Family, Mapping[str, object]] = {
    "sd1": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "sd2": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": {"_class_name": "EulerDiscreteScheduler"},
    "sdxl_refiner": {"_class_name": "EulerDiscreteScheduler"},
}
SIDES: Mapping[Family, int] = {"sd1": 512, "sd2": 768, "sdxl": 1024, "sdxl_refiner": 1024}
"""Pixels that a model was trained for, where no file says it."""


_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")


class Files(NamedTuple):
    """What is read of a Stable Diffusion, without its tensors."""

    family: Family
    tensors: Mapping[str, Mapping[str, np.ndarray]]
    """By part and by diffusers' name; each is read when it is asked for."""
    configs: Mapping[str, Mapping[str, object]]
    """The config.json of each part; none of one file."""
    scheduler: Mapping[str, object]
    pipeline: Mapping[str, object]
    """model_index.json."""
    tokenizers: Mapping[str, Tokenizer]
    """By the part that they are of."""


def load(
    path: str | Path,
    *,
    dtype: DTypeLike | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    predicts: Predicts | None = None,
    zero_terminal_snr: bool | None = None,
    clip_skip: int = 0,
) -> tuple[Model, Weights]:
    """The model and the weights of a Stable Diffusion 1, 2 or XL, its refiner, or one of them for inpainting.

    Args:
        path: a folder with model_index.json, or a `.safetensors` file.
        dtype: of the weights and of the networks' arithmetic, by default float32. In float16 the autoencoder stays in
            float32, since that of XL overflows.
        variant: of the files of a folder, such as "fp16".
        config: for one file: a folder with what it does not say, the config.json of parts, a scheduler and CLIP's
            vocabulary, as far as they are there; or the folder of the vocabulary alone. By default networks and scheduler
            are those of the Stable Diffusion that has such tensors, and the vocabulary is that of `tokenizer/` beside the
            file, or in one of `vocabulary.PACKAGES` that is installed.
        predicts: what the network says, "eps" or "v". One file does not say it: by default "v" of Stable Diffusion 2 and
            of files with the mark `v_pred`, "eps" of all others.
        zero_terminal_snr: whether the last time is without signal; by default where a file says so.
        clip_skip: how many of the last layers of the text encoders are not used.

    Returns:
        The description, and trees "network", "text" and "autoencoder".

    Raises:
        ValueError: what is there is no Stable Diffusion, or has parts that this library does not have; tensors are
            missing, left over or of another shape; a file is damaged, or pickled.
    """
    path = Path(path).expanduser()
    checks.whole("clip_skip", clip_skip, "layer", least=0)
    with small_files.named(path):
        given = None if config is None else Path(config).expanduser()
        files = _folder(path, variant) if path.is_dir() else _file(path, given, told=predicts is not None)
        model = _at_dtype(describe(files, predicts=predicts, zero_terminal_snr=zero_terminal_snr), dtype)
        model = _skipped(model, clip_skip) if clip_skip else model
        trees = {place.path: _tree(part, files, place) for part, place in parts.places(model).items()}
    return model, traverse_util.unflatten_dict(trees)


def _tree(part: str, files: Files, place: parts.Place) -> PyTree:
    """The parameters of a part."""
    shapes = components.parameters(place.config, place.channels)
    with small_files.named(part):
        return names.to_linen(
            _used(files.tensors[part], place.config), shapes, part=place.rows, dtype=place.config.param_dtype
        )


def describe(
    files: Files, *, predicts: Predicts | None = None, zero_terminal_snr: bool | None = None
) -> Model:
    """The description of what the files hold; nothing of the tensors is read but their shapes."""
    shapes = {part: names.shapes_of(tensors) for part, tensors in files.tensors.items()}
    make = lambda part, of: of(files.configs.get(part), shapes[part])
    unet, vae = make("unet", components.unet), make("vae", components.autoencoder)
    with small_files.named("scheduler/scheduler_config.json"):
        said = schedulers.read(files.scheduler)
    process = said.process
    if zero_terminal_snr is not None:
        process = replace(process, zero_terminal_snr=zero_terminal_snr)
    coding, sample = files.configs.get("vae", {}), files.configs.get("unet", {}).get("sample_size")
    side = SIDES[files.family] // vae.factor if sample is None else sample
    xl = files.family in ("sdxl", "sdxl_refiner")

    def number(name: str, default: float) -> float:
        value = coding.get(name)
        return default if value is None else fields.number(fields.VAE, name, value)

    codec = Latents(
        (*fields.sides(fields.UNET, "sample_size", side), vae.latent_channels),
        number("scaling_factor", 0.13025 if xl else 0.18215),
        number("shift_factor", 0.0),
        autoencoder=vae,
    )
    encoders = {part: make(part, components.text) for part in ENCODERS if part in files.tensors}
    schedule = said.schedule if xl else replace(said.schedule, steps_offset=1)
    return Model(
        network=unet,
        process=process,
        predicts=said.predicts if predicts is None else predicts,
        condition=_condition(files, encoders, unet, codec.image_shape),
        codec=codec,
        sampling=Sampling(said.solver, *_usual(said.solver, xl), schedule=schedule),
        beside=_beside(shapes["unet"], vae),
    )


def _usual(solver: str, xl: bool) -> tuple[int, float]:
    """Steps and guidance of diffusers' pipeline, where nothing else is asked for."""
    return (4, 8.5) if solver == "lcm" else (50, 5.0 if xl else 7.5)


def _condition(
    files: Files, encoders: Mapping[str, CLIPTextConfig], unet: UNetConfig, image: tuple[int, int, int]
) -> Text:
    """What the network is told: the last layer of one encoder; of XL the last but one of each, the pooled text, sizes."""
    xl = files.family in ("sdxl", "sdxl_refiner")
    readers = tuple(
        Reader(files.tokenizers[part], encoder, -2 if xl else None) for part, encoder in encoders.items()
    )
    if not xl:
        return Text(readers)
    height, width, _ = image
    size, score = (float(height), float(width), 0.0, 0.0), files.family == "sdxl_refiner"
    numbers = 5 if score else 6
    pooled = readers[-1].encoder.projection
    if unet.cond_features is None or pooled is None or (unet.cond_features - pooled) % numbers:
        raise ValueError(
            f"expected an added vector of the pooled text and of {numbers} sizes in the U-Net, got {unet.cond_features} "
            f"numbers, of which the text has {pooled}."
        )
    return Text(
        readers,
        sizes=(*size, 6.0) if score else (*size, *size[:2]),
        null_sizes=(*size, 2.5) if score else (),
        size_features=(unet.cond_features - pooled) // numbers,
        zero_null=bool(files.pipeline.get("force_zeros_for_empty_prompt", True)) and not score,
    )


def _folder(path: Path, variant: str | None) -> Files:
    index = small_files.json_of(path / "model_index.json", "a folder of diffusers has one")
    found = [part for part in PARTS if (path / part).is_dir()]
    listed = {part for part in PARTS if isinstance(said := index.get(part), list) and any(said)}
    reads = (listed | set(found)) & set(ENCODERS)
    if missing := {"unet", "vae", *listed, *(() if reads else ["text_encoder"])} - set(found):
        raise ValueError(
            f"{path} has no {' and no '.join(sorted(missing))}, which a Stable Diffusion has: fetch all of it. Models "
            "with other parts are not read."
        )
    configs = {part: small_files.json_of(path / part / "config.json", "every part has one") for part in found}
    tensors = {part: safetensors.read(path / part, variant=variant) for part in found}
    family: Family = "sd1"
    if "text_encoder_2" in found:
        family = "sdxl" if "text_encoder" in found else "sdxl_refiner"
    tokenizers = {
        part: Tokenizer.load(path / part.replace("text_encoder", "tokenizer"))
        for part in found
        if part in ENCODERS
    }
    scheduler = small_files.json_of(
        path / "scheduler" / "scheduler_config.json", "it says how noise was added"
    )
    return Files(family, tensors, configs, scheduler, index, tokenizers)


def _file(path: Path, given: Path | None, told: bool) -> Files:
    tensors = safetensors.read(path)
    family = single_file.family(tensors.shapes)
    found = single_file.split(tensors)
    inside = lambda *place: None if given is None else _given(given.joinpath(*place))
    configs = {part: said for part in found if (said := inside(part, "config.json")) is not None}
    tokenizers = vocabulary.tokenizers(
        [part for part in found if part in ENCODERS],
        second=family == "sd2",
        beside=path.parent,
        given=given,
    )
    scheduler = inside("scheduler", "scheduler_config.json")
    if scheduler is None:
        scheduler = _assumed(path.name, family, tensors, told)
    return Files(family, found, configs, scheduler, {}, tokenizers)


def _given(file: Path) -> Mapping[str, object] | None:
    """What a file of the given folder says; None where it is not there."""
    return small_files.json_of(file) if file.exists() else None


def _assumed(
    name: str, family: Family, tensors: Mapping[str, np.ndarray], told: bool
) -> Mapping[str, object]:
    """The scheduler of one file: that of its family, but for what marks among the tensors say.

    A warning where it is not told what the network predicts, and the family has both.
    """
    marks = {"v_pred": ("prediction_type", "v_prediction"), "ztsnr": ("rescale_betas_zero_snr", True)}
    marked = dict(value for mark, value in marks.items() if mark in tensors)
    scheduler = {**SCHEDULER, **ASSUMED[family], **marked}
    if family == "sd2" and not told and "v_pred" not in tensors:
        _log.warning(
            '%s does not say what its network predicts: taken is "v", as of Stable Diffusion 2.1 for 768 pixels. Give '
            'predicts="eps" for those of 512 pixels.',
            name,
        )
    return scheduler


def _beside(shapes: Mapping[str, tuple[int, ...]], vae: AutoencoderKLConfig) -> int:
    """The channels of the U-Net's input that are not those of the noise: 5 for inpainting."""
    reads, latent = seen.along("U-Net", shapes, "conv_in.weight", 1), vae.latent_channels
    if reads not in (latent, 1 + 2 * latent):
        raise ValueError(
            f"the U-Net reads {reads} channels: expected {latent}, or for inpainting {1 + 2 * latent}, since the "
            f"autoencoder has {latent} latent channels. Are both of one model?"
        )
    return reads - latent


def _at_dtype(model: Model, dtype: DTypeLike | None) -> Model:
    """The model with all of its networks in one type."""
    name = jnp.dtype("float32" if dtype is None else dtype).name
    cast_to = lambda config, name=name: replace(config, dtype=name, param_dtype=name)
    condition, codec = cast(Text, model.condition), cast(Latents, model.codec)
    readers = tuple(replace(reader, encoder=cast_to(reader.encoder)) for reader in condition.readers)
    coding = cast_to(codec.autoencoder, "float32" if name == "float16" else name)
    return replace(
        model,
        network=cast_to(model.network),
        condition=replace(condition, readers=readers),
        codec=replace(codec, autoencoder=coding),
    )


def _skipped(model: Model, skip: int) -> Model:
    """The model without the last `skip` layers of its text encoders."""

    def skipped(reader: Reader) -> Reader:
        if not 0 <= skip < reader.encoder.layers - (reader.hidden is not None):
            raise ValueError(f"clip_skip must be less than the layers of the text encoder, got {skip}.")
        if reader.hidden is not None:
            return replace(reader, hidden=reader.hidden - skip)
        return replace(reader, encoder=replace(reader.encoder, layers=reader.encoder.layers - skip))

    condition = cast(Text, model.condition)
    return replace(model, condition=replace(condition, readers=tuple(map(skipped, condition.readers))))


def _used(tensors: Mapping[str, np.ndarray], config: object) -> Mapping[str, np.ndarray]:
    """The tensors without the layers of a text encoder that are not used."""
    if not isinstance(config, CLIPTextConfig):
        return tensors
    unused = lambda name: (found := _LAYER.search(name)) and int(found[1]) >= config.layers
    shapes = names.shapes_of(tensors)
    return View({name: (tensors, How((name,), shapes[name])) for name in shapes if not unused(name)})
