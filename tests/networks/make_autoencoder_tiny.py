"""What diffusers' tiny autoencoders compute: writes autoencoder_tiny.npz beside this file.

    PYTHONPATH=. python tests/networks/make_autoencoder_tiny.py      # jax, torch and diffusers, on a CPU; seconds

Weights are not stored: they are a function of their names (`stable_diffusion.drawn`).
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch

from tests.networks import stable_diffusion

CONFIGS = {
    "taesd": {"channels": 6, "encoder_blocks": [1, 3, 3, 3], "decoder_blocks": [3, 3, 3, 1]},
    "other": {
        "channels": 5,
        "encoder_blocks": [2, 1],
        "decoder_blocks": [1, 2],
        "latent_channels": 3,
        "in_channels": 1,
        "out_channels": 2,
    },
}
"""Fields of `AutoencoderTinyConfig`."""


@torch.no_grad()
def expected(config):
    """An image and its latents, other latents and their image, and the tensors' shapes; channels last."""
    levels = len(config["encoder_blocks"])
    model = diffusers.AutoencoderTiny(
        in_channels=config.get("in_channels", 3),
        out_channels=config.get("out_channels", 3),
        encoder_block_out_channels=(config["channels"],) * levels,
        decoder_block_out_channels=(config["channels"],) * levels,
        latent_channels=config.get("latent_channels", 4),
        num_encoder_blocks=config["encoder_blocks"],
        num_decoder_blocks=config["decoder_blocks"],
    ).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    weights = {key: torch.tensor(value) for key, value in stable_diffusion.drawn(shapes).items()}
    model.load_state_dict(weights)
    rng = np.random.RandomState(0)
    draw = lambda *shape: torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
    image, latents = (
        draw(2, model.config.in_channels, 16, 24),
        2 * draw(2, model.config.latent_channels, 2, 3),
    )
    encoded, decoded = model.encode(image).latents, model.decode(latents).sample
    arrays = {"image": image, "encoded": encoded, "latents": latents, "decoded": decoded}
    return {key: value.permute(0, 2, 3, 1).numpy() for key, value in arrays.items()} | {
        "shapes": np.array(json.dumps(shapes)),
        "config": np.array(json.dumps(config)),
    }


if __name__ == "__main__":
    found = {f"{name}/{key}": x for name, config in CONFIGS.items() for key, x in expected(config).items()}
    np.savez_compressed(Path(__file__).with_name("autoencoder_tiny.npz"), **found)
