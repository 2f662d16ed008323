"""MNIST by a network of the book's size, 2.2 M parameters, 20,000 steps of 128.

    python experiments/step09_diffusion.py --preset mnist --workdir checkpoints/mnist

For a GPU or a TPU.
"""

from step09_diffusion import Config

from gen_jax import launch
from gen_jax.model import Sampling
from gen_jax.networks import unet

CONFIG = Config(
    preset="mnist",
    network=unet.mnist,
    defaults=Sampling("ddpm", 100, 1.0),
    training=launch.Training(
        steps=20_000, batch_size=128, optimizer="adam", learning_rate=1e-3, ema_decay=0.999
    ),
)
