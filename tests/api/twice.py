"""Calls every public function and method twice with the same arguments, outside `jit`: what does the second call compile?

    python -m tests.api.twice                                  # prints what compiles again
    python -m tests.api.twice --modules densities -- em        # only functions of which `densities` has examples

The examples of this package are called. What they return is called too, where it is a denoiser.
"""

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from tests.api import examples, walk
from tests.compiling import compilations

ONCE = {"pretrained.save": "it writes a folder, and refuses one that is there"}
"""Functions that cannot be called twice, and why."""
MAKE = {"training.fit": "a run compiles its step; what is kept is the step of training.compile_step"}
"""Functions that make a program when they are called, and why."""
ASKED = {
    **dict.fromkeys(("diffusion.oracle.mixture", "diffusion.oracle.empirical"), 5.0),
    **dict.fromkeys(("diffusion.oracle.gaussian", "diffusion.prediction.as_denoiser"), 5.0),
    **dict.fromkeys(("diffusion.prediction.clipped", "diffusion.prediction.dynamic_threshold"), 5.0),
    **dict.fromkeys(("guidance.classifier", "guidance.classifier_free", "guidance.linear"), 5.0),
    **dict.fromkeys(("guidance.classifier_free_batched", "inverse.dps", "inverse.pigdm"), 5.0),
}
"""What returns a denoiser, and the time at which it is asked."""


def again(call: Callable[[], Any]) -> list[str]:
    """What the second of two calls compiles."""
    jax.block_until_ready([a for a in jax.tree.leaves(call()) if isinstance(a, jax.Array)])
    with compilations() as found:
        call()
    return found


def functions(examples: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Calls of public functions, by name."""
    known, x = walk.public(), jnp.ones((3, 2))
    for path, given in examples.items():
        function = known[path]
        for example in given if isinstance(given, tuple) else (given,):
            call = functools.partial(function, *example.args, **example.kwargs)
            if path not in ONCE:
                yield path, call
            if path in ASKED:
                yield f"{path}(...)", functools.partial(call(), x, jnp.asarray(ASKED[path]))


def main(modules: list[str], parts: list[str]) -> None:
    """Prints what compiles again, and all as a line of JSON."""
    every: dict[str, list[str]] = {}
    known = examples.all_of(*modules)
    strange = sorted({*ONCE, *MAKE, *ASKED} - {*walk.public()})
    for path, call in functions(known):
        if not parts or any(path.startswith(f"{p}.") or path == p for p in parts):
            every[path] = every.get(path, []) + (names := again(call))
            if names:
                print(path, names, MAKE.get(path, ""), flush=True)
    print(json.dumps({"called": every, "unknown": strange}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--modules", nargs="*", default=[])
    main(**vars(parser.parse_args()))
