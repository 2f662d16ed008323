"""Step 10: pictures from parts of pictures. Inpainting and super-resolution by a network that learned neither.

    python experiments/step09_diffusion.py        # once: trains the network
    python experiments/step10_inpainting.py

takes test images, hides a part of each, and leaves in checkpoints/step10_inpainting/

    half.png, centre.png, scattered.png    what is known, what replacement, RePaint and PiGDM make of it, the original
    superresolution.png                    from 7 x 7 pixels: PiGDM, DPS

and in summary.json, for each method, the error of the known pixels and of the hidden ones: the mean of |x - x_0|, and as
"_largest" the greatest. A hidden half may rightly be another one than the original's: the errors tell methods apart, they
are no mark. `--checkpoint` may be any run of steps 9 and 10; of a conditional one, `--label` says what to see in the
parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from gen_jax import checks, data, generate, inverse, launch, plots, pretrained, samplers
from gen_jax.pretrained import Run
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, NotNegative, Number, Positive, Seed


@checks.checked
@dataclass(frozen=True)
class Config:
    """Fill in what is hidden, with a checkpoint of step 9 or 10."""

    checkpoint: Path = launch.ROOT / "checkpoints" / "step09_diffusion"
    """The --workdir of a run of step09_diffusion or step10_conditional."""
    workdir: Path = launch.ROOT / "checkpoints" / "step10_inpainting"
    """Where figures are written."""
    num: Count = 8
    """Images a figure."""
    nfe: Count = 100
    """Steps of DDPM, in which pixels are put in or gradients added."""
    resample: Count = 5
    """How often RePaint takes each of them."""
    data_var: Positive = 0.25
    """Variance of a pixel that PiGDM assumes."""
    noise_std: NotNegative = 0.05
    """Of the measurements in super-resolution."""
    factor: Count = 4
    """How many times fewer pixels it has each way."""
    dps_step: NotNegative = 30.0
    """Step size of DPS, in the score: about the 1 of Chung et al. in a step of DDPM with `beta = 0.03`."""
    label: int | str | None = None
    """What to see in the parts, of a conditional checkpoint."""
    guidance: Number = 2.0
    """Its weight, with a label."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    seed: Seed = 0


def masks(shape: tuple[int, ...], key: Array) -> dict[str, Array]:
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


def compiled(config: Config, run: Run, x_0: Array, rule: Callable[..., Array]) -> Callable[[Array], Array]:
    """`rule(denoise, key, plan, x_T, x_0, known)` as a program of `known`, with all arrays as its arguments."""
    cond = None
    if config.label is not None:
        cond = generate.choose(run.model, jax.random.key(0), np.arange(len(x_0)), label=config.label)
    weight = None if cond is None else generate.weight(run.model, run.weights, config.guidance)
    plan = samplers.named.plan(run.model.process, "ddpm", config.nfe)
    x_T = run.model.process.prior(jax.random.key(config.seed + 1), x_0.shape)

    @jax.jit
    def program(weights: PyTree, cond: PyTree, weight: PyTree, x_T: Array, x_0: Array, known: Array) -> Array:
        denoise = generate.denoiser(run.model, weights, cond, weight)
        return rule(denoise, jax.random.key(config.seed), plan, x_T, x_0, known)

    return lambda known: program(run.weights, cond, weight, x_T, x_0, known)


