"""Damaged files of a run: each kind of file, and twelve damages; it is read to the bit, or an error says why."""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import soak_runs
from soak_worker import Wrong

from gen_jax import pretrained
from gen_jax.model import Sampling

FILES = {
    "config.json": r"config\.json",
    "metrics.jsonl": r"metrics\.jsonl",
    "lock": r"\.lock",
    "summary.json": r"summary\.json",
    "samples": r"(samples|labels|forward)\.(npy|png)",
    "tensorboard": r"tensorboard/.*",
    "marks of completion": r"checkpoints/\d+/([a-z_]+/)?commit_success\.txt",
    "checkpoint metadata": r"checkpoints/\d+/_CHECKPOINT_METADATA",
    "config and checksums": r"checkpoints/\d+/meta/metadata",
    "tree of arrays": r"checkpoints/\d+/[a-z_]+/_METADATA",
    "sharding": r"checkpoints/\d+/[a-z_]+/_sharding",
    "manifest": r"checkpoints/\d+/[a-z_]+/(ocdbt\.process_0/)?manifest\.ocdbt",
    "arrays": r"checkpoints/\d+/[a-z_]+/(ocdbt\.process_0/)?d/.*",
    "types of arrays": r"checkpoints/\d+/[a-z_]+/array_metadatas/.*",
}
"""Each kind of file, by where it is in the directory of a run."""
HUGE = 20 * 10**9

Damage = Callable[[random.Random, Path, Path], None]
"""Changes a file; the last one is the same of another run."""


def _put(file: Path, raw: bytes) -> None:
    """Other bytes in the place of a file, which may be a link to one that stays."""
    file.unlink()
    file.write_bytes(raw)


