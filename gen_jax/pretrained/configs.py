"""The config.json of each part of a Stable Diffusion in a folder of diffusers: the inverse of `components`.

    found = configs.unet(config, channels=4, side=64)             # what `json.dumps` writes to unet/config.json
    components.unet(found) == config                              # but for its types

What such a file can not say of a configuration is not in the result: whoever writes one reads it back and compares.
"""

from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.networks.unet import UNetConfig
from gen_jax.pretrained import components, fields
from gen_jax.pretrained.fields import Fields

__all__ = ["Config", "Side", "autoencoder", "text", "unet"]

Config = dict[str, object]
Side = int | list[int]
"""Of a square, or height and width."""


def unet(
    config: UNetConfig,
    *,
    channels: int,
    side: Side,
    size_features: int | None = None,
    upcast: bool = False,
) -> Config:
    """That of a U-Net.

    Args:
        config: of the network.
        channels: that it reads.
        side: of the latents that it is for.
        size_features: of the sinusoid of each size that it is told.
        upcast: whether torch shall compute attention in float32. Here its softmax is so always.
    """
    levels = range(len(config.channels))
    depth, heads = zip(*map(config.transformer, levels), strict=True)
    middle, several = config.transformer(-1)[0], isinstance(config.heads, int)
    last = max((level for level in levels if depth[level]), default=0)
    layers = [d or (1 if level < last else middle) for level, d in enumerate(depth)]
    vector = config.cond_features is not None
    down = [("CrossAttn" if d else "") + "DownBlock2D" for d in depth]
    wide = config.embedding == 4 * config.channels[0]
    return _only(fields.UNET) | {
        "in_channels": channels,
        "out_channels": config.out_channels or channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks,
        "down_block_types": down,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(down)],
        "transformer_layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "attention_head_dim": config.heads if several else list(heads),
        "num_attention_heads": None,
        "cross_attention_dim": config.context_features,
        "norm_num_groups": config.groups,
        "time_embedding_dim": None if wide else config.embedding,
        "time_cond_proj_dim": config.guidance_features,
        "addition_embed_type": "text_time" if vector else None,
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": size_features if vector else None,
        "projection_class_embeddings_input_dim": config.cond_features,
        "sample_size": side,
        "dropout": 0.0,
        "upcast_attention": upcast,
        "use_linear_projection": components.linear(config),
    }


def autoencoder(config: AutoencoderKLConfig, *, side: Side, scale: float, shift: float = 0.0) -> Config:
    """That of an autoencoder for images of this `side`, of latents `(z - shift) scale`."""
    levels = len(config.channels)
    return _same(config, fields.VAE) | {
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "mid_block_add_attention": config.middle_attention,
        "use_quant_conv": config.quant,
        "use_post_quant_conv": config.quant,
        "sample_size": side,
        "scaling_factor": scale,
        "shift_factor": shift or None,
        "force_upcast": True,
    }


def text(config: CLIPTextConfig, *, dtype: str = "float32") -> Config:
    """That of a text encoder with weights of this type."""
    projected = config.projection is not None
    return _same(config, fields.TEXT) | {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModelWithProjection" if projected else "CLIPTextModel"],
        "hidden_act": config.act,
        "projection_dim": config.projection if projected else config.width,
        "eos_token_id": 2 if config.end is None else config.end,  # 2 means the highest id, by mistake
        "bos_token_id": 0,
        "pad_token_id": 1,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
    }


def _same(config: AutoencoderKLConfig | CLIPTextConfig, kind: Fields) -> Config:
    """The fields that have but another name there, and those with one value alone."""
    return _only(kind) | {theirs: getattr(config, ours) for ours, theirs in kind.sizes.items()}


def _only(kind: Fields) -> Config:
    """The fields with one value alone."""
    return {name: None if isinstance(value, set) else value for name, value in kind.only.items()}
