"""Samples of a model, in chunks."""

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from gen_jax import checks, samplers
from gen_jax.conditioning import Label, Prompt
from gen_jax.generate import listening
from gen_jax.generate.asking import ask
from gen_jax.generate.chunks import in_chunks
from gen_jax.generate.denoising import Weights
from gen_jax.generate.listening import OnStep
from gen_jax.generate.programs import local_mesh
from gen_jax.model import Model
from gen_jax.types import Count, Fraction, RescaleOf, SolverName

CHUNK = 250
"""Samples drawn at a time."""


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
    shared: bool = False,
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
        shared: whether the processes of a run share the work: each draws its part of the chunks and gets all samples, so
            all of them must call it. `write` is for more samples than fit into memory.
        on_step: called with `(step, x0_hat)` of each chunk while it is drawn: the number of the step, from 0, and what
            the samples will be as far as is known, `[n, *shape]`. `gen_jax.previews` makes images of it. It
            runs in a thread of its own. There is nothing of it in the program otherwise. It hears of what this process
            draws.

    Returns:
        Data as the codec decodes them: uint8 `[num, H, W, C]` for `codec.Pixels`.

    Raises:
        ValueError: a label that is out of range; a label or a prompt that the model does not know what to do with; an
            unknown solver; fewer than 1 sample or evaluation; guidance by nothing; `x_T` or `beside` of another shape;
            a size that the autoencoder can not make; weights of another network; a seed in place of a key.
    """
    mesh = local_mesh(num)
    asked = ask(
        *(model, weights, key, num, mesh),
        label=label,
        prompt=prompt,
        negative_prompt=negative_prompt,
        solver=solver,
        nfe=nfe,
        guidance=guidance,
        rescale=rescale,
        rescale_of=rescale_of,
        height=height,
        width=width,
        guide_model=guide_model,
        x_T=x_T,
        beside=beside,
        steps=steps,
    )
    with listening.to(on_step, num, mesh.size) as ticket:
        draw = lambda index: asked.draw(index, ticket)
        samples = in_chunks(draw, num, min(chunk, num), shared=shared)
    return samples, jax.device_get(asked.cond)
