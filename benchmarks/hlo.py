"""What a compiled program says of itself, for the benchmarks that read programs instead of timing them."""

import math
import re
from typing import Any

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
    r'(?:.*?chain_id="(\d+)")?'
)
SCATTERED = re.compile(r"\n%?all-reduce-scatter[\w.]* \(.*?\) -> (\S+) \{\n.*?\n\}", re.DOTALL)
"""The computation of such a fusion."""


def collectives(text: str) -> dict[str, tuple[int, float]]:
    """Of each kind how many, and the bytes of their results; where a start has its operands beside, half of it.

    A chain is one, whose beginning, end and what is done meanwhile each name it: so a TPU's program overlaps it with
    other work. A reduce-scatter is on a TPU a fusion of an all-reduce with the slice of it that a device keeps.
    """
    text = SCATTERED.sub(r"\n  %it = \1 reduce-scatter()", text)
    found: dict[str, tuple[int, float]] = {}
    chains: set[tuple[str, str]] = set()
    for result, kind, start, chain in COLLECTIVE.findall(text):
        if chain and (kind, chain) in chains:
            continue
        chains.add((kind, chain))
        total = sum(size for size, _ in arrays(result))
        both = bool(start) and kind != "all-reduce"
        count, size = found.get(kind, (0, 0.0))
        found[kind] = count + 1, size + total / (2 if both else 1)
    return found


def arrays(shape: str) -> list[tuple[int, bool]]:
    """Of the arrays in a shape, as HLO writes it, the bytes, and whether they are in the main memory.

    `S(1)` in a layout is a TPU's on-chip memory, other numbers are those of its smaller ones.
    """
    found = re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape)
    size = lambda kind, dims: SIZES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
    return [(size(kind, dims), "S(" not in layout) for kind, dims, layout in found]


INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
"""Operations that move nothing themselves."""
CALLED = re.compile(r"(?:body|condition|to_apply|\w+_computation|branch_computations)=(\{.*?\}|%?[\w.\-]+)")


def traffic(text: str) -> int:
    """Bytes that a compiled program moves from and to the main memory: each operand and result of each operation once.

    XLA's own count, `cost_analysis()["bytes accessed"]`, has what a TPU keeps on the chip in it as well. As there, the
    body of a loop counts once; of a condition, here, every branch. That an operation reads something more than once, for
    it does not fit the chip, is not known.
    """
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    left, seen, total = [entry.group(1)] if entry else [], set(), 0
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        shapes: dict[str, str] = {}
        for line in bodies[name].splitlines():
            if not (found := INSTRUCTION.match(line)):
                continue
            result, shape, kind, rest = found.groups()
            shapes[result] = shape
            if kind in ("while", "conditional", "call"):
                left += [n.strip("%{} ") for called in CALLED.findall(rest) for n in called.split(",")]
            if kind in FREE or kind.endswith("-done"):
                continue
            moved = arrays(shape)
            if kind in (
                "copy-start",
                "slice-start",
            ):  # its operand is in the result; as much is read as written
                size = min(size for size, _ in moved[:2])
                total += size * sum(main for _, main in moved[:2])
            else:
                operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
                moved += [a for name in operands for a in arrays(shapes.get(name, ""))]
                total += sum(size for size, main in moved if main)
    return total


def memory(compiled: Any) -> int:
    """Bytes a device: arguments, results that share no memory with them, and temporaries."""
    m = compiled.memory_analysis()
    used = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return used - m.alias_size_in_bytes
