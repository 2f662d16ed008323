"""CIFAR-10 on slices of 16, 64 and 256 TPUs: the preset cifar10 with larger batches, and as many images in fewer steps.

    python experiments/step09_diffusion.py --preset cifar10_16 --dtype bfloat16 --workdir checkpoints/cifar10_16

| preset      | images a chip | batch | steps   |
| ----------- | ------------- | ----- | ------- |
| cifar10_16  | 32            | 512   | 200,000 |
| cifar10_64  | 16            | 1,024 | 100,000 |
| cifar10_256 | 8             | 2,048 | 50,000  |

Rate and average follow the batch by `launch.Training.scaled`. A preset is the same training on any number of chips; the
number in its name is for how many it is meant. A chip gets fewer images on larger slices, since a batch can only grow so
far: Karras et al. 2022 train on CIFAR-10 with 512, and of 2,048 nothing is known to us. None of it was run on TPUs.
"""

import dataclasses

from configs import step09_cifar10

SLICES = {16: 32, 64: 16, 256: 8}
"""Images a chip, by chips."""
BASE = step09_cifar10.CONFIG


def on_slice(chips: int, images: int) -> step09_cifar10.Config:
    """The preset for so many chips with so many images each."""
    batch = chips * images
    training = BASE.training.scaled(batch)
    steps = training.steps * BASE.training.batch_size // batch
    return dataclasses.replace(
        BASE, preset=f"cifar10_{chips}", training=dataclasses.replace(training, steps=steps)
    )


CONFIGS = {config.preset: config for config in (on_slice(*each) for each in SLICES.items())}
