"""Networks, which know nothing of diffusion: `net.apply(params, x_t, t, cond) -> array like x_t`."""
