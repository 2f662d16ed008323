"""What diffusers' pipelines draw with a small random model: writes pipelines_by_diffusers.npz beside this file.

    PYTHONPATH=. python tests/pretrained/pipelines_by_diffusers.py      # jax, torch and diffusers, on a CPU; seconds

Weights are not stored: they are a function of their names (`tests.networks.stable_diffusion.drawn`). Images are of the
first sample.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax.samplers import multistep
from tests import retouch_by_diffusers as small

KEY = jax.random.key(0)
V, TRAILING = {"prediction_type": "v_prediction"}, {"timestep_spacing": "trailing"}
ZERO = {"rescale_betas_zero_snr": True, **TRAILING}
CASES = {
    "ddim": ("DDIMScheduler", {}, 20),
    "ddim trailing": ("DDIMScheduler", TRAILING, 20),
    "heun": ("HeunDiscreteScheduler", {}, 10),
    "unipc": ("UniPCMultistepScheduler", {}, 20),
    "euler": ("EulerDiscreteScheduler", {}, 20),
    "euler linspace": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, 20),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 20),
    "dpmpp": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}, 25),
    "dpmpp karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 20),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}, 20),
    "zero snr": ("DDIMScheduler", ZERO, 20),
    "zero snr, rescaled": ("DDIMScheduler", ZERO, 20),
    "zero snr euler": ("EulerDiscreteScheduler", ZERO, 20),
    "zero snr dpmpp karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, **ZERO}, 20),
    "lcm": ("LCMScheduler", {}, 4),
}
"""Class, what it says besides the scheduler of the model, and the number of steps; zero SNR is of v, others of eps."""
GUIDANCE, RESCALE = 7.5, {"zero snr, rescaled": 0.7}


def start():
    """The noise from which all begin, `[2, 8, 12, 4]`."""
    return np.random.RandomState(7).standard_normal((2, 8, 12, 4)).astype(np.float32)


def config(case):
    """The scheduler_config.json of a case with the small model."""
    kind, said, _ = CASES[case]
    return {"_class_name": kind, **small.SCHEDULER, **said, **(V if "zero" in case else {})}


def shared_noise(like):
    """What stands for `randn_tensor` of diffusers: the draws of `samplers.sample` for `KEY`, by its own rule."""
    import torch

    steps, key = itertools.count(), jax.random.split(KEY, 3)[1]

    def draw(shape, **_):
        z = multistep.noise(key, jnp.int32(next(steps)), jnp.asarray(like), jnp.arange(len(like)))
        assert shape[0] == len(like)
        return torch.from_numpy(np.moveaxis(np.asarray(z), -1, 1).copy())

    return draw


def drawn(pipe, case, z, **texts):
    """Latents and images in [0, 1] of a pipeline whose scheduler is that of the case."""
    import torch
    from diffusers.schedulers import scheduling_lcm

    before, scheduling_lcm.randn_tensor = scheduling_lcm.randn_tensor, shared_noise(z)
    pipe.set_progress_bar_config(disable=True)
    options = {"guidance_rescale": RESCALE[case]} if case in RESCALE else {}
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    try:
        with torch.no_grad():
            latents = pipe(
                height=z.shape[1] * factor,
                width=z.shape[2] * factor,
                num_inference_steps=CASES[case][2],
                guidance_scale=GUIDANCE,
                latents=torch.tensor(z).permute(0, 3, 1, 2),
                output_type="latent",
                **texts,
                **options,
            ).images
            images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    finally:
        scheduling_lcm.randn_tensor = before
    latents, images = (x.permute(0, 2, 3, 1).numpy() for x in (latents, images))
    return latents, np.clip(images / 2 + 0.5, 0, 1)


def expected():
    """Latents and the first image of each case, with the small model."""
    import diffusers
    import torch

    said, found = small.inputs(), {}
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    texts = {"prompt_embeds": torch.tensor(said["context"])}
    away = {"negative_prompt_embeds": torch.tensor(said["negative"])}
    for case, (kind, _, _) in CASES.items():
        distilled = case == "lcm"
        pipeline = (
            diffusers.LatentConsistencyModelPipeline if distilled else diffusers.StableDiffusionPipeline
        )
        pipe = pipeline(
            vae=small.made("vae"),
            unet=small.made("distilled" if distilled else "vary"),
            scheduler=getattr(diffusers, kind).from_config(config(case)),
            requires_safety_checker=False,
            **nothing,
        )
        latents, images = drawn(pipe, case, start(), **texts, **({} if distilled else away))
        found[f"{case}: latents"], found[f"{case}: images"] = latents, images[:1]
    return found | {"diffusers": np.array(diffusers.__version__)}


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **expected())
