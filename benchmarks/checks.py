"""What `checks.checked` costs a call: prints a table of microseconds.

    python benchmarks/checks.py

For each function: the checks of its arguments alone, of arrays that were checked before and of new ones, whose values are
read, and the whole call without checks; all eager. Under `jit` nothing is left of them (`tests/checks/test_signature.py`
compares the programs).
"""

import inspect
import time
from collections.abc import Callable, Sequence
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


def microseconds(
    call: Callable[..., object], arguments: Callable[[], Sequence[object]], rounds: int
) -> float:
    """Of one call: the least of the rounds, each of which has its own arguments."""
    call(arguments()[0])
    times = []
    for _ in range(rounds):
        given = arguments()
        start = time.perf_counter()
        for each in given:
            call(each)
        times.append((time.perf_counter() - start) / len(given))
    return 1e6 * min(times)


def anew(x: object) -> object:
    """Another array with the same numbers."""
    return jnp.copy(x) if isinstance(x, jax.Array) else x


def main(config: Config) -> None:
    """Print the table."""
    print(f"{'':18} {'checks':>8} {'of new':>8} {'call without':>13}")
    for name, (function, args) in CALLS.items():
        plain = inspect.unwrap(function)
        whole = (function.__self__, *args) if hasattr(function, "__self__") else args
        new = lambda: jax.block_until_ready(jax.tree.map(anew, [whole] * config.calls))
        check = lambda args: signature.apply(args, {})
        signature, same = Signature(plain), lambda: [whole] * config.calls
        again, fresh = (microseconds(check, given, config.rounds) for given in (same, new))
        run = lambda args: jax.block_until_ready(plain(*args))
        rest = microseconds(run, lambda: [whole] * max(config.calls // 20, 1), 3)
        print(f"{name:18} {again:8.1f} {fresh:8.1f} {rest:13.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
