"""Which network and training for a CPU: distance from real digits against minutes of training: makes PARETO.md.

    python benchmarks/pareto.py                               # on two idle cores: two minutes of training a variant
    python benchmarks/pareto.py --variants default --minutes 1 4                    # adds rows to the same page
    python benchmarks/pareto.py --only-rates                  # the part that wants those cores, half a minute a variant
    python benchmarks/pareto.py --processes 12                # the rest, there or on any machine with a GPU

Every variant changes step 9's default preset in a thing or two. How many steps a second it makes is measured first; then
it is trained for the steps of so many minutes, a whole run of its own, for its learning rate falls to zero. As steps are
what counts, they may be made by a faster or a busier machine: `checkpoints/pareto/kept.json` holds the rates and what is
found, to which a second run adds (remove it when the code has changed). Then 2,000 samples are drawn as the experiment
draws them (DDPM, 50 steps), without guidance and with it, and compared with the MNIST test set in the 128 features of
`judge.py`'s classifier (Frechet distance); said is also how many samples it is sure of. On the front are those that no
other beats, guided, in less time. Needs the extra `bench`.
"""

import dataclasses
import datetime
import json
import multiprocessing
import re
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from judge import REPO, features, idx, judge, probabilities
from pages import Kept, commit, machine, markdown, versions

NUM = 2000
Row = dict[str, float | str]
"""What was found of a run, by name."""
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "default": ("", {}),
    "channels 16, 48": ("", {"channels": (16, 48)}),
    "channels 32, 96": ("", {"channels": (32, 96)}),
    "channels 48, 128": ("", {"channels": (48, 128)}),
    "attention": ("", {"middle_attention": True}),
    "channels 96, patches of 4": ("", {"channels": (96,), "patch": 4}),
    "two blocks": ("", {"blocks": 2}),
    "batch 32": ("--batch-size 32", {}),
    "batch 128": ("--batch-size 128", {}),
    "Adam, 2e-3": ("--optimizer adam --learning-rate 2e-3", {}),
    "rate 4e-3": ("--learning-rate 4e-3", {}),
    "rate 1.6e-2": ("--learning-rate 1.6e-2", {}),
    "average 0.998": ("--ema-decay 0.998", {}),
    "times 0.5, 1.4": ("--times-mean 0.5 --times-std 1.4", {}),
    "times uniform": ("--times uniform", {}),
    "predicts eps": ("--predicts eps", {}),
    "predicts x0": ("--predicts x0", {}),
    "linear schedule": ("--process ddpm_linear", {}),
    "bfloat16": ("--dtype bfloat16", {}),
}
"""Flags of the experiment, and what is changed in the preset's `UNetConfig`."""


