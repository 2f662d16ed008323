"""Diffusion: how data become noise (`process`), what a network predicts (`prediction`), the `loss`.

A network knows nothing of diffusion. `prediction.as_denoiser` turns one into a *denoiser*, `denoise(x_t, t)
-> x0_hat`, the one currency in which `gen_jax.samplers` (and, later, guidance and likelihoods) deal.
"""
