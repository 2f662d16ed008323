"""Time a sampling step against PyTorch, a sample against the batch, and 64 images each side's way: makes SAMPLING.md.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --smoke    # tiny sizes, and no page

1. A step of DDIM with the U-Net of the preset `mnist` (the book's size): the network once and the solver's arithmetic.
   Ours is a whole sample as `gen-jax sample` draws it, waited for, over its steps. PyTorch has the same network
   (`train_step.py`; the parameter counts are compared) and grid, coefficients made beforehand, eval and inference mode;
   float32 channels-last and contiguous, bfloat16 by autocast, and so with weights that need no cast at every step.
2. Ours by batch, with the recommended solver (UniPC, 12 evaluations).
3. 64 images by the network of 1, in the setting of each side that is fastest there: the book's way, 1,000 steps of DDPM
   in PyTorch, of which 20 are timed and multiplied by 50; ours as in 2. That 12 evaluations of UniPC are as good as
   1,000 steps of DDPM is not measured here but by `experiments/samplers_compare.py`.

Both sides have all cores: PyTorch as threads, ours as `--devices` among which the images are split (1: as threads too, of
which XLA's convolutions of few channels use one). Sides alternate; printed are medians and medians of the rounds' ratios,
one JSON line a measurement. The networks are not trained: what is timed does not depend on the weights. Needs the extra
`bench`.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from jaxtyping import PyTree
from pages import commit, machine, markdown, versions
from train_step import TorchUNet, seconds

from gen_jax import generate, model, samplers
from gen_jax.codec import Pixels
from gen_jax.conditioning import Nothing
from gen_jax.diffusion import process
from gen_jax.networks import unet

PROCESS = process.DDPM()
IMAGE = (28, 28, 1)
DDPM_STEPS = 1000
DTYPES = ("float32", "bfloat16")
SETTINGS = ("float32", "float32 contiguous", "bfloat16", "bfloat16 weights")
"""Of PyTorch."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    batch_size: int = 20
    """Of the first measurement."""
    steps: int = 10
    """Of a sample there; a step is its share."""
    batches: tuple[int, ...] = (1, 5, 20, 64, 250)
    presets: tuple[str, ...] = ("mnist_small", "mnist")
    nfe: int = 12
    images: int = 64
    """Of the third measurement."""
    ddpm_steps: int = 20
    """How many of the book's 1,000 are timed."""
    rounds: int = 7
    devices: int = os.cpu_count() or 1
    """That JAX makes of the cores, as with `JAX_NUM_CPU_DEVICES`."""
    smoke: bool = False
    """Tiny sizes, and no page."""


TINY = {"batch_size": 2, "steps": 2, "batches": (1, 2), "presets": ("mnist_small",), "nfe": 3, "images": 2}
TINY |= {"ddpm_steps": 2, "rounds": 1}


# --- the two sides ---


@functools.cache
def network(preset: str, dtype: str) -> tuple[model.Model, PyTree]:
    """A model whose network is that of a preset, and parameters: small random numbers."""
    config = dataclasses.replace(
        {"mnist_small": unet.mnist_small, "mnist": unet.mnist}[preset], dtype=jnp.dtype(dtype)
    )
    described = model.Model(config, PROCESS, "eps", Nothing(), Pixels(IMAGE))
    shapes, rng = jax.eval_shape(described.init, jax.random.key(0)), np.random.default_rng(0)
    return described, jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.05, s.shape), s.dtype), shapes)


def coefficients(grid: np.ndarray, eta: float) -> list[tuple[float, float, float]]:
    """`a, b, c` of `x_s = a x_t + b eps_hat + c z`, a row a step (Song, Meng & Ermon 2021, Eqs. 12 and 16).

    With `eta = 0` it is DDIM, with `eta = 1` DDPM.
    """
    rows = []
    for t, s in itertools.pairwise(grid):
        alpha_t, sigma_t, alpha_s, sigma_s = (
            float(f(u)) for u in (t, s) for f in (PROCESS.alpha, PROCESS.sigma)
        )
        a = alpha_s / alpha_t
        c = eta * sigma_s / sigma_t * (1 - 1 / a**2) ** 0.5
        rows.append((a, (sigma_s**2 - c**2) ** 0.5 - a * sigma_t, c))
    return rows


