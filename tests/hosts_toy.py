"""An experiment with small networks, as a program: `python -m tests.hosts_toy NAME FLAGS`."""

import dataclasses
import importlib
import sys

from gen_jax import launch
from gen_jax.networks.autoencoder_kl import AutoencoderKLConfig
from gen_jax.networks.unet import UNetConfig
from tests import described, programs

TINY = AutoencoderKLConfig(
    1, 1, channels=(4,), blocks=1, latent_channels=2, middle_attention=False, groups=4, patch=4
)


def shrink():
    """Put small networks in the place of the default presets'."""
    from configs import step09
    from configs import step10_latent_diffusion as latent

    step09.PRESETS["mnist_small"] = dataclasses.replace(
        step09.PRESETS["mnist_small"], network=described.SMALL, training=launch.Training(batch_size=16)
    )
    unet = UNetConfig(channels=(8,), groups=4, embedding=16, dense_skips=False)
    latent.PRESETS["mnist"] = dataclasses.replace(latent.PRESETS["mnist"], network=unet, autoencoder=TINY)


if __name__ == "__main__":
    name, *flags = sys.argv[1:]
    sys.path.insert(0, str(programs.ROOT / "experiments"))
    module = importlib.import_module(name)
    shrink()
    module.main(module.parse(flags))
