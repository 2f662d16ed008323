"""What `checks.checked` costs a call: prints a table of microseconds.

    python benchmarks/checks.py

For each function: the checks of its arguments alone, and the whole call without them, both eager; under `jit` nothing is
left of them (`tests/checks/test_signature.py` compares the programs).
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro

from gen_jax import gmm, normal
from gen_jax.checks.signature import Signature
from gen_jax.diffusion import process

KEY, X, T = jax.random.key(0), jnp.ones((64, 8)), jnp.full(64, 0.5)
MANY = normal.MultivariateNormal(jnp.zeros(8), jnp.eye(8))
MIX = gmm.GMM(jnp.full(4, 0.25), jnp.zeros((4, 8)), jnp.ones((4, 8)))
CALLS = {
    "normal.log_prob": (normal.log_prob, (MANY, X)),
    "normal.sample": (normal.sample, (KEY, MANY, 64)),
    "gmm.log_prob": (gmm.log_prob, (MIX, X)),
    "process.perturb": (process.VP().perturb, (X, T, X)),
}


@dataclass(frozen=True)
class Config:
    """How long."""

    calls: int = 200
    rounds: int = 20


def microseconds(call: Callable[[], object], config: Config) -> float:
    """Of one call: the least of the rounds."""
    call()
    times = []
    for _ in range(config.rounds):
        start = time.perf_counter()
        for _ in range(config.calls):
            call()
        times.append((time.perf_counter() - start) / config.calls)
    return 1e6 * min(times)


def main(config: Config) -> None:
    """Print the table."""
    print(f"{'':18} {'checks':>8} {'call without':>13}")
    for name, (function, args) in CALLS.items():
        plain = inspect.unwrap(function)
        whole = (function.__self__, *args) if hasattr(function, "__self__") else args
        signature = Signature(plain)
        checks = microseconds(lambda: signature.apply(whole, {}), config)
        rest = microseconds(
            lambda: jax.block_until_ready(plain(*whole)), Config(max(config.calls // 20, 1), 3)
        )
        print(f"{name:18} {checks:8.1f} {rest:13.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
