"""The names that the authors of Stable Diffusion gave its tensors, and diffusers' names, each made of the other.

    found, left_over = single_names.from_single("unet", {"input_blocks.0.0.weight": (320, 4, 3, 3), ...})
    found["conv_in.weight"]                       # How(names=("input_blocks.0.0.weight",), shape=(320, 4, 3, 3), ...)

The kinds of parts are "unet" and "vae", by the names of latent-diffusion (Rombach et al. 2022), "clip", by those of
transformers, and "openclip". Names are without the prefix of their part in one file.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from gen_jax.pretrained.names import modern

__all__ = ["Found", "How", "Kind", "Shape", "from_single", "to_single"]

Kind = Literal["unet", "vae", "clip", "openclip"]
Shape = tuple[int, ...]


class How(NamedTuple):
    """How a tensor is made of others."""

    names: tuple[str, ...]
    shape: Shape
    by: Callable[..., np.ndarray] = lambda tensor: tensor


Found = tuple[dict[str, How], list[str]]
"""How each tensor is made, and the names of those that are of no use."""

_UNET = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_UNET_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_SIDE = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
}
_VAE_BLOCK = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPENCLIP = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
}
_POSITIONS = "positional_embedding", "text_model.embeddings.position_embedding.weight"
_PROJECTION = "text_projection", "text_projection.weight"
_MATRIX = re.compile(r".*mid_block\.attentions\.0\.to_\w+(\.0)?\.weight")
"""Those of the autoencoder's attention, which are convolutions of one pixel in one file."""


def from_single(kind: Kind, shapes: Mapping[str, Shape]) -> Found:
    """diffusers' tensors of a part, out of those of one file."""
    if kind == "clip":
        return {modern(name, "text") or name: How((name,), shape) for name, shape in shapes.items()}, []
    if kind == "openclip":
        return _from_openclip(shapes)
    found, left_over = _renamed(shapes, _table(kind, shapes))
    for new, how in found.items():
        if kind == "vae" and _MATRIX.match(new):
            found[new] = how._replace(shape=how.shape[:2], by=lambda tensor: tensor.reshape(tensor.shape[:2]))
    return found, left_over


def to_single(kind: Kind, shapes: Mapping[str, Shape]) -> Found:
    """A part's tensors in one file, out of diffusers'."""
    if kind == "clip":
        return {name: How((name,), shape) for name, shape in shapes.items()}, []
    if kind == "openclip":
        return _to_openclip(shapes)
    found, left_over = _renamed(shapes, {new: old for old, new in _table(kind, shapes).items()})
    for old, how in found.items():
        if kind == "vae" and _MATRIX.match(how.names[0]):
            ones = (*how.shape[:2], 1, 1)
            found[old] = how._replace(shape=ones, by=lambda tensor, ones=ones: tensor.reshape(ones))
    return found, left_over


def _from_openclip(shapes: Mapping[str, Shape]) -> Found:
    """Queries, keys and values are the rows of one matrix there, and what projects a text stands on its side."""
    found, left_over = _renamed(shapes, _table("openclip", shapes))
    for name in left_over:
        shape = shapes[name]
        if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            n = shape[0] // 3
            for i, letter in enumerate("qkv"):
                new = f"text_model.encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"
                rows = slice(i * n, (i + 1) * n)
                found[new] = How((name,), (n, *shape[1:]), lambda tensor, rows=rows: tensor[rows])
        elif name == _POSITIONS[0]:
            found[_POSITIONS[1]] = How((name,), shape)
        elif name == _PROJECTION[0]:
            found[_PROJECTION[1]] = How((name,), shape[::-1], np.transpose)
    used = {name for how in found.values() for name in how.names}
    return found, [name for name in left_over if name not in used]


def _to_openclip(shapes: Mapping[str, Shape]) -> Found:
    found, left_over = _renamed(shapes, {new: old for old, new in _table("openclip", shapes).items()})
    for name in left_over:
        shape = shapes[name]
        if match := re.fullmatch(
            r"(text_model\.encoder\.layers\.(\d+)\.self_attn\.)q_proj\.(weight|bias)", name
        ):
            parts = tuple(f"{match[1]}{letter}_proj.{match[3]}" for letter in "qkv")
            if set(parts) <= set(shapes):
                old = f"transformer.resblocks.{match[2]}.attn.in_proj_{match[3]}"
                found[old] = How(parts, (3 * shape[0], *shape[1:]), lambda *parts: np.concatenate(parts))
        elif name == _POSITIONS[1]:
            found[_POSITIONS[0]] = How((name,), shape)
        elif name == _PROJECTION[1]:
            found[_PROJECTION[0]] = How((name,), shape[::-1], np.transpose)
    used = {name for how in found.values() for name in how.names}
    return found, [name for name in left_over if name not in used]


