"""What JAX compiles."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of what is compiled meanwhile; what a cache on disk has counts as well."""
    found: list[str] = []
    active = [True]

    def listen(event: str, duration: float, **about: Any) -> None:
        if active and event == EVENT:
            found.append(str(about.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        active.clear()
