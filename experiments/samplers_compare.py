"""Which solver, and how many evaluations? All solvers on one trained network, against the exact answer and the data.

    python experiments/step09_diffusion.py       # once: trains the network
    python experiments/samplers_compare.py

Every solver starts from the same noise, on the same kind of grid, with several numbers of evaluations (NFE). Measured are

    error              root mean square difference to the samples of the exact probability-flow ODE, pixels in [-1, 1]
    Fréchet distance   squared, between normals fitted to samples and to training images (`metrics.frechet_distance`).
                       Features are coordinates along the principal axes of the images, so it is no published FID
    equal              the NFE from which on the Fréchet distance is at most that of 1,000-step DDPM, within two standard
                       errors of the difference (bootstrap over samples), and the time it takes

Leaves in checkpoints/samplers_compare/: compare.png (both against NFE), grid_SOLVER.png (the same digits by every NFE),
config.json and summary.json. It takes 9 minutes of processor time, half of it for 1,000-step DDPM.
For a run of 1,300 steps of step09_diffusion the distance of 1,000-step DDPM is 6.2 +- 1.8 (of real images: 4.5).
DPM-Solver++, UniPC, DEIS and iPNDM equal it from 8 evaluations on, in a 200th of the time; DDIM from 10, DDPM from 50.
Closest to the exact ODE are iPNDM at 8 and 10 (errors 0.13 and 0.09), PNDM at 20 (0.03) and UniPC at 50 (0.007).
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from gen_jax import checks, data, generate, launch, metrics, plots, pretrained, samplers
from gen_jax.diffusion.prediction import Denoiser
from gen_jax.diffusion.process import Process
from gen_jax.model import Model
from gen_jax.pretrained import Run
from gen_jax.training.workdir import prepare
from gen_jax.types import Count, Number, Positive, Seed

REFERENCE = "reference"
MULTISTEP = ("ddpm", "ddim", "dpmpp", "dpmpp3", "sde_dpmpp", "unipc", "deis", "lms", "ipndm", "pndm")
SINGLE_STEP = ("heun", "dpmpp_single", "dpmpp3_single")


@checks.checked
@dataclass(frozen=True)
class Config:
    """Compare solvers on a checkpoint of step 9 or 10."""

    checkpoint: Path = launch.ROOT / "checkpoints" / "step09_diffusion"
    """The --workdir of a run of step09_diffusion or step10_conditional."""
    workdir: Path = launch.ROOT / "checkpoints" / "samplers_compare"
    """Where figures are written."""
    solvers: tuple[str, ...] = (*MULTISTEP, *SINGLE_STEP)
    """Names of `samplers.named.SOLVERS`."""
    evaluations: tuple[Count, ...] = (5, 8, 10, 20, 50)
    """Of the denoiser; a solver of several a step takes as many whole steps as fit."""
    grid: Literal["uniform", "log_snr", "karras", "cosine"] = "log_snr"
    """How times are spaced, for all solvers; uniform for the reference."""
    least_log_snr: Number = samplers.named.LEAST_LOG_SNR
    """Where grids begin, if the prior lies below: pure noise, in which steps of high order are inaccurate."""
    num: Count = 128
    """Samples of every solver at every NFE, and of the reference."""
    chunk: Count = 128
    """Samples drawn at a time."""
    num_exact: Count = 20
    """Samples that are compared with the exact ones."""
    tolerance: Positive = 1e-4
    """Of the exact samples, relative and absolute."""
    reference: Count = 1000
    """Steps of the DDPM that the others are compared with."""
    num_axes: Count = 16
    """Principal axes of the images, whose coordinates are the features of the Fréchet distance."""
    num_images: Count = 10_000
    """Training images that samples are compared with."""
    guidance: Number = 1.0
    """Weight of guidance, by the labels or by a weaker model; 1 is none, others cost two evaluations in one."""
    label: int | str | None = None
    """The label of all samples and images, where labels were learned (default: each sample its own, at random)."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    seed: Seed = 0


