"""Whether a denoiser, a plan and a process belong together: `alpha` and `sigma` are the same at the same times.

A denoiser of `prediction.as_denoiser` or of an oracle knows its process, and so does what is made of it (guidance,
clipping). A plan knows `alpha` and `sigma` at its times. Where two of them are known and differ, samples would be far
off without a word, so it is a ValueError; where something is not known, or is traced, nothing is compared.
"""

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from gen_jax import checks
from gen_jax.diffusion.marginals import marginals
from gen_jax.diffusion.process import DDPM, Process
from gen_jax.types import Predicts

Denoise = TypeVar("Denoise", bound=Callable[..., PyTree])

MOST = 256
"""Of how many plans it is remembered that they were compared."""
TRACED = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
"""What a process raises whose parameters are traced."""
_compared: dict[object, weakref.ref[Array]] = {}
_kinds: weakref.WeakSet[type] = weakref.WeakSet()
"""Types of processes."""


def mark(denoise: Denoise, process: Process, predicts: Predicts | None = None) -> Denoise:
    """The denoiser, which from now on knows its process, and what its network says."""
    denoise.process, denoise.predicts = process, predicts  # type: ignore[attr-defined]
    return denoise


def as_those(denoise: Denoise, *others: object) -> Denoise:
    """A denoiser made of others, which knows what they know; ValueError where they are of different processes."""
    known = [other for other in others if process_of(other) is not None]
    processes = [process for other in known if (process := process_of(other)) is not None]
    if not processes:
        return denoise
    for process in processes[1:]:
        _compare(processes[0], process, "the denoisers must be of one process")
    return mark(denoise, processes[0], getattr(known[0], "predicts", None))


def process_of(denoise: object) -> Process | None:
    """The process of a denoiser, where it knows it."""
    process = getattr(denoise, "process", None)
    if process is None or type(process) in _kinds:
        return process
    if not isinstance(process, Process):  # looking for the members of a protocol takes its time
        return None
    _kinds.add(type(process))
    return process


def check(denoise: object, process: Process) -> None:
    """ValueError where a denoiser is known to be of another process."""
    known = process_of(denoise)
    if known is not None:
        _compare(known, process, "denoise must be of the process that is given")


def check_plan(
    t: Float[Array, "n"],
    levels: Float[Array, "n 2"] | None,
    denoise: object,
    process: Process | None = None,
    predicts: Predicts | None = None,
) -> None:
    """ValueError where the levels of a plan at its times are not those of a denoiser, or of a process.

    Or where it begins with pure noise, of which the network of this denoiser says nothing.
    """
    process = process_of(denoise) if process is None else process
    if process is None or levels is None or isinstance(levels, jax.core.Tracer):
        return
    predicts = getattr(denoise, "predicts", predicts)
    key = (id(levels), process, predicts) if _has_hash(process) else None
    if (seen := _compared.get(key)) is not None and seen() is levels:
        return
    _check_levels(np.asarray(t, np.float64), np.asarray(levels, np.float64), process, predicts)
    if key is not None:
        _compared[key] = weakref.ref(levels)
        if len(_compared) > MOST:
            del _compared[next(iter(_compared))]


def _check_levels(t: np.ndarray, levels: np.ndarray, process: Process, predicts: Predicts | None) -> None:
    try:
        known = marginals(process, t)
    except TRACED:
        return
    except ValueError as error:  # times that it does not have
        raise ValueError(f"plan must be of the process {process}: {error}") from None
    far = ~_near(levels.T, np.stack([known.alpha, known.sigma])).all(0)
    if far.any():
        i = int(np.argmax(far))
        raise ValueError(
            f"plan must be of the process of denoise, {process}: at t = {t[i]:g} the plan has alpha = {levels[i, 0]:.4g} "
            f"and sigma = {levels[i, 1]:.4g}, the process {known.alpha[i]:.4g} and {known.sigma[i]:.4g}. Make the grid "
            "and the plan of this process."
        )
    if levels[0, 0] == 0 and predicts in ("eps", "score"):
        raise ValueError(undetermined(predicts, t[0]))


def undetermined(predicts: str, t: float | int) -> str:
    """What to say where there is no signal, of a network that says `eps` or the score."""
    return (
        f"predicts={predicts!r} says nothing about x_0 at t = {t:g}, where alpha = 0 and x_t is pure noise: begin the "
        'grid a little later (t_start), or train a network that predicts "v", "velocity" or "x0".'
    )


def check_determined(process: Process, predicts: Predicts) -> None:
    """ValueError where a discrete process ends without signal, of which `predicts` says nothing about `x_0`."""
    if predicts in ("eps", "score") and isinstance(process, DDPM) and process.zero_terminal_snr:
        raise ValueError(undetermined(predicts, process.t_max))


def check_steps(process: Process) -> None:
    """ValueError unless it is a `DDPM` of two steps or more."""
    if not isinstance(process, DDPM) or process.num_steps < 2:
        raise ValueError(
            f"process: a learned variance needs a process.DDPM of at least two steps, got {checks.came(process)}."
        )


def _compare(one: Process, other: Process, said: str) -> None:
    if one is other or (_has_hash(one) and one == other):
        return
    try:
        agree: Callable[..., bool] = _agree if _has_hash(one) and _has_hash(other) else _agree.__wrapped__
        same = agree(one, other)
    except TRACED:
        return
    if not same:
        raise ValueError(f"{said}, got {one} and {other}, whose alpha and sigma differ.")


def _has_hash(process: Process) -> bool:
    try:
        hash(process)
    except TypeError:
        return False
    return True


@functools.lru_cache(maxsize=MOST)
def _agree(one: Process, other: Process) -> bool:
    """Whether alpha and sigma are the same at all times that both have."""
    first, last = max(one.t_min, other.t_min), min(one.t_max, other.t_max)
    if first > last:
        return False
    t = np.linspace(first, last, 7)
    a, b = marginals(one, t), marginals(other, t)
    return bool(_near(np.stack([a.alpha, a.sigma]), np.stack([b.alpha, b.sigma])).all())


def _near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.isclose(a, b, rtol=0.01, atol=1e-3))
