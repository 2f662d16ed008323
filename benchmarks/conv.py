"""Time a convolution's three passes in and out of a `lax.scan`: the trap that `gen_jax.networks.conv` avoids.

    python benchmarks/conv.py

Printed for each shape: GFLOP/s of forward, input gradient and weight gradient together, of `lax` and of ours, called
one at a time and in a scan, in float32 and bfloat16. On XLA's CPU backend (jax 0.10) lax's weight gradient falls to about
1 GFLOP/s in the scan, and its bfloat16 is no faster than its float32.
"""

import itertools
import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from jax import lax

from gen_jax.networks.conv import conv

SHAPES = ((32, 14, 64), (64, 14, 32), (64, 7, 128), (32, 28, 64))
"""Batch, size, channels."""


@dataclass(frozen=True)
class Config:
    """How often to time."""

    rounds: int = 5
    steps: int = 4
    """Length of the scan."""


def plain(x, w):
    """The convolution as `lax` has it."""
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def median_seconds(fun, *args, rounds: int) -> float:
    """Median wall time of a compiled function."""
    jax.block_until_ready(fun(*args))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(fun(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(config: Config) -> dict[str, dict[str, float]]:
    """Print the table and return it."""
    table: dict[str, dict[str, float]] = {}
    for batch, size, channels in SHAPES:
        gflop = (
            5 * 2 * batch * size**2 * 9 * channels**2 / 1e9
        )  # two forward, one input, two weight gradients
        row = table[f"{batch} x {size} x {size} x {channels}"] = {}
        for (name, c), dtype in itertools.product(
            (("lax", plain), ("ours", conv)), (jnp.float32, jnp.bfloat16)
        ):
            xs = jax.random.normal(jax.random.key(0), (config.steps, batch, size, size, channels), dtype)
            w = jax.random.normal(jax.random.key(1), (3, 3, channels, channels), dtype) / 30
            step = lambda w, x, c=c: (
                w - 1e-3 * jax.grad(lambda w: jnp.mean(c(jax.nn.silu(c(x, w)), w) ** 2))(w)
            )
            scan = lambda w, xs, step=step: lax.scan(lambda w, x: (step(w, x), None), w, xs)[0]
            alone = median_seconds(jax.jit(step), w, xs[0], rounds=config.rounds)
            together = median_seconds(jax.jit(scan), w, xs, rounds=config.rounds)
            name = f"{name} {jnp.dtype(dtype)}"
            row[f"{name}, alone"], row[f"{name}, in scan"] = gflop / alone, gflop * config.steps / together
        print(next(reversed(table)), {k: round(v, 1) for k, v in row.items()}, flush=True)
    return table


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