def _renamed(shapes: Mapping[str, Shape], table: Mapping[str, str]) -> Found:
    """Each name with its longest beginning in the table replaced."""
    found, left_over = {}, []
    for name, shape in shapes.items():
        words = name.split(".")
        ends = (n for n in range(len(words) - 1, 0, -1) if ".".join(words[:n]) in table)
        if end := next(ends, 0):
            found[".".join([table[".".join(words[:end])], *words[end:]])] = How((name,), shape)
        else:
            left_over.append(name)
    return found, left_over


def _table(kind: Kind, names: Collection[str]) -> dict[str, str]:
    """Modules by the authors' names, and diffusers' names for them; `names` are either."""
    numbers = lambda pattern: {int(match[1]) for name in names if (match := re.match(pattern, name))}
    most = lambda pattern: 1 + max(numbers(pattern), default=0)
    if kind == "openclip":
        layers = range(most(r"(?:transformer\.resblocks|text_model\.encoder\.layers)\.(\d+)\."))
        return _OPENCLIP | _inside(
            "transformer.resblocks.{}.", "text_model.encoder.layers.{}.", layers, _LAYER
        )
    if kind == "vae":
        levels = most(r"(?:encoder\.down|decoder\.up|(?:encoder\.down|decoder\.up)_blocks)\.(\d+)\.")
        blocks = most(r"(?:encoder\.down|decoder\.up)\w*\.\d+\.(?:block|resnets)\.(\d+)\.")
        return _vae(levels, blocks)
    if inputs := numbers(r"input_blocks\.(\d+)\."):
        n = min(numbers(r"input_blocks\.(\d+)\.0\.op\."), default=max(inputs) + 1)
        attention = {(i - 1) // n for i in numbers(r"input_blocks\.(\d+)\.1\.")}
        return _unet(-(-len(inputs) // n), n - 1, attention)
    attention = numbers(r"down_blocks\.(\d+)\.attentions\.")
    return _unet(most(r"down_blocks\.(\d+)\."), most(r"down_blocks\.\d+\.resnets\.(\d+)\."), attention)


def _inside(ours: str, theirs: str, numbers: Iterable[int], table: Mapping[str, str]) -> dict[str, str]:
    """The table within each of some modules."""
    return {ours.format(i) + a: theirs.format(i) + b for i in numbers for a, b in table.items()}


def _unet(levels: int, blocks: int, attention: Iterable[int]) -> dict[str, str]:
    """Their blocks are counted through: at each level the stem or what halved the map, then residual blocks."""
    table, n = dict(_UNET), blocks + 1
    table |= _inside("middle_block.0.", "mid_block.resnets.0.", [0], _UNET_BLOCK)
    table |= _inside("middle_block.2.", "mid_block.resnets.1.", [0], _UNET_BLOCK)
    for level in range(levels):
        up = levels - 1 - level
        sides = [("input", "down", level, 1 + level * n, blocks), ("output", "up", up, up * n, n)]
        for side, way, place, first, count in sides:
            for i in range(count):
                ours, theirs = f"{side}_blocks.{first + i}", f"{way}_blocks.{place}"
                table[f"{ours}.1"] = f"{theirs}.attentions.{i}"
                table |= _inside(f"{ours}.0.", f"{theirs}.resnets.{i}.", [0], _UNET_BLOCK)
        table[f"input_blocks.{(level + 1) * n}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        last = 2 if level in attention else 1
        table[f"output_blocks.{up * n + blocks}.{last}.conv"] = f"up_blocks.{up}.upsamplers.0.conv"
    return table


def _vae(levels: int, blocks: int) -> dict[str, str]:
    """Their levels are counted from the finest, on the way up as well."""
    table = {name: name for name in ("quant_conv", "post_quant_conv")}
    for side, way in (("encoder", "down"), ("decoder", "up")):
        table |= {f"{side}.{a}": f"{side}.{b}" for a, b in _VAE_SIDE.items()}
        for i in (0, 1):
            table |= _inside(f"{side}.mid.block_{i + 1}.", f"{side}.mid_block.resnets.{i}.", [0], _VAE_BLOCK)
        for level in range(levels):
            ours = f"{side}.{way}.{level}"
            theirs = f"{side}.{way}_blocks.{level if way == 'down' else levels - 1 - level}"
            table |= _inside(f"{ours}.block.{{}}.", f"{theirs}.resnets.{{}}.", range(blocks), _VAE_BLOCK)
            table[f"{ours}.{way}sample.conv"] = f"{theirs}.{way}samplers.0.conv"
    return table
