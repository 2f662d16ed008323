"""Which solver, and how many evaluations? All solvers on one trained network, against the exact answer and the data.

    python experiments/step09_diffusion.py       # once: trains the network
    python experiments/samplers_compare.py

Every solver starts from the same noise, on the same kind of grid, at several numbers of evaluations (NFE). Measured are

    error              root mean square over pixels (of [-1, 1]) of what a deterministic solver makes of the noise, less
                       what the probability-flow ODE makes of it (`samplers.adaptive`, to --tolerance)
    Fréchet distance   squared, between normals that fit samples and training images (`metrics.frechet_distance`); the
                       features are the coordinates in the images' leading principal axes, not Inception's, so compare
                       the figures with each other and with those of real images, not with a published FID
    equal              the NFE from which on the Fréchet distance is that of 1,000-step DDPM or less, within two standard
                       errors of the difference (bootstrap over samples), and the time it takes

Leaves in checkpoints/samplers_compare/: compare.png (both against NFE), grid_SOLVER.png (the same digits by every NFE),
config.json and summary.json. It takes 9 minutes of processor time, half of it for 1,000-step DDPM, so less on two cores.

On a run of 1,300 steps of step09_diffusion the distance of 1,000-step DDPM is 6.2 +- 1.8 (of real images: 4.5).
DPM-Solver++, UniPC, DEIS and iPNDM are equal from 8 evaluations on, in a 200th of the time; DDIM from 10, in a 145th;
DDPM itself from 50, in a 34th. Closest to the exact ODE is iPNDM at 8 and 10 evaluations (errors 0.13 and 0.09), PNDM at
20 (0.03), UniPC at 50 (0.007).
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from gen_jax import data, metrics, plots, runs, samplers, training
from gen_jax.diffusion import prediction, process
from gen_jax.training import workdir as run_directory

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "ddpm_reference"

GRIDS: dict[str, Any] = {
    "uniform": samplers.times.uniform,
    "log_snr": samplers.times.log_snr,
    "karras": samplers.times.karras,
    "cosine": samplers.times.cosine,
}


@dataclass(frozen=True)
class Config:
    """Compare solvers on a checkpoint of step09_diffusion."""

    checkpoint: Path = ROOT / "checkpoints" / "step09_diffusion"
    """The --workdir of a run of step09_diffusion."""
    workdir: Path = ROOT / "checkpoints" / "samplers_compare"
    """Where figures are written."""
    solvers: tuple[runs.SolverName, ...] = tuple(name for name in runs.SOLVERS if name != "euler")
    """Those of `--solver`; on one grid, euler is ddim."""
    evaluations: tuple[int, ...] = (5, 8, 10, 20, 50)
    """Of the denoiser; a solver of several a step takes as many whole steps as they suffice for."""
    grid: Literal["uniform", "log_snr", "karras", "cosine"] = "log_snr"
    """How times are spaced, for all solvers; uniform for the reference."""
    least_log_snr: float = runs.LEAST_LOG_SNR
    """Where grids begin, if the prior lies below: pure noise, in which a step of high order loses its way."""
    num: int = 128
    """Samples of every solver at every NFE, and of the reference."""
    chunk: int = 128
    """Samples drawn at a time."""
    num_exact: int = 20
    """Samples that are compared with the exact ones."""
    tolerance: float = 1e-4
    """Of the exact samples, relative and absolute."""
    reference: int = 1000
    """Steps of the DDPM that the others are compared with."""
    num_axes: int = 16
    """Principal axes of the images that the Fréchet distance looks along."""
    num_images: int = 10_000
    """Training images that samples are compared with."""
    guidance: float = 1.5
    """Weight of classifier-free guidance where labels were learned; others than 1 cost two evaluations in one."""
    label: int | None = None
    """The label of all samples and images, where labels were learned (default: each sample its own, at random)."""
    data_dir: Path | None = None
    """Where TFDS finds prepared data (default: TFDS_DATA_DIR)."""
    seed: int = 0


class Model(NamedTuple):
    """A trained network, and how it is asked."""

    run: runs.Run
    label: int | None
    weight: float | None
    """Of guidance; None is without."""

    def start(self, params: Any, key: Any, index: Any) -> tuple[Any, prediction.Denoiser, Any]:
        """`x_T`, the denoiser for the samples' labels, and the key of the noise, all as in `runs.sample`."""
        run = self.run
        key_prior, key_noise, _ = jax.random.split(key, 3)
        x_T = run.process.prior(key_prior, (len(index), *run.shape), index=index)
        label = runs.choose_labels(self.label, run.num_classes, key, index)
        return x_T, runs.denoiser(run.net, run.process, run.predicts, params, label, self.weight), key_noise


