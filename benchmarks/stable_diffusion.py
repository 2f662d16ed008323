"""Stable Diffusion 1.5 at real size, with random weights, against diffusers: makes STABLE_DIFFUSION.md.

    python benchmarks/stable_diffusion.py --parts unet --dtypes float32    # about five minutes on two cores
    python benchmarks/stable_diffusion.py --parts load sample              # adds to the same page

Parts: `unet`, one call for an image of 512 x 512 with guidance: latents [2, 64, 64, 4], context [2, 77, 768]. `decoder`,
latents [1, 64, 64, 4] to 512 x 512 pixels. In both the two sides have the same weights, and take turns in one process;
diffusers is the fastest of its settings. `load`: `pretrained.load` of one file in a process of its own, and its memory.
`sample`: the whole of `gen-jax sample`, 20 steps, against 20 of the U-Net's calls and the decoder's.

Needs the extra `bench`, 20 GB of memory, and for `load` and `sample` 5 GB in `checkpoints/`.
"""

import gc
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tyro
from pages import Kept, commit, machine, markdown, versions

from gen_jax.networks import autoencoder_kl, text, unet
from gen_jax.pretrained import components, names, safetensors, single_file
from gen_jax.pretrained.single_names import How
from gen_jax.text import Tokenizer
from gen_jax.text.words import BYTES

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "checkpoints" / "stable_diffusion_random"
Part = Literal["unet", "decoder", "load", "sample"]
Type = Literal["float32", "bfloat16"]
Call = Callable[[], Any]
WHOLE = {"unet": "unet", "decoder": "vae"}
"""Of which part of a Stable Diffusion each call is one."""
COMPARED = tuple(WHOLE)
CONFIGS = {"unet": unet.sd15, "vae": autoencoder_kl.sd, "text_encoder": text.clip_l}
ROWS: dict[str, names.Part] = {"unet": "unet", "vae": "vae", "text_encoder": "text"}
TYPES: tuple[Type, ...] = ("float32", "bfloat16")
SETTINGS = ("eager", "eager, channels last", "compiled, channels last")
"""Of diffusers, in PyTorch's inference mode, with its own attention."""
MERGES = 48_894
"""Of CLIP's vocabulary."""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    parts: tuple[Part, ...] = ("unet", "decoder", "load", "sample")
    dtypes: tuple[Type, ...] = TYPES
    rounds: int = 3
    steps: int = 20
    """Of `sample`."""
    threads: int = os.cpu_count() or 1
    """Of PyTorch."""
    compiled: bool = True
    """Whether `torch.compile` is one of the settings of diffusers; it takes minutes."""


def seconds(call: Call) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# --- the two sides ---


def ours(part: str, tensors: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], dtype: Type) -> Call:
    """A call of ours, with weights out of diffusers' tensors."""
    kind = WHOLE[part]
    shapes, module = (
        components.parameters(CONFIGS[kind]),
        replace(CONFIGS[kind], dtype=dtype, param_dtype=dtype).build(),
    )
    params = names.to_linen(tensors, shapes, part=ROWS[kind], dtype=dtype)
    x, *rest = (jnp.asarray(a, jnp.float32) for a in inputs.values())
    if part == "unet":
        apply = jax.jit(lambda params, x, t, context: module.apply(params, x, t + 1, None, context))
    else:
        apply = jax.jit(lambda params, z: module.apply(params, z, method="decode"))
    return lambda: jax.block_until_ready(apply(params, x, *rest))


def module_of_diffusers(part: str) -> Any:
    """With random weights, as it is made."""
    import diffusers
    import torch

    torch.manual_seed(0)
    if part == "unet":
        return diffusers.UNet2DConditionModel(cross_attention_dim=768).eval()
    levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    return diffusers.AutoencoderKL(**levels, down_block_types=down, up_block_types=up).eval()


def theirs(
    part: str, module: Any, inputs: Mapping[str, np.ndarray], dtype: Type, compiled: bool
) -> dict[str, Call]:
    """Calls of diffusers, by setting."""
    import torch

    kind = getattr(torch, dtype)
    x, *rest = (torch.from_numpy(np.array(a)) for a in inputs.values())
    x = x.permute(0, 3, 1, 2).to(kind)
    run = module if part == "unet" else module.decode
    rest = [rest[0], rest[1].to(kind)] if rest else []
    module.to(kind)

    def call(run: Callable[..., Any], layout: Any) -> Call:
        given = x.contiguous(memory_format=layout)

        def once() -> Any:
            module.to(memory_format=layout)  # nothing, the second time
            with torch.inference_mode():
                return run(given, *rest, return_dict=False)[0]

        return once

    last, first = torch.channels_last, torch.contiguous_format
    calls = [call(run, first), call(run, last)]
    if compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        calls.append(call(torch.compile(run), last))
    return dict(zip(SETTINGS, calls, strict=False))


