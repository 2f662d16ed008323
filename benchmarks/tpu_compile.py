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
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import tpu_programs
import tpu_stable_diffusion
from hlo import collectives, memory, traffic
from pages import commit, markdown, row, table_of, versions
from tpu_programs import Case, mesh_of, train_step

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


# --- what the compiler made of them ---


def read(case: Case) -> list[str]:
    """What the compiled program of a case says of itself, a chip: the cells of `HEAD` after the case's name."""
    mesh, began = mesh_of(case), time.monotonic()
    programs = tpu_programs.PROGRAMS | tpu_stable_diffusion.PROGRAMS
    compiled = programs.get(case.family, train_step)(case, mesh).compile()
    seconds, text, cost = time.monotonic() - began, compiled.as_text(), compiled.cost_analysis()
    chip, moved, flops = CHIPS[case.topology.split(" ")[-1].split(":")[0]], traffic(text), cost["flops"]
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
    Case("mnist", 128, shard="fsdp"),
]
V5P, ONE, SHARDS = "v5p:2x2x1", "v5e:1x1", (None, "zero1", "fsdp")
CASES = [
    Case("cifar10", 128),
    Case("cifar10", 128, shard="fsdp"),
    *SMALL,
    *(Case("mlp", 4096, dtype="float32", shard=shard) for shard in SHARDS[1:]),
    *(Case("mlp", 4096, "2 x v5e:2x2", dtype="float32", shard=shard) for shard in SHARDS),
    Case("mnist", 128, shard="zero1"),
    *(Case("mnist", 128, "2 x v5e:2x2", shard=shard) for shard in SHARDS),
    Case("mnist", 128, "v5e:2x2", tensor=2),
    Case("sampler", 128),
    *(Case("mnist", 128, topology=topology) for topology in ("v5e:2x2", "v5e:8x8")),
    Case("text to image", 256, topology="v5e:2x2"),
    Case("text to image", 256, topology="v5e:2x2", shard="fsdp"),
    Case("text sampler", 128, topology="v5e:2x2"),
    Case("cifar10", 512),
    *(case._replace(topology=V5P) for case in SMALL),
    Case("cifar10", 1024, remat=True),
    *(Case(f"{name} call", 2, topology=ONE) for name in ("sd15", "sdxl")),
    *(
        Case(f"{name} sampling", 1, topology=slice_)
        for name in ("sd15", "sdxl")
        for slice_ in (ONE, "v5e:2x2")
    ),
    Case("sdxl fine-tuning", 1, shard="fsdp", remat=True),
    Case("cifar10", 128, topology=V5P),
    Case("sampler", 128, topology=V5P),
]
"""`mnist` is on slices of 4, 16 and 64 chips: what a step costs a chip, however many there are. Between two
slices only gradients go."""

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
    marks = [
        case.shard,
        "remat" if case.remat else None,
        f"tensor {case.tensor}" if case.tensor > 1 else None,
    ]
    return ", ".join([case.family, case.dtype, *filter(None, marks)]), case.topology, f"{case.per_chip}"


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
