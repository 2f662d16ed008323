"""Runs are killed, files damaged, inputs mutated; what must hold is counted: makes the figures of docs/reliability.md.

    python benchmarks/soak.py --page --kills 200 --damaged 1000 --mutated 10000

- `kills`: small runs of steps 5, 7, 8, 9 and 10, in processes of their own, are ended by SIGKILL, SIGTERM and SIGINT at
  random instants, inside writes and inside renames, and begun again until they are complete. The parameters, the
  averages, the state of the optimizer and the samples must equal those of a run that was left alone, bit for bit.
- `damaged`: each kind of file that a run has, times twelve damages. The run goes on to the same bits, or is drawn from
  with the weights of one of its checkpoints, or an error says what is wrong.
- `mutated`: config.json, the metadata of checkpoints, .npz, .csv, PNG and safetensors, changed by what a seed draws. What
  is read is what an independent reader finds in the same bytes, or an error says what is wrong.

No case may take a minute, 2 GiB, or run code; where Python starts a program, unpickles or evaluates, the case is counted
as one that did. With `--page` the rows replace those in docs/reliability.md; a part of which there are 0 stays there.
"""

import datetime
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pages
import soak_kills
import tyro
from soak_worker import BYTES, SECONDS, Worker, environment_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
MARKS = "<!-- soak -->", "<!-- /soak -->"
FLAGS = {"killed": "kills", "damaged": "damaged", "mutated": "mutated"}
FAULTS = ("wrong", "traceback", "hang", "memory", "died", "code")
"""What must not be; all else is right, or an error in a sentence."""


@dataclass(frozen=True)
class Config:
    """How much of each."""

    kills: int = 200
    """Of runs."""
    damaged: int = 1000
    """Files."""
    mutated: int = 10_000
    """Inputs."""
    seed: int = 0
    """Of all that is drawn."""
    jobs: int = 2
    """Cases at a time."""
    place: Path | None = None
    """Where it is done, and what it leaves (default: a directory that is removed)."""
    page: bool = False
    """Write the table into docs/reliability.md."""


def workers(module: str, count: int, place: Path, config: Config) -> list[dict[str, Any]]:
    """What the cases of a module came to; `jobs` processes take every other one."""

    def some(job: int) -> list[dict[str, Any]]:
        own = place / f"{module}-{job}"
        own.mkdir(parents=True)
        make(own)
        worker = Worker(module, own, config.seed)
        found = [worker.ask(number) for number in range(job, count, config.jobs)]
        worker.close()
        return found

    with ThreadPoolExecutor(config.jobs) as pool:
        return sorted((each for found in pool.map(some, range(config.jobs)) for each in found), key=number_of)


def number_of(found: dict[str, Any]) -> int:
    """Of a case."""
    return int(found["number"])


def make(place: Path) -> None:
    """The two runs, and those of another seed."""
    for seed, name in enumerate(("sound", "another")):
        code = "import soak_runs, sys, pathlib; soak_runs.make(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
        command = [sys.executable, "-c", code, str(place / name), str(seed)]
        subprocess.run(command, env=environment_of(place), check=True, capture_output=True)


def rows(name: str, found: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Of the table: one for each kind."""
    for kind in dict.fromkeys(each["kind"] for each in found):
        some = [each for each in found if each["kind"] == kind]
        ended = Counter(each["ended"] for each in some)
        yield [
            f"{name}: {kind}",
            f"{len(some):,}",
            f"{ended['right']:,}",
            f"{ended['error']:,}",
            *(str(ended[fault]) for fault in ("wrong", "traceback")),
            str(ended["hang"]),
            str(ended["memory"] + ended["died"]),
            str(ended["code"]),
            f"{max(each['seconds'] for each in some):.1f}",
            f"{max(each['bytes'] for each in some) / 2**30:.2f}",
        ]


HEAD = [
    "what",
    "cases",
    "right",
    "said why not",
    "wrong bits",
    "no sentence",
    "hung",
    "died",
    "ran code",
    "longest, s",
    "GiB",
]


def main(config: Config) -> int:
    """Do it, print the table, and what must not be; returns how much of that there was."""
    parts: dict[str, tuple[int, Callable[[int, Path, Config], list[dict[str, Any]]]]] = {
        "mutated": (
            config.mutated,
            lambda count, place, config: workers("soak_inputs", count, place, config),
        ),
        "damaged": (
            config.damaged,
            lambda count, place, config: workers("soak_damage", count, place, config),
        ),
        "killed": (
            config.kills,
            lambda count, place, config: soak_kills.cases(count, place, config.seed, config.jobs),
        ),
    }
    made, faults = dict[str, tuple[list[list[str]], str]](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        for name, (count, do) in parts.items():
            if not count:
                continue
            began = time.perf_counter()
            found = do(count, (config.place or Path(scratch)) / name, config)
            for each in found:
                if each["ended"] not in FAULTS and (each["seconds"] > SECONDS or each["bytes"] > BYTES):
                    each["ended"] = "hang" if each["seconds"] > SECONDS else "memory"
            faults += [each for each in found if each["ended"] in FAULTS]
            minutes = (time.perf_counter() - began) / 60
            made[name] = list(rows(name, found)), sentence(name, count, config.seed, minutes)
            print(f"{name}: {len(found)} cases in {minutes:.0f} minutes", flush=True)
            if config.page:  # a part takes long, and the next one may be ended
                write({name: made[name]})
    print(pages.markdown([HEAD, *(row for each, _ in made.values() for row in each)]))
    for each in faults[:100]:
        print(f"{each['ended']}: {each['kind']}, case {each['number']}: {each['said']:.500}")
    return len(faults)


def sentence(name: str, count: int, seed: int, minutes: float) -> str:
    """How a part was made."""
    flags = " ".join(f"--{flag} {count if flag == FLAGS[name] else 0}" for flag in FLAGS.values())
    return (
        f"- {name}: `python benchmarks/soak.py --page {flags} --seed {seed}`, {datetime.date.today()}, from commit "
        f"{pages.commit()}, in {minutes:.0f} minutes on {pages.machine()}, with {pages.versions('jax', 'pillow')}"
    )


def write(made: dict[str, tuple[list[list[str]], str]]) -> None:
    """Put rows and a sentence of each part between the marks of the page; those of other parts stay."""
    begin, end = map(re.escape, MARKS)
    text = PAGE.read_text()
    lines = "".join(re.findall(f"(?s){begin}(.*){end}", text)).splitlines()
    table = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")][2:]
    said = {line[2:].partition(":")[0]: line for line in lines if line.startswith("- ")}
    for name, (new, line) in made.items():
        table = [row for row in table if not row[0].startswith(f"{name}: ")] + new
        said[name] = line
    table.sort(key=lambda row: list(FLAGS).index(row[0].partition(":")[0]))
    whole = "\n".join(
        [MARKS[0], pages.markdown([HEAD, *table]), "", *(said[x] for x in FLAGS if x in said), MARKS[1]]
    )
    PAGE.write_text(re.sub(f"(?s){begin}.*{end}", lambda _: whole, text))


if __name__ == "__main__":
    sys.exit(min(main(tyro.cli(Config, description=__doc__)), 1))
