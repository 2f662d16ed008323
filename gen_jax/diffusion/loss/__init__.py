"""What trains a diffusion network: the weighted squared error of what it predicts, the variational bound, the hybrid.

    denoising      weight of the log signal-to-noise ratio on the squared error: what nearly everyone trains with
    variational    the weight is the one of the variational bound, -d SNR / dt, which depends on the schedule
    second_moment  what a learned schedule's inside is trained by: the spread of `variational`
    hybrid         for a network that also predicts the variance of a step

A user's loss, in the form that every family of gen_jax trains with, is three lines around it:

    def loss_fn(params, key, batch):
        predict = lambda x_t, t: net.apply(params, x_t, t)
        return loss.denoising(key, predict, proc, batch["image"], predicts="v", weighting=loss.min_snr(5.0))

A *weighting* is a function of the log signal-to-noise ratio, and always weighs the error in `x_0`, whatever
the network predicts:

    E_{t, eps} [ w(log_snr_t) |x_0 - x0_hat|^2 ]

The error is taken in the space of the prediction, where it is well-conditioned, and multiplied by the exact
ratio (`prediction.error_ratio`), so the same weighting is the same loss, with the same gradient, under every
prediction. `simple`, the default, is no weighting: the plain squared error of the prediction. For a
variance-preserving process that is

    predicts   simple is w =      min_snr(5) weighs its error by
    "eps"      SNR                min(SNR, 5) / SNR
    "x0"       1                  min(SNR, 5)
    "v"        SNR + 1            min(SNR, 5) / (SNR + 1)

Noise belongs to the example (`gen_jax.keys`) and times are spread over the global batch, so the value is the
same on 1 and on 8 devices: under `pmap` or `shard_map` over `keys.AXIS`, with one key for all devices, the
`pmean` of the losses is the loss of the whole batch.
"""

from gen_jax.diffusion.loss.denoising import denoising
from gen_jax.diffusion.loss.hybrid import hybrid
from gen_jax.diffusion.loss.quantiles import Quantiles, independent, logit_normal, stratified
from gen_jax.diffusion.loss.variational import second_moment, variational
from gen_jax.diffusion.loss.weightings import Weighting, edm, min_snr, p2, sigmoid, simple, snr

__all__ = [
    "Quantiles",
    "Weighting",
    "denoising",
    "edm",
    "hybrid",
    "independent",
    "logit_normal",
    "min_snr",
    "p2",
    "second_moment",
    "sigmoid",
    "simple",
    "snr",
    "stratified",
    "variational",
]
