"""How cost grows with size: train steps, collectives, EM and samplers, with fitted exponents: makes benchmarks/README.md.

    python benchmarks/growth.py              # and growth.png
    python benchmarks/growth.py --smoke      # tiny sizes, and neither

Along an axis one size grows and the rest stays. Time is that of a compiled call that is waited for, the median of rounds
in which the sizes alternate. Memory is what the program for this machine says that it needs: arguments, results that
share no memory with them, and temporaries. FLOPs are XLA's count of the same step lowered for TPUs, but not compiled:
there convolutions are no loops, of which XLA counts the body once, however often it runs. EM and samplers are loops
everywhere, and of their FLOPs nothing is said.

Collectives, bytes of their results, are read in a chip's program of a data-parallel train step, compiled for devices
that the CPU pretends to be, in a process of its own: once with the convolutions of GPUs and TPUs, once with those that
`networks.conv` takes on CPUs. An exponent is the slope of a line through the logarithms, by least squares; zeros are left
out.
"""

import dataclasses
import datetime
import functools
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, TypeVar
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from hlo import collectives, memory
from jax.interpreters import mlir
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree
from matplotlib.ticker import LogLocator
from pages import commit, machine, markdown, scripts, versions

from gen_jax import em, gmm, keys, plots, samplers, training
from gen_jax.diffusion import loss, prediction, process
from gen_jax.networks import conv, unet

HERE = Path(__file__).parent
PROCESS = process.DDPM()
N = TypeVar("N", bound=float)


