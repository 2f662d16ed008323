"""gen-jax: samples from a trained run, without the experiment that made it.

gen-jax sample checkpoints/step10_conditional --label 8 --num 16 --out eights.png
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

app = tyro.extras.SubcommandApp()


@app.command
def sample(
    run_dir: tyro.conf.Positional[Path],
    label: int | str | None = None,
    num: int = 16,
    out: Path = Path("samples.png"),
    guidance: float | None = None,
    solver: str | None = None,
    nfe: int | None = None,
    seed: int = 0,
    prompt: str | None = None,
    prompts: Path | None = None,
    negative_prompt: str | None = None,
) -> None:
    """Draw images from a trained diffusion model, as its makers do unless told otherwise.

    Args:
        run_dir: The directory of a run of step09_diffusion.py or a step 10 experiment.
        label: Of all images, where the model learned from labels: the number of a class, or its name (default: each its
            own, at random).
        num: How many images.
        out: Where to; .png is one picture of all, .npy is uint8 [N, H, W, C].
        guidance: Weight of guidance, by the labels or by a weaker model; 1 is none (default: as the model says).
        solver: A solver by name (default: as the model says).
        nfe: Evaluations of the network for an image (default: as the model says).
        seed: Of the images.
        prompt: What all images show, where the model reads texts (default: anything).
        prompts: A file with a prompt a line, or a list in JSON: an image for each, in place of --num.
        negative_prompt: What guidance leads away from (default: the empty text).
    """
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out must end in .png or .npy, got {out}.")
    import jax
    import numpy as np

    from gen_jax import generate, launch, plots, pretrained
    from gen_jax.conditioning import Labels

    if prompt is not None and prompts is not None:
        raise ValueError("--prompt or --prompts, not both.")
    texts = prompt if prompts is None else launch.read_prompts(prompts)
    num = num if texts is None or isinstance(texts, str) else len(texts)
    launch.start()
    model, weights = pretrained.load(run_dir)
    images, cond = generate.sample(
        model,
        weights,
        jax.random.key(seed),
        num,
        label=label,
        prompt=texts,
        negative_prompt=negative_prompt,
        guidance=guidance,
        solver=solver,
        nfe=nfe,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        np.save(out, images)
    else:
        plots.save_grid(out, images)
    name = model.condition.name if isinstance(model.condition, Labels) else str
    if isinstance(cond, np.ndarray):
        drawn_for = f" of the labels {', '.join(map(name, np.unique(cond).tolist()))}"
    else:
        drawn_for = f" of {texts!r}" if isinstance(texts, str) else ""
    print(f"{num} images{drawn_for} in {out}")


def main(args: Sequence[str] | None = None) -> None:
    """The entry point; what is wrong with the input is said in a line, without a traceback."""
    try:
        app.cli(prog="gen-jax", description=__doc__, args=args)
    except ValueError as error:
        sys.exit(f"gen-jax: {error}")


if __name__ == "__main__":
    main()
