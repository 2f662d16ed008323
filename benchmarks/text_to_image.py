"""What text to image gets out of its minutes: the default training with a thing or two changed: makes TEXT_TO_IMAGE.md.

    python benchmarks/text_to_image.py --rows default                  # about half an hour on two cores
    python benchmarks/text_to_image.py --rows "times 0" "rate 8e-3"     # adds rows to the same page

Every row is a run of `experiments/step10_text_to_image.py` with other flags, in the latents of one autoencoder, judged
by `evaluation.scenes` on samples for 1,000 captions of test scenes: shares of objects whose digit, colour and size are
right, of scenes with one and with two objects that are right as a whole, and of objects in combinations that no training
scene has. On the front are those that no other beats in less time.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from pages import Kept, commit, machine, markdown

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "checkpoints" / "text_to_image"
ROWS = {
    "default": "",
    "1,000 steps": "--steps 1000",
    "times 0": "--steps 1000 --times-mean 0",
    "times 1.4": "--steps 1000 --times-mean 1.4",
    "rate 8e-3": "--steps 1000 --learning-rate 8e-3",
    "batch 32": "--steps 2000 --batch-size 32",
    "text 64": "--steps 1000 --text-features 64",
    "Adam": "--steps 1000 --optimizer adam --learning-rate 1e-3",
    "KL 10": "--steps 1000 --kl-weight 10",
}
"""Flags of the experiment."""
SCORES = (("all", "objects"), ("all", "one"), ("all", "two"), ("held_out", "objects"))
"""In `evaluation.scenes.as_dict`."""


@dataclass(frozen=True)
class Config:
    """Which rows to add."""

    rows: tuple[str, ...] = ("default",)
    """Names in `ROWS`."""


def find(name: str) -> dict[str, Any]:
    """The figures of a run, made now."""
    workdir, first = RUNS / name.replace(" ", "_"), RUNS / "default" / "autoencoder"
    given = ["--autoencoder", str(first)] if first.exists() and "kl-weight" not in ROWS[name] else []
    command = [sys.executable, "experiments/step10_text_to_image.py", *ROWS[name].split()]
    subprocess.run([*command, "--workdir", str(workdir), *given], cwd=ROOT, check=True)
    found = json.loads((workdir / "summary.json").read_text())
    scores = [found["scenes"]["found"][group][name]["value"] for group, name in SCORES]
    return {"minutes": found["seconds_of_training"] / 60, "scores": scores}


def main(config: Config) -> None:
    """Run, and write the page."""
    RUNS.mkdir(parents=True, exist_ok=True)
    kept = Kept(RUNS / "kept.json", {"scores": SCORES})
    for name in config.rows:
        kept(name, lambda name=name: find(name))
    found = {name: kept.found[name] for name in ROWS if name in kept.found}
    best = lambda a: (
        not any(b["scores"][0] > a["scores"][0] and b["minutes"] <= a["minutes"] for b in found.values())
    )
    percent = lambda x: f"{100 * x:.1f}"
    rows = [["", "flags", "minutes", "objects, %", "one, %", "two, %", "held out, %", "front"]] + [
        [name, f"`{ROWS[name]}`" if ROWS[name] else "", f"{x['minutes']:.1f}"]
        + [percent(score) for score in x["scores"]]
        + ["yes" if best(x) else ""]
        for name, x in found.items()
    ]
    command = 'python benchmarks/text_to_image.py --rows "' + '" "'.join(found) + '"'
    head = f"# Text to image\n\nMade by `{command}` from commit {commit()}, on {machine()}; minutes are of the U-Net.\n"
    (ROOT / "benchmarks" / "TEXT_TO_IMAGE.md").write_text(f"{head}\n{markdown(rows)}\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
