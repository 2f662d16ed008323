"""The presets of latent diffusion by name; the first is the default.

python experiments/step10_latent_diffusion.py
"""

from step10_latent_diffusion import Config

from gen_jax import launch
from gen_jax.networks import unet

PRESETS = {
    "mnist": Config(
        network=unet.UNetConfig(
            channels=(32, 64), dense_skips=False, resample_conv=False, embedding=128, groups=8
        ),
        training=launch.Training(steps=3000),
        coding=launch.Autoencoding(autoencoder_steps=400),
    )
}
