"""Stable Diffusion 1.5 and XL of real sizes, lowered for a slice of TPUs that is not here, without a weight.

    model = tpu_stable_diffusion.model_of("sdxl", "bfloat16")
    lowered = tpu_stable_diffusion.sampling("sdxl")(Case("sdxl sampling", 1, "v5e:1x1"), mesh)

The models are those that `pretrained.load` makes of the real files, but for the words that their tokenizer knows, and
weights are shapes. A call of the U-Net is that of a guided step: two rows for each image.
"""

import dataclasses
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree
from tpu_programs import Case, shapes

from gen_jax import generate, samplers, training
from gen_jax.codec import Latents
from gen_jax.conditioning import Reader, Text
from gen_jax.diffusion import process
from gen_jax.model import Model, Sampling
from gen_jax.networks import autoencoder_kl, unet
from gen_jax.networks.text import clip_l, openclip_bigg
from gen_jax.text import Tokenizer
from gen_jax.text.prompts import Encoded
from gen_jax.text.words import BYTES

STEPS = 20
"""Of the sampler."""


def model_of(name: str, dtype: str) -> Model:
    """Stable Diffusion 1.5 for 512 pixels ("sd15") or XL for 1024 ("sdxl"), with weights and arithmetic of a type."""
    kind, xl = {"dtype": dtype, "param_dtype": dtype}, name == "sdxl"
    pairs = [f"{a} {b}" for a, b in product(BYTES.values(), repeat=2)]
    tokenizer = Tokenizer(tuple(pairs[: clip_l.vocab_size - 514]))
    hidden, encoders = (-2, (clip_l, openclip_bigg)) if xl else (None, (clip_l,))
    readers = tuple(Reader(tokenizer, dataclasses.replace(encoder, **kind), hidden) for encoder in encoders)
    side, scale = (128, 0.13025) if xl else (64, 0.18215)
    sizes = (1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0) if xl else ()
    return Model(
        dataclasses.replace(getattr(unet, name), **kind),
        process.DDPM(1000, "scaled_linear", 0.00085, 0.012),
        "eps",
        Text(readers, sizes=sizes, zero_null=xl),
        Latents((side, side, 4), scale, autoencoder=dataclasses.replace(autoencoder_kl.sd, **kind)),
        Sampling("euler", STEPS, 7.5, schedule=samplers.Schedule("leading", 1, False)),
    )


def weights_of(model: Model) -> dict[str, PyTree]:
    """The shapes of its weights."""
    coding = model.codec.autoencoder.build()
    return {**shapes(model.init), "autoencoder": shapes(coding.init, jnp.zeros((1, 8, 8, 3)))}


def call(name: str) -> Callable[[Case, Mesh], jax.stages.Lowered]:
    """One call of the U-Net."""

    def program(case: Case, mesh: Mesh) -> jax.stages.Lowered:
        model, layout = model_of(name, case.dtype), training.Layout(mesh=mesh)
        net, weights, rows = model.network.build(), weights_of(model), case.per_chip * mesh.size
        told = jax.eval_shape(model.condition.tell, weights["text"], model.condition.null(rows))
        each = jax.eval_shape(
            lambda *told: (jnp.zeros((rows, *model.codec.shape)), jnp.zeros(rows), *told), *told
        )
        asked = layout.batch_shapes(each, False)
        return jax.jit(net.apply).lower(layout.shapes(weights["network"]), *asked)

    return program


def sampling(name: str) -> Callable[[Case, Mesh], jax.stages.Lowered]:
    """From prompts to images, as `generate.sample` draws them: the encoders, the steps with guidance, the decoder."""

    def program(case: Case, mesh: Mesh) -> jax.stages.Lowered:
        model, key, index = (
            model_of(name, case.dtype),
            jax.random.key(0),
            np.arange(case.per_chip * mesh.size),
        )
        cond = generate.choose(model, key, index, prompt="a lighthouse at dawn")
        weights = weights_of(model)
        weight, plan = generate.weight(model, weights), generate.plan(model)
        return generate.sampler(model, mesh).lower(weights, key, plan, index, cond, weight, None)

    return program


def fine_tuning(name: str) -> Callable[[Case, Mesh], jax.stages.Lowered]:
    """A step of experiments/finetune_stable_diffusion.py on the whole U-Net: Adam and an average, float32."""

    def program(case: Case, mesh: Mesh) -> jax.stages.Lowered:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
        import finetune_stable_diffusion as finetune

        model = model_of(name, "float32")
        network = dataclasses.replace(model.network, dtype=case.dtype, remat=case.remat)
        found = finetune.make_loss(dataclasses.replace(model, network=network), finetune.Config())
        optimizer = optax.adam(1e-5)
        make = lambda params: training.TrainState.create(params, optimizer, jax.random.key(0))
        weights, n = weights_of(model), case.per_chip * mesh.size
        said = lambda n: jax.eval_shape(model.condition.encode, weights["text"], model.condition.null(n))
        row = lambda *shape: jax.ShapeDtypeStruct((n, *shape), np.float32)
        latent = row(*model.codec.shape)
        batch = {"latent": latent, "latent_deviation": latent, "context": said(n).context}
        if model.condition.sizes:
            batch |= {"pooled": said(n).pooled, "sizes": row(len(model.condition.sizes))}
        empty = said(1) if model.condition.sizes else Encoded(said(1).context, None)
        step = training.compile_step(
            training.make_step(found, optimizer, aux=True), mesh=mesh, shard=case.shard
        )
        return step.lower(jax.eval_shape(make, weights["network"]), batch, {"empty": empty})

    return program


PROGRAMS = {
    **{f"{name} call": call(name) for name in ("sd15", "sdxl")},
    **{f"{name} sampling": sampling(name) for name in ("sd15", "sdxl")},
    **{f"{name} fine-tuning": fine_tuning(name) for name in ("sd15", "sdxl")},
}
