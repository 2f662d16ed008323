"""CIFAR-10 by the network and the training of Ho et al. 2020, 35.5 M parameters, 800,000 steps of 128.

    python experiments/step09_diffusion.py --preset cifar10 --dtype bfloat16 --shard fsdp --workdir checkpoints/cifar10

For a GPU or a few TPUs; benchmarks/TPU.md says what a step takes. It was compiled for them, not trained to its end. The
128 images are those of all devices, so 16 of them have 8 each, and little to do: for a slice there are the presets
cifar10_16, cifar10_64 and cifar10_256, and for other sizes `--batch-per-device`.
"""

from step09_diffusion import Config

from gen_jax import launch, training
from gen_jax.model import Sampling
from gen_jax.networks import unet

CONFIG = Config(
    preset="cifar10",
    network=unet.cifar10,
    defaults=Sampling("ddpm", 100, 1.0),
    dropout=0.1,
    process="ddpm_linear",
    predicts="eps",
    times="uniform",
    flip=True,
    data=launch.Data(dataset="cifar10"),
    training=launch.Training(
        steps=800_000, batch_size=128, optimizer="adam", learning_rate=2e-4, ema_decay=0.9999
    ),
    run=training.Options(log_every=50, checkpoint_every=5000),
)
