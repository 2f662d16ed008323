"""Diffusion runs on disk: what the names in their configurations mean, and samples from a directory.

run = runs.load("checkpoints/step10_conditional")
images, labels = runs.sample(run, jax.random.key(0), 16, label=8, guidance=2.0, solver="unipc", nfe=10)
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ArrayLike, Int, Key, PyTree, UInt8

from gen_jax import data, guidance, keys, labels, samplers, training
from gen_jax.diffusion import prediction, process
from gen_jax.networks import unet


class Method(NamedTuple):
    """A solver as `--solver` offers it."""

    solver: samplers.Solver
    grid: Callable[..., Any]
    """Which times suit it."""
    steps: Callable[[int], int] = lambda nfe: nfe
    """How many steps it takes for so many evaluations; the last one of a solver of several stages asks once."""


SolverName: TypeAlias = Literal[
    "ddpm",
    "ddim",
    "euler",
    "dpmpp",
    "dpmpp3",
    "sde_dpmpp",
    "unipc",
    "deis",
    "lms",
    "ipndm",
    "pndm",
    "heun",
    "dpmpp_single",
    "dpmpp3_single",
]
UNIFORM, LOG_SNR, KARRAS = samplers.times.uniform, samplers.times.log_snr, samplers.times.karras
SOLVERS: dict[SolverName, Method] = {
    "ddpm": Method(samplers.DDPM(), UNIFORM),
    "ddim": Method(samplers.DDIM(), UNIFORM),
    "euler": Method(samplers.Euler(), KARRAS),
    "dpmpp": Method(samplers.DPMSolverPP(order=2), LOG_SNR),
    "dpmpp3": Method(samplers.DPMSolverPP(order=3), LOG_SNR),
    "sde_dpmpp": Method(samplers.SDEDPMSolverPP(order=2), LOG_SNR),
    "unipc": Method(samplers.UniPC(order=3), LOG_SNR),
    "deis": Method(samplers.DEIS(order=3), LOG_SNR),
    "lms": Method(samplers.LMS(order=4), LOG_SNR),
    "ipndm": Method(samplers.IPNDM(order=4), LOG_SNR),
    "pndm": Method(samplers.PNDM(), LOG_SNR, lambda nfe: nfe - 1),
    "heun": Method(samplers.Heun(), KARRAS, lambda nfe: (nfe + 1) // 2),
    "dpmpp_single": Method(samplers.DPMSolverPPSingle(order=2), LOG_SNR, lambda nfe: (nfe + 1) // 2),
    "dpmpp3_single": Method(samplers.DPMSolverPPSingle(order=3), LOG_SNR, lambda nfe: (nfe + 2) // 3),
}
LEAST_LOG_SNR = -10.2
"""Where grids of high order begin, if the prior lies below: pure noise, in which such a step loses its way."""

NETWORKS = {
    "mnist_small": unet.mnist_small,
    "mnist_best": unet.mnist_best,
    "mnist": unet.mnist,
    "cifar10": unet.cifar10,
}
PROCESSES: dict[str, Callable[[], process.Process]] = {
    "ddpm_linear": lambda: process.DDPM(schedule="linear"),
    "ddpm_cosine": lambda: process.DDPM(schedule="cosine"),
    "vp": process.VP,
}


class Run(NamedTuple):
    """A trained network, and what sampling needs of its run."""

    net: unet.UNet
    process: process.Process
    predicts: prediction.Predicts
    params: PyTree
    shape: tuple[int, ...]
    """Of an image."""
    num_classes: int | None
    """None for an unconditional network."""
    config: dict[str, Any]
    """All that its config.json says."""
    step: int
    younger: PyTree | None = None
    """Parameters that an unconditional run had earlier, if it still has them: a weaker model of the same faults."""


def milestone(steps: int) -> int:
    """The step of a run of so many whose parameters, or the next that were kept, guide it when it has no labels."""
    return max(steps // 5, 1)


def build(config: Mapping[str, Any], num_classes: int | None = None) -> tuple[unet.UNet, process.Process]:
    """The network and the process of a configuration: its `preset`, `process`, `dropout`, `dtype` and `remat`."""
    proc = PROCESSES[config["process"]]()
    network = dataclasses.replace(
        NETWORKS[config["preset"]],
        time_scale=1000 / proc.t_max,
        num_classes=num_classes,
        dropout=config["dropout"],
        dtype=jnp.dtype(config["dtype"]),
        remat=config["remat"],
    )
    return unet.UNet(network), proc


def load(workdir: str | Path) -> Run:
    """The newest checkpoint of a run of experiments/step09_diffusion.py, step10_conditional.py or the like.

    Raises CheckpointError where there is none, ValueError where it is of another experiment, or its network of other
    sizes than that preset has.
    """
    params, config, step = training.load(workdir)
    if missing := {"preset", "process", "predicts", "image_shape", "steps"} - set(config):
        raise ValueError(
            f"{workdir} is not a run of a diffusion experiment: its config.json has no {', '.join(sorted(missing))}. "
            "For runs of other experiments: the same command with --sample-only."
        )
    num_classes = config.get("num_classes")
    net, proc = build({"dropout": 0.0, "dtype": "float32", "remat": False} | config, num_classes)
    shape = tuple(config["image_shape"])
    wanted = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    shapes = [[(path, x.shape) for path, x in jax.tree.leaves_with_path(tree)] for tree in (params, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{workdir} holds a network that is not the {config['preset']} of this version of gen_jax: train it anew, or "
            "use the version that trained it."
        )
    younger, early = None, milestone(config["steps"])
    if num_classes is None and early < step:
        first = training.load(workdir, first_from=early)
        younger = first.params if first.step < step else None
    return Run(net, proc, config["predicts"], params, shape, num_classes, config, step, younger)


def denoiser(
    net: unet.UNet,
    proc: process.Process,
    predicts: prediction.Predicts,
    params: PyTree,
    label: Int[Array, "B"] | None = None,
    weight: guidance.Weight | None = None,
    younger: PyTree | None = None,
    *,
    rescale: ArrayLike = 0.0,
) -> prediction.Denoiser:
    """`denoise(x_t, t)`, its estimates kept in the range of images; with a `weight` guided.

    A network with labels is guided away from what it says without the label (classifier-free), one without away from
    what it said with the `younger` parameters (autoguidance; Karras et al. 2024, Section 4).
    """

    def denoise(x_t: Any, t: Any, label: Any = None, params: PyTree = params) -> Any:
        apply = lambda x_t, t: net.apply(params, x_t, t, label)
        return prediction.as_denoiser(apply, proc, predicts=predicts)(x_t, t)

    null = net.config.num_classes
    if null is None and weight is not None and younger is not None:
        weaker = lambda x_t, t: denoise(x_t, t, params=younger)
        return prediction.clipped(guidance.classifier_free(denoise, weaker, weight, rescale=rescale))
    if label is None or null is None or weight is None:
        return prediction.clipped(lambda x_t, t: denoise(x_t, t, label))
    nothing = jnp.full_like(label, null)
    guided = guidance.classifier_free_batched(denoise, label, nothing, weight, rescale=rescale)
    return prediction.clipped(guided)


def plan(proc: process.Process, solver: SolverName, nfe: int) -> samplers.Plan:
    """The table of a solver's steps, of `nfe` evaluations or the few less that whole steps leave."""
    method = SOLVERS[solver]
    options: dict[str, Any] = {"final": "denoise"} if isinstance(proc, process.VP) else {}
    if method.grid is not UNIFORM:
        options["t_start"] = first_time(proc)
    return method.solver.plan(proc, method.grid(proc, method.steps(nfe), **options))


