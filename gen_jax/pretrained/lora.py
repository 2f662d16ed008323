"""LoRA: files with low-rank changes of a Stable Diffusion, and the weights with them.

    style = lora.load("style.safetensors", m)
    changed = lora.merge(weights, [(style, 0.8), (lora.load("subject.safetensors", m), 1.0)])
    images, _ = generate.sample(m, changed, key, 4, prompt="a lighthouse")

`merge` is a function of arrays: it starts from the weights that it is given, which stay as they are, and a program that
draws takes the result in their place without being compiled again. Its gradient with respect to a `Lora` trains one; new
ones are made and trained by `training.lora`, as trees beside the parameters, which `pretrained.lora_writing` writes.

    layout                            names
    kohya                             lora_unet_{path}.lora_down.weight, .lora_up.weight, .alpha; lora_te_, lora_te1_, ...
    peft, and diffusers since 0.22    unet.{path}.lora_A.weight, .lora_B.weight; text_encoder., text_encoder_2.
    diffusers before                  unet.{path}.processor.to_q_lora.down.weight; {path}.lora_linear_layer.up.weight

The paths are those of diffusers or of one file, of linear maps and convolutions (LoCon), and of kohya have "_" for ".".

Source: Hu et al. 2021, Section 4.1.
"""

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from gen_jax import checks
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import parts, safetensors, single_names
from gen_jax.pretrained.names import Entry, some

__all__ = ["Factors", "Lora", "load", "merge"]

OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "lora_mid": "LoCon with a Tucker decomposition",
}
"""Other methods, by what is in the names of their tensors."""

PREFIXES = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "base_model.model.": "unet",
    "diffusion_model.": "unet",
    "": "unet",
}
"""Parts by how names begin; the first that fits."""

