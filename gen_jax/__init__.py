"""gen_jax: generative models in JAX, one story in ten steps."""

__version__ = "0.1.0"
