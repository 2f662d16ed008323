"""Inverse problems: samples of `x_0` given a measurement `y = A x_0 + s n` of it, from a denoiser that never saw one.

    operator = inverse.Downsample(4)                                           # or Mask, Grayscale, Matrix, your own
    guided = inverse.pigdm(denoise, proc, operator, y, noise_std=0.05)         # a denoiser: any solver takes it
    x_0 = samplers.sample(key, guided, plan, x_T)

The exact denoiser given `y` is `E[x_0 | x_t, y] = x0_hat + sigma_t^2 / alpha_t grad log p(y | x_t)`, and `p(y | x_t)`
is what nobody has. What is here differs in what it puts in its place:

    dps           N(y; A x0_hat, s^2 I)                     as if x_0 were x0_hat: too sure of itself
    pigdm         N(y; A x0_hat, s^2 I + r_t^2 A A^T)       exact for normal data of one variance in all directions
    replacement   known pixels put in with their noise      knows nothing of what it will need to fit later
    repaint       the same, each step again and again       harmonises; exact where it mixes at low noise

The first two ask for the gradient of the denoiser: about three times the cost of an evaluation.
"""

from gen_jax.inverse.inpainting import repaint, replacement
from gen_jax.inverse.operators import Downsample, Grayscale, Mask, Matrix, Operator
from gen_jax.inverse.posterior import dps, pigdm

__all__ = ["Downsample", "Grayscale", "Mask", "Matrix", "Operator", "dps", "pigdm", "repaint", "replacement"]
