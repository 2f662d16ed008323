"""Networks. They know nothing of diffusion: `net.apply(params, x_t, t, cond) -> array like x_t`."""

__all__ = [
    "attention",
    "autoencoder",
    "autoencoder_kl",
    "autoencoder_tiny",
    "classifier",
    "conv",
    "discriminator",
    "ladder",
    "layers",
    "mlp",
    "monotone",
    "quantize",
    "text",
    "tiling",
    "transformer",
    "unet",
]
