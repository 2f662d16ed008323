"""Small runs of the experiments, ended by signals and begun again, against runs that were left alone.

Each run is a process of its own, forked from one that has imported everything: it begins at once, so that signals fall on
its work. An instant is a time, or an event of the run: the opening of a file for writing or a renaming, right before it
or a moment after.
"""

import dataclasses
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soak_worker import HERE, SECONDS, environment_of

SHORT = [
    "--batch-size",
    "16",
    "--num",
    "3",
    "--steps",
    "12",
    "--steps-per-call",
    "2",
    "--log-every",
    "2",
    "--checkpoint-every",
    "2",
    "--no-progress",
]
IMAGES = ["--test-images", "16", "--test-samples", "3", "--hidden", "8"]
STEPS = {
    "step 5": ("step05_em", ["--num-restarts", "1", "--max-components", "2", "--num", "20"]),
    "step 7": ("step07_vae", [*SHORT, *IMAGES, "--latent", "2"]),
    "step 8": ("step08_hvae", [*SHORT, *IMAGES, "--latents", "3", "2"]),
    "step 9": ("step09_diffusion", [*SHORT, "--nfe", "2", "--solver", "ddim"]),
    "step 10": ("step10_conditional", [*SHORT, "--nfe", "2", "--solver", "ddim"]),
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KILLS = 5
"""Of a run, at most, before it is left alone."""
RATES = (
    *("seconds", "steps_per_second", "images_per_second"),
    *("mfu", "data_share", "checkpoint_share", "peak_bytes"),
)


def cases(count: int, place: Path, seed: int, jobs: int) -> list[dict[str, Any]]:
    """What came of so many signals: each with the end of the run that it fell on."""
    place.mkdir(parents=True, exist_ok=True)
    _images(place / "images.npz")
    share = [(step, job) for step in STEPS for job in range(jobs)]
    counts = {each: count // len(share) + (i < count % len(share)) for i, each in enumerate(share)}

    def some(job: int) -> list[dict[str, Any]]:
        return [
            found
            for step in STEPS
            for found in Runs(step, place / f"{STEPS[step][0]}-{job}", f"{seed} {job}").killed(
                counts[step, job]
            )
        ]

    with ThreadPoolExecutor(jobs) as pool:
        found = [each for part in pool.map(some, range(jobs)) for each in part]
    return [each | {"number": i} for i, each in enumerate(found)]


def _images(path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez(path, image=rng.integers(0, 256, (400, 8, 8, 1), np.uint8), label=np.arange(400) % 3)


class Runs:
    """The runs of a step, one after the other."""

    def __init__(self, step: str, place: Path, seed: str):
        self._step, self._place, self._random = step, place, random.Random(f"{seed} {step}")
        place.mkdir(parents=True, exist_ok=True)
        code = "import soak_kills, sys; soak_kills.fork_runs(sys.argv[1])"
        with (place / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, STEPS[step][0]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment_of(place.parent),
                text=True,
            )

    def killed(self, count: int) -> Iterator[dict[str, Any]]:
        """Cases, until there are as many."""
        if not count:
            return
        self._start(self._place / "warm", {})
        began = time.monotonic()
        whole = self._start(self._place / "whole", {"how": "count"})
        took = time.monotonic() - began
        if whole["code"] != 0:
            raise RuntimeError(f"{self._step} does not run: {self._said()}")
        events, number = json.loads((self._place / "whole.count").read_text()), 0
        while count > 0:
            found = list(self._one(self._place / f"{number}", events, took, min(KILLS, count)))
            count, number = count - len(found), number + 1
            with (self._place / "cases.jsonl").open("a") as file:
                file.writelines(json.dumps(each) + "\n" for each in found)
            yield from found
        self._process.kill()
        self._process.wait()

    def _one(self, workdir: Path, events: dict[str, int], took: float, most: int) -> Iterator[dict[str, Any]]:
        """The signals that fell on one run, and what became of it."""
        fell, longest, peak, late = [], 0.0, 0, ""
        for _ in range(most):
            number, how = self._random.choice(SIGNALS), self._random.choice(("time", "write", "rename"))
            instant: dict[str, Any] = {"how": how, "signal": int(number)}
            if how == "time":
                instant["after"] = self._random.uniform(0, took)
            else:
                instant["nth"] = self._random.randint(1, max(events[how], 1))
                instant["delay"] = self._random.choice((0.0, self._random.uniform(0, 0.02)))
            ended = self._start(workdir, instant)
            longest, peak = max(longest, ended["late"]), max(peak, ended["bytes"])
            if not ended["fell"]:
                break  # it was complete before
            fell.append(f"{number.name} at {instant}")
            if ended["hung"]:
                late = self._said()
                break
        hung = longest > SECONDS
        last = self._start(workdir, {})
        if hung or last["hung"]:
            how_ended, said = "hang", late or self._said()
        elif last["code"] != 0:
            said = self._said()
            how_ended = "traceback" if "Traceback" in said else "error"
        else:
            said = self._compared(workdir)
            how_ended = "wrong" if said else "right"
        for each in fell:
            yield {
                "kind": self._step,
                "ended": how_ended,
                "said": f"{each}: {said[-400:]}",
                "seconds": longest,
                "bytes": max(peak, last["bytes"]),
            }

    def _start(self, workdir: Path, instant: dict[str, Any]) -> dict[str, Any]:
        """Begin a run and wait for its end; of a signal, `late` is how long it took to follow it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        name, flags = STEPS[self._step]
        flags = [*flags, "--workdir", str(workdir)]
        if name != "step05_em":
            flags += ["--dataset", str(self._place.parent / "images.npz")]
        (self._place / "fell").unlink(missing_ok=True)
        self._process.stdin.write(
            json.dumps({"flags": flags, "instant": instant, "place": str(self._place)}) + "\n"
        )
        self._process.stdin.flush()
        process = int(self._process.stdout.readline())
        sent, hung = None, False
        ended = threading.Event()
        lines: list[dict[str, Any]] = []

        def wait() -> None:
            lines.append(json.loads(self._process.stdout.readline()))  # type: ignore[union-attr]
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        if instant.get("how") == "time" and not ended.wait(instant["after"]):
            os.kill(process, instant["signal"])
            sent = time.monotonic()
        began = time.monotonic()
        while not ended.wait(0.05):
            if sent is None and (self._place / "fell").exists():
                sent = time.monotonic()
            if time.monotonic() - (sent or began) > (SECONDS if sent else 5 * SECONDS):
                os.kill(process, signal.SIGKILL)
                hung = True
                break
        ended.wait()
        fell = sent is not None or (self._place / "fell").exists()
        late = time.monotonic() - sent if sent else 0.0
        return lines[0] | {"fell": fell, "late": late, "hung": hung}

    def _compared(self, workdir: Path) -> str:
        """In what a run differs from the one that was left alone; "" for nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"compare": [str(workdir), str(self._place / "whole")]}) + "\n")
        self._process.stdin.flush()
        return str(json.loads(self._process.stdout.readline()))

    def _said(self) -> str:
        return (self._place / "run.txt").read_text(errors="replace")[-1500:]


