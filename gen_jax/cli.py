"""gen-jax: samples from a trained run, without the experiment that made it.

gen-jax sample checkpoints/step10_conditional --label 8 --num 16 --out eights.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

app = tyro.extras.SubcommandApp()


@app.command
def sample(
    run_dir: tyro.conf.Positional[Path],
    label: int | None = None,
    num: int = 16,
    out: Path = Path("samples.png"),
    guidance: float = 1.5,
    solver: str = "unipc",
    nfe: int = 12,
    seed: int = 0,
) -> None:
    """Draw images from a trained diffusion model.

    Args:
        run_dir: The --workdir of a run of step09_diffusion.py or a step 10 experiment.
        label: Of all images, where the model learned from labels (default: each its own, at random).
        num: How many images.
        out: Where to; .png is one picture of all, .npy is uint8 [N, H, W, C].
        guidance: Its weight, by the labels or by the model's own younger parameters; 1 is none.
        solver: One of those that the experiments offer.
        nfe: Evaluations of the network for an image.
        seed: Of the images.
    """
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out must end in .png or .npy, got {out}.")
    import jax
    import numpy as np

    from gen_jax import plots, runs, training

    if solver not in runs.SOLVERS:
        raise ValueError(f"--solver must be one of {', '.join(runs.SOLVERS)}; got {solver}.")
    training.split_cpu_devices()
    training.enable_compilation_cache()
    options: dict[str, Any] = {"label": label, "guidance": guidance, "solver": solver, "nfe": nfe}
    images, labels = runs.sample(runs.load(run_dir), jax.random.key(seed), num, **options)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, images)
    else:
        plots.save_grid(out, images)
    drawn_for = "" if labels is None else f" of the labels {', '.join(map(str, np.unique(labels)))}"
    print(f"{num} images{drawn_for} in {out}")


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; what is wrong with the input is said in a line, without a traceback."""
    try:
        app.cli(prog="gen-jax", description=__doc__, args=args)
    except ValueError as error:
        sys.exit(f"gen-jax: {error}")


if __name__ == "__main__":
    main()