_PIECE = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<new>down|up|A|B)(?:\.\w+)?\.weight|"
    r"[._]lora(?:_linear_layer)?\.(?P<old>down|up)\.weight|\.(?P<alpha>alpha))"
)
_OLD = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""The attention of text encoders in files of diffusers before 0.15."""


Weight: TypeAlias = "float | int | Float[Array, '']"
"""How much of a change is made: any finite number."""


class Factors(NamedTuple):
    """A change of a parameter, `scale left @ right`, with the axes of the parameter: the last ones joined to `O`."""

    left: Float[Array, "*i r"]
    """`down` of files: of a convolution [h, w, I, r]."""
    right: Float[Array, "r o"]
    """`up` of files."""
    scale: Float[Array, ""]
    """`alpha / r`."""


class Lora(NamedTuple):
    """Changes of the weights of a model; a pytree of arrays, in the types that the file has."""

    factors: dict[str, Factors]
    """By the path of the parameter among the weights: "network/params/down_0_0_transformer/block_0/self_query/kernel"."""


class _Place(NamedTuple):
    path: str
    entry: Entry


@checks.checked
def load(path: str | os.PathLike[str], model: Model) -> Lora:
    """The changes of a file, for the weights of a Stable Diffusion.

    A change is `alpha / r up @ down`. Without `alpha` in the file, or in what peft writes into its header, it is
    `up @ down`.

    Args:
        path: a `.safetensors` file.
        model: what it was made for.

    Raises:
        ValueError: the file is of another method (DoRA, LoHa, LoKr), has tensors that belong to nothing in the model or
            have other shapes, or one of two factors alone; it names them.
    """
    path = Path(path).expanduser()
    tensors = safetensors.read(path)
    for name in tensors:
        if method := next((method for mark, method in OTHERS.items() if mark in name), None):
            raise ValueError(
                f"{path} is {method}, as {name} says, which is another method: gen_jax reads LoRA, of linear maps and "
                "convolutions. Merge it into the model by the program that it was made for, and load the result."
            )
    places, found, left_over = _places(model), defaultdict[str, dict[str, str]](dict), list[str]()
    modules: dict[str, tuple[_Place, str]] = {}
    for name in tensors:
        match = _PIECE.fullmatch(name)
        part, inside = _part(match["module"]) if match else ("", "")
        place = places.get((part, inside.replace(".", "_")))
        if match is None or place is None:
            left_over.append(name)
            continue
        piece = match["new"] or match["old"] or "alpha"
        found[place.path][{"A": "down", "B": "up"}.get(piece, piece)] = name
        modules[place.path] = place, f"{part}.{inside}"
    if left_over or not found:
        raise ValueError(
            f"{path} is no LoRA of this model: {some(left_over) or 'an empty file'}: that belongs to nothing in it. Was "
            "it made for another Stable Diffusion (1, 2 and XL have each their own)?"
        )
    said = _header(path, tensors.metadata)
    return Lora({key: _factors(tensors, found[key], *modules[key], said) for key in sorted(found)})


@checks.checked
def merge(weights: Weights, loras: Sequence[tuple[Lora, Weight]]) -> Weights:
    """Weights with the changes of each, `w + sum_i weight_i scale_i left_i @ right_i`.

    The sum is in float32, the result of the type of `w`. A change of 0 leaves every bit as it is. May be called inside
    `jit`; what is not changed is shared with `weights`.

    Args:
        weights: trees of a model, such as "network" and "text".
        loras: each with its weight, a number or a scalar array; 1 is as it was trained.

    Raises:
        ValueError: a parameter that is not among the weights, or of another shape.
    """
    flat = cast("dict[str, Array]", traverse_util.flatten_dict(weights, keep_empty_nodes=True, sep="/"))
    changes = defaultdict[str, list[tuple[Factors, Weight]]](list)
    for i, (lora, weight) in enumerate(map(_pair, loras)):
        checks.within(f"loras[{i}][1], a weight,", weight)
        for path, factors in lora.factors.items():
            changes[path].append((factors, weight))
    for path, each in changes.items():
        for factors, _ in each:
            size = factors.left.size // factors.left.shape[-1] * factors.right.shape[-1]
            if path not in flat or flat[path].size != size:
                raise ValueError(
                    f"the weights have no {path} of {size:,} numbers, which a LoRA changes: load it with the model that "
                    "they are of."
                )
        flat[path] = _changed(flat[path], each)
    return cast(Weights, traverse_util.unflatten_dict(flat, sep="/"))


def _pair(each: object) -> tuple[Lora, Weight]:
    """One of `loras`; ValueError where it is no Lora with a number."""
    number = (int, float, np.number, np.ndarray, jax.Array)
    if isinstance(each, tuple | list) and not isinstance(each, Lora) and len(each) == 2:
        lora, weight = each
        if isinstance(lora, Lora) and isinstance(weight, number) and not np.shape(weight):
            return lora, cast(Weight, weight)
    raise ValueError(
        f"loras must be pairs (Lora, weight), as [(lora.load(path, model), 0.8)]; got {checks.came(each)}."
    )


@jax.jit
def _changed(array: Array, each: Sequence[tuple[Factors, Array]]) -> Array:
    kind = jnp.promote_types(array.dtype, jnp.float32)
    product = lambda f: jnp.tensordot(
        f.left.astype(kind), f.right.astype(kind), 1, precision=jax.lax.Precision.HIGHEST
    )
    change = sum(weight * factors.scale * product(factors) for factors, weight in each)
    change = jnp.reshape(change, array.shape)
    return jnp.where(change == 0, array, (array.astype(kind) + change).astype(array.dtype))


def _places(model: Model) -> dict[tuple[str, str], _Place]:
    """Every linear map and convolution of the networks, by its part and each name that it has, with "_" for "."."""
    places: dict[tuple[str, str], _Place] = {}
    for part, place in parts.places(model).items():
        if part == "vae":
            continue
        entries = {name: e for name, e in place.entries().items() if e.path[-1] == "kernel"}
        others = {}
        if part == "unet":
            single, _ = single_names.to_single("unet", {name: e.theirs() for name, e in entries.items()})
            others = {how.names[0]: name for name, how in single.items()}
        for name, entry in entries.items():
            at = _Place("/".join((*place.path, "params", *entry.path)), entry)
            for each in {name, others.get(name, name), *_spellings(name)}:
                places[part, each.removesuffix(".weight").replace(".", "_")] = at
    return places


def _spellings(name: str) -> list[str]:
    """Further names that a module has had."""
    names = [name.replace("to_out.0.", "to_out."), name.removeprefix("text_model.")]
    for new, old in _OLD.items():
        names.append(name.replace(f"self_attn.{new}.", f"self_attn.{old}."))
    return names


def _part(module: str) -> tuple[str, str]:
    """The part that a module is of, and its name there."""
    prefix = next(prefix for prefix in PREFIXES if module.startswith(prefix))
    return PREFIXES[prefix], module.removeprefix(prefix).replace(".processor.", ".")


def _factors(
    tensors: Mapping[str, np.ndarray],
    pieces: Mapping[str, str],
    place: _Place,
    module: str,
    said: Mapping[str, object],
) -> Factors:
    """The factors of one parameter, with its axes."""
    if missing := [piece for piece in ("down", "up") if piece not in pieces]:
        raise ValueError(
            f"{', '.join(pieces.values())} has no {missing[0]} beside it: a change has two factors, and the file is not "
            "whole."
        )
    down, up = (np.asarray(tensors[pieces[piece]]) for piece in ("down", "up"))
    outward, inward, *window = place.entry.theirs()
    rank = down.shape[0] if down.ndim else 0
    convolution = place.entry.kind == "convolution"
    sides = (window,) if convolution else ([], [1, 1])
    fits = down.shape[1:2] == (inward,) and list(down.shape[2:]) in sides
    if not rank or not fits or up.shape[:2] != (outward, rank) or up.shape[2:] not in ((), (1, 1)):
        raise ValueError(
            f"{pieces['down']} and {pieces['up']} have the shapes {down.shape} and {up.shape}; expected "
            f"{('r', inward, *window)} and {(outward, 'r')}, with the same rank r. Is the LoRA of this model?"
        )
    scale = _scale(said, module, rank, tensors[pieces["alpha"]] if "alpha" in pieces else None)
    left = down.transpose(2, 3, 1, 0) if convolution else down.reshape(rank, inward).T
    right = up.reshape(outward, rank).T
    whole = lambda x: jnp.asarray(np.array(x, order="C"))
    return Factors(whole(left), whole(right), jnp.float32(scale))


def _header(path: Path, metadata: Mapping[str, str]) -> Mapping[str, object]:
    """What peft and diffusers write into the header, such as `{"unet.lora_alpha": 8}`."""
    try:
        said = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ValueError(
            f"{path}: lora_adapter_metadata in its header is no JSON object, so alpha is not known."
        )
    return said


def _scale(said: Mapping[str, object], module: str, rank: int, alpha: np.ndarray | None) -> float:
    """`alpha / r`, or with rank-stabilised LoRA `alpha / sqrt(r)`."""
    part, _, inside = module.partition(".")
    pattern = said.get(f"{part}.alpha_pattern")
    stated = [said.get(f"{part}.lora_alpha", rank)] if alpha is None else [*np.ravel(alpha)[:1].tolist()]
    if isinstance(pattern, dict) and alpha is None:
        stated = [x for name, x in pattern.items() if f".{inside}".endswith(f".{name}")] or stated
    if not stated or not isinstance(stated[0], int | float) or not math.isfinite(stated[0]):
        raise ValueError(f"expected a number as alpha of {module}, got {stated}.")
    return stated[0] / (math.sqrt(rank) if said.get(f"{part}.use_rslora") else rank)