class Drawn(NamedTuple):
    """What a solver made of the noise."""

    nfe: int
    x_0: np.ndarray
    """`[N, H, W, C]` in about [-1, 1]."""
    seconds: float
    """Of all samples, without compilation."""


def load(config: Config) -> Model:
    """The newest checkpoint of `config.checkpoint`; ValueError, which says what to run first, where there is none."""
    try:
        run = runs.load(config.checkpoint)
    except training.CheckpointError as error:
        raise ValueError(
            f"no checkpoint in {config.checkpoint}: run python experiments/step09_diffusion.py first, or name the "
            "--workdir of a finished run of it with --checkpoint"
        ) from error
    return Model(run, config.label, None if config.guidance == 1 else config.guidance)


def make_plans(proc: process.Process, config: Config) -> dict[str, list[samplers.Plan]]:
    """The plans of every solver, one for each number of evaluations, and that of the reference."""
    first = runs.first_time(proc, config.least_log_snr)
    grid = functools.partial(GRIDS[config.grid], proc, final="denoise", t_start=first)
    plans = {REFERENCE: [runs.plan(proc, "ddpm", config.reference)]}
    for name in config.solvers:
        method = runs.SOLVERS[name]
        plans[name] = [
            method.solver.plan(proc, grid(method.steps(nfe))) for nfe in sorted(config.evaluations)
        ]
    return plans


def in_one_shape(plan: samplers.Plan, rows: int, slots: int) -> samplers.Plan:
    """The same steps in a table of `rows` rows, with `slots` slots in the ring and a column of noise."""
    n, k = plan.h.shape
    step, slot = np.indices((n, k))
    age = (step - slot) % k
    h = np.zeros((rows, slots), np.float32)
    h[step, (step - age) % slots] = plan.h
    plan = plan._replace(noise=jnp.zeros(n) if plan.noise is None else plan.noise)
    columns = {name: jnp.pad(c, (0, rows - n)) for name, c in plan._asdict().items() if name != "h"}
    return samplers.Plan(h=jnp.asarray(h), **columns)


def draw_all(model: Model, config: Config, plans: dict[str, list[samplers.Plan]]) -> dict[str, list[Drawn]]:
    """Samples by every plan. All plans are brought to one shape, so that there is one program to compile."""
    every = [plan for each in plans.values() for plan in each]
    rows, slots = (max(plan.h.shape[axis] for plan in every) for axis in (0, 1))
    key, size = jax.random.key(config.seed), min(config.chunk, config.num)

    @jax.jit
    def draw(params, plan, num_steps, index):
        x_T, denoise, key_noise = model.start(params, key, index)
        step = lambda _, state: samplers.step(key_noise, denoise, plan, state, index=index)[0]
        return samplers.finalize(jax.lax.fori_loop(0, num_steps, step, samplers.init(plan, x_T)))

    def run(name: str, plan: samplers.Plan) -> Drawn:
        table, began, parts = in_one_shape(plan, rows, slots), time.perf_counter(), []
        for first in range(0, config.num, size):
            parts.append(
                jax.device_get(draw(model.run.params, table, plan.nfe, jnp.arange(first, first + size)))
            )
        seconds = time.perf_counter() - began
        print(f"{name}: {config.num} samples by {plan.nfe} evaluations in {seconds:.1f} s", flush=True)
        return Drawn(plan.nfe, np.concatenate(parts)[: config.num], seconds)

    draw(
        model.run.params, in_one_shape(every[0], rows, slots), 0, jnp.arange(size)
    )  # compiles, and takes no step
    return {name: [run(name, plan) for plan in each] for name, each in plans.items()}


