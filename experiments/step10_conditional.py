"""Step 10: conditional diffusion. The network of step 9 is told the label: a digit in, its picture out.

    python experiments/step10_conditional.py

trains on MNIST (embedded) for five minutes on two cores. checkpoints/step10_conditional/ then holds what step 9 leaves,
classes.png (a column for each class) and interpolation.png (from one noise to another, a class a row). Afterwards

    python experiments/step10_conditional.py --sample-only --label 8 --guidance 3 --solver unipc --nfe 10
    gen-jax sample checkpoints/step10_conditional --label 8 --num 16 --out eights.png

draw from the checkpoint in seconds. In training a tenth of the labels is dropped, so that the network also learns the
unconditional law, and guidance can move away from it. What the weight of guidance buys and costs is measured by
step10_classifier_free_guidance.py. Other pictures with labels, from TFDS or a folder with a subfolder for each class:
`--dataset NAME_OR_FOLDER`; the number of classes comes from the data.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import step09_diffusion as step09

from gen_jax import editing, generate, launch, plots, pretrained, samplers
from gen_jax.conditioning import Labels
from gen_jax.model import Sampling
from gen_jax.pretrained import Run

Config = step09.Config


def conditional(config: Config) -> Config:
    """A configuration of step 9, with labels."""
    workdir = launch.ROOT / "checkpoints" / "step10_conditional"
    return dataclasses.replace(config, labels=True, workdir=workdir, defaults=Sampling("unipc", 12, 1.5))


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line: the preset's, with what the flags change."""
    from configs import step09 as configs

    presets = {name: conditional(config) for name, config in configs.PRESETS.items()}
    return step09.parse(args, presets=presets, description=__doc__)


def num_classes(run: Run) -> int:
    """How many labels the model of a run knows."""
    assert isinstance(run.model.condition, Labels)
    return run.model.condition.num_classes


def save_classes(config: Config, run: Run, rows: int = 10) -> None:
    """classes.png: a column for each class, the same noise along a row."""
    classes = min(num_classes(run), 20)
    label, index = np.tile(np.arange(classes, dtype=np.int32), rows), np.repeat(np.arange(rows), classes)
    plan = generate.plan(run.model, config.sampling.solver, config.sampling.nfe)
    weight = generate.weight(run.model, run.weights, config.sampling.guidance)
    draw = generate.sampler(run.model)
    images = draw(run.weights, jax.random.key(config.seed), plan, index, label, weight)
    plots.save_grid(config.workdir / "classes.png", np.asarray(images), columns=classes)


def save_interpolation(config: Config, run: Run, rows: int = 10, columns: int = 10) -> None:
    """interpolation.png: a class a row, from one noise to another on the arc between them, by DDIM."""
    classes, shape = num_classes(run), (rows, *run.model.codec.shape)
    label = np.repeat(np.arange(rows, dtype=np.int32) % classes, columns)
    keys = jax.random.split(jax.random.key(config.seed))
    start, end = (jnp.repeat(run.model.process.prior(key, shape), columns, axis=0) for key in keys)
    x_T = editing.interpolate(start, end, jnp.tile(jnp.linspace(0, 1, columns), rows))
    plan = samplers.named.plan(run.model.process, "ddim", 25)
    weight = generate.weight(run.model, run.weights, config.sampling.guidance)
    draw, index = generate.sampler(run.model), np.arange(len(label))
    images = draw(run.weights, jax.random.key(0), plan, index, label, weight, x_T)
    plots.save_grid(config.workdir / "interpolation.png", np.asarray(images), columns=columns)


def main(config: Config) -> dict[str, object]:
    """Train (or go on training) and sample, or sample alone."""
    if not config.labels:
        raise ValueError("step 10 learns from labels: for a model without them, step09_diffusion.py.")
    summary = step09.main(config, "step10_conditional")
    if not config.sampling.sample_only:
        run = pretrained.load_run(config.workdir)  # by all processes
        if jax.process_index() == 0:
            save_classes(config, run)
            save_interpolation(config, run)
    return summary


if __name__ == "__main__":
    launch.run(__file__)
