"""Make autoencoder_kl.npz: weights of two tiny autoencoders, and what diffusers computes with them.

python tests/networks/autoencoder_kl_by_diffusers.py      # needs torch and diffusers, which the tests do not
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

CONFIGS = {
    "attention": {"channels": (4, 6, 8), "blocks": 2, "latent_channels": 3, "groups": 2},
    "plain": {
        "channels": (8, 4),
        "blocks": 1,
        "latent_channels": 5,
        "groups": 4,
        "in_channels": 1,
        "out_channels": 2,
    }
    | {"middle_attention": False, "quant": False},
}


def build(config):
    """diffusers' module, every parameter away from its start."""
    levels = len(config["channels"])
    net = diffusers.AutoencoderKL(
        in_channels=config.get("in_channels", 3),
        out_channels=config.get("out_channels", 3),
        block_out_channels=config["channels"],
        layers_per_block=config["blocks"],
        latent_channels=config["latent_channels"],
        norm_num_groups=config["groups"],
        mid_block_add_attention=config.get("middle_attention", True),
        use_quant_conv=config.get("quant", True),
        use_post_quant_conv=config.get("quant", True),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )
    for p in net.parameters():
        p.data.add_((0.1 if p.ndim == 1 else 0.02) * torch.randn_like(p))
    return net.eval()


@torch.no_grad()
def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    out = {}
    for name, config in CONFIGS.items():
        net, size = build(config), 2 ** (len(config["channels"]) - 1)
        image = torch.randn(2, config.get("in_channels", 3), 12, 20)
        latents = torch.randn(2, config["latent_channels"], 12 // size, 20 // size)
        arrays = {"image": image, "moments": net.encode(image).latent_dist.parameters, "latents": latents}
        arrays |= {"decoded": net.decode(latents).sample}
        arrays |= {f"weights/{k}": v for k, v in net.state_dict().items()}
        out |= {f"{name}/{k}": v.numpy() for k, v in arrays.items()} | {f"{name}/config": json.dumps(config)}
    np.savez_compressed(Path(__file__).with_name("autoencoder_kl.npz"), **out)


if __name__ == "__main__":
    main()
