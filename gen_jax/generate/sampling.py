"""Samples of a model, in chunks; and what is asked of it, as the arguments of its sampler."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from gen_jax import checks, parameters, samplers
from gen_jax.codec import image_shape
from gen_jax.conditioning import Label, Prompt, Text
from gen_jax.diffusion import matching
from gen_jax.generate import listening
from gen_jax.generate.denoising import NOTHING_TO_GUIDE_BY, Weights, distilled
from gen_jax.generate.listening import OnStep
from gen_jax.generate.programs import local_mesh, sampler
from gen_jax.model import Model
from gen_jax.types import Count, Fraction, RescaleOf, Size, SolverName

CHUNK = 250
"""Samples drawn at a time."""


@checks.checked
def choose(
    model: Model,
    key: Key[Array, ""],
    index: Int[Array | np.ndarray, "n"],
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
) -> PyTree:
    """The conditions with which `sample` draws the samples `index` for the same key, see `Condition.choose`."""
    return model.condition.choose(jax.random.split(key, 3)[2], index, label, prompt)


@checks.checked
def plan(model: Model, solver: SolverName | None = None, nfe: Count | None = None) -> samplers.Plan:
    """The steps with which `sample` draws: of a solver by name, for a number of evaluations; else as the model says.

    Where the model has a schedule (`Sampling.schedule`), the solver takes its grid, and `nfe` is the number of steps.
    """
    return model.sampling.plan(model.process, model.predicts, solver, nfe)


@checks.checked
def weight(model: Model, weights: Weights, guidance: float | None = None) -> np.float32 | None:
    """The weight with which `sample` guides, None for none.

    What the model says is done where it can be: an unconditional model without a weaker one is not guided. What is asked
    for and can not be done is a ValueError.
    """
    weights = weights if isinstance(weights, Mapping) else parameters.named(weights)
    able = model.condition.guides or "guide" in weights or distilled(model)
    guidance = None if guidance is None else checks.finite("guidance", guidance, "; 1 is none")
    if guidance is not None and guidance != 1 and not able:
        raise ValueError(f"guidance {guidance:g}: {NOTHING_TO_GUIDE_BY}")
    value = model.sampling.guidance if guidance is None else guidance
    return None if value == 1 or not able else np.float32(value)


@checks.checked
def sample(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    num: Count,
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
    solver: SolverName | None = None,
    nfe: Count | None = None,
    guidance: float | None = None,
    rescale: Fraction = 0.0,
    rescale_of: RescaleOf = "x0",
    height: Count | None = None,
    width: Count | None = None,
    x_T: Float[Array | np.ndarray, "num ..."] | None = None,
    beside: Float[Array | np.ndarray, "num ..."] | None = None,
    steps: samplers.Plan | None = None,
    guide_model: Model | None = None,
    chunk: Count = CHUNK,
    on_step: OnStep | None = None,
) -> tuple[Shaped[np.ndarray, "num ..."], PyTree]:
    """Samples of a model, and the conditions that they were drawn for: labels, tokens, None of an unconditional one.

    Args:
        model, weights: from `pretrained.load`, or of one's own.
        key: sample `i` depends on it and on `i` alone, not on `num`, `chunk` or the devices.
        num: how many.
        label: of all of them, or `[num]`, one of each; by default each its own, at random.
        prompt: what is to be seen: a text for all, or a list of one for each (`gen_jax.text.prompts`).
        negative_prompt: what guidance leads away from, by default the empty text.
        solver: a name of `samplers.named`; default: as the model says.
        nfe: evaluations of the denoiser a sample, or the few less that whole steps leave; default: as the model says. Of
            a model with a schedule, the steps of its grid.
        guidance: weight of guidance; 1 is none, which costs half. Default: as the model says.
        rescale, rescale_of: against the overexposure of strong guidance; as of `denoiser`.
        height, width: of the images, where the model draws any size (`Model.at`); default: as the model says.
        x_T: noise to start from, `[num, *shape]`; default: the prior's. Of a model with a schedule it is the `latents` of
            diffusers, of deviation 1 (`Schedule.deviation`); with `steps` it is taken as it is.
        beside: what the network sees after the channels of `x_t`, `[num, ..., model.beside]`; `retouch.inpaint` makes it.
        steps: the plan to follow, in place of that which `solver` and `nfe` name.
        guide_model: what `weights["guide"]` are the weights of, where that is another model.
        chunk: how many at once.
        on_step: called with `(step, x0_hat)` of each chunk while it is drawn: the number of the step, from 0, and what
            the samples will be as far as is known, `[n, *shape]`. `gen_jax.previews` makes images of it. It
            runs in a thread of its own. There is nothing of it in the program otherwise.

    Returns:
        Data as the codec decodes them: uint8 `[num, H, W, C]` for `codec.Pixels`.

    Raises:
        ValueError: a label that is out of range; a label or a prompt that the model does not know what to do with; an
            unknown solver; fewer than 1 sample or evaluation; guidance by nothing; `x_T` or `beside` of another shape;
            a size that the autoencoder can not make; weights of another network; a seed in place of a key.
    """
    parameters.check(model, weights, guide_model)
    model = sized(model, height, width)
    _check_given(model, num, x_T, beside)
    rounded, mesh = model.sampling.rounds(solver), local_mesh(num)
    draw = sampler(
        model, mesh, rescale=rescale, guide_model=guide_model, rescale_of=rescale_of, rounded=rounded
    )
    table = plan(model, solver, nfe) if steps is None else steps
    matching.check_plan(table.t, table.levels, None, model.process, model.predicts)
    if x_T is not None and steps is None:
        x_T = x_T * np.float32(model.sampling.deviation(model.process, solver, nfe))
    w = weight(model, weights, guidance)
    cond, null = conditions(model, key, num, label=label, prompt=prompt, negative_prompt=negative_prompt)
    weights, parts = draw.place(dict(weights)), []
    size, given = min(chunk, num), (cond, x_T, null, beside)
    with listening.to(on_step, num, mesh.size) as ticket:
        for start in range(0, num, size):
            index = np.arange(start, start + size)
            rows = np.minimum(index, num - 1)
            told, noise, away, more = jax.tree.map(lambda a, rows=rows: a[rows], given)
            out = draw(weights, key, table, index, told, w, noise, away, more, ticket)
            parts.append(jax.device_get(out))
    return np.concatenate(parts)[:num], jax.device_get(cond)


@checks.checked
def sized(model: Model, height: Count | None, width: Count | None) -> Model:
    """The model for this size; what is not given stays."""
    if height is None and width is None:
        return model
    shape = image_shape(model.codec)
    return model.at(shape[0] if height is None else height, shape[1] if width is None else width)


def _check_given(model: Model, num: int, x_T: object, beside: object) -> None:
    if x_T is not None:
        checks.of_shape("x_T", x_T, (num, *model.codec.shape))
    if model.beside and beside is None:
        raise ValueError(
            f"the network sees {model.beside} channels beside those of the noise: it draws into pictures that exist, by "
            "retouch.inpaint."
        )
    if beside is not None:
        checks.of_shape("beside", beside, (num, *model.codec.shape[:-1], model.beside))


@checks.checked
def conditions(
    model: Model,
    key: Key[Array, ""],
    num: Size,
    *,
    label: Label | None = None,
    prompt: Prompt | None = None,
    negative_prompt: Prompt | None = None,
) -> tuple[PyTree, PyTree]:
    """The conditions of `num` samples, and what guidance leads them away from; None for no condition.

    ValueError where the model does not know what is asked for, or the prompts are not `num`.
    """
    index = np.arange(num)
    cond = choose(model, key, index, label=label, prompt=prompt)
    if negative_prompt is None:
        return cond, None
    if distilled(model):
        raise ValueError(
            f"negative_prompt {negative_prompt!r}: this network is told the weight of guidance and asked once, so "
            "nothing leads it away from a text."
        )
    if not model.condition.guides:
        raise ValueError(f"negative_prompt {negative_prompt!r}: {NOTHING_TO_GUIDE_BY}")
    if isinstance(model.condition, Text):
        return model.condition.against(cond, negative_prompt)
    return cond, choose(model, key, index, prompt=negative_prompt)
