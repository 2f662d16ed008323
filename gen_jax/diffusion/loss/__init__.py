"""What trains a diffusion network: the weighted squared error of what it predicts, the variational bound, the hybrid.

    denoising      squared error with a weight that depends on log SNR: the usual choice
    variational    the weight is that of the variational bound, -d SNR / dt, which depends on the schedule
    second_moment  trains the inside of a learned schedule: the second moment of `variational`
    hybrid         for a network that also predicts the variance of a step

A loss of your own, in the form that `training.make_step` takes, is three lines around one of these:

    def loss_fn(params, key, batch):
        predict = lambda x_t, t: net.apply(params, x_t, t)
        return loss.denoising(key, predict, proc, batch["image"], predicts="v", weighting=loss.min_snr(5.0))

A *weighting* is a function of the log signal-to-noise ratio. It always weights the error in `x_0`, whatever the
network predicts:

    E_{t, eps} [ w(log_snr_t) |x_0 - x0_hat|^2 ]

The error is computed in the space of the prediction, where it is well-conditioned, and multiplied by the exact ratio
(`prediction.error_ratio`). So the same weighting gives the same loss and gradient with every prediction. The default,
`simple`, is no weighting: the plain squared error of the prediction. For a variance-preserving process this means

    predicts   simple is w =      min_snr(5) multiplies its error by
    "eps"      SNR                min(SNR, 5) / SNR
    "x0"       1                  min(SNR, 5)
    "v"        SNR + 1            min(SNR, 5) / (SNR + 1)

Each example has its own noise (`gen_jax.keys`), and times are spread over the global batch, so the value is the same
on 1 and on 8 devices: under `pmap` or `shard_map` over `keys.AXIS`, with one key for all devices, the `pmean` of the
losses is the loss of the whole batch.
"""

from gen_jax.diffusion.loss.denoising import denoising
from gen_jax.diffusion.loss.hybrid import hybrid
from gen_jax.diffusion.loss.time_sampling import TimeSampling, independent, logit_normal, stratified
from gen_jax.diffusion.loss.variational import second_moment, variational
from gen_jax.diffusion.loss.weightings import Weighting, edm, min_snr, p2, sigmoid, simple, snr

__all__ = [
    "TimeSampling",
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