def inpaint(config: Config, run: Run, x_0: Array) -> dict[str, dict[str, Array]]:
    """What each method makes of each mask, by mask and method; programs are compiled once for all masks."""
    proc, bound = run.model.process, run.model.codec.bound

    def replacement(denoise, key, plan, x_T, x_0, mask):
        return inverse.replacement(key, denoise, proc, plan, x_T, x_0, mask)

    def repaint(denoise, key, plan, x_T, x_0, mask):
        return inverse.repaint(key, denoise, proc, plan, x_T, x_0, mask, resample=config.resample)

    def pigdm(denoise, key, plan, x_T, x_0, mask):
        operator = inverse.Mask(mask)
        guided = inverse.pigdm(denoise, proc, operator, operator.forward(x_0), data_var=config.data_var)
        return samplers.sample(key, bound(guided), plan, x_T)

    rules = {"replacement": replacement, "RePaint": repaint, "PiGDM": pigdm}
    methods = {name: compiled(config, run, x_0, rule) for name, rule in rules.items()}
    hidden = masks(run.model.codec.shape, jax.random.key(config.seed + 2))
    return {
        name: {"known": jnp.where(mask, x_0, 0.0), **{m: method(mask) for m, method in methods.items()}}
        for name, mask in hidden.items()
    }


def superresolve(config: Config, run: Run, x_0: Array) -> dict[str, Array]:
    """From the means of squares of pixels, with noise, to images."""
    proc, bound, operator = run.model.process, run.model.codec.bound, inverse.Downsample(config.factor)
    y = operator.forward(x_0)
    y = y + config.noise_std * jax.random.normal(jax.random.key(config.seed + 3), y.shape)

    def pigdm(denoise, key, plan, x_T, x_0, y):
        options = {"noise_std": config.noise_std, "data_var": config.data_var}
        return samplers.sample(key, bound(inverse.pigdm(denoise, proc, operator, y, **options)), plan, x_T)

    def dps(denoise, key, plan, x_T, x_0, y):
        guided = inverse.dps(denoise, proc, operator, y, step_size=config.dps_step)
        return samplers.sample(key, bound(guided), plan, x_T)

    large = jnp.repeat(jnp.repeat(y, config.factor, axis=1), config.factor, axis=2)
    rules = {"PiGDM": pigdm, "DPS": dps}
    return {"measured": large} | {name: compiled(config, run, x_0, rule)(y) for name, rule in rules.items()}


def save(path: Path, found: dict[str, Array], x_0: Array, title: str) -> None:
    """A row an image, a column a method, the original last."""
    columns = found | {"original": x_0}
    strips = np.stack([np.asarray(data.to_uint8(x)) for x in columns.values()], axis=1)
    plots.save_strips(path, strips, list(columns), title)


def main(config: Config) -> dict[str, object]:
    """Hide, fill in, measure, write."""
    launch.start()
    run = pretrained.load_run(config.checkpoint)
    shape = run.model.codec.shape
    test = data.load(str(run.options["dataset"]), split="test", data_dir=config.data_dir)
    x_0 = run.model.codec.encode({"image": jnp.asarray(test["image"][: config.num])})
    prepare(config.workdir)
    hidden, summary = masks(shape, jax.random.key(config.seed + 2)), {}
    for name, found in inpaint(config, run, x_0).items():
        save(
            config.workdir / f"{name}.png", found, x_0, f"{name}: what is known, and three ways to fill it in"
        )
        mask = jnp.broadcast_to(hidden[name], x_0.shape)
        for method in ("replacement", "RePaint", "PiGDM"):
            error = jnp.abs(found[method] - x_0)
            for where, inside in (("known", mask), ("hidden", ~mask)):
                summary[f"{name}_{method}_{where}"] = float(error[inside].mean())
                summary[f"{name}_{method}_{where}_largest"] = float(error[inside].max())
    if not any(side % config.factor for side in shape[:2]):
        found = superresolve(config, run, x_0)
        title = f"super-resolution, {config.factor} times each way"
        save(config.workdir / "superresolution.png", found, x_0, title)
        again = inverse.Downsample(config.factor)
        for method in ("PiGDM", "DPS"):
            error = again.forward(found[method]) - again.forward(x_0)
            summary[f"superresolution_{method}_measured"] = float(jnp.abs(error).mean())
            summary[f"superresolution_{method}"] = float(jnp.abs(found[method] - x_0).mean())
    return launch.finish(config.workdir, summary, config=config, experiment="step10_inpainting")


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


if __name__ == "__main__":
    launch.run(__file__)
