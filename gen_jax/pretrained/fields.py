"""The fields of the configurations in a folder of diffusers: which are read, and which have one value alone.

    values = fields.values(config, fields.UNET)       # with the defaults of diffusers
    fields.whole("layers_per_block", values["layers_per_block"])

A field with a value that this library does not have is refused, and so is one that it does not know; none is passed over
that would change what a network computes.
"""

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from gen_jax import checks

__all__ = [
    "TEXT",
    "TINY",
    "UNET",
    "VAE",
    "Fields",
    "by_level",
    "few",
    "listed",
    "number",
    "refuse",
    "sides",
    "sizes",
    "values",
    "whole",
]

MOST, MOST_LEVELS = 100, 10
"""Blocks or layers in a row, of all levels together, and levels: more are a damaged file, and would take forever to
build."""
LARGEST = 2**24
"""Of any size."""


class Fields(NamedTuple):
    """Those of one kind of configuration."""

    name: str
    only: Mapping[str, object]
    """With the one value that there is here, or a set of them; a field that is not there has it."""
    read: Mapping[str, object]
    """With the value that diffusers or transformers take for a field that is not there."""
    elsewhere: frozenset[str]
    """Those that change nothing in the network."""
    sizes: Mapping[str, str] = {}
    """Whole numbers that are fields here too: their names there, by those here."""


UNET = Fields(
    "unet/config.json",
    {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": None,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_only_cross_attention": {None, False},
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None,
        "time_embedding_act_fn": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
    {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "transformer_layers_per_block": 1,
        "attention_head_dim": 8,
        "num_attention_heads": None,
        "cross_attention_dim": 1280,
        "norm_num_groups": 32,
        "time_embedding_dim": None,
        "time_cond_proj_dim": None,
        "addition_embed_type": None,
        "projection_class_embeddings_input_dim": None,
    },
    frozenset(
        {
            "sample_size",
            "dropout",  # of training
            "use_linear_projection",  # the parameters are the same
            "upcast_attention",  # its softmax is in float32 always
            "addition_time_embed_dim",  # sizes and crops are embedded before the network
            "addition_embed_type_num_heads",  # of another type than "text_time"
        }
    ),
)
VAE = Fields(
    "vae/config.json",
    {"_class_name": "AutoencoderKL", "act_fn": "silu", "latents_mean": None, "latents_std": None},
    {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (64,),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    frozenset(
        {"sample_size", "scaling_factor", "shift_factor", "force_upcast"}
    ),  # of the latents, not of the network
    {
        "in_channels": "in_channels",
        "out_channels": "out_channels",
        "blocks": "layers_per_block",
        "latent_channels": "latent_channels",
        "groups": "norm_num_groups",
    },
)
TEXT = Fields(
    "text_encoder/config.json",
    {
        "model_type": {"clip_text_model", "clip"},
        "attention_dropout": 0,
        "dropout": 0,
        "layer_norm_eps": 1e-5,
    },
    {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "projection_dim": 512,
        "eos_token_id": 49407,
        "architectures": None,
    },
    frozenset(
        {"bos_token_id", "pad_token_id", "torch_dtype", "dtype", "transformers_version"}
        | {"initializer_factor", "initializer_range", "gradient_checkpointing", "use_cache", "return_dict"}
    ),
    {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "hidden": "intermediate_size",
        "length": "max_position_embeddings",
    },
)
TINY = Fields(
    "config.json of a tiny autoencoder",
    {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    },
    {
        "in_channels": 3,
        "out_channels": 3,
        "encoder_block_out_channels": (64,) * 4,
        "decoder_block_out_channels": (64,) * 4,
        "latent_channels": 4,
        "num_encoder_blocks": (1, 3, 3, 3),
        "num_decoder_blocks": (3, 3, 3, 1),
    },
    frozenset(
        {
            "scaling_factor",
            "shift_factor",
            "force_upcast",
            "latent_magnitude",
            "latent_shift",
            "block_out_channels",
        }
    ),
)


def values(config: object, fields: Fields) -> dict[str, object]:
    """What a configuration says of the fields that are read. ValueError for what this library does not have."""
    if not isinstance(config, Mapping):
        raise ValueError(f"{fields.name}: expected an object, got {checks.came(config)}.")
    for name, value in config.items():
        if name in fields.only:
            allowed = fields.only[name]
            several = allowed if isinstance(allowed, set) else {allowed}
            if isinstance(value, list | dict) or value not in several:
                refuse(fields, name, value, " or ".join(map(repr, several)))
        elif name not in fields.read and name not in fields.elsewhere and not name.startswith("_") and value:
            refuse(fields, name, value, "no such field")
    return {name: config.get(name, default) for name, default in fields.read.items()}


def refuse(fields: Fields, name: str, value: object, expected: str) -> NoReturn:
    """ValueError for a field that has no such value here."""
    raise ValueError(
        f"{fields.name}: {name} is {checks.came(value)}, which gen_jax does not have; it expects {expected}. Is this a "
        "Stable Diffusion 1, 2 or XL?"
    )


def whole(fields: Fields, name: str, value: object, most: int = LARGEST) -> int:
    """A positive whole number, at most `most`. ValueError for anything else."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    refuse(fields, name, value, f"a whole number from 1 to {most}")


def number(fields: Fields, name: str, value: object) -> float:
    """A number within float32. ValueError for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38:
        return float(value)
    refuse(fields, name, value, "a finite number")


def sides(fields: Fields, name: str, value: object) -> tuple[int, int]:
    """Height and width, given as such or once for both. ValueError for anything else."""
    height, width = by_level(fields, name, value, 2, 2**16)
    return height, width


def few(fields: Fields, name: str, said: object, count: int) -> None:
    """ValueError where what is said of a field makes more than `MOST` blocks or layers."""
    if count > MOST:
        refuse(fields, name, said, f"at most {MOST} of them in all levels together, which here are {count}")


def sizes(fields: Fields, said: Mapping[str, object]) -> dict[str, object]:
    """Those of `fields.sizes`, by their names here. ValueError for one that is no whole number."""
    rows = {"blocks", "layers"}
    return {
        ours: whole(fields, name, said[name], MOST if ours in rows else LARGEST)
        for ours, name in fields.sizes.items()
    }


def by_level(fields: Fields, name: str, value: object, levels: int, most: int = LARGEST) -> tuple[int, ...]:
    """A whole number for each level, given as such or once for all."""
    each = value if isinstance(value, list | tuple) else [value] * levels
    if len(each) != levels:
        refuse(fields, name, value, f"one number, or one for each of {levels} levels")
    return tuple(whole(fields, name, n, most) for n in each)


def listed(fields: Fields, name: str, value: object, most: int = LARGEST) -> tuple[int, ...]:
    """A list of whole numbers, one for each level."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_LEVELS:
        refuse(fields, name, value, f"a list of whole numbers, one for each of at most {MOST_LEVELS} levels")
    return by_level(fields, name, value, len(value), most)
