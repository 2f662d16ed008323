"""Trained models from disk: runs of gen_jax, and Stable Diffusion from the files that people have.

m, weights = pretrained.load("checkpoints/step10_conditional")                 # a run
m, weights = pretrained.load("stable-diffusion-v1-5", dtype="bfloat16")         # a folder of diffusers
m, weights = pretrained.load("model.safetensors")                              # one file
pretrained.save("my-model", m, weights)                                         # a folder that diffusers reads
"""

from gen_jax.pretrained import inversion, lora, safetensors, schedulers
from gen_jax.pretrained.loading import is_published, load
from gen_jax.pretrained.runs import AUTOENCODER, Run, load_autoencoder, load_run
from gen_jax.pretrained.saving import save
from gen_jax.pretrained.tiny import load_tiny

__all__ = [
    "AUTOENCODER",
    "Run",
    "inversion",
    "is_published",
    "load",
    "load_autoencoder",
    "load_run",
    "load_tiny",
    "lora",
    "safetensors",
    "save",
    "schedulers",
]
