"""Compile train steps and samplers for a TPU slice that is not here, and read the programs: makes TPU.md.

    pip install "jax[tpu]"                                        # in a virtual environment of its own
    TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_compile.py         # two hours of a core: --smoke for the small ones
    TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_compile.py --missing       # those that the page does not have yet
    TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_compile.py --only cifar10 512      # its row anew; the others stay

For every case: FLOPs and bytes a chip and step as XLA counts them; the bytes that go to and come from the chip's main
memory (XLA's count has those in it that stay on the chip, 128 MiB on a v5e: see `hlo.traffic`); FLOPs a byte of that
memory (arithmetic intensity), and the roofline bound on the share of peak FLOP/s that the step can reach,
`min(1, intensity / (peak FLOP/s / bandwidth))`; the memory a chip needs; the collectives with their bytes. How often a
loop runs is not known, and its body counts once: a case is a single step, a sampler a single evaluation of its network.
"""

import argparse
import dataclasses
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hlo import collectives, memory, traffic
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, DTypeLike, Key, PyTree
from pages import commit, markdown, row, table_of, versions

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

ROOT = Path(__file__).resolve().parents[1]


class Chip(NamedTuple):
    """What a chip can do, by its maker's tables (cloud.google.com/tpu/docs/v5e, v5p)."""

    flops: float
    """A second, in bfloat16."""
    bandwidth: float
    """Bytes a second to its memory."""
    memory: float
    """Bytes."""


CHIPS = {"v5e": Chip(197e12, 819e9, 16e9), "v5p": Chip(459e12, 2765e9, 95e9)}


class Case(NamedTuple):
    """A program to compile."""

    family: str
    per_chip: int
    """Examples a chip."""
    topology: str = "v5e:4x4"
    fsdp: bool = False
    remat: bool = False
    dtype: str = "bfloat16"


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


def mesh_of(topology: str) -> Mesh:
    """All chips of a slice on one axis."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(devices), (keys.AXIS,))


def train_step(case: Case, mesh: Mesh) -> jax.stages.Lowered:
    """One step of a family, with Adam and an average of the parameters."""
    found, params, example = FAMILIES[case.family](case)
    optimizer = optax.adam(1e-4)
    make = lambda params: training.TrainState.create(params, optimizer, jax.random.key(0))
    batch = case.per_chip * mesh.size
    shaped = {name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype) in example.items()}
    step = training.make_step(found, optimizer)
    compiled = training.compile_step(step, mesh=mesh, fsdp=case.fsdp)
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


# --- what the compiler made of them ---


def read(case: Case) -> list[str]:
    """What the compiled program of a case says of itself, a chip: the cells of `HEAD` after the case's name."""
    mesh, began = mesh_of(case.topology), time.monotonic()
    compiled = PROGRAMS.get(case.family, train_step)(case, mesh).compile()
    seconds, text, cost = time.monotonic() - began, compiled.as_text(), compiled.cost_analysis()
    chip, moved, flops = CHIPS[case.topology.split(":")[0]], traffic(text), cost["flops"]
    bound = min(1, flops / moved / (chip.flops / chip.bandwidth))
    inputs = compiled.memory_analysis().argument_size_in_bytes
    said = [f"{kind} {n}, {size / 1e6:.3g}" for kind, (n, size) in sorted(collectives(text).items())]
    return [
        *(f"{flops / 1e9:.4g}", f"{cost['bytes accessed'] / 1e9:.3g}", f"{moved / 1e9:.3g}"),
        *(f"{flops / moved:.0f}", f"{bound:.2f}", f"{memory(compiled) / 1e9:.3g}", f"{inputs / 1e9:.3g}"),
        "; ".join(said) or "none",
        f"{seconds:.0f}",
    ]


# --- the page ---

SMALL = [
    Case("mlp", 4096, dtype="float32"),
    Case("vae", 1024, dtype="float32"),
    Case("ladder", 512, dtype="float32"),
    Case("classifier", 256, dtype="float32"),
    Case("em", 65_536, dtype="float32"),
    Case("mnist_small", 256),
    Case("mnist_small, labels", 256),
    Case("mnist", 128),
    Case("mnist", 128, fsdp=True),
]
V5P = "v5p:2x2x1"
CASES = [
    Case("cifar10", 128),
    Case("cifar10", 128, fsdp=True),
    *SMALL,
    Case("sampler", 128),
    *(Case("mnist", 128, topology=topology) for topology in ("v5e:2x2", "v5e:8x8")),
    Case("text to image", 256, topology="v5e:2x2"),
    Case("text to image", 256, topology="v5e:2x2", fsdp=True),
    Case("text sampler", 128, topology="v5e:2x2"),
    Case("cifar10", 512),
    *(case._replace(topology=V5P) for case in SMALL),
    Case("cifar10", 1024, remat=True),
    Case("cifar10", 128, topology=V5P),
    Case("sampler", 128, topology=V5P),
]
"""`mnist` is on slices of 4, 16 and 64 chips: what a step costs a chip, however many there are."""

PATH = ROOT / "benchmarks" / "TPU.md"
PAGE = """# Programs for TPUs, compiled without one

Made by `python benchmarks/tpu_compile.py`, a row from the commit and with the compiler that it names. All is a chip's,
of one step. XLA's count of bytes has those in it that stay on the chip; FLOPs are a byte of its main memory. The bound is
the share of the chip's peak in bfloat16 that the main memory's bandwidth leaves (v5e: 197 TFLOP/s, 819 GB/s, 16 GB; v5p:
459 TFLOP/s, 2765 GB/s, 95 GB). Nothing was run.

{table}
"""
HEAD = [
    *("program", "slice", "examples a chip", "GFLOP", "GB, XLA's count", "GB, main memory", "FLOP a byte"),
    *("bound on MFU", "memory, GB", "state and batch, GB", "collectives (number, MB)", "compiled in, s"),
    "from",
]


def title(case: Case) -> tuple[str, str, str]:
    """The cells that name a case: the first of its row."""
    marks = [name for name in ("fsdp", "remat") if getattr(case, name)]
    return ", ".join([case.family, case.dtype, *marks]), case.topology, f"{case.per_chip}"


def write_page(rows: dict[tuple[str, ...], list[str]]) -> None:
    """TPU.md, in the order of the cases."""
    table = [rows[title(case)] for case in CASES if title(case) in rows]
    PATH.write_text(PAGE.format(table=markdown([HEAD, *table])))


def compiled_row(case: Case) -> list[str]:
    """A row of the table; of a program that is too large for the chip, what the compiler says."""
    source = f"{commit()}, {versions('jax', 'libtpu')}"
    try:
        return [*title(case), *read(case), source]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = re.sub(r"[|\s]+", " ", str(error))[:200]
        return [*title(case), *[""] * (len(HEAD) - 5), said, source]


def main() -> None:
    """Compile what is asked for; each row goes to the page when it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="the small ones, and no page")
    parser.add_argument("--only", nargs="+", default=[], help="those named by all of these, as: cifar10 512")
    parser.add_argument("--missing", action="store_true", help="those that the page does not have")
    args = parser.parse_args()
    known = lambda: {tuple(cells[:3]): cells for cells in table_of(PATH)}
    for case in SMALL if args.smoke else CASES:
        name = title(case)
        if (args.missing and name in known()) or not set(args.only) <= {*name[0].split(", "), *name[1:]}:
            continue
        found = compiled_row(case)
        print(row(found), flush=True)
        if not args.smoke:
            write_page(known() | {name: found})  # as it is by now: others may add to it


if __name__ == "__main__":
    main()
