"""What the shapes of a part's tensors say of its configuration, by diffusers' names.

    fields = seen.unet({"conv_in.weight": (320, 4, 3, 3), ...})           # of UNetConfig

They say nothing of heads and groups of norms, which are those of the Stable Diffusion that has such shapes.
"""

import re
from collections.abc import Mapping
from functools import partial

from gen_jax.pretrained.fields import MOST

__all__ = ["Given", "along", "autoencoder", "text", "tiny", "unet"]

Shapes = Mapping[str, tuple[int, ...]]
Given = dict[str, object]
"""Fields of a configuration."""


def unet(shapes: Shapes) -> Given:
    """Fields of `UNetConfig`. ValueError where a tensor is missing, as for all here."""
    size = partial(along, "U-Net", shapes)
    levels = range(_count(shapes, r"down_blocks\.(\d+)\."))
    inside = lambda level: _count(
        shapes, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\."
    )
    depth = tuple(map(inside, levels))
    first = next((level for level in levels if depth[level]), None)
    if first is None:
        raise ValueError(
            "expected the tensors of a U-Net with transformers, by diffusers' names; there are none."
        )
    context = size(f"down_blocks.{first}.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1)
    vector, guided = (
        f"{name}.weight" in shapes for name in ("add_embedding.linear_1", "time_embedding.cond_proj")
    )
    outward = size("conv_out.weight", 0)
    return {
        "channels": tuple(size(f"down_blocks.{level}.resnets.0.conv1.weight", 0) for level in levels),
        "blocks": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "depth": depth,
        "context_features": context,
        **({"heads": 8} if context == 768 else {"heads": None, "head_features": 64}),
        "embedding": size("time_embedding.linear_1.weight", 0),
        "sinusoid_features": size("time_embedding.linear_1.weight", 1),
        "guidance_features": size("time_embedding.cond_proj.weight", 1) if guided else None,
        "cond_features": size("add_embedding.linear_1.weight", 1) if vector else None,
        "cond_layers": 2 if vector else 1,
        "out_channels": None if size("conv_in.weight", 1) == outward else outward,
    }


def autoencoder(shapes: Shapes) -> Given:
    """Fields of `AutoencoderKLConfig`."""
    size = partial(along, "autoencoder", shapes)
    levels = range(_count(shapes, r"encoder\.down_blocks\.(\d+)\."))
    return {
        "in_channels": size("encoder.conv_in.weight", 1),
        "out_channels": size("decoder.conv_out.weight", 0),
        "channels": tuple(size(f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 0) for level in levels),
        "blocks": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": size("decoder.conv_in.weight", 1),
        "middle_attention": "encoder.mid_block.attentions.0.group_norm.weight" in shapes,
        "quant": "quant_conv.weight" in shapes,
    }


def text(shapes: Shapes) -> Given:
    """Fields of `CLIPTextConfig`."""
    size = partial(along, "text encoder", shapes)
    vocabulary, width = (size("text_model.embeddings.token_embedding.weight", axis) for axis in (0, 1))
    projected = "text_projection.weight" in shapes
    return {
        "vocab_size": vocabulary,
        "width": width,
        "layers": _count(shapes, r"text_model\.encoder\.layers\.(\d+)\."),
        "heads": max(width // 64, 1),
        "hidden": size("text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "length": size("text_model.embeddings.position_embedding.weight", 0),
        "act": "quick_gelu" if width == 768 else "gelu",
        "projection": size("text_projection.weight", 0) if projected else None,
    }


def tiny(shapes: Shapes) -> Given:
    """Fields of `AutoencoderTinyConfig`, with the blocks of TAESD."""
    size = partial(along, "tiny autoencoder", shapes)
    return {
        "in_channels": size("encoder.layers.0.weight", 1),
        "out_channels": size("decoder.layers.18.weight", 0),
        "channels": size("encoder.layers.0.weight", 0),
        "latent_channels": size("decoder.layers.0.weight", 1),
    }


def along(what: str, shapes: Shapes, name: str, axis: int) -> int:
    """Of an axis of a tensor that must be there."""
    if name not in shapes or len(shapes[name]) <= axis:
        got = shapes.get(name, "none of this name")
        raise ValueError(f"expected the tensors of a {what} by diffusers' names, with {name}; got {got}.")
    return shapes[name][axis]


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers there are in names that begin so; at most `MOST`, which more than any model has."""
    found = {int(match[1]) for name in shapes if (match := re.match(pattern, name))}
    if len(found) > MOST:
        raise ValueError(f"expected at most {MOST} blocks in a row, got {len(found)}.")
    return len(found)