@dataclass(frozen=True)
class Config:
    """Sizes; where one grows, the others are `batch_size` and `size`."""

    batch_size: int = 64
    size: int = 28
    """Side of the images."""
    batches: tuple[int, ...] = (16, 32, 64, 128, 256)
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Of the channels of `mnist_small`."""
    sizes: tuple[int, ...] = (28, 32, 64)
    devices: tuple[int, ...] = (1, 2, 4, 8)
    per_device: int = 16
    """Examples a device, however many there are."""
    rows: tuple[int, ...] = (4096, 16_384, 65_536, 262_144)
    """Of EM: 16 components, 8 dimensions."""
    evaluations: tuple[int, ...] = (5, 10, 20, 50)
    samples: tuple[int, ...] = (4, 16, 64, 256)
    nfe: int = 10
    """Where the samples grow."""
    num: int = 16
    """Samples where the evaluations grow."""
    rounds: int = 5
    smoke: bool = False
    """Tiny sizes, and no page."""


TINY: dict[str, int | tuple[float, ...]] = {
    "batch_size": 2,
    "size": 8,
    "per_device": 2,
    "nfe": 3,
    "num": 1,
    "rounds": 1,
}
TINY |= {"batches": (2, 4), "factors": (1.0, 2.0), "sizes": (8, 16), "devices": (1, 2)}
TINY |= {"rows": (64, 128), "evaluations": (3, 6), "samples": (1, 2)}
TINY_NETWORK = dataclasses.replace(unet.mnist_small, channels=(8,), patch=4)


# --- programs ---

Program = tuple[Callable[[], PyTree], dict[str, float]]
"""A call that waits, and what is known of it without a call."""


def scaled(network: unet.UNetConfig, factor: float) -> unet.UNetConfig:
    """With so many times its channels."""
    return dataclasses.replace(network, channels=tuple(round(factor * c) for c in network.channels))


def parts(
    network: unet.UNetConfig, size: int, batch: int
) -> tuple[training.Step, training.TrainState, Array]:
    """A train step as step 9 takes it, a state, and images."""
    net, optimizer = unet.UNet(network), optax.adam(1e-3)
    images = jax.ShapeDtypeStruct((batch, size, size, 1), np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), images, jnp.zeros(batch))

    def found(params: PyTree, key: Key[Array, ""], x_0: Array) -> tuple[Array, dict[str, Array]]:
        return loss.denoising(key, lambda x_t, t: net.apply(params, x_t, t), PROCESS, x_0)

    rng = np.random.default_rng(0)
    drawn = lambda s: jnp.asarray(rng.normal(0, 0.05, s.shape), s.dtype)
    state = training.TrainState.create(jax.tree.map(drawn, shapes), optimizer, jax.random.key(0))
    return training.make_step(found, optimizer), state, drawn(images)


@functools.cache
def train_step(network: unet.UNetConfig, size: int, batch: int) -> Program:
    """One update of the shared U-Net."""
    step, state, x_0 = parts(network, size, batch)
    compiled = training.compile_step(step)
    program = compiled.lower(state, x_0).compile()
    lowered = jax.jit(step).trace(state, x_0).lower(lowering_platforms=("tpu",))
    state, x_0 = compiled.layout.put_state(state), compiled.put(x_0)

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state, x_0))

    return run, {"memory": memory(program), "FLOPs": lowered.cost_analysis()["flops"]}


def em_step(rows: int, components: int = 16, dims: int = 8) -> Program:
    """One iteration of EM of full covariances."""
    x = jax.random.normal(jax.random.key(0), (rows, dims))
    eye = jnp.broadcast_to(jnp.eye(dims), (components, dims, dims))
    start = gmm.GMM(jnp.full(components, 1 / components), x[:components], eye)
    program = jax.jit(lambda params, x: em.step(params, x)).lower(start, x).compile()
    return lambda: jax.block_until_ready(program(start, x)), {"memory": memory(program)}


@functools.cache
def sampler(nfe: int, num: int, size: int, network: unet.UNetConfig) -> Program:
    """A whole `samplers.sample` by UniPC."""
    _, state, x_T = parts(network, size, num)
    plan = samplers.named.plan(PROCESS, "unipc", nfe)

    def draw(params: PyTree, plan: samplers.Plan, x_T: Array) -> Array:
        apply = lambda x, t: unet.UNet(network).apply(params, x, t)
        denoise = prediction.as_denoiser(apply, PROCESS, predicts="eps")
        return samplers.sample(jax.random.key(0), denoise, plan, x_T)

    program = jax.jit(draw).lower(state.params, plan, x_T).compile()
    return lambda: jax.block_until_ready(program(state.params, plan, x_T)), {"memory": memory(program)}


def read_collectives(config: Config, network: unet.UNetConfig, plain: bool) -> list[dict[str, float]]:
    """Bytes of each kind in a data-parallel train step, a dict a number of devices; for a process that has as many."""
    if plain:
        lowering = mlir.lower_fun(conv.plain, multiple_results=False)
        mlir.register_lowering(conv._conv_p, lowering, platform="cpu")
    found = []
    for n in config.devices:
        step, state, x_0 = parts(network, config.size, n * config.per_device)
        mesh = Mesh(np.array(jax.devices()[:n]), (keys.AXIS,))
        text = training.compile_step(step, mesh=mesh).lower(state, x_0).compile().as_text()
        found.append({kind: size for kind, (_, size) in collectives(text).items()})
    return found


# --- axes ---


class Axis(NamedTuple):
    """What was found along one."""

    title: str
    label: str
    at: Sequence[float]
    costs: dict[str, list[float]]

    def exponents(self) -> dict[str, float]:
        """Of each cost the slope of its logarithm, where it is positive at two sizes or more."""
        found = {}
        for name, values in self.costs.items():
            x, y = np.array([(x, y) for x, y in zip(self.at, values, strict=True) if y > 0]).reshape(-1, 2).T
            if len(x) > 1:
                found[name] = round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)
        return found


def timed(rounds: int, what: str, label: str, at: Sequence[N], make: Callable[[N], Program]) -> Axis:
    """Time, and what else the programs say."""
    programs, times = [make(x) for x in at], []
    for _ in range(rounds + 1):
        times.append([])
        for run, _ in programs:
            start = time.perf_counter()
            run()
            times[-1].append(time.perf_counter() - start)
    said = {name: [costs[name] for _, costs in programs] for name in programs[0][1]}
    return Axis(f"{what} against {label}", label, at, {"time": list(np.median(times[1:], axis=0))} | said)


def devices(config: Config, network: unet.UNetConfig) -> Axis:
    """Bytes of each kind of collective."""
    pretend = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(config.devices)}"
    )
    flags = {"XLA_FLAGS": pretend, "JAX_PLATFORMS": "cpu"}
    context, costs = multiprocessing.get_context("spawn"), {}
    for plain, where in ((True, "GPU and TPU"), (False, "CPU")):
        with mock.patch.dict(os.environ, flags), ProcessPoolExecutor(1, mp_context=context) as pool:
            found = pool.submit(read_collectives, config, network, plain).result()
        for kind in sorted({kind for each in found for kind in each}):
            costs[f"{kind}, {where}"] = [each.get(kind, 0.0) for each in found]
    return Axis(f"Collectives, {config.per_device} examples a chip", "devices", config.devices, costs)


def measured(config: Config) -> Iterator[Axis]:
    """All axes."""
    base, side, batch = TINY_NETWORK if config.smoke else unet.mnist_small, config.size, config.batch_size
    step = functools.partial(timed, config.rounds, "Train step")
    draw = functools.partial(timed, config.rounds, "Sampling")
    yield step("batch", config.batches, lambda n: train_step(base, side, n))
    yield step("channels", config.factors, lambda factor: train_step(scaled(base, factor), side, batch))
    yield step("image side", config.sizes, lambda size: train_step(base, size, batch))
    yield devices(config, base)
    yield timed(config.rounds, "EM step", "rows", config.rows, em_step)
    yield draw("evaluations", config.evaluations, lambda nfe: sampler(nfe, config.num, side, base))
    yield draw("samples", config.samples, lambda num: sampler(config.nfe, num, side, base))


# --- the page ---

PAGE = """# Benchmarks

