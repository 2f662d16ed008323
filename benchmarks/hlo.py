"""What a compiled program says of itself, for the benchmarks that read programs instead of timing them."""

import math
import re
from typing import Any

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def collectives(text: str) -> dict[str, tuple[int, float]]:
    """Of each kind how many, and the bytes of their results; where a start has its operands beside, half of it."""
    found: dict[str, tuple[int, float]] = {}
    for result, kind, start in COLLECTIVE.findall(text):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        total = sum(SIZES.get(t, 4) * math.prod(int(n) for n in dims.split(",") if n) for t, dims in arrays)
        both = bool(start) and kind != "all-reduce"
        count, size = found.get(kind, (0, 0.0))
        found[kind] = count + 1, size + total / (2 if both else 1)
    return found


def memory(compiled: Any) -> int:
    """Bytes a device: arguments, results that share no memory with them, and temporaries."""
    m = compiled.memory_analysis()
    used = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return used - m.alias_size_in_bytes