def draw_exact(model: Model, config: Config) -> tuple[np.ndarray, int]:
    """What the probability-flow ODE makes of the noise of the first `num_exact` samples, and its evaluations."""

    @jax.jit
    def solve(params):
        x_T, denoise, _ = model.start(params, jax.random.key(config.seed), jnp.arange(config.num_exact))
        first = runs.first_time(model.run.process, config.least_log_snr)
        return samplers.adaptive.ode(
            denoise, model.run.process, x_T, t_start=first, rtol=config.tolerance, atol=config.tolerance
        )

    solution = jax.device_get(solve(model.run.params))
    if not solution.success:
        raise ValueError(f"the ODE was not solved to --tolerance {config.tolerance:g}: take a larger one.")
    return solution.x, int(solution.nfe)


class Judge:
    """The Fréchet distance of samples to images, along the images' leading principal axes."""

    def __init__(self, model: Model, config: Config):
        arrays = data.load(model.run.config["dataset"], data_dir=config.data_dir)
        images = arrays["image"]
        if config.label is not None:
            images = images[arrays["label"] == config.label]
        order = np.random.default_rng(config.seed).permutation(len(images))
        pixels = lambda index: images[np.sort(index)].astype(np.float32) / 127.5 - 1
        self.axes = metrics.principal(pixels(order[: config.num_images]), config.num_axes)
        self.real = metrics.moments(metrics.project(self.axes, pixels(order[: config.num_images])))
        self.others = pixels(order[-config.num :])

    def __call__(self, x_0: np.ndarray, repeats: int = 100) -> tuple[float, np.ndarray]:
        """The distance, and that of `repeats` samples from the samples, the same ones each time."""
        features = metrics.project(self.axes, x_0)
        picks = np.random.default_rng(0).integers(len(x_0), size=(repeats, len(x_0)))
        distance = lambda x: metrics.frechet_distance(self.real, metrics.moments(x))
        return distance(features), np.array([distance(features[pick]) for pick in picks])


def summarise(
    config: Config,
    plans: dict[str, list[samplers.Plan]],
    drawn: dict[str, list[Drawn]],
    exact: np.ndarray,
    judge: Judge,
) -> dict[str, Any]:
    """The figures of every solver, and where it equals the reference."""
    (reference,) = drawn[REFERENCE]
    goal, goals = judge(reference.x_0)
    solvers: dict[str, Any] = {}
    for name in config.solvers:
        distances = [judge(each.x_0) for each in drawn[name]]
        equal: dict[str, float] | None = None
        for each, (distance, again) in zip(drawn[name], distances, strict=True):
            here = {
                "nfe": each.nfe,
                "seconds": each.seconds,
                "times_faster": reference.seconds / each.seconds,
            }
            worse = distance - goal > 2 * (again - goals).std()
            equal = None if worse else equal or here  # from here on, not by chance here alone
        of_ode = plans[name][0].noise is None
        errors = [float(np.sqrt(np.square(d.x_0[: len(exact)] - exact).mean())) for d in drawn[name]]
        solvers[name] = {
            "nfe": [each.nfe for each in drawn[name]],
            "seconds": [each.seconds for each in drawn[name]],
            "error": errors if of_ode else None,
            "frechet_distance": [distance for distance, _ in distances],
            "standard_error": [float(again.std()) for _, again in distances],
            "equal": equal,
        }
    return {
        "num_samples": config.num,
        "share_of_variance": judge.axes.explained_variance_ratio,
        "frechet_distance_of_real_images": judge(judge.others)[0],
        "reference": {
            "nfe": reference.nfe,
            "seconds": reference.seconds,
            "frechet_distance": goal,
            "standard_error": float(goals.std()),
        },
        "solvers": solvers,
    }