def inputs_of(part: str) -> dict[str, np.ndarray]:
    """Of a call: images with channels last, then diffusers' times and the context."""
    draw = np.random.default_rng(0).standard_normal
    if part == "decoder":
        return {"z": draw((1, 64, 64, 4), np.float32)}
    more = {"t": np.array([500.0, 500.0], np.float32), "context": draw((2, 77, 768), np.float32)}
    return {"x": draw((2, 64, 64, 4), np.float32), **more}


def compare(part: str, dtype: Type, config: Config) -> dict[str, Any]:
    """Seconds a call of each side, in turns, and how far apart the results are."""
    import torch

    torch.set_num_threads(config.threads)
    module, inputs = module_of_diffusers(part), inputs_of(part)
    mine = ours(part, {k: v.numpy() for k, v in module.state_dict().items()}, inputs, dtype)
    settings = theirs(part, module, inputs, dtype, config.compiled)
    y = np.asarray(mine())
    tried, found = {}, {}
    for name, call in settings.items():
        found[name] = call().float().permute(0, 2, 3, 1).numpy()
        tried[name] = seconds(call)
        print(name, round(tried[name], 2), flush=True)
    best = min(tried, key=lambda name: tried[name])
    if best != list(settings)[-1]:
        settings[best]()  # its layout again
    rounds = [(seconds(mine), seconds(settings[best])) for _ in range(config.rounds)]
    mean = lambda i: statistics.median(times[i] for times in rounds)
    return {
        "ours": mean(0),
        "theirs": mean(1),
        "setting": best,
        "tried": tried,
        "ratio": statistics.median(b / a for a, b in rounds),
        "difference": float(np.abs(y - found[best]).max() / np.abs(found[best]).max()),
    }


# --- one file ---


def write(dtype: Type) -> Path:
    """One file of random weights of this size, and a made-up vocabulary of CLIP's size beside it, unless there is one."""
    path = HOME / f"{dtype}.safetensors"
    if path.exists():
        return path
    (HOME / "tokenizer").mkdir(parents=True, exist_ok=True)
    pairs = itertools.islice(itertools.product(BYTES.values(), repeat=2), MERGES)
    Tokenizer(tuple(map(" ".join, pairs))).save(HOME / "tokenizer")
    noise = np.random.default_rng(0).standard_normal(2**22 + 1, np.float32)
    kind = np.dtype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16)

    def drawn(shape: tuple[int, ...]) -> np.ndarray:
        deviation = 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1
        return (np.resize(noise, shape) * np.float32(deviation)).astype(kind)

    def part(name: str) -> single_file.View:
        entries = names.entries(components.parameters(CONFIGS[name]), ROWS[name])
        shapes = {key: entry.theirs(linear=False) for key, entry in entries.items()}
        return single_file.View({k: ({}, How((), s, lambda s=s: drawn(s))) for k, s in shapes.items()})

    safetensors.write(path, single_file.join({name: part(name) for name in CONFIGS}, "sd1"))
    return path


PEAK = """
import sys, time

def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(lines["VmHWM"].split()[0])
"""
LOAD = f"""{PEAK}
import jax
from gen_jax import pretrained
jax.device_put(0).block_until_ready()
before, start = peak(), time.perf_counter()
model, weights = pretrained.load(sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(weights)
print(time.perf_counter() - start, peak() - before)
"""
SAMPLE = f"""{PEAK}
from gen_jax import cli
cli.main(sys.argv[1:])
print(peak())
"""


def run(program: str, *arguments: object, **variables: str) -> list[float]:
    """The numbers that a program in a process of its own prints in the end."""
    command, environment = [sys.executable, "-c", program, *map(str, arguments)], {**os.environ, **variables}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def load(dtype: Type) -> dict[str, float]:
    """Seconds of `pretrained.load`, and bytes of the file and of the memory that it needs at most."""
    path = write(dtype)
    took, peak = run(LOAD, path, dtype)
    return {"size": path.stat().st_size, "seconds": took, "peak": peak}