@dataclass(frozen=True)
class Config:
    """What to train."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    minutes: tuple[float, ...] = (2.0,)
    """Of training, compilation left out."""
    weight: float = 2.0
    """Of guidance by parameters of an earlier step."""
    only_rates: bool = False
    """Measure the steps a second, and stop."""
    processes: int = 1
    """How many runs to train beside each other; on a CPU one."""
    workdir: Path = REPO / "checkpoints" / "pareto"


def run(name: str, steps: int, log_every: int, workdir: Path) -> None:
    """A variant, as `experiments/step09_diffusion.py` trains it, without pictures."""
    sys.path.insert(0, str(REPO / "experiments"))
    import step09_diffusion as step09

    from gen_jax import training

    training.split_cpu_devices()
    flags, network = VARIANTS[name]
    rare = f"--checkpoint-every {10**9} --sample-every {10**9}"
    options = f"--steps {steps} --log-every {log_every} {rare} {flags}".split()
    config = step09.parse([*options, "--workdir", str(workdir)])
    network = dataclasses.replace(config.network, **network)
    step09.train(dataclasses.replace(config, network=network))


def rate(name: str, workdir: Path) -> float:
    """Median number of steps a second, when they run."""
    run(name, 60, 10, workdir)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([line["steps_per_second"] for line in lines[2:]]))


def slug(name: str) -> str:
    """A variant's name as a file's."""
    return re.sub(r"\W+", "_", name)


def costs(name: str) -> str:
    """What of a variant decides its rate: two with the same need it measured once."""
    flags, network = VARIANTS[name]
    given = re.findall(r"--(batch-size|optimizer|dtype) (\S+)", flags)
    return json.dumps({flag.replace("-", "_"): value for flag, value in given} | network)


def measure(name: str, minutes: float, steps: int, weight: float, workdir: Path) -> Row:
    """Trains a variant and judges what it draws."""
    import jax

    from gen_jax import generate, metrics, pretrained

    run(name, steps, 50, workdir)
    trained, classifier = pretrained.load_run(workdir), judge(REPO / "checkpoints" / "judge.pt")
    real = metrics.moments(features(classifier, idx("t10k-images-idx3-ubyte")))
    found = {
        "variant": name,
        "minutes": minutes,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.weights["network"])),
        "steps": trained.step,
        "images": trained.step * trained.options["batch_size"],
        "trained_on": jax.devices()[0].device_kind,
    }
    for kind, chosen in (("plain", 1.0), ("guided", weight)):
        options = {"solver": "ddpm", "nfe": 50, "guidance": chosen}
        images, _ = generate.sample(trained.model, trained.weights, jax.random.key(1), NUM, **options)
        p = probabilities(classifier, images)
        drawn = metrics.moments(features(classifier, images))
        found[f"distance {kind}"] = float(metrics.frechet_distance(real, drawn))
        found[f"sure {kind}"] = float(np.mean(p.max(1) >= 0.9))
    return found


def front(rows: list[Row]) -> list[bool]:
    """Whether no other row has a smaller distance, guided, in no more time."""
    pair = [(row["minutes"], row["distance guided"]) for row in rows]
    return [not any(m <= minutes and d < distance for m, d in pair) for minutes, distance in pair]


def write_page(rates_of: dict[str, str], kept: Kept, weight: float) -> None:
    """PARETO.md, of all that is kept."""
    rows = [found for title, found in kept.found.items() if title.startswith("run ")]
    rows.sort(key=lambda row: (row["minutes"], row["distance guided"]))
    head = [
        *("variant", "minutes", "parameters", "steps", "images"),
        *("distance", "distance, guided", "sure of", "sure of, guided", "on the front"),
    ]
    table = [
        [
            *(row["variant"], f"{row['minutes']:g}", f"{row['parameters'] / 1e6:.2f} M", f"{row['steps']}"),
            *(f"{row['images']}", f"{row['distance plain']:.1f}", f"{row['distance guided']:.1f}"),
            *(f"{row['sure plain']:.1%}", f"{row['sure guided']:.1%}", "yes" if on else ""),
        ]
        for row, on in zip(rows, front(rows), strict=True)
    ]
    on = ", ".join(sorted({row["trained_on"] for row in rows}))
    Path(__file__).with_name("PARETO.md").write_text(
        f"# Distance against minutes\n\nMade by `{shlex.join(['python', *sys.argv])}` on {datetime.date.today()}. "
        f"Steps a second are of {rates_of['machine']}, with {rates_of['versions']}, from commit {rates_of['commit']}; "
        f"that many minutes of them were made on: {on}. The weight of guidance is {weight:g}; what the columns are: see "
        f"there.\n\n"
        f"{markdown([head, *table])}\n"
    )


def main(config: Config) -> None:
    """Measure the rates, train and judge everything, and write the page."""
    if unknown := set(config.variants) - set(VARIANTS):
        raise ValueError(f"--variants are some of {', '.join(VARIANTS)}; got {', '.join(sorted(unknown))}.")
    config.workdir.mkdir(parents=True, exist_ok=True)
    kept = Kept(config.workdir / "kept.json", {"weight": config.weight})
    rates_of = kept(
        "rates of",
        lambda: {"commit": commit(), "machine": machine(), "versions": versions("jax", "flax", "optax")},
    )
    spawn: Any = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
    rates = {}
    with ProcessPoolExecutor(1, **spawn) as pool:
        for name in config.variants:
            find = lambda name=name: pool.submit(rate, name, config.workdir / f"rate_{slug(name)}").result()
            rates[name] = kept(f"rate {costs(name)}", find)
            print(name, f"{rates[name]:.2f} steps a second", flush=True)
    if config.only_rates:
        return
    judge(REPO / "checkpoints" / "judge.pt")
    every = {f"run {name}: {m:g} minutes": (name, m) for m in config.minutes for name in config.variants}
    with ProcessPoolExecutor(config.processes, **spawn) as pool:
        futures = {}
        for title, (name, minutes) in every.items():
            if title not in kept.found:
                steps = max(50, round(60 * minutes * rates[name] / 50) * 50)
                workdir = config.workdir / f"run_{slug(name)}_{minutes:g}"
                futures[pool.submit(measure, name, minutes, steps, config.weight, workdir)] = title
        for future in as_completed(futures):
            print(json.dumps(kept(futures[future], future.result)), flush=True)
            write_page(rates_of, kept, config.weight)
    write_page(rates_of, kept, config.weight)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
