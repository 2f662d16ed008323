"""Step 10: pictures from parts of pictures. Inpainting and super-resolution by a network that learned neither.

    python experiments/step09_diffusion.py        # once: trains the network
    python experiments/step10_inpainting.py

takes test images, hides a part of each, and leaves in checkpoints/step10_inpainting/

    half.png, centre.png, scattered.png    what is known, what replacement, RePaint and PiGDM make of it, the original
    superresolution.png                    from 7 x 7 pixels: PiGDM, DPS

and in summary.json, for each method, the error of the known pixels and of the hidden ones. A hidden half may rightly be
another one than the original's: the errors tell methods apart, they are no mark. `--checkpoint` may be any run of steps 9
and 10; of a conditional one, `--label` says what to see in the parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import data, inverse, plots, runs, samplers, training
from gen_jax.diffusion import prediction
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """Fill in what is hidden, with a checkpoint of step 9 or 10."""

    checkpoint: Path = ROOT / "checkpoints" / "step09_diffusion"
    """The --workdir of a run of step09_diffusion or step10_conditional."""
    workdir: Path = ROOT / "checkpoints" / "step10_inpainting"
    """Where figures are written."""
    num: int = 8
    """Images a figure."""
    nfe: int = 100
    """Steps of DDPM, in which pixels are put in or gradients added."""
    resample: int = 5
    """How often RePaint takes each of them."""
    data_var: float = 0.25
    """Variance of a pixel that PiGDM assumes."""
    noise_std: float = 0.05
    """Of the measurements in super-resolution."""
    factor: int = 4
    """How many times fewer pixels it has each way."""
    dps_step: float = 30.0
    """Step size of DPS, in the score: about the 1 of Chung et al. in a step of DDPM with `beta = 0.03`."""
    label: int | None = None
    """What to see in the parts, of a conditional checkpoint."""
    guidance: float = 2.0
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    seed: int = 0


def masks(shape: tuple[int, ...], key: jax.Array) -> dict[str, jax.Array]:
    """`[1, H, W, 1]`, True where known: the upper half, all but the centre, one pixel of five."""
    height, width, _ = shape
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = lambda at, size: (at >= size // 4) & (at < size - size // 4)
    found = {
        "half": jnp.broadcast_to(row < height // 2, (height, width)),
        "centre": ~(inside(row, height) & inside(column, width)),
        "scattered": jax.random.bernoulli(key, 0.2, (height, width)),
    }
    return {name: mask[None, :, :, None] for name, mask in found.items()}


def make_denoiser(config: Config, run: runs.Run) -> prediction.Denoiser:
    """Of the checkpoint, for `--label` where one is given."""
    label = None
    if config.label is not None:
        label = runs.choose_labels(config.label, run.num_classes, jax.random.key(0), np.arange(config.num))
    weight = None if label is None or config.guidance == 1 else config.guidance
    return runs.denoiser(run.net, run.process, run.predicts, run.params, label, weight)


def inpaint(config: Config, run: runs.Run, x_0: jax.Array) -> dict[str, dict[str, Any]]:
    """What each method makes of each mask, by mask and method; programs are compiled once for all masks."""
    denoise, proc = make_denoiser(config, run), run.process
    plan = runs.plan(proc, "ddpm", config.nfe)
    key, x_T = jax.random.key(config.seed), proc.prior(jax.random.key(config.seed + 1), x_0.shape)
    common = (key, denoise, proc, plan, x_T)

    def guided(mask: jax.Array) -> Any:
        operator = inverse.Mask(mask)
        denoiser = inverse.pigdm(denoise, proc, operator, operator.forward(x_0), data_var=config.data_var)
        return samplers.sample(key, prediction.clipped(denoiser), plan, x_T)

    methods: dict[str, Callable[[Any], Any]] = {
        "replacement": jax.jit(lambda mask: inverse.replacement(*common, x_0, mask)),
        "RePaint": jax.jit(lambda mask: inverse.repaint(*common, x_0, mask, resample=config.resample)),
        "PiGDM": jax.jit(guided),
    }
    hidden = masks(run.shape, jax.random.key(config.seed + 2))
    return {
        name: {"known": jnp.where(mask, x_0, 0.0), **{m: method(mask) for m, method in methods.items()}}
        for name, mask in hidden.items()
    }


def superresolve(config: Config, run: runs.Run, x_0: jax.Array) -> dict[str, Any]:
    """From the means of squares of pixels, with noise, to images."""
    denoise, proc, operator = make_denoiser(config, run), run.process, inverse.Downsample(config.factor)
    plan, key = runs.plan(proc, "ddpm", config.nfe), jax.random.key(config.seed)
    y = operator.forward(x_0)
    y = y + config.noise_std * jax.random.normal(jax.random.key(config.seed + 3), y.shape)
    x_T = proc.prior(jax.random.key(config.seed + 1), x_0.shape)
    options = {"noise_std": config.noise_std, "data_var": config.data_var}
    rules = {
        "PiGDM": inverse.pigdm(denoise, proc, operator, y, **options),
        "DPS": inverse.dps(denoise, proc, operator, y, step_size=config.dps_step),
    }
    draw = lambda rule: jax.jit(lambda: samplers.sample(key, prediction.clipped(rule), plan, x_T))()
    large = jnp.repeat(jnp.repeat(y, config.factor, axis=1), config.factor, axis=2)
    return {"measured": large, **{name: draw(rule) for name, rule in rules.items()}}


def save(path: Path, found: dict[str, Any], x_0: jax.Array, title: str) -> None:
    """A row an image, a column a method, the original last."""
    columns = found | {"original": x_0}
    strips = np.stack([np.asarray(data.to_uint8(x)) for x in columns.values()], axis=1)
    plots.save_strips(path, strips, list(columns), title)


def main(config: Config) -> dict[str, Any]:
    """Hide, fill in, measure, write."""
    training.enable_compilation_cache()
    run = runs.load(config.checkpoint)
    images = data.load(run.config["dataset"], split="test", data_dir=config.data_dir)["image"][: config.num]
    x_0 = data.to_unit(images)
    config.workdir.mkdir(parents=True, exist_ok=True)
    hidden, summary = masks(run.shape, jax.random.key(config.seed + 2)), {}
    for name, found in inpaint(config, run, x_0).items():
        save(
            config.workdir / f"{name}.png", found, x_0, f"{name}: what is known, and three ways to fill it in"
        )
        mask = jnp.broadcast_to(hidden[name], x_0.shape)
        for method in ("replacement", "RePaint", "PiGDM"):
            error = jnp.abs(found[method] - x_0)
            summary[f"{name}_{method}_known"] = float(error[mask].max())
            summary[f"{name}_{method}_hidden"] = float(error[~mask].mean())
    if not any(side % config.factor for side in run.shape[:2]):
        found = superresolve(config, run, x_0)
        title = f"super-resolution, {config.factor} times each way"
        save(config.workdir / "superresolution.png", found, x_0, title)
        again = inverse.Downsample(config.factor)
        for method in ("PiGDM", "DPS"):
            error = again.forward(found[method]) - again.forward(x_0)
            summary[f"superresolution_{method}_measured"] = float(jnp.abs(error).mean())
            summary[f"superresolution_{method}"] = float(jnp.abs(found[method] - x_0).mean())
    run_directory.write_json(config.workdir / "summary.json", summary)
    for name, value in summary.items():
        print(f"{name:32} {value:.3f}")
    print(f"pictures: {config.workdir}")
    return summary


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
