"""Networks. They know nothing of diffusion: `net.apply(params, x_t, t, cond) -> array like x_t`."""

__all__ = ["autoencoder", "classifier", "conv", "ladder", "layers", "mlp", "monotone", "unet"]