def truncated(rng: random.Random, file: Path, other: Path) -> None:
    """At the first bytes, in the middle or before the last byte."""
    raw = file.read_bytes()
    _put(file, raw[: rng.choice([1, 8, len(raw) // 4, len(raw) // 2, max(len(raw) - 1, 0)])])


def flipped(rng: random.Random, file: Path, other: Path) -> None:
    """One to four bits."""
    raw = bytearray(file.read_bytes())
    for _ in range(rng.randint(1, 4) if raw else 0):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    _put(file, raw)


def _filled(what: Callable[[random.Random, int], bytes]) -> Damage:
    def fill(rng: random.Random, file: Path, other: Path) -> None:
        raw = bytearray(file.read_bytes())
        begin = rng.randrange(len(raw) + 1)
        end = rng.choice([len(raw), min(begin + 16, len(raw))])
        raw[begin:end] = what(rng, end - begin)
        _put(file, raw)

    return fill


def appended(rng: random.Random, file: Path, other: Path) -> None:
    """Bytes at the end, or the file twice."""
    raw = file.read_bytes()
    _put(file, raw + rng.choice([b"\0", rng.randbytes(100), raw]))


def looped(rng: random.Random, file: Path, other: Path) -> None:
    """A link to itself."""
    file.unlink()
    file.symlink_to(file.name)


def directory(rng: random.Random, file: Path, other: Path) -> None:
    """In the place of the file."""
    file.unlink()
    file.mkdir()


def forbidden(rng: random.Random, file: Path, other: Path) -> None:
    """That nobody may read."""
    _put(file, file.read_bytes())
    file.chmod(0)


def huge(rng: random.Random, file: Path, other: Path) -> None:
    """Zeros behind it, of which the disk has none."""
    _put(file, file.read_bytes())
    with file.open("r+b") as open_:
        open_.truncate(HUGE)


DAMAGES: dict[str, Damage] = {
    "truncated": truncated,
    "emptied": lambda rng, file, other: _put(file, b""),
    "bits flipped": flipped,
    "zeros": _filled(lambda rng, size: bytes(size)),
    "random bytes": _filled(lambda rng, size: rng.randbytes(size)),
    "appended": appended,
    "another run's": lambda rng, file, other: _put(file, other.read_bytes()),
    "a directory": directory,
    "removed": lambda rng, file, other: file.unlink(),
    "no permission": forbidden,
    "link to itself": looped,
    "huge": huge,
}


class Cases:
    """Case `i`: a kind of file, a damage, and one of the two runs, that goes on or is drawn from."""

    kinds = tuple(DAMAGES)

    def __init__(self, place: Path, seed: int):
        self._place, self._seed = place, seed
        self._sound, self._other = place / "sound", place / "another"
        self._names = {run: self._found(run) for run in ("trained", "model")}

    def _found(self, run: str) -> dict[str, list[str]]:
        root = self._sound / run
        names = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
        found = {kind: [n for n in names if re.fullmatch(where, n)] for kind, where in FILES.items()}
        if missed := set(names) - {name for some in found.values() for name in some}:
            raise ValueError(f"a run has files of no kind that is known here: {sorted(missed)[:5]}.")
        return {kind: some for kind, some in found.items() if some}

    def warm(self) -> None:
        """What is right: the end of the one run, and the weights of each checkpoint of the other."""
        scratch = self._copy("trained", "warm")
        self._right = soak_runs.train(scratch, soak_runs.STEPS)
        self._go_on(scratch)
        shutil.rmtree(scratch)
        self._weights = {}
        for step in (2, 4, 6):
            scratch = self._copy("model", "warm")
            for later in range(step + 2, 8, 2):
                shutil.rmtree(scratch / "checkpoints" / str(later))
            run = pretrained.load_run(scratch)
            self._weights[run.step] = self._leaves(run.weights)
            shutil.rmtree(scratch)
        for a, b in pairwise(self._weights.values()):
            assert not all(map(np.array_equal, a, b))

    def __call__(self, number: int) -> str:
        """Damages a copy and reads it."""
        rng = random.Random(f"{self._seed} {number}")
        damage = self.kinds[number % len(self.kinds)]
        turn = number // len(self.kinds)
        run = ("trained", "model")[turn % 2]
        kind = list(self._names[run])[turn // 2 % len(self._names[run])]
        name = self._chosen(rng, self._names[run][kind])
        scratch = self._copy(run, f"{number}")
        try:
            DAMAGES[damage](rng, scratch / name, self._of_another(run, name))
            said = f"{run}, {name}: "
            try:
                return said + (self._go_on if run == "trained" else self._draw)(scratch)
            except Wrong as error:
                raise Wrong(f"{said}{damage}: {error}") from None
        finally:
            shutil.rmtree(scratch)

    def _chosen(self, rng: random.Random, names: list[str]) -> str:
        """Of the newest checkpoint more often than of others, which are not looked at while that is whole."""
        newest = [n for n in names if f"/{soak_runs.TRAINED}/" in n or "/6/" in n]
        return rng.choice(newest if newest and rng.random() < 0.7 else names)

    def _of_another(self, run: str, name: str) -> Path:
        """The same file of another run, or where names are numbers, one beside it."""
        place = self._other / run / name
        return place if place.is_file() else next(f for f in sorted(place.parent.iterdir()) if f.is_file())

    def _copy(self, run: str, name: str) -> Path:
        scratch = self._place / "cases" / name
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(self._sound / run, scratch)
        return scratch

    def _go_on(self, workdir: Path) -> str:
        """Train to the end, where every bit must be as without damage."""
        state = soak_runs.train(workdir, soak_runs.STEPS)
        if not all(map(np.array_equal, state, self._right)):
            raise Wrong("it went on and ended in other bits")
        return "went on"

    def _draw(self, workdir: Path) -> str:
        """Load, which must give the model and the weights of one of its checkpoints."""
        run = pretrained.load_run(workdir)
        settled = lambda model: replace(model.undrawn(), condition=replace(model.condition, names=()))
        if settled(run.model) != settled(soak_runs.MODEL):
            raise Wrong(f"it is another model: {run.model}")
        if run.step not in self._weights:
            raise Wrong(f"it is of step {run.step}, where there was no checkpoint")
        if not all(map(np.array_equal, self._leaves(run.weights), self._weights[run.step])):
            raise Wrong(f"it has other weights than step {run.step}")
        assert isinstance(run.model.sampling, Sampling)
        return f"loaded step {run.step}"

    @staticmethod
    def _leaves(weights: object) -> list[np.ndarray]:
        return [np.asarray(x) for x in jax.tree.leaves(weights)]
