"""The default: MNIST, 0.46 M parameters, 1,600 steps.

    python experiments/step09_diffusion.py

Four minutes on two CPU cores. `python benchmarks/judge.py checkpoints/step09_diffusion/samples.npy`, after drawing
1,000 samples with seed 1, is sure of 89% of them.
"""

from step09_diffusion import Config

CONFIG = Config()
