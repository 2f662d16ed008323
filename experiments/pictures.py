"""What the diffusion experiments draw: samples of a run, their way from noise, grids while training."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import recipes
from jaxtyping import Array, Key, PyTree

from gen_jax import checks, data, generate, launch, plots, pretrained, samplers, training
from gen_jax import codec as codecs
from gen_jax.conditioning import Condition, Labels
from gen_jax.generate import Weights
from gen_jax.model import Model
from gen_jax.pretrained import Run


def feed(
    source: data.Source,
    batch_size: int,
    key: Key[Array, ""],
    condition: Condition,
    codec: codecs.Codec | None = None,
) -> data.InMemory | data.Stream:
    """Batches of images or of their latents, and of what the model is told: labels, tokens.

    ValueError for data that are not what the codec encodes, and for labels that are not those of the condition.
    """

    def learned(batch):
        seen = {k: x for k, x in batch.items() if k == "image" or k.startswith("latent")}
        return {**seen, **condition.prepare(batch)}

    found = data.batches(source, batch_size, key=key, transform=learned)
    some = found.arrays if isinstance(found, data.InMemory) else next(found)
    if isinstance(found, data.Stream):
        found.seek(0)
    elif isinstance(condition, Labels):
        condition.check_all(some["label"])
    if codec is not None:
        codecs.check_data(codec, some)
    return found


def save_loss(workdir: Path, label: str) -> dict[str, object]:
    """loss.png; returns the last figures of the run's metrics. Nothing of a run whose metrics are lost."""
    last = recipes.last_figures(workdir)
    if last:
        plots.save_loss(workdir / "loss.png", workdir / "metrics.jsonl", label=label)
    return {name: last[name] for name in ("loss", "images_per_second", "seconds_of_training") if name in last}


def check(model: Model, seed: int, sampling: launch.Sampling, batch_size: int, source: data.Source) -> None:
    """ValueError before any training for batches that there are not, and for what could not be drawn after it."""
    checks.whole("batch_size", batch_size, "example of the data set", most=len(source))
    if sampling.num < 1:
        raise ValueError(f"--num must be at least 1 sample, got {sampling.num}.")
    generate.plan(model, sampling.solver, sampling.nfe)
    texts = sampling.texts()
    generate.conditions(
        model,
        jax.random.key(seed),
        sampling.num if texts is None else len(texts),
        label=sampling.label,
        prompt=texts,
        negative_prompt=sampling.negative_prompt,
    )
    later = {} if model.sampling.guide_step is None else {"guide": None}
    generate.weight(model, later, sampling.guidance)


def draw(
    workdir: Path, seed: int, sampling: launch.Sampling, texts: Sequence[str] | None = None
) -> dict[str, object]:
    """Samples of the run in `workdir`; returns figures.

    Writes samples.npy, samples.png, denoising.png, and labels.npy or captions.json. `texts` are the prompts where none
    are asked for.
    """
    run, key, asked = pretrained.load_run(workdir), jax.random.key(seed), sampling.texts()
    texts = texts if asked is None else asked
    num = sampling.num if texts is None else len(texts)
    images, cond = generate.sample(
        run.model,
        run.weights,
        key,
        num,
        label=sampling.label,
        prompt=texts,
        negative_prompt=sampling.negative_prompt,
        solver=sampling.solver,
        nfe=sampling.nfe,
        guidance=sampling.guidance,
        shared=True,
    )
    plan = generate.plan(run.model, sampling.solver, sampling.nfe)
    weight = generate.weight(run.model, run.weights, sampling.guidance)
    launch.save(workdir / "samples.npy", images)
    if texts is not None:
        launch.save(workdir / "captions.json", list(texts))
    elif cond is not None:
        launch.save(workdir / "labels.npy", cond)
    if jax.process_index() == 0:
        plots.save_grid(workdir / "samples.png", images[:64])
        first = jax.tree.map(lambda x: x[np.minimum(np.arange(4), num - 1)], cond)
        save_denoising(workdir / "denoising.png", run, plan, weight, first)
    solver = sampling.solver or run.model.sampling.solver or "the recommended solver"
    guided = "without guidance" if weight is None else f"guided with a weight of {weight:g}"
    launch.say(
        f"{num} samples at step {run.step} with {solver}, {plan.nfe} evaluations of the denoiser each, {guided}"
    )
    return {"num_samples": num, "solver": solver, "nfe": plan.nfe}


