"""What diffusers' pipelines make of two images with tiny random models: writes retouch_by_diffusers.npz beside this file.

    PYTHONPATH=. python tests/retouch_by_diffusers.py      # jax, torch and diffusers, on a CPU; seconds

Weights are not stored: they are a function of their names (`stable_diffusion.drawn`). The pipelines get the noise that is
stored, and the mean of what the encoder says.
"""

import json
from pathlib import Path

import numpy as np

from tests.networks import stable_diffusion

VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.4,
    "sample_size": 16,
}
COMMON = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
UNETS = {"vary": {}, "inpaint": {"in_channels": 9}, "distilled": {"time_cond_proj_dim": 6}}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "leading",
}
CLASSES = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}
CASES = (
    *(("vary", solver) for solver in CLASSES),
    *(("inpaint", solver) for solver in ("ddim", "euler")),
    *(("inpaint in part", solver) for solver in ("ddim", "dpmpp")),
    ("distilled", "ddim"),
)
"""A U-Net, and what is made of it; in part is with less than full strength."""
STEPS, STRENGTH, GUIDANCE = 6, 0.55, 3.0


def inputs():
    """Two images, noise, a text for each and a negative one; a mask, True where the image is known."""
    rng = np.random.RandomState(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    known = np.ones((1, 12, 20, 1), bool)
    known[:, 3:9, 5:16] = False
    return {
        "images": rng.randint(0, 256, (2, 12, 20, 3)).astype(np.uint8),
        "noise": normal(2, 6, 10, 4),
        "context": normal(2, 5, 12),
        "negative": normal(1, 5, 12).repeat(2, axis=0),
        "known": known,
    }


def made(name):
    """A network of diffusers by its name, a U-Net or "vae", with its weights."""
    import diffusers
    import torch

    kind, config = diffusers.AutoencoderKL, VAE
    if name != "vae":
        kind, config = diffusers.UNet2DConditionModel, COMMON | UNETS[name]
    network = kind(**config).eval()
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.tensor(x) for key, x in stable_diffusion.drawn(shapes).items()})
    return network


def expected():
    """The images of each case, and the shapes of the tensors."""
    import diffusers
    import torch
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as img2img
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as inpaint

    said = inputs()
    noise = torch.tensor(said["noise"]).permute(0, 3, 1, 2)
    for module in (img2img, inpaint):
        module.randn_tensor = lambda shape, **_: noise
        module.retrieve_latents = lambda out, **_: out.latent_dist.mode()

    networks = {name: made(name) for name in (*UNETS, "vae")}
    shapes = {
        name: {key: list(x.shape) for key, x in network.state_dict().items()}
        for name, network in networks.items()
    }
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    options = {
        "image": said["images"].astype(np.float32) / 255,
        "prompt_embeds": torch.tensor(said["context"]),
        "negative_prompt_embeds": torch.tensor(said["negative"]),
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "output_type": "np",
    }
    found = {}
    for name, solver in CASES:
        scheduler, inpaints = getattr(diffusers, CLASSES[solver]).from_config(SCHEDULER), "inpaint" in name
        kind = inpaint.StableDiffusionInpaintPipeline if inpaints else img2img.StableDiffusionImg2ImgPipeline
        unet = networks[name.split()[0]]
        parts = {**nothing, "vae": networks["vae"], "unet": unet, "scheduler": scheduler}
        draw = kind(**parts, requires_safety_checker=False)
        draw.set_progress_bar_config(disable=True)
        if inpaints:
            mask = 1 - said["known"].astype(np.float32)
            more = {"mask_image": torch.tensor(mask).permute(0, 3, 1, 2), "latents": noise}
            more |= {"height": 12, "width": 20, "strength": STRENGTH if "part" in name else 1.0}
            more |= {} if more["strength"] == 1 else {"latents": None}
        else:
            more = {"strength": STRENGTH}
        found[f"{name}/{solver}"] = draw(**options, **more).images.astype(np.float32)
    return found | {"shapes": np.array(json.dumps(shapes)), "diffusers": np.array(diffusers.__version__)}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **expected())