class Drawn(NamedTuple):
    """What a solver made of the noise, and in how many seconds, without compilation."""

    plan: samplers.Plan
    x_0: Float[np.ndarray, "N ..."]
    seconds: float


class Figures(NamedTuple):
    """What was measured of a solver: a number for each NFE. A stochastic solver has no error."""

    nfe: list[int]
    seconds: list[float]
    error: list[float] | None
    frechet_distance: list[float]
    standard_error: list[float]
    equal: dict[str, float] | None
    """The first NFE from which on it equals the reference, its seconds, and how many times faster that is."""


def make_plans(proc: Process, config: Config) -> dict[str, list[samplers.Plan]]:
    """The plans of every solver, one for each number of evaluations, and that of the reference."""
    t_start = samplers.named.first_time(proc, config.least_log_snr)
    grid = lambda n: getattr(samplers.times, config.grid)(proc, n, final="denoise", t_start=t_start)
    plans = {REFERENCE: [samplers.named.plan(proc, "ddpm", config.reference)]}
    for name in config.solvers:
        method, evaluations = samplers.named.find(name), sorted(config.evaluations)
        plans[name] = [method.solver.plan(proc, grid(method.steps(nfe))) for nfe in evaluations]
    return plans


def in_one_shape(plan: samplers.Plan, rows: int, slots: int) -> samplers.Plan:
    """The same steps in a table of `rows` rows, with `slots` slots in the ring and a column of noise."""
    (n, k), (step, slot) = plan.h.shape, np.indices(plan.h.shape)
    h = np.zeros((n, slots), np.float32)
    h[step, (step - (step - slot) % k) % slots] = plan.h
    plan = plan._replace(h=jnp.asarray(h), noise=jnp.zeros(n) if plan.noise is None else plan.noise)
    return jax.tree.map(lambda c: jnp.pad(c, [(0, rows - n), (0, 0)][: c.ndim]), plan)


def arguments(run: Run, config: Config, index: Int[Array, "n"]) -> dict[str, PyTree]:
    """All arrays of a program that draws the samples `index`, as `generate.sample` does."""
    key = jax.random.key(config.seed)
    cond = generate.choose(run.model, key, index, label=config.label)
    weight = generate.weight(run.model, run.weights, config.guidance)
    return {"weights": run.weights, "key": key, "index": index, "cond": cond, "weight": weight}


def begin(model: Model, given: dict[str, PyTree]) -> tuple[Array, Denoiser, Key[Array, ""]]:
    """`x_T`, the denoiser and the key of the noise, inside such a program."""
    (key_prior, key_noise, _), index = jax.random.split(given["key"], 3), given["index"]
    x_T = model.process.prior(key_prior, (len(index), *model.codec.shape), index=index)
    return x_T, generate.denoiser(model, given["weights"], given["cond"], given["weight"]), key_noise


@functools.partial(jax.jit, static_argnums=0)
def draw(model: Model, given: dict[str, PyTree], plan: samplers.Plan, num_steps: int | Array) -> Array:
    """Samples by the first `num_steps` rows of a plan."""
    x_T, denoise, key = begin(model, given)
    step = lambda _, state: samplers.step(key, denoise, plan, state, index=given["index"])[0]
    return samplers.finalize(jax.lax.fori_loop(0, num_steps, step, samplers.init(plan, x_T)))


def draw_all(run: Run, config: Config, plans: dict[str, list[samplers.Plan]]) -> dict[str, list[Drawn]]:
    """Samples by every plan. All plans are brought to one shape, so that there is one program to compile."""
    every = [plan for each in plans.values() for plan in each]
    rows, slots = (max(plan.h.shape[axis] for plan in every) for axis in (0, 1))
    size = min(config.chunk, config.num)
    chunks = [arguments(run, config, i + jnp.arange(size)) for i in range(0, config.num, size)]

    def draw_by(name: str, plan: samplers.Plan) -> Drawn:
        table, began = in_one_shape(plan, rows, slots), time.perf_counter()
        x_0 = np.concatenate([jax.device_get(draw(run.model, each, table, plan.nfe)) for each in chunks])
        seconds = time.perf_counter() - began
        launch.say(f"{name}: {config.num} samples by {plan.nfe} evaluations in {seconds:.1f} s")
        return Drawn(plan, x_0[: config.num], seconds)

    draw(run.model, chunks[0], in_one_shape(every[0], rows, slots), 0)  # compiles, and takes no step
    return {name: [draw_by(name, plan) for plan in each] for name, each in plans.items()}


