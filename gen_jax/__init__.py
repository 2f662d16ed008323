"""gen_jax: generative models in JAX, one story in ten steps.

    6   networks      layers, and the one U-Net
    9   diffusion     process, prediction, loss
    9   samplers      time grids, solvers, `sample`
        training      a pure step, compiled for many devices, and the loop around it
        data          MNIST, any TFDS set, batches on the device or streamed
        plots         pictures of what came out

Nothing is imported with the package itself: `from gen_jax import samplers` loads what it needs and no more.
"""

__version__ = "0.1.0"
