"""Diffusion: how data become noise (`process`), what a network predicts (`prediction`), how it is trained (`loss`).

A network knows nothing of diffusion. `prediction.as_denoiser` makes a *denoiser* from it, `denoise(x_t, t) -> x0_hat`.
`gen_jax.samplers`, `guidance`, `inverse` and `likelihood` all take denoisers. `oracle` has exact ones, for data whose
distribution is known; `variance` is for networks that also predict a variance.
"""

__all__ = ["likelihood", "loss", "oracle", "prediction", "process", "variance"]
