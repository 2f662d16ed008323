"""Inverse problems: samples of `x_0` given a measurement `y = A x_0 + s n`, with a denoiser of the data alone.

    operator = inverse.Downsample(4)                                           # or Mask, Grayscale, Matrix, your own
    guided = inverse.pigdm(denoise, proc, operator, y, noise_std=0.05)         # a denoiser, for any solver
    x_0 = samplers.sample(key, guided, plan, x_T)

The exact denoiser given `y` is `E[x_0 | x_t, y] = x0_hat + sigma_t^2 / alpha_t grad log p(y | x_t)`, but `p(y | x_t)` is
not known. The methods here approximate it:

    dps           N(y; A x0_hat, s^2 I)                     takes x0_hat for x_0: samples vary too little
    pigdm         N(y; A x0_hat, s^2 I + r_t^2 A A^T)       exact for normal data with covariance v I
    replacement   known pixels inserted with noise          earlier steps ignore the known pixels of later steps
    repaint       the same, with each step repeated         exact in the limit of many repetitions, if they mix

The first two need the gradient of the denoiser, at about three times the cost of an evaluation.
"""

from gen_jax.inverse.inpainting import repaint, replacement
from gen_jax.inverse.operators import Downsample, Grayscale, Mask, Matrix, Operator
from gen_jax.inverse.posterior import dps, pigdm

__all__ = ["Downsample", "Grayscale", "Mask", "Matrix", "Operator", "dps", "pigdm", "repaint", "replacement"]
