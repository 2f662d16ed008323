"""Samples of a model in files, drawn by all processes of a run."""

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from gen_jax import checks
from gen_jax.conditioning import Label, Prompt
from gen_jax.generate import shards
from gen_jax.generate.asking import ask
from gen_jax.generate.chunks import in_chunks
from gen_jax.generate.denoising import Weights
from gen_jax.generate.programs import local_mesh
from gen_jax.model import Model
from gen_jax.types import AnyPath, Count, Fraction, RescaleOf, SolverName

GROUP = 125
"""Samples that a device draws at a time."""


@checks.checked
def write(
    model: Model,
    weights: Weights,
    key: Key[Array, ""],
    num: Count,
    directory: str | AnyPath,
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
    guide_model: Model | None = None,
    shard: Count = shards.SHARD,
    chunk: Count = GROUP,
) -> AnyPath:
    """Samples of a model in files of a directory, drawn by all devices of all processes of a run, as they come.

    Every process must call it, with a directory that all of them see. Sample `i` has the same bits on one host and on
    many, of devices of one kind. A call that was interrupted is repeated, by as many processes as there are then: files
    that are complete are not drawn again. `generate.read` and `generate.moments` read them.

    Args:
        model, weights, key, num: as of `sample`.
        directory: here or in a bucket, for `samples-00007-of-00050.npy`, `labels-...` of a model with labels,
            `index.json`, and checksums.
        label, prompt, negative_prompt, solver, nfe, guidance, rescale, rescale_of, height, width, guide_model: as of
            `sample`.
        shard: samples in a file.
        chunk: how many a device draws at once. The last bits of a sample may depend on it, as on the kind of device.

    Returns:
        The directory.

    Raises:
        ValueError: as of `sample`; or the directory has samples of other settings, or is not the same for all processes.
        WorkdirInUse: another run writes there.
    """
    mesh = local_mesh()
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
    )
    labels = jax.device_get(asked.cond)

    def draw(index: Int[np.ndarray, "n"]) -> shards.Arrays:
        samples = in_chunks(lambda rows: asked.draw(index[rows]), len(index), chunk * mesh.size)
        return {"samples": samples, **({"labels": labels[index]} if isinstance(labels, np.ndarray) else {})}

    says = {**asked.says(key, weights), "rescale": rescale, "rescale_of": rescale_of, "chunk": chunk}
    return shards.write_shards(directory, draw, num, shard=shard, says=says)
