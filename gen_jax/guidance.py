"""Guidance: maps from denoisers to a denoiser, which samplers take like any other.

    denoise = guidance.classifier_free(conditional, unconditional, weight=2.0)

The weight is the book's: 0 is unconditional, 1 is conditional, more goes further the same way.
"""

import jax
from jaxtyping import Array, Float

from gen_jax.diffusion.prediction import Denoiser


def classifier_free(
    conditional: Denoiser, unconditional: Denoiser, weight: float | Float[Array, ""]
) -> Denoiser:
    """Classifier-free guidance, `x0_hat = u + w (c - u)` of the two estimates `c` and `u`.

    At a fixed `t` the score is affine in `x0_hat`, so this is `score_u + w (score_c - score_u)`, the score of
    `p_t(x_t) p_t(y | x_t)^w` at that `t`. The densities of different `t` belong to no one process unless `w` is 0 or 1,
    where the denoiser is `unconditional` or `conditional` itself: samples are then those of neither law.

    Args:
        conditional: the denoiser with the condition bound.
        unconditional: the denoiser without it, or with the one to move away from.
        weight: `w`; may be traced.

    Source: Ho & Salimans 2022, Eq. 6, whose weight is `w - 1`.
    """

    def denoise(x_t, t):
        c, u = conditional(x_t, t), unconditional(x_t, t)
        return jax.tree.map(lambda c, u: (1 - weight) * u + weight * c, c, u)  # to the bit at 0 and 1

    return denoise