def sample(dtype: Type, config: Config) -> dict[str, float]:
    """Seconds of the command with and without compiled programs on disk, and of the calls that it consists of."""
    path, found = write(dtype), dict[str, float]()
    for part in COMPARED:
        tensors = single_file.split(safetensors.read(path))[WHOLE[part]]
        call = ours(part, tensors, inputs_of(part), dtype)
        call()
        found[part] = statistics.median(seconds(call) for _ in range(3))
        del call
        gc.collect()
    with tempfile.TemporaryDirectory() as cache:
        out = Path(cache) / "out.png"
        asked = [
            "--prompt",
            "a lighthouse at dawn",
            "--nfe",
            config.steps,
            "--solver",
            "dpmpp",
            "--dtype",
            dtype,
        ]
        for name in ("first", "second"):
            start = time.perf_counter()
            (found["peak"],) = run(SAMPLE, "sample", path, *asked, "--out", out, GEN_JAX_CACHE=cache)
            found[name] = time.perf_counter() - start
    return found


# --- the page ---

PAGE = """# Stable Diffusion 1.5, speed and memory

Made by `python benchmarks/stable_diffusion.py` from commit {commit}, on {machine} ({features}), with
{versions}. Weights are random, sizes are real. What is compared, and how: see there.

## A call

Medians of {rounds} rounds in which the two sides take turns; the ratio is the median of the rounds' ratios, above 1 where
gen_jax is faster. The difference is the largest one of the two results, divided by the largest value.

{calls}

Seconds of the settings of diffusers that were tried, a call of each:

{tried}

## Loading one file

{loads}

## `gen-jax sample`, {steps} steps, 512 x 512, guidance

All of the command, from its start to the picture. Needed are {steps} calls of the U-Net and one of the decoder.

{samples}
"""


def features() -> str:
    """What of the processor decides how fast arithmetic is."""
    path = Path("/proc/cpuinfo")
    known = path.read_text().split() if path.exists() else []
    wanted = {"AVX-512": "avx512f", "AMX": "amx_tile", "bfloat16 instructions": "avx512_bf16"}
    return ", ".join(("" if flag in known else "no ") + name for name, flag in wanted.items())


def page(found: dict[str, Any], config: Config) -> str:
    """STABLE_DIFFUSION.md."""
    of = lambda *parts: [(p, d, found[f"{p} {d}"]) for p in parts for d in TYPES if f"{p} {d}" in found]
    gb = lambda x: f"{x / 1e9:.2f}"
    calls = [["", "dtype", "gen_jax, s", "diffusers, s", "times its speed", "difference"]] + [
        [part, dtype, f"{x['ours']:.2f}", f"{x['theirs']:.2f}", f"{x['ratio']:.2f}", f"{x['difference']:.0e}"]
        for part, dtype, x in of(*COMPARED)
    ]
    tried = [["", "dtype", *SETTINGS]] + [
        [part, dtype, *(f"{x['tried'][name]:.2f}" if name in x["tried"] else "" for name in SETTINGS)]
        for part, dtype, x in of(*COMPARED)
    ]
    loads = [["dtype", "file, GB", "seconds", "memory, GB", "times the file"]] + [
        [dtype, gb(x["size"]), f"{x['seconds']:.1f}", gb(x["peak"]), f"{x['peak'] / x['size']:.2f}"]
        for _, dtype, x in of("load")
    ]
    samples = [["dtype", "needed, s", "first time, s", "ratio", "next time, s", "ratio", "memory, GB"]]
    for _, dtype, x in of("sample"):
        needed = config.steps * x["unet"] + x["decoder"]
        times = [said for t in (x["first"], x["second"]) for said in (f"{t:.0f}", f"{t / needed:.2f}")]
        samples.append([dtype, f"{needed:.0f}", *times, gb(x["peak"])])
    tables = {"calls": calls, "tried": tried, "loads": loads, "samples": samples}
    return PAGE.format(
        commit=commit(),
        machine=machine(),
        features=features(),
        versions=versions("jax", "flax", "torch", "diffusers"),
        **asdict(config),
        **{name: markdown(rows) if len(rows) > 1 else "Not measured." for name, rows in tables.items()},
    )


def main(config: Config) -> None:
    """Measure what was not measured before, and write the page."""
    HOME.mkdir(parents=True, exist_ok=True)
    kept = Kept(HOME / "kept.json", {"rounds": config.rounds, "steps": config.steps})
    for part, dtype in itertools.product(config.parts, config.dtypes):
        measure = {"load": lambda: load(dtype), "sample": lambda: sample(dtype, config)}
        found = kept(f"{part} {dtype}", measure.get(part, lambda: compare(part, dtype, config)))
        print(part, dtype, json.dumps(found), flush=True)
        gc.collect()
    (ROOT / "benchmarks" / "STABLE_DIFFUSION.md").write_text(page(kept.found, config))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