def torch_draw(setting: str, batch: int, grid: np.ndarray, eta: float) -> tuple[Callable[[], Any], int]:
    """A sample along `grid`, and the parameter count of the network."""
    layout = torch.contiguous_format if "contiguous" in setting else torch.channels_last
    kind = torch.bfloat16 if "weights" in setting else torch.float32
    net = TorchUNet(unet.mnist).to(kind, memory_format=layout).eval()
    start = torch.randn(batch, 1, 28, 28).contiguous(memory_format=layout)
    table = list(zip(grid[:-1], coefficients(grid, eta), strict=True))

    @torch.inference_mode()
    def draw() -> torch.Tensor:
        x = start
        for t, (a, b, c) in table:
            with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in setting):
                eps_hat = net(x, torch.full((batch,), float(t)))
            x = a * x + b * eps_hat.float()
            if c:
                x += c * torch.randn_like(x)
        return x

    return draw, sum(p.numel() for p in net.parameters())


def jax_draw(preset: str, dtype: str, batch: int, plan: samplers.Plan) -> tuple[Callable[[], Any], int]:
    """The same of ours, as `gen-jax sample` draws images."""
    described, params = network(preset, dtype)
    draw = generate.sampler(described, generate.local_mesh(batch))
    placed = draw.place({"network": params})
    count = sum(p.size for p in jax.tree.leaves(params))
    return lambda: jax.block_until_ready(draw(placed, jax.random.key(0), plan, np.arange(batch))), count


# --- what is measured ---

Sides = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]


def alternating(sides: Sides, rounds: int) -> Times:
    """Seconds of each side in each round, after a round that is not counted."""
    found: Times = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, side in sides.items():
            found[name].append(seconds(side))
    return {name: times[1:] for name, times in found.items()}


def medians(times: Times, unit: float) -> dict[str, float]:
    """Of each side, times `unit`."""
    return {name: float(f"{unit * statistics.median(ts):.4g}") for name, ts in times.items()}


def fastest(times: Times, side: str) -> str:
    """Among those whose names begin so."""
    return min(
        (name for name in times if name.startswith(side)), key=lambda name: statistics.median(times[name])
    )


def times_torch(times: Times, dtype: str = "") -> float:
    """Median of the rounds' ratios, PyTorch to ours, of the fastest of each (of one dtype)."""
    theirs, ours = (times[fastest(times, f"{side} {dtype}")] for side in ("torch", "gen_jax"))
    return round(statistics.median(a / b for a, b in zip(theirs, ours, strict=True)), 3)


def a_step(config: Config) -> dict:
    """The first measurement."""
    grid = samplers.times.uniform(PROCESS, config.steps)
    plan = samplers.DDIM().plan(PROCESS, grid)
    made = {f"gen_jax {dtype}": jax_draw("mnist", dtype, config.batch_size, plan) for dtype in DTYPES}
    made |= {f"torch {setting}": torch_draw(setting, config.batch_size, grid, 0.0) for setting in SETTINGS}
    if len(counts := {count for _, count in made.values()}) > 1:
        raise ValueError(f"the two networks differ: their parameters are {sorted(counts)}")
    times = alternating({name: draw for name, (draw, _) in made.items()}, config.rounds)
    return {
        "measurement": "step",
        "parameters": counts.pop(),
        "batch_size": config.batch_size,
        "ms_a_step": medians(times, 1e3 / config.steps),
        "times_torch": {dtype or "fastest": times_torch(times, dtype) for dtype in (*DTYPES, "")},
        "fastest": {side: fastest(times, side).removeprefix(f"{side} ") for side in ("torch", "gen_jax")},
    }


