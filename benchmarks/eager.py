"""What `samplers.sample` costs outside `jit`, after its first call, against the same call inside the user's `jax.jit`.

    python benchmarks/eager.py [--steps 20] [--batch 64] [--rounds 300]

The denoiser is trivial, `0.5 x_t`, so nothing hides the overhead: the checks of the arguments, and whether the denoiser
depends on the same things as before. Both are waited for, in alternating rounds of one call. For samples of several
shapes one JSON line: microseconds (minima over the rounds) and the ratio.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float

from gen_jax import samplers
from gen_jax.diffusion import process

SHAPES = ((2,), (28, 28, 1), (32, 32, 3))
"""Of a sample."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    steps: int = 20
    batch: int = 64
    rounds: int = 300


def denoise(x_t: Float[Array, "B ..."], t: Float[Array, ""]) -> Float[Array, "B ..."]:
    """An answer that costs nothing."""
    return 0.5 * x_t


def microseconds(calls: dict[str, Callable[[], Array]], rounds: int) -> dict[str, float]:
    """Of each call: the least of the rounds, in which they alternate."""
    least = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call().block_until_ready()
            least[name] = min(least[name], time.perf_counter() - start)
    return {name: round(1e6 * seconds, 1) for name, seconds in least.items()}


def main(config: Config) -> None:
    """Print a line for each shape."""
    proc, key = process.VP(), jax.random.key(0)
    plan = samplers.DDIM().plan(proc, samplers.times.uniform(proc, config.steps))
    jitted = jax.jit(lambda key, plan, x_T: samplers.sample(key, denoise, plan, x_T))
    for shape in SHAPES:
        x_T = jnp.ones((config.batch, *shape))
        calls = {
            "eager": lambda x_T=x_T: samplers.sample(key, denoise, plan, x_T),
            "jitted": lambda x_T=x_T: jitted(key, plan, x_T),
        }
        found = microseconds(calls, 3) and microseconds(calls, config.rounds)
        print(json.dumps({"shape": shape, **found, "ratio": round(found["eager"] / found["jitted"], 2)}))


if __name__ == "__main__":
    main(tyro.cli(Config))