Run from the root of the repository; those against peers need the extra `bench`.

{scripts}

## How cost grows

Made by `python benchmarks/growth.py` on {date}, from commit {commit}, on {machine}, with
{versions}. Times are medians of {rounds} rounds. The exponent is the slope of a line through the logarithms, by
least squares: 1 is proportional, 2 the square. What is counted, and how: see there.

The network is `mnist_small`, float32, with Adam and averaged parameters; batch {batch_size} and images of {size} x {size}
unless they grow, channels as multiples of its own. EM has 16 full components in 8 dimensions; samplers are UniPC,
{num} samples where the evaluations grow and {nfe} evaluations where the samples do. "GPU and TPU", "CPU": whose
convolutions the program has.

![Costs, relative to those of the smallest size, against size](growth.png)

{tables}
"""
UNITS = {"time": ("ms", 1e-3), "FLOPs": ("GFLOP", 1e9)}


def table(axis: Axis) -> str:
    """A column a size, and the exponent."""
    rows, fits = [[axis.label, *(f"{x:g}" for x in axis.at), "exponent"]], axis.exponents()
    for name, values in axis.costs.items():
        unit, scale = UNITS.get(name, ("MB", 1e6))
        exponent = f"{fits[name]:z.2f}" if name in fits else "none"
        rows.append([f"{name}, {unit}", *(f"{value / scale:.4g}" for value in values), exponent])
    return f"### {axis.title}\n\n{markdown(rows)}"


def draw_figure(path: Path | IO[bytes], found: list[Axis]) -> None:
    """A panel an axis: each cost relative to its first that is not zero, and the fitted line."""
    with plots.figure(path, width=14, height=7, nrows=2, ncols=4) as panels:
        for panel, axis in zip(panels.flat, found, strict=False):
            x, fits = np.array(axis.at, float), axis.exponents()
            for i, (name, exponent) in enumerate(fits.items()):
                y = np.array(axis.costs[name])
                at, y = x[y > 0], y[y > 0] / y[y > 0][0]
                line = np.exp(np.mean(np.log(y) - exponent * np.log(at))) * at**exponent
                panel.plot(at, y, "os^Dv"[i % 5], color=f"C{i}", label=f"{name}: {exponent:z.2f}")
                panel.plot(at, line, "-", color=f"C{i}", linewidth=1)
            panel.set(xscale="log", yscale="log", title=axis.title, xlabel=axis.label, ylabel="relative cost")
            panel.set_xticks(x, [f"{v:g}" for v in x])
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            if fits:
                panel.legend(fontsize=8)
        for panel in panels.flat[len(found) :]:
            panel.axis("off")


def main(config: Config) -> list[Axis]:
    """Print a JSON line an axis, and write the page and its figure."""
    if config.smoke:
        config = dataclasses.replace(config, **TINY)
        os.environ["XLA_FLAGS"] = (
            "--xla_backend_optimization_level=0"  # nearly all of the time is compilation
        )
    found = []
    for axis in measured(config):
        found.append(axis)
        print(json.dumps(axis._asdict() | {"exponents": axis.exponents()}), flush=True)
    text = PAGE.format(
        **dataclasses.asdict(config),
        scripts=scripts(),
        date=datetime.date.today(),
        commit=commit(),
        machine=machine(),
        versions=versions("jax", "flax", "optax"),
        tables="\n\n".join(map(table, found)),
    )
    draw_figure(io.BytesIO() if config.smoke else HERE / "growth.png", found)
    if not config.smoke:
        (HERE / "README.md").write_text(text)
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
