"""What classifier-free guidance costs: a guided step against a call of the network with twice the batch.

    python benchmarks/guidance.py [--preset mnist_small] [--batch 64] [--rounds 15]

Both are compiled and waited for, in alternating rounds: `guidance.classifier_free_batched` of a network with labels, the
network alone on twice as many images, and `guidance.classifier_free`, which calls it twice. Printed as one JSON line:
milliseconds (medians) and the medians of the rounds' ratios to the network alone.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, PyTree

from gen_jax import guidance
from gen_jax.diffusion import prediction, process
from gen_jax.networks import unet


@dataclass(frozen=True)
class Config:
    """What to time."""

    preset: Literal["mnist_small", "mnist_best", "mnist"] = "mnist_small"
    """A network of `networks.unet`."""
    batch: int = 64
    """Images that are guided."""
    rounds: int = 15
    calls: int = 3
    """In a round."""


def seconds(call: Callable[[], PyTree], calls: int) -> float:
    """Wall time of one."""
    begin = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(call())
    return (time.perf_counter() - begin) / calls


def main(config: Config) -> dict[str, float]:
    """Print the medians."""
    network = dataclasses.replace(getattr(unet, config.preset), num_classes=10, time_scale=1000)
    net, proc = network.build(), process.VP()
    key, t = jax.random.key(0), jnp.float32(0.4)
    x = jax.random.normal(key, (config.batch, 28, 28, 1))
    label = jnp.arange(config.batch) % 10
    null = jnp.full_like(label, 10)
    params = jax.jit(net.init)(key, x, jnp.zeros(config.batch), label)

    def denoiser(params: PyTree) -> Callable[[Array, Array, Array], Array]:
        def denoise(x_t: Array, t: Array, label: Array) -> Array:
            apply = lambda x_t, t: net.apply(params, x_t, t, label)
            return prediction.as_denoiser(apply, proc, predicts="v")(x_t, t)

        return denoise

    @jax.jit
    def alone(params: PyTree, x: Array, label: Array) -> Array:
        return denoiser(params)(x, t, label)

    @jax.jit
    def guided(params: PyTree, x: Array, w: Array) -> Array:
        return guidance.classifier_free_batched(denoiser(params), label, null, w)(x, t)

    @jax.jit
    def apart(params: PyTree, x: Array, w: Array) -> Array:
        denoise = denoiser(params)
        one, other = (lambda x_t, t, y=y: denoise(x_t, t, y) for y in (label, null))
        return guidance.classifier_free(one, other, w)(x, t)

    twice, both, weight = jnp.concatenate([x, x]), jnp.concatenate([label, null]), jnp.float32(2)
    sides = {
        "network_twice_the_batch": lambda: alone(params, twice, both),
        "guided_batched": lambda: guided(params, x, weight),
        "guided_two_calls": lambda: apart(params, x, weight),
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
