"""Images, or other data, from a model: sharded over devices, in chunks, the same for the same key everywhere.

    m, weights = pretrained.load("checkpoints/step10_conditional")
    images, labels = generate.sample(m, weights, jax.random.key(0), 16, label=8)

    generate.write(m, weights, jax.random.key(0), 50_000, "samples")      # files, drawn by all processes of a run

What is not asked for is as the model says (`model.Sampling`). Weights are a dict of trees: "network", the parameters to
sample with; "text" and "autoencoder" where the model has these; and for an unconditional model "guide", those of a weaker
one, where there is one. They are arguments of the compiled program, never constants in it.
"""

from gen_jax.generate.asking import choose, conditions, plan, sized, weight
from gen_jax.generate.chunks import in_chunks
from gen_jax.generate.denoising import Weights, denoiser, distilled
from gen_jax.generate.listening import OnStep
from gen_jax.generate.programs import Interval, Sampler, local_mesh, sampler
from gen_jax.generate.refining import refine
from gen_jax.generate.sampling import CHUNK, sample
from gen_jax.generate.shards import moments, read, write_shards
from gen_jax.generate.writing import write

__all__ = [
    "CHUNK",
    "Interval",
    "OnStep",
    "Sampler",
    "Weights",
    "choose",
    "conditions",
    "denoiser",
    "distilled",
    "in_chunks",
    "local_mesh",
    "moments",
    "plan",
    "read",
    "refine",
    "sample",
    "sampler",
    "sized",
    "weight",
    "write",
    "write_shards",
]