def first_time(proc: process.Process, least_log_snr: float = LEAST_LOG_SNR) -> float:
    """Where grids begin: the last time at which there is more than noise; `x_T` is as good there as at `t_max`.

    The prior of the cosine schedule has `log_snr = -20`, of which DPM-Solver leaves out about as much (Lu et al. 2022,
    Appendix D.4).
    """
    return float(process.at_log_snr(proc, np.asarray(least_log_snr, np.float64)))


def sampler(
    net: unet.UNet,
    proc: process.Process,
    predicts: prediction.Predicts,
    shape: tuple[int, ...],
    mesh: Mesh | None = None,
    *,
    interval: tuple[float | int, float | int] | None = None,
    rescale: ArrayLike = 0.0,
) -> Callable[..., UInt8[Array, "n H W C"]]:
    """`draw(params, key, plan, index, label=None, weight=None, younger=None)`, compiled.

    Image `i` depends on `key` and `i` alone; the last three are as of `denoiser`, the weight a number, and so is
    `rescale`. With an `interval` it is guided at those times alone. The images are split over the devices of `mesh`, by
    default all of this process, and end on each; what is not there yet is copied there. One compilation serves all plans
    of a shape, all labels and all weights.
    """
    mesh = local_mesh() if mesh is None else mesh
    everywhere = training.Layout(mesh=mesh).sharding()

    def each(params, key, plan, index, label, weight, younger):
        key_prior, key_noise, _ = jax.random.split(key, 3)
        x_T = proc.prior(key_prior, (len(index), *shape), index=index)
        if weight is not None and interval is not None:
            weight = guidance.interval(weight, proc, *interval)
        denoise = denoiser(net, proc, predicts, params, label, weight, younger, rescale=rescale)
        return data.to_uint8(samplers.sample(key_noise, denoise, plan, x_T, index=index))

    @jax.jit
    def program(params, key, plan, index, label, weight, younger):
        whole, split = PartitionSpec(), PartitionSpec(keys.AXIS)
        specs = (whole, whole, whole, split, split, whole, whole)
        run = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        extend = lambda v: jnp.pad(v, (0, -len(v) % mesh.size), mode="edge")
        num, index, label = len(index), extend(index), None if label is None else extend(label)
        images = run(params, key, plan, index, label, weight, younger)
        return jax.lax.with_sharding_constraint(images[:num], everywhere)

    def draw(
        params: PyTree,
        key: Key[Array, ""],
        plan: samplers.Plan,
        index: Int[Array | np.ndarray, "n"],
        label: Int[Array | np.ndarray, "n"] | None = None,
        weight: ArrayLike | None = None,
        younger: PyTree | None = None,
    ) -> UInt8[Array, "n H W C"]:
        return program(*place((params, key, plan, index, label, weight, younger), mesh))

    return draw