def by_batch(config: Config, preset: str, dtype: str) -> dict:
    """The second measurement."""
    plan = samplers.named.plan(PROCESS, "unipc", config.nfe)
    sides = {f"{batch}": jax_draw(preset, dtype, batch, plan)[0] for batch in config.batches}
    times = {n: [t / int(n) for t in ts] for n, ts in alternating(sides, config.rounds).items()}
    found = {"measurement": "batch", "preset": preset, "dtype": dtype, "nfe": config.nfe}
    return found | {"ms_a_sample": medians(times, 1e3), "fastest": fastest(times, "")}


def images(config: Config, setting: str, dtype: str) -> dict:
    """The third measurement."""
    grid = samplers.times.uniform(PROCESS, DDPM_STEPS)[: config.ddpm_steps + 1]
    theirs, _ = torch_draw(setting, config.images, grid, 1.0)
    ours, _ = jax_draw("mnist", dtype, config.images, samplers.named.plan(PROCESS, "unipc", config.nfe))
    times = alternating({f"torch {setting}": theirs, f"gen_jax {dtype}": ours}, config.rounds)
    times[f"torch {setting}"] = [DDPM_STEPS / config.ddpm_steps * t for t in times[f"torch {setting}"]]
    found = {"measurement": "images", "images": config.images, "steps_timed_of_1000": config.ddpm_steps}
    return found | {
        "nfe": config.nfe,
        "seconds": medians(times, 1),
        "times_torch": {"fastest": times_torch(times)},
    }


# --- the page ---

PAGE = """# Sampling speed

Made by `python benchmarks/sampling.py` on {date}, from commit {commit}, on {machine}, of
which JAX makes {devices} devices, with {versions}. Medians of {rounds} rounds, in which the sides
alternate; ratios are medians of the rounds' ratios, above 1 where ours is faster. What is compared, and how: see there.

## A sampling step

The U-Net of the preset `mnist` once, batch {batch_size}, and the arithmetic of DDIM.

{step}

## A sample by batch

Milliseconds a sample by UniPC, {nfe} evaluations; the last column is the batch that is fastest.

{batch}

## {images} images

PyTorch by 1,000 steps of DDPM, the time of {ddpm_steps} multiplied; ours by UniPC, {nfe} evaluations of the same network.

{seconds}
"""


def table(head: str, values: dict[str, float], ratios: dict[str, float]) -> str:
    """Of the sides, and below them of their ratios."""
    below = {f"times PyTorch's speed, {name}": value for name, value in ratios.items()}
    return markdown([["side", head], *([name, f"{value:g}"] for name, value in (values | below).items())])


def page(config: Config, step: dict, batches: list[dict], drawn: dict) -> str:
    """SAMPLING.md."""
    rows = [[r["preset"], r["dtype"], *map(str, r["ms_a_sample"].values()), r["fastest"]] for r in batches]
    return PAGE.format(
        **dataclasses.asdict(config),
        date=datetime.date.today(),
        commit=commit(),
        machine=machine(),
        versions=versions("jax", "flax", "torch"),
        step=table("ms a step", step["ms_a_step"], step["times_torch"]),
        batch=markdown([["preset", "dtype", *map(str, config.batches), "fastest"], *rows]),
        seconds=table("seconds", drawn["seconds"], drawn["times_torch"]),
    )


def main(config: Config) -> list[dict]:
    """Print a JSON line a measurement, and write the page."""
    jax.config.update("jax_num_cpu_devices", config.devices)
    config = dataclasses.replace(config, **TINY) if config.smoke else config
    said = lambda result: print(json.dumps(result), flush=True) or result
    step = said(a_step(config))
    batches = [said(by_batch(config, preset, dtype)) for preset in config.presets for dtype in DTYPES]
    drawn = said(images(config, step["fastest"]["torch"], step["fastest"]["gen_jax"]))
    text = page(config, step, batches, drawn)
    if not config.smoke:
        Path(__file__).with_name("SAMPLING.md").write_text(text)
    return [step, *batches, drawn]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