def draw_exact(run: Run, config: Config) -> tuple[Float[np.ndarray, "n ..."], int]:
    """What the probability-flow ODE makes of the noise of the first `num_exact` samples, and its evaluations."""
    proc, tolerance = run.model.process, config.tolerance

    @jax.jit
    def solve(given: dict[str, PyTree]) -> samplers.adaptive.Solution:
        x_T, denoise, _ = begin(run.model, given)
        t_start = samplers.named.first_time(proc, config.least_log_snr)
        return samplers.adaptive.ode(denoise, proc, x_T, t_start=t_start, rtol=tolerance, atol=tolerance)

    solution = jax.device_get(solve(arguments(run, config, jnp.arange(config.num_exact))))
    if not solution.success:
        raise ValueError(f"the ODE was not solved to --tolerance {tolerance:g}: take a larger one.")
    return solution.x, int(solution.nfe)


class Judge:
    """The Fréchet distance between samples and images, along the leading principal axes of the images."""

    def __init__(self, run: Run, config: Config):
        size = cast("int | None", run.options.get("image_size"))
        arrays = data.load(str(run.options["dataset"]), data_dir=config.data_dir, image_size=size)
        order = np.random.default_rng(config.seed).permutation(len(arrays["image"]))
        rows = order if config.label is None else order[arrays["label"][order] == config.label]
        encode = lambda rows: np.asarray(run.model.codec.encode({"image": arrays["image"][np.sort(rows)]}))
        images = encode(rows[: config.num_images])
        self.axes = metrics.principal(images, config.num_axes)
        self.real = metrics.moments(metrics.project(self.axes, images))
        self.others = encode(rows[-config.num :])

    def __call__(self, x_0: np.ndarray, repeats: int = 100) -> tuple[float, np.ndarray]:
        """The distance, and that of `repeats` samples from the samples, the same ones each time."""
        features = metrics.project(self.axes, x_0)
        picks = np.random.default_rng(0).integers(len(x_0), size=(repeats, len(x_0)))
        distance = lambda x: metrics.frechet_distance(self.real, metrics.moments(x))
        return distance(features), np.array([distance(features[pick]) for pick in picks])


def measure(drawn: dict[str, list[Drawn]], exact: np.ndarray, judge: Judge) -> dict[str, Figures]:
    """The figures of every solver and of the reference."""
    (reference,) = drawn[REFERENCE]
    goal, goals = judge(reference.x_0)
    error = lambda d: float(np.sqrt(np.square(d.x_0[: len(exact)] - exact).mean()))
    found = {}
    for name, each in drawn.items():
        distances = [judge(d.x_0) for d in each]
        equal: dict[str, float] | None = None
        for d, (distance, again) in zip(each, distances, strict=True):
            here = {"nfe": d.plan.nfe, "seconds": d.seconds, "times_faster": reference.seconds / d.seconds}
            worse = distance - goal > 2 * (again - goals).std()
            equal = None if worse else equal or here  # from here on, not by chance here alone
        nfe, seconds = [d.plan.nfe for d in each], [d.seconds for d in each]
        errors = [error(d) for d in each] if each[0].plan.noise is None else None
        spread = [float(again.std()) for _, again in distances]
        found[name] = Figures(nfe, seconds, errors, [distance for distance, _ in distances], spread, equal)
    return found