def save_denoising(
    path: Path,
    run: Run,
    plan: samplers.Plan,
    weight: np.float32 | None,
    cond: PyTree,
    columns: int = 10,
) -> None:
    """denoising.png: four samples on their way from noise to data, each above what the network takes it for meanwhile."""
    x_T = run.model.process.prior(jax.random.key(0), (4, *run.model.codec.shape))

    @jax.jit
    def trace(weights, cond, weight, x_T):
        denoise = generate.denoiser(run.model, weights, cond, weight)
        keep = lambda x, x0_hat: (x, x0_hat)
        _, (x_s, x0_hat) = samplers.sample(jax.random.key(1), denoise, plan, x_T, trace=keep)
        x_t = jnp.concatenate([x_T[None], x_s[:-1]])  # where a step begins, the network is asked
        return jax.tree.map(lambda x: run.model.codec.decode(x, weights.get("autoencoder")), (x_t, x0_hat))

    paths = jax.device_get(trace(run.weights, cond, weight, x_T))
    shown = np.unique(np.linspace(0, plan.num_steps - 1, columns).astype(int))
    strips = np.stack([path[shown, i] for i in range(len(x_T)) for path in paths])
    heads = [f"t = {plan.t[k]:.3g}" for k in shown]
    title = r"from noise to data: four samples $x_t$, each above the network's estimate $\hat{x}_0$"
    plots.save_strips(path, strips, heads, title, ["$x_t$", r"$\hat{x}_0$"])


def save_forward(
    path: Path, model: Model, images: np.ndarray, autoencoder: PyTree = None, columns: int = 10
) -> None:
    """forward.png: images on their way from data to noise, the book's figure."""
    proc, codec = model.process, model.codec
    times = np.linspace(0, proc.t_max, columns)
    x_0 = codec.encode({"image": jnp.asarray(images)}, autoencoder)
    eps = jax.random.normal(jax.random.key(0), x_0.shape)
    x_t = jnp.stack([proc.perturb(x_0, jnp.asarray(t, jnp.float32), eps) for t in times], axis=1)
    heads = [f"t = {t:.4g}" for t in times]
    plots.save_strips(
        path, np.asarray(codec.decode(x_t, autoencoder)), heads, r"$x_t = \alpha_t x_0 + \sigma_t \epsilon$"
    )


class SampleGrids(training.Callback):
    """samples_STEP.png while a run goes on: the same noise each time, by at most 25 evaluations.

    `frozen` are weights that the model has beside those that are learned, `texts` the prompts where none are asked for.
    """

    def __init__(
        self,
        workdir: Path,
        model: Model,
        seed: int,
        sampling: launch.Sampling,
        *,
        frozen: Weights | None = None,
        texts: Sequence[str] | None = None,
        num: int = 64,
    ):
        self.workdir, self.model, self.frozen = workdir, model, frozen or {}
        self.draw = generate.sampler(model, training.Layout().mesh)
        self.plan = generate.plan(model, nfe=min(model.sampling.nfe, 25))
        given = sampling.texts()
        asked = texts if given is None else given
        num = num if asked is None else min(num, len(asked))
        self.key, self.index = jax.random.key(seed), np.arange(num)
        prompt = None if asked is None else list(asked[:num])
        self.cond = generate.choose(model, self.key, self.index, label=sampling.label, prompt=prompt)
        self.weight = generate.weight(model, {})  # no weaker model yet

    def on_sample(self, step: int, state: training.TrainState) -> None:
        """Draw with the averaged parameters."""
        average = state.params if state.ema_params is None else state.ema_params
        weights = {**self.model.parts(average), **self.frozen}
        grid = self.draw(weights, self.key, self.plan, self.index, self.cond, self.weight)
        if jax.process_index() == 0:
            plots.save_grid(self.workdir / f"samples_{step}.png", np.asarray(grid))
