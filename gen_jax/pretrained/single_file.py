"""Stable Diffusion in one file, by the names of its authors, as the parts that diffusers' folders have, and back.

    parts = single_file.split(tensors)                # {"unet": ..., "vae": ..., "text_encoder": ...}, diffusers' names
    parts["unet"]["conv_in.weight"]                   # read now
    tensors = single_file.join(parts, "sd1")          # the names of one file

Nothing is read or copied before it is asked for.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Array

from gen_jax.pretrained.names import Part, modern, shapes_of, some
from gen_jax.pretrained.single_names import How, Kind, Shape, from_single, to_single

__all__ = ["IGNORED", "PREFIXES", "Family", "View", "family", "join", "split"]

Family = Literal["sd1", "sd2", "sdxl", "sdxl_refiner"]

_BOTH = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
PREFIXES: dict[Family, dict[str, str]] = {
    "sd1": {**_BOTH, "text_encoder": "cond_stage_model.transformer."},
    "sd2": {**_BOTH, "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        **_BOTH,
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl_refiner": {**_BOTH, "text_encoder_2": "conditioner.embedders.0.model."},
}
"""What the names of each part begin with. A text encoder that is a "model" there has the names of OpenCLIP."""

IGNORED = re.compile(
    r"model_ema\.|first_stage_model\.loss\.|denoiser\.|"
    r"(betas|alphas_cumprod\w*|sqrt_\w+|log_\w+|posterior_\w+|lvlb_weights|logvar|scale_factor|global_step)$|"
    r"(v_pred|ztsnr|edm_mean|edm_std)$|"
    r".*(logit_scale|attn_mask|position_ids)$|"
    r"cond_stage_model\.model\.(transformer\.resblocks\.23\.|text_projection$)"
)
"""What is no parameter of a part: averages, tables of the process, marks; and in Stable Diffusion 2 the end of OpenCLIP,
of which it takes what the 23rd layer of 24 says."""

_CONTEXT: dict[int, Family] = {768: "sd1", 1024: "sd2", 2048: "sdxl", 1280: "sdxl_refiner"}


class View(Mapping[str, np.ndarray]):
    """Tensors made of others, each when it is asked for; `shapes` are known without reading."""

    def __init__(self, made: Mapping[str, tuple[Mapping[str, Array | np.ndarray], How]]) -> None:
        self._made = made
        self.shapes = {name: how.shape for name, (_, how) in made.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        source, how = self._made[name]
        return how.by(*(source[each] for each in how.names))

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def family(shapes: Mapping[str, Shape]) -> Family:
    """Which Stable Diffusion a file is of: by its text encoder, without one by the size of the context.

    Raises:
        ValueError: of none that is known.
    """
    texts = {p: known for known, parts in PREFIXES.items() for part, p in parts.items() if "text" in part}
    for prefix, known in texts.items():
        if any(name.startswith(prefix) for name in shapes):
            return known
    for name, shape in shapes.items():
        if name.startswith(_BOTH["unet"]) and name.endswith("attn2.to_k.weight") and shape[-1] in _CONTEXT:
            return _CONTEXT[shape[-1]]
    raise ValueError(
        "expected a Stable Diffusion in one file, with names that begin with model.diffusion_model, first_stage_model "
        f"and cond_stage_model or conditioner; got {some(list(shapes)) or 'no tensors'}. A part of a folder is read "
        "with that folder, and a LoRA with the model that it changes."
    )


def split(tensors: Mapping[str, np.ndarray]) -> dict[str, View]:
    """The parts of a file by the names of diffusers' folders: "unet", "vae", "text_encoder", "text_encoder_2".

    A part that the file does not have is not there.

    Raises:
        ValueError: it is no Stable Diffusion, or has tensors that are of none of its parts.
    """
    shapes = {name: tuple(s) for name, s in shapes_of(tensors).items() if not IGNORED.match(name)}
    prefixes, parts = PREFIXES[family(shapes)], {}
    left_over = [name for name in shapes if not name.startswith(tuple(prefixes.values()))]
    for part, prefix in prefixes.items():
        inside = {name.removeprefix(prefix): s for name, s in shapes.items() if name.startswith(prefix)}
        found, unknown = from_single(_kind(prefix), inside)
        left_over += [prefix + name for name in unknown]
        whole = lambda how, prefix=prefix: how._replace(names=tuple(prefix + name for name in how.names))
        if found:
            parts[part] = View({new: (tensors, whole(how)) for new, how in found.items()})
    _refuse(left_over)
    return parts


def join(parts: Mapping[str, Mapping[str, np.ndarray]], of: Family) -> View:
    """One file of the parts of diffusers' folders, the inverse of `split`.

    Raises:
        ValueError: a part that this family does not have, or a tensor that is of no part.
    """
    if unknown := sorted(set(parts) - set(PREFIXES[of])):
        raise ValueError(f"{of} has the parts {', '.join(PREFIXES[of])}; got {', '.join(unknown)}.")
    made = {}
    for part, tensors in parts.items():
        prefix, shapes = PREFIXES[of][part], shapes_of(tensors)
        rows: Part = "text" if "text" in part else "vae" if part == "vae" else "unet"
        names = {now: name for name in shapes if (now := modern(name, rows)) is not None}
        found, unknown = to_single(_kind(prefix), {now: tuple(shapes[name]) for now, name in names.items()})
        _refuse(names[name] for name in unknown)
        for old, how in found.items():
            made[prefix + old] = tensors, how._replace(names=tuple(names[name] for name in how.names))
    return View(made)


def _refuse(left_over: Iterable[str]) -> None:
    if names := sorted(left_over):
        raise ValueError(f"these tensors are of no part of Stable Diffusion: {some(names)}.")


def _kind(prefix: str) -> Kind:
    if prefix in _BOTH.values():
        return "unet" if prefix == _BOTH["unet"] else "vae"
    return "openclip" if prefix.endswith(".model.") else "clip"
