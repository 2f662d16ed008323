"""What diffusers' U-Nets of the kinds of Stable Diffusion compute: writes unet_diffusers.npz beside this file.

    PYTHONPATH=. python tests/networks/make_unet_diffusers.py      # jax, torch and diffusers, on a CPU; seconds

Weights are not stored: they are a function of their names (`stable_diffusion.drawn`). Latents have odd sizes, so that no
level halves evenly; each norm has groups of two channels or more, each level another width and number of heads.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

from tests.networks import stable_diffusion

COMMON = {
    "sample_size": 8,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
OPTIONS = {  # what diffusers calls attention_head_dim is the number of heads
    "sd15": {
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "sd21": {
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": (1, 2, 3),
        "use_linear_projection": True,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
    "sdxl": {
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "attention_head_dim": (2, 4, 3),
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 6,
        "projection_class_embeddings_input_dim": 6 * 6 + 10,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "inpainting": {  # and distilled at many guidance weights
        "block_out_channels": (8, 16, 24),
        "attention_head_dim": 2,
        "in_channels": 9,
        "time_cond_proj_dim": 6,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    },
}


def expected(name: str) -> dict[str, np.ndarray]:
    """Inputs, output and the gradient of the mean of its sine in the latents, with the images' channels last."""
    model = diffusers.UNet2DConditionModel(**(COMMON | OPTIONS[name])).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.tensor(value) for key, value in stable_diffusion.drawn(shapes).items()}
    model.load_state_dict(weights)
    rng = np.random.RandomState(0)
    draw = lambda *shape: torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
    channels = model.config.in_channels
    latents, context, times = (
        draw(2, channels, 9, 14).requires_grad_(),
        draw(2, 5, 12),
        torch.tensor([3, 870]),
    )
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0]])
    added = {}
    if name == "sdxl":
        added = {
            "text_embeds": draw(2, 10),
            "time_ids": torch.tensor([[64.0, 96, 0, 8, 32, 48], [32, 48, 4, 0, 32, 48]]),
        }
    options, guided = {"encoder_attention_mask": mask, "added_cond_kwargs": added}, {}
    if features := model.config.time_cond_proj_dim:
        guided["guidance"] = torch.tensor([6.5, 0.5])
        embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
        options["timestep_cond"] = embed(None, guided["guidance"], features)
    out = model(latents, times, context, **options).sample
    torch.sin(out).mean().backward()
    last = lambda x: x.detach().permute(0, 2, 3, 1).numpy()
    return {
        "shapes": np.array(json.dumps(shapes)),
        "latents": last(latents),
        "times": times.numpy(),
        "context": context.numpy(),
        "mask": mask.numpy().astype(bool),
        **{key: value.numpy() for key, value in (added | guided).items()},
        "out": last(out),
        "gradient": last(latents.grad),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    found = {f"{name}/{key}": value for name in OPTIONS for key, value in expected(name).items()}
    np.savez_compressed(Path(__file__).with_name("unet_diffusers.npz"), **found)