def local_mesh(num: int | None = None) -> Mesh:
    """The devices of this process, or `num` of them where there are more, on the axis over which images are split."""
    return Mesh(np.array(jax.local_devices()[:num]), (keys.AXIS,))


def place(tree: PyTree, mesh: Mesh) -> PyTree:
    """Arrays on all devices of `mesh`; those that are there, in whatever parts, stay as they are."""
    layout, devices = training.Layout(mesh=mesh), set(mesh.devices.flat)
    there = lambda x: isinstance(x, jax.Array) and x.sharding.device_set == devices
    return jax.tree.map(lambda x: x if there(x) else layout.put_data(jnp.asarray(x)), tree)


def choose_labels(
    label: int | None, num_classes: int | None, key: Key[Array, ""], index: Int[Array | np.ndarray, "n"]
) -> Int[Array, "n"] | None:
    """`labels.choose`, with the third of the keys that a `sampler` makes of `key`."""
    return labels.choose(label, num_classes, jax.random.split(key, 3)[2], index)


def sample(
    run: Run,
    key: Key[Array, ""],
    num: int,
    *,
    label: int | None = None,
    guidance: float = 1.0,
    solver: SolverName = "unipc",
    nfe: int = 12,
    chunk: int = 250,
) -> tuple[UInt8[np.ndarray, "num H W C"], Int[np.ndarray, "num"] | None]:
    """Images of a run, and the labels that they were drawn for (None of an unconditional network).

    Args:
        run: from `load`.
        key: image `i` depends on it and on `i` alone.
        num: how many.
        label: of all of them; by default each its own, at random.
        guidance: its weight, by the labels or by the run's younger parameters (see `denoiser`); 1 is none, costs half.
        solver, nfe: as of `plan`.
        chunk: how many at once.

    Raises:
        ValueError: a label that is out of range, or any of an unconditional network; fewer than 1 images.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1 image, got {num}.")
    mesh = local_mesh(num)
    draw = sampler(run.net, run.process, run.predicts, run.shape, mesh)
    (params, younger), table = place((run.params, run.younger), mesh), plan(run.process, solver, nfe)
    weight = None if guidance == 1 else jnp.float32(guidance)
    size, parts = min(chunk, num), []
    for start in range(0, num, size):
        index = jnp.arange(start, start + size)
        chosen = choose_labels(label, run.num_classes, key, index)
        parts.append(jax.device_get((draw(params, key, table, index, chosen, weight, younger), chosen)))
    return jax.tree.map(lambda *part: np.concatenate(part)[:num], *parts)
