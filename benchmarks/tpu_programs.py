"""Train steps and samplers of every family of models, lowered for a slice of TPUs that is not here.

    case = Case("mnist", 128, "v5e:2x2")
    compiled = tpu_programs.train_step(case, tpu_programs.mesh_of(case)).compile()

`tpu_compile.py` reads what the compiler makes of them; those of Stable Diffusion are in `tpu_stable_diffusion.py`.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, DTypeLike, Key, PyTree

from gen_jax import data, generate, gmm, guidance, hvae, keys, likelihoods, samplers, text, training, vae
from gen_jax.codec import Latents
from gen_jax.conditioning import Reader, Text
from gen_jax.diffusion import loss, prediction, process
from gen_jax.em import steps as em
from gen_jax.model import Model
from gen_jax.networks import autoencoder, autoencoder_kl, ladder, unet
from gen_jax.networks.classifier import Classifier
from gen_jax.networks.mlp import MLP
from gen_jax.networks.text import CLIPTextConfig
from gen_jax.types import Shard


class Case(NamedTuple):
    """A program to compile."""

    family: str
    per_chip: int
    """Examples a chip."""
    topology: str = "v5e:4x4"
    shard: Shard | None = None
    remat: bool = False
    dtype: str = "bfloat16"
    tensor: int = 1


# --- what each family trains ---

Example = dict[str, tuple[tuple[int, ...], DTypeLike]]
Family = Callable[[Case], tuple[training.Loss, PyTree, Example]]
"""Of a case the loss, the shapes of the parameters, and shapes and types of an example."""

IMAGE, COLOUR, LABEL = ((28, 28, 1), np.uint8), ((32, 32, 3), np.uint8), ((), np.int32)


def shapes(init: Callable[..., PyTree], *args: Array) -> PyTree:
    """Of what `init(key, *args)` makes."""
    return jax.eval_shape(init, jax.random.key(0), *args)


def mlp(case: Case) -> tuple[training.Loss, PyTree, Example]:
    """The network of step 6."""
    net = MLP((1024, 1024, 1))

    def squared(
        params: PyTree, key: Key[Array, ""], batch: dict[str, Array]
    ) -> tuple[Array, dict[str, Array]]:
        return ((net.apply(params, batch["x"])[:, 0] - batch["y"]) ** 2).mean(), {}

    return squared, shapes(net.init, jnp.zeros((1, 64))), {"x": ((64,), np.float32), "y": ((), np.float32)}


def flat_vae(case: Case) -> tuple[training.Loss, PyTree, Example]:
    """Step 7's preset `best`."""
    model = vae.VAE(
        autoencoder.MLPEncoder(50, (200, 200)),
        autoencoder.MLPDecoder((28, 28, 1), (200, 200)),
        likelihoods.Bernoulli(),
        50,
    )
    found = vae.loss(model, prepare=data.binarize)
    return found, shapes(model.init, jnp.zeros((1, 28, 28, 1))), {"image": IMAGE}


def ladder_vae(case: Case) -> tuple[training.Loss, PyTree, Example]:
    """Step 8's preset `best`."""
    stages = (
        ladder.Stage(64, (4, 4), 1, 0, 32),
        ladder.Stage(96, (8, 8), 1, 1, 48),
        ladder.Stage(128, (16,), 1, 2, 64),
    )
    model = hvae.Ladder(ladder.Ladder((28, 28, 1), 1, stages, patch=4), likelihoods.Bernoulli(), "residual")
    found = hvae.loss(model, prepare=data.binarize)
    return found, shapes(model.init, jnp.zeros((1, 28, 28, 1))), {"image": IMAGE}


def network(name: str, case: Case, num_classes: int | None = None) -> unet.UNet:
    """A U-Net of a preset."""
    changed = {"dtype": case.dtype, "remat": case.remat, "num_classes": num_classes}
    return dataclasses.replace(getattr(unet, name), **changed).build()