def save_figure(config: Config, found: dict[str, Figures], real: float) -> None:
    """compare.png: error and Fréchet distance against NFE; stochastic solvers are dashed."""
    from matplotlib.ticker import LogFormatter

    with plots.figure(config.workdir / "compare.png", width=12, height=5, ncols=2) as (left, right):
        for i, name in enumerate(config.solvers):
            style = {"color": f"C{i % 10}", "marker": "osv^Dx"[(i // 5) % 6], "markersize": 4, "label": name}
            nfe, _, errors, distances, *_ = found[name]
            if errors is not None:
                left.plot(nfe, errors, **style)
            right.plot(nfe, distances, "--" if errors is None else "-", **style)
        (steps,), _, _, (goal,), (spread,), _ = found[REFERENCE]
        right.axhspan(max(goal - 2 * spread, goal / 10), goal + 2 * spread, color="gray", alpha=0.2, lw=0)
        right.axhline(goal, color="gray", label=f"DDPM, {steps:,} steps (two standard errors)")
        right.axhline(real, color="black", linestyle=":", label="real images")
        left.set(title="error against the exact ODE, root mean square", ylabel="error, pixels in [-1, 1]")
        right.set(title=f"Fréchet distance of {config.num:,} samples", ylabel="squared distance")
        for axes in (left, right):
            axes.set(xlabel="evaluations of the denoiser (NFE)", xscale="log", yscale="log")
            axes.set_xticks(config.evaluations, [str(n) for n in config.evaluations])
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
            axes.grid(alpha=0.3, which="both", axis="y")
        right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def save_grids(config: Config, run: Run, drawn: dict[str, list[Drawn]], exact: np.ndarray) -> None:
    """grid_SOLVER.png: the same samples by every NFE, and below what they are in the limit."""
    columns = min(10, config.num, len(exact))
    (reference,) = drawn[REFERENCE]
    for name in config.solvers:
        of_ode = drawn[name][0].plan.noise is None
        limit, called = (exact, "exact") if of_ode else (reference.x_0, f"DDPM {reference.plan.nfe}")
        rows = np.stack([x_0[:columns] for x_0 in (*(each.x_0 for each in drawn[name]), limit)])
        strips = np.asarray(run.model.codec.decode(jnp.asarray(rows)))
        names = [*(f"{each.plan.nfe}" for each in drawn[name]), called]
        path, title = config.workdir / f"grid_{name}.png", f"{name}, by NFE"
        plots.save_strips(path, strips, [""] * columns, title, names)


def form(value: object) -> str:
    """A figure as it is printed; of solvers, a line each."""
    if not isinstance(value, dict):
        return f"{value:.4g}" if isinstance(value, float) else f"{value}"
    lines = [""]
    for name, each in value.items():
        cells = [f"{n}: {d:.3g}" for n, d in zip(each["nfe"], each["frechet_distance"], strict=True)]
        equal = "equal at {nfe}, {times_faster:.0f} times faster"
        verdict = equal.format(**each["equal"]) if each["equal"] else "not equal"
        lines.append(f"  {name:14} Fréchet distance by NFE  {'   '.join(cells):60} {verdict}")
    return "\n".join(lines)


def main(config: Config) -> dict[str, object]:
    """Draw with every solver, measure, draw the figures; returns the numbers."""
    launch.start()
    run = pretrained.load_run(config.checkpoint)
    plans, judge = make_plans(run.model.process, config), Judge(run, config)
    exact, nfe = draw_exact(run, config)
    drawn = draw_all(run, config, plans)
    found, (real, _) = measure(drawn, exact, judge), judge(judge.others)
    summary: dict[str, object] = {"num_samples": config.num, "nfe_of_exact": nfe}
    summary |= {
        "share_of_variance": judge.axes.explained_variance_ratio,
        "frechet_distance_of_real_images": real,
    }
    summary["solvers"] = {name: each._asdict() for name, each in found.items()}
    if jax.process_index() == 0:
        prepare(config.workdir)
        save_figure(config, found, real)
        save_grids(config, run, drawn, exact)
    return launch.finish(config.workdir, summary, config=config, experiment="samplers_compare", form=form)


def parse(args: Sequence[str] | None = None) -> Config:
    """The configuration of a command line."""
    return launch.parse(Config, args, description=__doc__)


if __name__ == "__main__":
    launch.run(__file__)
