"""What the diffusion experiments draw: samples of a run, their way from noise, grids while training."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from gen_jax import data, generate, launch, plots, pretrained, samplers, training
from gen_jax.conditioning import check_labels
from gen_jax.model import Model
from gen_jax.pretrained import Run


def feed(
    source: data.Source, batch_size: int, key: Key[Array, ""], *, labels: bool
) -> data.InMemory | data.Stream:
    """Batches of images, and of labels where they are learned."""
    names = ("image", "label") if labels else ("image",)
    found = data.batches(
        source, batch_size, key=key, transform=lambda batch: {name: batch[name] for name in names}
    )
    if labels and isinstance(found, data.InMemory):
        check_labels(found.arrays["label"], source.info().num_classes or 0)
    return found


def save_loss(workdir: Path, label: str) -> dict[str, object]:
    """loss.png; returns the last figures of the run's metrics."""
    plots.save_loss(workdir / "loss.png", workdir / "metrics.jsonl", label=label)
    last = plots.read_metrics(workdir / "metrics.jsonl")[-1]
    figures = {name: last[name] for name in ("loss", "images_per_second")}
    return {**figures, "seconds_of_training": last["seconds"]}


def check(model: Model, seed: int, sampling: launch.Sampling) -> None:
    """ValueError before any training for what could not be drawn after it."""
    if sampling.num < 1:
        raise ValueError(f"--num must be at least 1 sample, got {sampling.num}.")
    generate.plan(model, sampling.solver, sampling.nfe)
    generate.choose(model, jax.random.key(seed), np.arange(1), label=sampling.label)
    later = {} if model.sampling.guide_step is None else {"guide": None}
    generate.weight(model, later, sampling.guidance)


def draw(workdir: Path, seed: int, sampling: launch.Sampling) -> dict[str, object]:
    """Samples of the run in `workdir`: writes samples.npy, samples.png, labels.npy and denoising.png; returns figures."""
    run, key = pretrained.load_run(workdir), jax.random.key(seed)
    images, labels = generate.sample(
        run.model,
        run.weights,
        key,
        sampling.num,
        label=sampling.label,
        solver=sampling.solver,
        nfe=sampling.nfe,
        guidance=sampling.guidance,
    )
    plan = generate.plan(run.model, sampling.solver, sampling.nfe)
    weight = generate.weight(run.model, run.weights, sampling.guidance)
    if jax.process_index() == 0:
        np.save(workdir / "samples.npy", images)
        if labels is not None:
            np.save(workdir / "labels.npy", labels)
        plots.save_grid(workdir / "samples.png", images[:64])
        save_denoising(workdir / "denoising.png", run, plan, weight, seed, sampling.label)
    solver = sampling.solver or run.model.sampling.solver or "the recommended solver"
    guided = "without guidance" if weight is None else f"guided with a weight of {weight:g}"
    print(
        f"{sampling.num} samples at step {run.step} with {solver}, {plan.nfe} evaluations of the denoiser each, {guided}"
    )
    return {"num_samples": sampling.num, "solver": solver, "nfe": plan.nfe}


def save_denoising(
    path: Path,
    run: Run,
    plan: samplers.Plan,
    weight: np.float32 | None,
    seed: int,
    label: int | None,
    columns: int = 10,
) -> None:
    """denoising.png: four samples on their way from noise to data, and what the network takes them for meanwhile."""
    cond = generate.choose(run.model, jax.random.key(seed), np.arange(4), label=label)
    x_T = run.model.process.prior(jax.random.key(0), (4, *run.model.codec.shape))

    @jax.jit
    def trace(weights, cond, weight, x_T):
        denoise = generate.denoiser(run.model, weights, cond, weight)
        keep = lambda x, x0_hat: (x, x0_hat)
        _, paths = samplers.sample(jax.random.key(1), denoise, plan, x_T, trace=keep)
        return jax.tree.map(run.model.codec.decode, paths)

    paths = jax.device_get(trace(run.weights, cond, weight, x_T))
    shown = np.unique(np.linspace(0, plan.num_steps - 1, columns).astype(int))
    strips = np.stack([path[shown, i] for i in range(len(x_T)) for path in paths])
    heads = [f"step {k + 1}" for k in shown]
    plots.save_strips(path, strips, heads, "from noise to data", ["$x_s$", r"$\hat{x}_0$"] * len(x_T))


def save_forward(path: Path, model: Model, images: np.ndarray, columns: int = 10) -> None:
    """forward.png: images on their way from data to noise, the book's figure."""
    proc, codec = model.process, model.codec
    times = np.linspace(0, proc.t_max, columns)
    x_0 = codec.encode({"image": jnp.asarray(images)})
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    x_t = jnp.stack([proc.perturb(x_0, jnp.asarray(t, jnp.float32), eps) for t in times], axis=1)
    heads = [f"t = {t:.4g}" for t in times]
    plots.save_strips(path, np.asarray(codec.decode(x_t)), heads, r"$x_t = \alpha_t x_0 + \sigma_t \epsilon$")


class SampleGrids(training.Callback):
    """samples_STEP.png while a run goes on: the same noise each time, by at most 25 evaluations."""

    def __init__(self, workdir: Path, model: Model, seed: int, label: int | None, num: int = 64):
        self.workdir, self.index = workdir, np.arange(num)
        self.draw = generate.sampler(model, training.Layout().mesh)
        self.plan = generate.plan(model, nfe=min(model.sampling.nfe, 25))
        self.key = jax.random.key(seed)
        self.cond = generate.choose(model, self.key, self.index, label=label)
        self.weight = generate.weight(model, {})  # no weaker model yet

    def on_sample(self, step: int, state: training.TrainState) -> None:
        """Draw with the averaged parameters."""
        average = state.params if state.ema_params is None else state.ema_params
        weights = {"network": average}
        grid = self.draw(weights, self.key, self.plan, self.index, self.cond, self.weight)
        if jax.process_index() == 0:
            plots.save_grid(self.workdir / f"samples_{step}.png", np.asarray(grid))