def save_figure(config: Config, summary: dict[str, Any]) -> None:
    """compare.png: error and Fréchet distance against NFE; stochastic solvers are dashed."""
    from matplotlib.ticker import LogFormatter

    reference = summary["reference"]
    with plots.figure(config.workdir / "compare.png", width=12, height=5, ncols=2) as (left, right):
        for i, (name, each) in enumerate(summary["solvers"].items()):
            style = {"color": f"C{i % 10}", "marker": "osv^Dx"[(i // 5) % 6], "markersize": 4, "label": name}
            if each["error"] is not None:
                left.plot(each["nfe"], each["error"], **style)
            right.plot(each["nfe"], each["frechet_distance"], "-" if each["error"] else "--", **style)
        goal, spread = reference["frechet_distance"], 2 * reference["standard_error"]
        right.axhspan(max(goal - spread, goal / 10), goal + spread, color="gray", alpha=0.2, linewidth=0)
        right.axhline(goal, color="gray", label=f"DDPM, {reference['nfe']:,} steps (two standard errors)")
        right.axhline(
            summary["frechet_distance_of_real_images"], color="black", linestyle=":", label="real images"
        )
        left.set(title="error against the exact ODE, root mean square", ylabel="error, pixels in [-1, 1]")
        right.set(title=f"Fréchet distance of {summary['num_samples']:,} samples", ylabel="squared distance")
        for axes in (left, right):
            axes.set(xlabel="evaluations of the denoiser (NFE)", xscale="log", yscale="log")
            axes.set_xticks(config.evaluations, [str(n) for n in config.evaluations])
            axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
            axes.grid(alpha=0.3, which="both", axis="y")
        right.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def save_grids(
    config: Config, plans: dict[str, list[samplers.Plan]], drawn: dict[str, list[Drawn]], exact: np.ndarray
) -> None:
    """grid_SOLVER.png: the same samples by every NFE, and below what they are in the limit."""
    columns = min(10, config.num, len(exact))
    (reference,) = drawn[REFERENCE]
    for name in config.solvers:
        of_ode = plans[name][0].noise is None
        limit, called = (exact, "exact") if of_ode else (reference.x_0, f"DDPM {reference.nfe}")
        rows = [each.x_0[:columns] for each in drawn[name]] + [limit[:columns]]
        names = [str(each.nfe) for each in drawn[name]] + [called]
        strips = np.asarray(data.to_uint8(jnp.asarray(np.stack(rows))))
        plots.save_strips(
            config.workdir / f"grid_{name}.png", strips, [""] * columns, f"{name}, by NFE", names
        )


def report(config: Config, summary: dict[str, Any]) -> None:
    """The table."""
    reference = summary["reference"]
    print(
        f"\nDDPM with {reference['nfe']} steps: {reference['seconds']:.1f} s, Fréchet distance "
        f"{reference['frechet_distance']:.3g} +- {reference['standard_error']:.2g}; of as many real images "
        f"{summary['frechet_distance_of_real_images']:.3g}"
    )
    for name, each in summary["solvers"].items():
        cells = [f"{n}: {d:.3g}" for n, d in zip(each["nfe"], each["frechet_distance"], strict=True)]
        equal = each["equal"]
        verdict = (
            f"equal at {equal['nfe']}, {equal['times_faster']:.0f} times faster" if equal else "not equal"
        )
        print(f"{name:14} Fréchet distance by NFE  {'   '.join(cells):60} {verdict}")
    print(f"figures: {config.workdir}")


def main(config: Config) -> dict[str, Any]:
    """Draw with every solver, measure, draw the figures; returns the numbers."""
    model = load(config)
    config.workdir.mkdir(parents=True, exist_ok=True)
    run_directory.write_json(config.workdir / "config.json", run_directory.plain(config))
    plans, judge = make_plans(model.run.process, config), Judge(model, config)
    exact, nfe = draw_exact(model, config)
    drawn = draw_all(model, config, plans)
    summary = {"nfe_of_exact": nfe, **summarise(config, plans, drawn, exact, judge)}
    save_figure(config, summary)
    save_grids(config, plans, drawn, exact)
    run_directory.write_json(config.workdir / "summary.json", summary)
    report(config, summary)
    return summary


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
