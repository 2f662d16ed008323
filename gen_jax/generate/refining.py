"""Samples that one model begins and another one ends."""

import functools
import typing
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from gen_jax import checks, samplers
from gen_jax.codec import Latents
from gen_jax.conditioning import Prompt
from gen_jax.generate.asking import sized
from gen_jax.generate.denoising import Weights
from gen_jax.generate.listening import OnStep
from gen_jax.generate.sampling import sample
from gen_jax.model import Model
from gen_jax.types import Count, Fraction, SolverName


@checks.checked
def refine(
    base: tuple[Model, Weights],
    refiner: tuple[Model, Weights],
    key: Key[Array, ""],
    num: Count,
    *,
    part: Fraction = 0.8,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
    solver: SolverName | None = None,
    nfe: Count | None = None,
    guidance: float | None = None,
    height: Count | None = None,
    width: Count | None = None,
    x_T: Float[Array | np.ndarray, "num ..."] | None = None,
    on_step: OnStep | None = None,
) -> tuple[Shaped[np.ndarray, "num ..."], PyTree]:
    """Samples that one model begins and another one ends, in the same latents: Stable Diffusion XL and its refiner.

    The first takes the steps in the noisier `part` of all times, the second the others (`samplers.Schedule.hand_over`;
    `denoising_end` and `denoising_start` of diffusers).

    Args:
        base, refiner: each a model and its weights, with a schedule; both have the same process and the same latents, and
            the size of the first one is taken.
        key, num: as of `sample`.
        part: of the times, from the noise on; 1 leaves nothing to the refiner.
        prompt, negative_prompt, solver, guidance, height, width, x_T, on_step: as of `sample`; each model reads the
            prompt itself, and `on_step` counts the steps of each from 0.
        nfe: steps of the whole grid; default: as the base says.

    Raises:
        ValueError: a model without a schedule, other latents, a part that leaves no step to one of them, and as of
            `sample`.
    """
    (first, weights), (second, its_weights) = base, refiner
    _check(first, second)
    solver, nfe = first.sampling.chosen(solver, nfe)
    solver = "euler" if solver is None else solver
    stop, start = (_hand_over(model, solver, nfe, part) for model in (first, second))
    draw = functools.partial(
        sample,
        num=num,
        prompt=prompt,
        negative_prompt=negative_prompt,
        solver=solver,
        guidance=guidance,
        on_step=on_step,
    )
    keys, at = jax.random.split(key), sized(first, height, width)
    codec = typing.cast(Latents, at.codec)
    bare = replace(at, codec=Latents(codec.shape))
    x_t, _ = draw(bare, weights, keys[0], x_T=x_T, steps=_plan(first, solver, nfe, stop=stop))
    steps = _plan(second, solver, nfe, start=start)
    rows, columns, _ = codec.image_shape
    return draw(second, its_weights, keys[1], x_T=x_t, steps=steps, height=rows, width=columns)


def _plan(model: Model, solver: str, nfe: int, start: int = 0, stop: int | None = None) -> samplers.Plan:
    assert model.sampling.schedule is not None
    schedule, predicts = model.sampling.schedule, model.predicts
    return schedule.plan(model.process, solver, nfe, predicts=predicts, start=start, stop=stop)


def _hand_over(model: Model, solver: str, nfe: int, part: float) -> int:
    assert model.sampling.schedule is not None
    cut = model.sampling.schedule.hand_over(model.process, solver, nfe, part)
    if not 0 < cut < nfe:
        raise ValueError(
            f"part {part:g} leaves {cut} of {nfe} steps to the first model: each needs one at least."
        )
    return cut


def _check(first: Model, second: Model) -> None:
    for name, model in (("base", first), ("refiner", second)):
        if not isinstance(model, Model):
            raise ValueError(
                f"{name} must be a Model and its weights, got {checks.came(model)} as the model."
            )
    if first.sampling.schedule is None or second.sampling.schedule is None:
        raise ValueError(
            "both models need a schedule (Sampling.schedule), as those of diffusers' folders have one."
        )
    a, b = first.codec, second.codec
    if not isinstance(a, Latents) or not isinstance(b, Latents) or _numbers(a) != _numbers(b):
        raise ValueError(f"both models must have the same latents, got {a} and {b}.")
    if first.process != second.process:
        raise ValueError(f"both models must have the same process, got {first.process} and {second.process}.")


def _numbers(codec: Latents) -> tuple[int, float, float]:
    return codec.shape[-1], codec.scale, codec.shift