def diffusion(name: str, num_classes: int | None = None) -> Family:
    """Step 9's presets, and with classes step 10's."""

    def family(case: Case) -> tuple[training.Loss, PyTree, Example]:
        net, proc = network(name, case, num_classes), process.DDPM()
        shape = (COLOUR if name == "cifar10" else IMAGE)[0]

        def found(
            params: PyTree, key: Key[Array, ""], batch: dict[str, Array]
        ) -> tuple[Array, dict[str, Array]]:
            key_dropout, key_loss = jax.random.split(key)
            predict = lambda x_t, t: net.apply(
                params, x_t, t, batch.get("label"), rngs={"dropout": key_dropout}
            )
            return loss.denoising(key_loss, predict, proc, data.to_unit(batch["image"]), predicts="eps")

        example = {"image": (shape, np.uint8)} | ({} if num_classes is None else {"label": LABEL})
        return found, shapes(net.init, jnp.zeros((1, *shape)), jnp.zeros(1)), example

    return family


def noised_classifier(case: Case) -> tuple[training.Loss, PyTree, Example]:
    """The classifier that guides."""
    net = Classifier(10)
    found = guidance.classifier_loss(
        net.apply, process.DDPM(), prepare=lambda key, image: data.to_unit(image)
    )
    params = shapes(net.init, jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))
    return found, params, {"image": IMAGE, "label": LABEL}


def text_model(case: Case) -> Model:
    """The default of step10_text_to_image.py, but for the words that its tokenizer knows."""
    tokenizer = text.train(["a large red seven above a small blue three"], num_merges=67, length=16)
    encoder = CLIPTextConfig(tokenizer.vocab_size, 128, 2, 4, 512, 16, dtype=case.dtype)
    network = dataclasses.replace(unet.scenes, context_features=128, dtype=case.dtype, remat=case.remat)
    coding = dataclasses.replace(autoencoder_kl.scenes, dtype=case.dtype)
    condition, codec = Text((Reader(tokenizer, encoder),)), Latents((12, 12, 4), autoencoder=coding)
    return Model(network, process.DDPM(schedule="cosine"), "v", condition, codec)


