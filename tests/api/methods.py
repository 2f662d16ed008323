"""Processes, solvers, likelihoods, autoencoders, oracles and operators, and calls of their methods."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np

from gen_jax import hvae, inverse, likelihoods, samplers
from gen_jax.diffusion import likelihood, oracle, process
from gen_jax.networks.autoencoder import MLPEncoder
from gen_jax.networks.ladder import Ladder, Stage
from tests.api import bounds
from tests.api.processes import FLOW, GRID, MIX, PROC, X
from tests.api.walk import call

KEY = jax.random.key(0)
T = np.array([0.3, 0.2], np.float32)
# The ends of a process are an answer too: without noise at t = 0, none but noise at infinity.
ENDS = ("values: zero", "t: zero")
PROCESSES = {
    "DDPM": process.DDPM(50, beta_max=0.3),
    "EDM": process.EDM(),
    "FlowMatching": FLOW,
    "LogSNR": process.LogSNR(lambda t: 5 - 10 * t),
    "SubVP": process.SubVP(),
    "VE": process.VE(),
    "VP": process.VP(),
}
OF_PROCESSES = {
    f"{name}.{method}": call(each, T, free=ENDS)
    for name, each in PROCESSES.items()
    for method in ("alpha", "sigma", "log_alpha", "log_snr", "times", "snap")
    if method in vars(type(each))
}
SOLVERS = {
    name: cls() if name != "PredictorCorrector" else cls(samplers.DDIM())
    for name, cls in vars(samplers).items()
    if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and name != "Schedule"
}
ENDS_OF_STEPS = samplers.solvers.ends(PROC, GRID)
# Without noise log_snr is infinite.
BETWEEN = ("t: log_snr: infinity", "s: log_snr: infinity", "s: alpha: zero", "asked: negative", "asked: zero")
STEPS = samplers.Schedule("trailing", 0, False)
MEASURED = samplers.named.find("ddim")
SCHEDULE = {
    "deviation": call(STEPS, PROC, "ddim", 5),
    "hand_over": call(STEPS, PROC, "ddim", 5, 0.5),
    "is_karras": call(STEPS, "ddim"),
    "plan": call(STEPS, PROC, "ddim", 5, predicts="eps", start=0, stop=4),
    "rounds": call(STEPS, "ddim"),
}
OF_SAMPLERS = {
    **{f"{name}.plan": call(solver, PROC, GRID) for name, solver in SOLVERS.items()},
    "DDIM.between": call(samplers.DDIM(), *ENDS_OF_STEPS, free=BETWEEN),
    "PNDM.between": call(samplers.PNDM(), PROC, GRID[:-1], *ENDS_OF_STEPS, free=BETWEEN),
    "PredictorCorrector": call(samplers.DDIM(), 1, 0.2),
    **{f"Schedule.{name}": example for name, example in SCHEDULE.items()},
}
BITS = bounds.IMAGES
OUT = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2, 1)), jnp.float32)
LIKELIHOODS = {
    "Bernoulli": (likelihoods.Bernoulli(), OUT),
    "Gaussian": (likelihoods.Gaussian(), OUT),
    "LogisticMixture": (likelihoods.LogisticMixture(2), jnp.concatenate([OUT] * 6, -1)),
}
OF_LIKELIHOODS = {
    f"{name}.{method}": example
    for name, (each, out) in LIKELIHOODS.items()
    for method, example in {
        "log_prob": call(each, out, BITS),
        "mean": call(each, out),
        "outputs": call(each, 1),
        "sample": call(each, KEY, out, index=np.arange(4)),
    }.items()
}
VAE, PARAMS = bounds.VAE, bounds.VAE.init(KEY, BITS)
POSTERIOR = VAE.encode(PARAMS, BITS)
Z = jnp.ones((4, 2))
INDEX = np.arange(4)
OF_VAE = {
    "": call(bounds.VAE.encoder, bounds.VAE.decoder, likelihoods.Bernoulli(), 2),
    "chunk_for": call(VAE, PARAMS, None, 1000),
    "decode": call(VAE, PARAMS, Z),
    "elbo": call(VAE, PARAMS, KEY, BITS, index=INDEX),
    "encode": call(VAE, PARAMS, BITS),
    "init": call(VAE, KEY, BITS),
    "interpolate": call(VAE, PARAMS, BITS, BITS, 3),
    "iwae": call(VAE, PARAMS, KEY, BITS, 2, index=INDEX, chunk=4),
    "latents": call(VAE, POSTERIOR, jnp.ones((4, 3, 2))),
    "log_prob": call(VAE, PARAMS, KEY, BITS, 2, index=INDEX, chunk=4),
    "log_weights": call(VAE, PARAMS.decoder, jnp.ones((4, 3, 2)), POSTERIOR, BITS, None),
    "noise": call(VAE, KEY, 4, np.arange(3), INDEX),
    "out": call(VAE, PARAMS, Z),
    "reconstruct": call(VAE, PARAMS, BITS),
    "sample": call(VAE, KEY, PARAMS, 3, mean=True, index=np.arange(3)),
}


def levels(model, params, n):
    """Calls of what both hierarchies do."""
    return {
        "": call(*(getattr(model, field.name) for field in dataclasses.fields(model))),
        "elbo": call(model, params, KEY, BITS, index=INDEX),
        "encode": call(model, params, KEY, BITS, index=INDEX),
        "init": call(model, KEY, BITS),
        "log_weight": call(model, params, BITS, INDEX),
        "iwae": call(model, params, KEY, BITS, 2, index=INDEX, sample_chunk=2),
        "log_prob": call(model, params, KEY, BITS, 2, index=INDEX, chunk=4, sample_chunk=2),
        "reconstruct": call(model, params, KEY, BITS, levels=1, index=INDEX),
        "sample": call(model, KEY, params, 3, levels=1, temperature=0.5, mean=True, index=np.arange(3)),
    }


CHAIN = bounds.HVAE
WEIGHTS = CHAIN.init(KEY, BITS)
NET = Ladder((3, 2, 1), 1, (Stage(4, (1, 1)),))
LADDER = hvae.Ladder(NET, likelihoods.Bernoulli())
OF_HVAE = {
    **{f"HVAE.{name}": example for name, example in levels(CHAIN, WEIGHTS, 2).items()},
    "HVAE.as_chain": call(CHAIN, WEIGHTS),
    "HVAE.decode": call(CHAIN, WEIGHTS, Z),
    **{f"Ladder.{name}": example for name, example in levels(LADDER, LADDER.init(KEY, BITS), 2).items()},
}
ORACLES = {
    "Mixture": oracle.mixture(MIX, PROC, labels=np.array([0, 1])),
    "Gaussian": oracle.Gaussian(jnp.zeros(()), jnp.ones(()), PROC),
    "Empirical": oracle.empirical(X, PROC, labels=np.array([0, 1, 1])),
}
OF_ORACLES = {
    # at the data the law of points has no density
    f"{name}.{method}": call(each, X, 3.0, *more, free=("t: zero",) if name == "Empirical" else ())
    for name, each in ORACLES.items()
    for method, more in {"score": (), "log_prob": (), "posterior": (), "log_class": (INDEX[:3] % 2,)}.items()
    if hasattr(each, method)
}
OF_ORACLES |= {
    f"{name}.given": call(ORACLES[name], 1, free=("label: zero",)) for name in ("Mixture", "Empirical")
}
PICTURE = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
OPERATORS = {
    "Mask": (inverse.Mask(PICTURE[:1] > 0), PICTURE),
    "Downsample": (inverse.Downsample(2), PICTURE),
    "Grayscale": (inverse.Grayscale(), PICTURE),
    "Matrix": (inverse.Matrix(np.ones((1, 2), np.float32)), X),
}
OF_INVERSE = {
    f"{name}.{method}": example
    for name, (each, x) in OPERATORS.items()
    for method, example in {
        "forward": call(each, x),
        "transpose": call(each, np.asarray(each.forward(x))),
        "solve": call(each, np.asarray(each.forward(x)), 0.5, 1.0),
    }.items()
}
EXAMPLES = {
    **{f"diffusion.process.{name}": example for name, example in OF_PROCESSES.items()},
    "diffusion.process.LogSNR": call(lambda t: 5 - 10 * t, 0.01, 1.0),
    "diffusion.likelihood.Bound.bits_per_dim": call(
        likelihood.Bound(*(jnp.ones(3),) * len(likelihood.Bound._fields)), 2, bin_width=2 / 255
    ),
    **{f"diffusion.oracle.{name}": example for name, example in OF_ORACLES.items()},
    **{f"samplers.{name}": example for name, example in OF_SAMPLERS.items()},
    "samplers.named.Named.steps": call(MEASURED, 5),
    **{f"likelihoods.{name}": example for name, example in OF_LIKELIHOODS.items()},
    **{f"vae.VAE.{name}".removesuffix("."): example for name, example in OF_VAE.items()},
    "vae.Elbo.of": call(-bounds.KL[:, 0], bounds.KL),
    "vae.latent.Adversary": call(MLPEncoder(2, ()), 0.5, 10),
    "vae.latent.Perceptual": call(lambda params, x: [x], 0.5),
    **{f"hvae.{name}".removesuffix("."): example for name, example in OF_HVAE.items()},
    **{f"inverse.{name}": example for name, example in OF_INVERSE.items()},
    "inverse.Downsample": call(2),
    "networks.ladder.Stage": call(4, (1, 1), 1, 1, 2),
}
