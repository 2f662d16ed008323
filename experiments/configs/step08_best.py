"""A ladder of five levels on bits of MNIST.

    python experiments/step08_hvae.py --preset best --workdir checkpoints/step08_best

69 minutes of training and 13 of testing on one core of a CPU. On the 10,000 test images (seed 0) the ELBO is -83.15 nats
and, by 100 samples, the log-likelihood at least -80.84 (standard errors 0.22 and 0.20; Sonderby et al. 2016 report -81.74
by 5,000 samples). `--test-samples 5000` takes fifty times as long to test, and raises it in the mean.
"""

from autoencoding import Training
from step08_hvae import Config

from gen_jax import training

CONFIG = Config(
    preset="best",
    binarize="dynamic",
    likelihood="bernoulli",
    model="ladder",
    latents=(4, 4, 8, 8, 16),
    levels_per_stage=(2, 2, 1),
    widths=(64, 96, 128),
    halvings=(0, 1, 2),
    kl_warmup=2000,
    free_bits=0.1,
    skip=3.0,
    test_images=None,
    test_samples=100,
    training=Training(
        steps=16_500,
        batch_size=100,
        optimizer="muon",
        learning_rate=4e-3,
        schedule="cosine",
        warmup=300,
        clip_norm=100.0,
        ema_decay=0.9995,
    ),
    run=training.Options(steps_per_call=50, log_every=200, checkpoint_every=1000),
)