def text_to_image(case: Case) -> tuple[training.Loss, PyTree, Example]:
    """A U-Net of latents and the text encoder that it attends to."""
    model = text_model(case)
    net = model.network.build()

    def found(params: PyTree, key: Key[Array, ""], batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        key_latent, key_cond, key_loss = jax.random.split(key, 3)
        told = model.condition.tell(params["text"], model.condition.of_batch(key_cond, batch))
        predict = lambda x_t, t: net.apply(params["network"], x_t, t, *told)
        x_0 = model.codec.encode(batch, None, key_latent)
        return loss.denoising(key_loss, predict, model.process, x_0, predicts="v")

    latents = ((12, 12, 4), np.float32)
    example = {"latent": latents, "latent_deviation": latents, "token": ((16,), np.int32)}
    return found, shapes(model.init), example


FAMILIES: dict[str, Family] = {
    "mlp": mlp,
    "vae": flat_vae,
    "ladder": ladder_vae,
    "classifier": noised_classifier,
    "mnist_small": diffusion("mnist_small"),
    "mnist_small, labels": diffusion("mnist_small", 10),
    "mnist": diffusion("mnist"),
    "cifar10": diffusion("cifar10"),
    "text to image": text_to_image,
}


# --- programs ---


def mesh_of(case: Case) -> Mesh:
    """All chips of a slice, of two in "2 x v5e:4x4"; of "v5e:1x1", which is none, one chip of the smallest slice."""
    slices, _, name = case.topology.rpartition(" x ")
    alone, whole = name.endswith(":1x1"), name.replace(":1x1", ":2x2")
    found = topologies.get_topology_desc(platform="tpu", topology_name=whole, num_slices=int(slices or 1))
    devices = found.devices[:1] if alone else found.devices
    return training.make_mesh(case.shard, tensor=case.tensor, devices=devices)


def train_step(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    """One step of a family, with Adam and an average of the parameters."""
    found, params, example = FAMILIES[case.family](case)
    optimizer = optax.adam(1e-4)
    make = lambda params: training.TrainState.create(params, optimizer, jax.random.key(0))
    batch = case.per_chip * mesh.size
    shaped = {name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype) in example.items()}
    step = training.make_step(found, optimizer)
    compiled = training.compile_step(step, mesh=mesh, shard=case.shard)
    return compiled.lower(jax.eval_shape(make, params), shaped)


def em_step(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    """A step of EM of 64 components in 64 dimensions."""
    layout = training.Layout(mesh=mesh)
    params = gmm.GMM(*(jax.ShapeDtypeStruct(s, np.float32) for s in ((64,), (64, 64), (64, 64, 64))))
    x = jax.ShapeDtypeStruct((case.per_chip * mesh.size, 64), np.float32)
    step = jax.shard_map(  # as `em.fit` does
        lambda params, x: em.step(params, x, axis_name=keys.AXIS),
        mesh=layout.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(keys.AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    sharding = layout.sharding()
    shardings = {"in_shardings": (sharding, layout.batch_sharding(False)), "out_shardings": sharding}
    return jax.jit(step, **shardings).lower(params, x)


def sampler_step(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    """One step of UniPC, as `samplers.sample` scans it, with the network of `cifar10`."""
    net, proc, layout = network("cifar10", case), process.DDPM(), training.Layout(mesh=mesh)
    plan = samplers.UniPC(3).plan(proc, samplers.times.log_snr(proc, 10))
    params = shapes(net.init, jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    x_T = jax.ShapeDtypeStruct((case.per_chip * mesh.size, 32, 32, 3), np.float32)
    state = jax.eval_shape(lambda x: samplers.init(plan, x), x_T)

    def step(params: PyTree, key: Key[Array, ""], state: samplers.State) -> samplers.State:
        denoise = prediction.as_denoiser(lambda x, t: net.apply(params, x, t), proc, predicts="eps")
        return samplers.step(key, denoise, plan, state)[0]

    rows = state._replace(
        x=layout.batch_sharding(False), past=layout.batch_sharding(True), step=layout.sharding()
    )
    shardings = (layout.sharding(), layout.sharding(), rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = jax.jit(step, in_shardings=shardings, out_shardings=shardings[2], donate_argnums=2)
    return program.lower(params, key, state)


def text_sampler_step(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    """A guided step of UniPC for the text model, from the tokens of its prompts to decoded images."""
    model = text_model(case)
    plan = samplers.UniPC(3).plan(model.process, samplers.times.log_snr(model.process, 10))
    params, n = shapes(model.init), case.per_chip * mesh.size
    coding = shapes(model.codec.autoencoder.build().init, jnp.zeros((1, 48, 48, 3)))
    x_T = jax.ShapeDtypeStruct((n, *model.codec.shape), np.float32)
    state = jax.eval_shape(lambda x: samplers.init(plan, x), x_T)
    cond = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, model.condition.null(n)))

    def step(weights: PyTree, key: Key[Array, ""], cond: PyTree, state: samplers.State) -> Array:
        denoise = generate.denoiser(model, weights, cond, jnp.float32(3))
        state = samplers.step(key, denoise, plan, state)[0]
        return model.codec.decode(state.x, weights["autoencoder"])

    whole, split = PartitionSpec(), PartitionSpec(keys.AXIS)
    rows = state._replace(x=split, past=PartitionSpec(None, keys.AXIS), step=whole)
    specs = (whole, whole, split, rows)  # as `generate.sampler` does: guidance doubles the part of each chip
    run = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    weights = {**params, "autoencoder": coding}
    return jax.jit(run).lower(weights, jax.eval_shape(lambda: jax.random.key(0)), cond, state)


PROGRAMS = {"em": em_step, "sampler": sampler_step, "text sampler": text_sampler_step}
