"""gen_jax: generative models in JAX, one story in ten steps.

    1   normal        the normal distribution: log_prob, cdf, sample
    2   normal        maximum likelihood: fit
    3   normal        many dimensions: marginal, conditional
    4   gmm           the Gaussian mixture
    5   em            expectation maximisation
    6   networks      the multilayer perceptron, layers, encoders and decoders, and the one U-Net
    7   likelihoods   what a decoder says of data: bits, normals, discretised logistics and their mixtures
    7   vae           the variational autoencoder: its bounds on log p(x), its losses, samples
    8   hvae          the hierarchical VAE: the book's chain, the ladder, and the bridge to diffusion
    9   diffusion     process, prediction, loss, likelihood, and the exact answers of the oracle
    9   samplers      time grids, solvers, `sample`, the adaptive ODE
    10  guidance      denoisers combined into a denoiser
    10  inverse       measurements that guide a denoiser: posterior sampling, inpainting
    10  editing       SDEdit, data to noise and back, interpolation between the two
        conditioning  what a network is told: nothing, or labels
        codec         what a network sees: pixels, or other arrays
        model         the complete description of a trained diffusion model
        generate      samples of a model
        retouch       images that exist, changed by a model
        previews      cheap images of latents, while samples are drawn
        pretrained    a model and its weights from disk
        training      a pure step, compiled for many devices, and the loop around it
        data          MNIST, scenes and tables, TFDS, folders of images; batches on the device or streamed
        launch        options, start and end of an experiment
        evaluation    a judge of captioned scenes
        metrics       the Fréchet distance between samples and data
        plots         pictures of what came out

Nothing is imported with the package itself: `from gen_jax import samplers` loads what it needs and no more.
"""

__version__ = "0.2.0"