def fork_runs(script: str) -> None:
    """The other side: a line with flags and an instant is a run, answered by its process and by how it ended."""
    import jax  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import tensorstore  # noqa: F401

    from gen_jax import data, em, generate, hvae, launch, plots, pretrained, training, vae  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        read, write = os.pipe()
        process = os.fork()
        if not process:
            os.close(read)
            _child(script, asked, write)
        os.close(write)
        if "flags" in asked:
            print(process, file=answers, flush=True)
        with os.fdopen(read) as pipe:
            said = pipe.read()
        _, status, used = os.wait4(process, 0)
        code = os.waitstatus_to_exitcode(status)
        answer: Any = {"code": code, "bytes": 1024 * used.ru_maxrss, "cpu": used.ru_utime + used.ru_stime}
        if "compare" in asked:
            answer = said if code == 0 else f"they can not be compared: {said}"
        print(json.dumps(answer), file=answers, flush=True)


def _child(script: str, asked: dict[str, Any], write: int) -> None:
    code = 0
    try:
        if "compare" in asked:
            os.write(write, compare(*map(Path, asked["compare"])).encode()[:4000])
        else:
            place, instant = Path(asked["place"]), asked["instant"]
            os.dup2(os.open(place / "run.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            os.dup2(1, 2)
            workdir = asked["flags"][asked["flags"].index("--workdir") + 1]
            counted = await_instant(instant, workdir, place / "fell")
            file = HERE.parent / "experiments" / f"{script}.py"
            sys.argv = [str(file), *asked["flags"]]
            sys.path.insert(0, str(file.parent))
            _run(script)
            if instant.get("how") == "count":
                Path(f"{workdir}.count").write_text(json.dumps(counted))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
        traceback.print_exc()
        if "compare" in asked:
            os.write(write, traceback.format_exc().encode()[-1000:])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(script: str) -> None:
    """As the program does, with a network of a few parameters where it has one."""
    module = importlib.import_module(script)
    try:
        config = module.parse()
        if dataclasses.is_dataclass(getattr(config, "network", None)):
            small = dataclasses.replace(config.network, channels=(8,), embedding=16)
            config = dataclasses.replace(config, network=small)
        module.main(config)
    except ValueError as error:
        print(error)
        sys.exit(2)


def await_instant(instant: dict[str, Any], workdir: str, mark: Path) -> Counter[str]:
    """Send this process its signal at the n-th event of a kind; returns what is counted."""
    counted, last = Counter[str]({"write": 0, "rename": 0}), threading.Lock()

    def send() -> None:
        mark.touch()
        os.kill(os.getpid(), instant["signal"])

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename":
            kind, path = "rename", args[0]
        elif event == "open" and (
            (isinstance(args[1], str) and set(args[1]) & set("wax+")) or args[2] & os.O_ACCMODE
        ):
            kind, path = "write", args[0]
        else:
            return
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(workdir):
            return
        with last:
            counted[kind] += 1
            now = kind == instant["how"] and counted[kind] == instant.get("nth")
        if now and instant["delay"]:
            threading.Timer(instant["delay"], send).start()
        elif now:
            send()

    if instant.get("how") in ("write", "rename", "count"):
        sys.addaudithook(hook)
    return counted


def compare(run: Path, whole: Path) -> str:
    """In what they differ: the state bit for bit, samples, figures, and the losses of the log."""
    import numpy as np

    found = []
    if (whole / "checkpoints").exists():
        a, b = state(run), state(whole)
        if a.keys() != b.keys():
            found.append(f"arrays {sorted(a.keys() ^ b.keys())[:5]}")
        found += [name for name in a.keys() & b.keys() if a[name].tobytes() != b[name].tobytes()]
        found += [] if log(run) == log(whole) else ["losses in metrics.jsonl"]
    for name in ("samples.npy", "labels.npy"):
        if (whole / name).exists() and not np.array_equal(np.load(run / name), np.load(whole / name)):
            found.append(name)
    figures = [
        {k: v for k, v in json.loads((place / "summary.json").read_text()).items() if not k.startswith(RATES)}
        for place in (run, whole)
    ]
    return ", ".join(found + ([] if figures[0] == figures[1] else ["summary.json"]))


def state(workdir: Path) -> dict[str, Any]:
    """All arrays of the newest checkpoint."""
    import jax
    import numpy as np

    from gen_jax import training

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    with training.Checkpoints(workdir / "checkpoints", create=False) as saved:
        found = saved.find(
            lambda meta: {
                item: jax.tree.map(like, saved.saved(meta["step"], item)) for item in meta["checksum"]
            }
        )
    assert found is not None
    items, meta, _ = found
    leaves = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(items)}
    return leaves | {"step": np.asarray(meta["step"])}


def log(workdir: Path) -> dict[int, dict[str, object]]:
    """What the log says of each step, but for times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k not in RATES} for line in lines}
