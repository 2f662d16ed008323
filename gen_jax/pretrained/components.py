"""The configuration of each part of a Stable Diffusion, from its config.json in a folder of diffusers or from shapes.

    config = components.unet(json.loads(text), shapes)            # of unet/config.json
    config = components.unet(None, shapes, heads=8)               # of one file: shapes of tensors by diffusers' names
    tree = components.parameters(config)                          # the shapes of its parameters here

What shapes can not say is taken to be as in the Stable Diffusion that they are of, or as a keyword says.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from gen_jax.networks import autoencoder_kl
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.autoencoder_tiny import AutoencoderTinyConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.networks.unet import UNetConfig, sd15
from gen_jax.pretrained import fields, seen
from gen_jax.pretrained.names import modern

__all__ = ["autoencoder", "linear", "parameters", "text", "tiny", "unet"]

Config = Mapping[str, object]
Shapes = Mapping[str, tuple[int, ...]]
Part = UNetConfig | AutoencoderKLConfig | CLIPTextConfig | AutoencoderTinyConfig


def unet(config: object, shapes: Shapes | None = None, **given: object) -> UNetConfig:
    """The configuration of a U-Net.

    Args:
        config: what unet/config.json says, as `json.loads` reads it, or None.
        shapes: those of its tensors by diffusers' names; needed where there is no `config`.
        given: fields of `UNetConfig` that shall be otherwise. Shapes say nothing of `heads`, `head_features` and
            `groups`: without them there are 8 heads for a context of 768 numbers, else heads of 64, and 32 groups.

    Raises:
        ValueError: a field has a value that this library does not have, or a tensor is missing.
    """
    found = _unet_said(config) if config is not None else seen.unet(shapes or {})
    make: Callable[..., UNetConfig] = partial(replace, sd15)
    return make(**(found | given))


def autoencoder(config: object, shapes: Shapes | None = None, **given: object) -> AutoencoderKLConfig:
    """The configuration of an autoencoder, as `unet`; shapes say nothing of `groups`, which are 32."""
    found = _autoencoder_said(config) if config is not None else seen.autoencoder(shapes or {})
    make: Callable[..., AutoencoderKLConfig] = partial(replace, autoencoder_kl.sd)
    return make(**(found | given))


def text(config: object, shapes: Shapes | None = None, **given: object) -> CLIPTextConfig:
    """The configuration of a text encoder, as `unet`.

    Shapes say nothing of `heads`, which have 64 numbers each, and of `act`: a width of 768 is OpenAI's CLIP with
    "quick_gelu", any other OpenCLIP with "gelu".
    """
    named = {modern(name, "text") or name: shape for name, shape in (shapes or {}).items()}
    found = _text_said(config, named) if config is not None else seen.text(named)
    make: Callable[..., CLIPTextConfig] = CLIPTextConfig
    return make(**(found | given))


def tiny(config: object, shapes: Shapes | None = None, **given: object) -> AutoencoderTinyConfig:
    """The configuration of a tiny autoencoder, for previews, as `unet`; from shapes that of TAESD."""
    found = _tiny_said(config) if config is not None else seen.tiny(shapes or {})
    make: Callable[..., AutoencoderTinyConfig] = AutoencoderTinyConfig
    return make(**(found | given))


@lru_cache(maxsize=64)  # nearly all the time of loading a small model
def parameters(config: Part, channels: int | None = None) -> PyTree:
    """The shapes of the parameters of a configuration, without making them; `channels` are those that a U-Net reads.

    Asked again it is the same tree: read it, and change nothing in it.
    """
    init, shape = partial(jax.eval_shape, config.build().init, jax.random.key(0)), jax.ShapeDtypeStruct
    if isinstance(config, UNetConfig):
        images = shape((1, 8, 8, 4 if channels is None else channels), jnp.float32)
        return init(images, shape((1,), jnp.float32))
    if isinstance(config, CLIPTextConfig):
        return init(shape((1, 1), jnp.int32))
    return init(shape((1, config.factor, config.factor, config.in_channels), jnp.float32))


def linear(config: UNetConfig) -> bool:
    """Whether files have matrices around the transformers of such a network, as those of version 2 and XL.

    Those of version 1, with as many heads at each level, have convolutions of one pixel; the parameters are the same.
    """
    return not isinstance(config.heads, int)


def _unet_said(config: object) -> seen.Given:
    kind = fields.UNET
    said = fields.values(config, kind)
    channels = fields.listed(kind, "block_out_channels", said["block_out_channels"])
    cross = _cross(said, len(channels))
    number = partial(fields.whole, kind)
    by_level = lambda name, most=fields.LARGEST: fields.by_level(kind, name, said[name], len(channels), most)
    optional = lambda name: None if said[name] is None else number(name, said[name])
    blocks = by_level("layers_per_block", fields.MOST)
    if len(set(blocks)) > 1:
        fields.refuse(kind, "layers_per_block", said["layers_per_block"], "as many at each level")
    layers = by_level("transformer_layers_per_block", fields.MOST)
    depth = tuple(n if c else 0 for n, c in zip(layers, cross, strict=True))
    fields.few(kind, "layers_per_block", said["layers_per_block"], sum(blocks))
    name = "transformer_layers_per_block"
    fields.few(kind, name, said[name], sum(n * d for n, d in zip(blocks, depth, strict=True)))
    if next((n for n in reversed(depth) if n), 0) != layers[-1]:
        fields.refuse(
            kind,
            "transformer_layers_per_block",
            list(layers),
            "a middle as deep as the last level of transformers",
        )
    name = "attention_head_dim" if said["num_attention_heads"] is None else "num_attention_heads"
    context = by_level("cross_attention_dim")
    if len(set(context)) > 1:
        fields.refuse(kind, "cross_attention_dim", list(context), "one size of the context at all levels")
    added = said["addition_embed_type"]
    if added not in (None, "text_time"):
        fields.refuse(kind, "addition_embed_type", added, "None or 'text_time'")
    cond = number(p := "projection_class_embeddings_input_dim", said[p]) if added else None
    inward, outward = (number(c, said[c]) for c in ("in_channels", "out_channels"))
    return {
        "channels": channels,
        "blocks": blocks[0],
        "depth": depth,
        **_heads(said[name], by_level(name), channels),
        "context_features": context[0],
        "groups": number("norm_num_groups", said["norm_num_groups"]),
        "embedding": optional("time_embedding_dim") or 4 * channels[0],
        "sinusoid_features": channels[0],
        "guidance_features": optional("time_cond_proj_dim"),
        "cond_features": cond,
        "cond_layers": 2 if added else 1,
        "out_channels": None if inward == outward else outward,
    }


def _cross(said: Config, levels: int) -> list[bool]:
    """Whether each level has transformers, the same on the way down and up."""
    found = []
    for way, kinds in (("down", said["down_block_types"]), ("up", said["up_block_types"])):
        names = {f"CrossAttn{way.title()}Block2D": True, f"{way.title()}Block2D": False}
        if (
            not isinstance(kinds, list | tuple)
            or len(kinds) != levels
            or any(str(k) not in names for k in kinds)
        ):
            fields.refuse(
                fields.UNET, f"{way}_block_types", kinds, f"for {levels} levels {' or '.join(names)}"
            )
        found.append([names[str(k)] for k in kinds])
    if found[0] != found[1][::-1]:
        fields.refuse(
            fields.UNET,
            "up_block_types",
            said["up_block_types"],
            "transformers at the levels of down_block_types",
        )
    return found[0]


def _heads(said: object, heads: tuple[int, ...], channels: tuple[int, ...]) -> seen.Given:
    """diffusers calls the number of heads `attention_head_dim`."""
    sizes = {c / h for c, h in zip(channels, heads, strict=True)}
    if isinstance(said, int):
        return {"heads": said}
    return {"heads": None, "head_features": channels[0] // heads[0]} if len(sizes) == 1 else {"heads": heads}


def _autoencoder_said(config: object) -> seen.Given:
    kind = fields.VAE
    said = fields.values(config, kind)
    channels = fields.listed(kind, "block_out_channels", said["block_out_channels"])
    for name, block in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if said[name] not in ([block] * len(channels), (block,) * len(channels)):
            fields.refuse(kind, name, said[name], f"{block} at each of {len(channels)} levels")
    flags = ("mid_block_add_attention", "use_quant_conv", "use_post_quant_conv")
    attention, quant, post_quant = (said[name] for name in flags)
    if not all(isinstance(said[name], bool) for name in flags) or quant != post_quant:
        fields.refuse(
            kind, " and ".join(flags), [said[name] for name in flags], "true or false, the last two alike"
        )
    blocks = fields.whole(kind, "layers_per_block", said["layers_per_block"], fields.MOST)
    fields.few(kind, "layers_per_block", blocks, len(channels) * blocks)
    return {
        **fields.sizes(kind, said),
        "channels": channels,
        "middle_attention": attention,
        "quant": quant,
    }


def _text_said(config: object, shapes: Shapes) -> seen.Given:
    kind = fields.TEXT
    said = fields.values(config, kind)
    act, architectures, end = (said[name] for name in ("hidden_act", "architectures", "eos_token_id"))
    if act not in ("quick_gelu", "gelu"):
        fields.refuse(kind, "hidden_act", act, "'quick_gelu' or 'gelu'")
    if architectures is None:
        projected = "text_projection.weight" in shapes
    elif architectures in (["CLIPTextModel"], ["CLIPTextModelWithProjection"]):
        projected = architectures == ["CLIPTextModelWithProjection"]
    else:
        fields.refuse(kind, "architectures", architectures, "CLIPTextModel or CLIPTextModelWithProjection")
    size = fields.whole(kind, "projection_dim", said["projection_dim"]) if projected else None
    return {
        **fields.sizes(kind, said),
        "act": act,
        "projection": size,
        "end": None
        if end == 2
        else fields.whole(kind, "eos_token_id", end),  # 2 means the highest id, by mistake
    }


def _tiny_said(config: object) -> seen.Given:
    kind = fields.TINY
    said = fields.values(config, kind)
    both = [said[f"{side}_block_out_channels"] for side in ("encoder", "decoder")]
    channels = [n for each in both if isinstance(each, list | tuple) for n in each]
    if not channels or channels != channels[:1] * len(channels):
        fields.refuse(
            kind, "encoder_block_out_channels", both, "as many channels at each level, of both sides"
        )
    number = lambda name: fields.whole(kind, name, said[name])
    blocks = {}
    for side in ("encoder", "decoder"):
        name = f"num_{side}_blocks"
        blocks[f"{side}_blocks"] = fields.listed(kind, name, said[name], fields.MOST)
    return {
        "in_channels": number("in_channels"),
        "out_channels": number("out_channels"),
        "channels": fields.whole(kind, "encoder_block_out_channels", channels[0]),
        "latent_channels": number("latent_channels"),
        **blocks,
    }
