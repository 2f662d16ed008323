"""What classifier-free guidance costs: a guided step against a call of the network with twice the batch.

    python benchmarks/guidance.py [--preset mnist_small] [--batch 64] [--rounds 15]

Both are compiled and waited for, in alternating rounds: `guidance.classifier_free_batched` of a network with labels, the
network alone on twice as many images, and `guidance.classifier_free`, which calls it twice. Printed as one JSON line:
milliseconds (medians) and the medians of the rounds' ratios to the network alone.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import guidance, runs
from gen_jax.diffusion import prediction


@dataclass(frozen=True)
class Config:
    """What to time."""

    preset: str = "mnist_small"
    """A network of gen_jax.runs.NETWORKS."""
    batch: int = 64
    """Images that are guided."""
    rounds: int = 15
    calls: int = 3
    """In a round."""


def seconds(call: Callable[[], Any], calls: int) -> float:
    """Wall time of one."""
    begin = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return (time.perf_counter() - begin) / calls


def main(config: Config) -> dict[str, Any]:
    """Print the medians."""
    options = {"preset": config.preset, "process": "vp", "dropout": 0.0, "dtype": "float32", "remat": False}
    net, proc = runs.build(options, 10)
    key, t = jax.random.key(0), jnp.float32(0.4)
    x = jax.random.normal(key, (config.batch, 28, 28, 1))
    label = jnp.arange(config.batch) % 10
    null = jnp.full_like(label, 10)
    params = jax.jit(net.init)(key, x, jnp.zeros(config.batch), label)

    def denoise(x_t: Any, t: Any, label: Any) -> Any:
        apply = lambda x_t, t: net.apply(params, x_t, t, label)
        return prediction.as_denoiser(apply, proc, predicts="v")(x_t, t)

    guided = jax.jit(lambda x, w: guidance.classifier_free_batched(denoise, label, null, w)(x, t))
    one, other = (lambda x_t, t, y=y: denoise(x_t, t, y) for y in (label, null))
    apart = jax.jit(lambda x, w: guidance.classifier_free(one, other, w)(x, t))
    twice, both = jnp.concatenate([x, x]), jnp.concatenate([label, null])
    alone = jax.jit(lambda x: denoise(x, t, both))
    sides = {
        "network_twice_the_batch": lambda: alone(twice),
        "guided_batched": lambda: guided(x, jnp.float32(2)),
        "guided_two_calls": lambda: apart(x, jnp.float32(2)),
    }
    rounds = np.array(
        [[seconds(side, config.calls) for side in sides.values()] for _ in range(config.rounds + 1)][1:]
    )
    found = {f"{name}_ms": round(1e3 * m, 2) for name, m in zip(sides, np.median(rounds, 0), strict=True)}
    ratios = np.median(rounds / rounds[:, :1], axis=0)
    found |= {f"{name}_ratio": round(r, 3) for name, r in zip(sides, ratios, strict=True)}
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
