"""The presets of latent diffusion by name; the first is the default.

python experiments/step10_latent_diffusion.py

MNIST, 28 x 28 pixels in latents of 7 x 7 x 4, in 18 minutes on two cores of an Intel Xeon with AVX-512 beside other
programs: reconstructions of 27.4 dB and a Frechet distance of 0.08 (training images: 0.07); then the model of
latents, and for as long as both took that of pixels. With 20 evaluations a sample of latents takes 0.42 of the time
of one of pixels, and a third of the operations an evaluation; its Frechet distance is 0.75, that of pixels 0.59.
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
