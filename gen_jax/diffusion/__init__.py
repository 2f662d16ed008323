"""Diffusion: how data become noise (`process`), what a network predicts (`prediction`), what trains it (`loss`).

A network knows nothing of diffusion. `prediction.as_denoiser` turns one into a *denoiser*, `denoise(x_t, t)
-> x0_hat`, the one currency in which `gen_jax.samplers`, `guidance` and `likelihood` deal; `oracle` gives exact
ones, of data whose distribution is known, and `variance` is for networks that predict that, too.
"""
