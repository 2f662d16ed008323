"""How long to digits as good as those of the book's program after 20 minutes: wall time, start-up included.

    python benchmarks/time_to_quality.py            # on two idle cores; most of its time is drawing for the distances
    python benchmarks/time_to_quality.py --minutes 5 --marks 1

The peer is the network and the loop of "Deep Learning from Scratch 5", written here in PyTorch: a U-Net of two levels
with batch norm, max pooling and bilinear upsampling, Adam at 1e-3, batches of 128, 1,000 linear steps of noise; data in
memory, channels-last, in the faster of float32 and bfloat16 (autocast) on this machine. Ours is
`experiments/step09_diffusion.py` as it comes, with more checkpoints, which it pays for.

The distance is Frechet's, between 2,000 samples and the MNIST test set, in the 128 features of `judge.py`'s classifier,
which neither side has seen. For it both sides sample with the same deterministic DDIM of 50 steps, ours with its averaged
parameters and without guidance. Each side is a process of its own, and its clock starts when that does; drawing for the
distance happens afterwards, from checkpoints. What is done is kept in the workdir, and a second run of a command that was
stopped goes on from there; a side whose training was stopped starts anew. Apart from that: the wall time of drawing 64
images each side's own way, the book's with 1,000 steps of DDPM, ours with UniPC of 12 evaluations, compiled.

Printed and written to `benchmarks/TIME_TO_QUALITY.md`: distance against time of both sides, and the ratio of the times.
Needs the extra `bench`.
"""

import datetime
import itertools
import json
import multiprocessing
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from judge import REPO, as_input, features, idx, judge
from pages import Kept, commit, machine, markdown, versions
from torch import nn
from torch.nn import functional as F

STEPS = 1000
NUM = 2000
DTYPES = {"float32": False, "bfloat16": True}
"""By which autocast is on."""


@dataclass(frozen=True)
class Config:
    """What to run."""

    minutes: float = 20.0
    """Of the book's program."""
    marks: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """After which parts of them its distance is taken."""
    to_the_end: bool = True
    """Draw from all of our checkpoints, or until one is as good as the book's last."""
    workdir: Path = REPO / "checkpoints" / "time_to_quality"
    ours: str = ""
    """More flags for `step09_diffusion.py`, as one word: --ours="--steps 800"."""


# --- the book's program ---


class Block(nn.Module):
    """Two convolutions with batch norm; the embedding of the time is added to what comes in."""

    def __init__(self, inputs: int, features: int, embedding: int):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU()),
            *(nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU()),
        )
        self.time = nn.Sequential(nn.Linear(embedding, inputs), nn.ReLU(), nn.Linear(inputs, inputs))

    def forward(self, x, emb):
        """Map `x`, told by `emb`."""
        return self.body(x + self.time(emb)[:, :, None, None])


class BookUNet(nn.Module):
    """64 channels at 28 x 28, 128 at 14 x 14, 256 at 7 x 7."""

    def __init__(self, embedding: int = 100):
        super().__init__()
        self.embedding = embedding
        self.down_1, self.down_2 = Block(1, 64, embedding), Block(64, 128, embedding)
        self.bottom = Block(128, 256, embedding)
        self.up_2, self.up_1 = Block(128 + 256, 128, embedding), Block(64 + 128, 64, embedding)
        self.out = nn.Conv2d(64, 1, 1)

    def forward(self, x, t):
        """The noise in `x` at the steps `t`."""
        frequencies = 10_000.0 ** (-torch.arange(0, self.embedding, 2) / self.embedding)
        angles = t[:, None].float() * frequencies
        emb = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
        twice = lambda h: F.interpolate(h, scale_factor=2, mode="bilinear")
        one = self.down_1(x, emb)
        two = self.down_2(F.max_pool2d(one, 2), emb)
        h = twice(self.bottom(F.max_pool2d(two, 2), emb))
        h = twice(self.up_2(torch.cat([h, two], 1), emb))
        return self.out(self.up_1(torch.cat([h, one], 1), emb))


ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS), 0)


def book_step(net: nn.Module, optimizer: torch.optim.Optimizer, x_0: torch.Tensor, bfloat16: bool) -> None:
    """One update."""
    t, eps = torch.randint(1, STEPS + 1, (len(x_0),)), torch.randn_like(x_0)
    a = ALPHA_BAR[t - 1][:, None, None, None]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        eps_hat = net(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t)
    optimizer.zero_grad(set_to_none=True)
    F.mse_loss(eps_hat.float(), eps).backward()
    optimizer.step()


def book_images() -> torch.Tensor:
    """The training set as the book has it: in [0, 1]."""
    return as_input(idx("train-images-idx3-ubyte")).contiguous(memory_format=torch.channels_last)


def book_parts() -> tuple[BookUNet, torch.optim.Optimizer]:
    """A new network, and Adam."""
    torch.manual_seed(0)
    net = BookUNet().to(memory_format=torch.channels_last)
    return net, torch.optim.Adam(net.parameters(), 1e-3, fused=True)


def seconds_a_step(bfloat16: bool, rounds: int = 5) -> float:
    """Median time of a step."""
    (net, optimizer), x = book_parts(), book_images()[:128]
    book_step(net, optimizer, x, bfloat16)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        book_step(net, optimizer, x, bfloat16)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def train_book(config: Config, bfloat16: bool, started: float) -> None:
    """Trains until the time is up, and keeps the parameters at each mark, named by the seconds since `started`."""
    (net, optimizer), images, step = book_parts(), book_images(), 0
    marks = [60 * config.minutes * part for part in config.marks]
    while True:
        for rows in torch.randperm(len(images))[: len(images) // 128 * 128].split(128):
            book_step(net, optimizer, images[rows], bfloat16)
            step += 1
            if time.time() - started >= marks[0]:
                torch.save(net.state_dict(), config.workdir / f"book_{int(time.time() - started)}_{step}.pt")
                if not marks.pop(0) or not marks:
                    return


@torch.no_grad()
def draw_book(state: Path, num: int, nfe: int, ancestral: bool = False, batch: int = 250) -> np.ndarray:
    """Samples by DDIM, or as the book draws them, by DDPM; bytes `[num, 28, 28]`."""
    net, _ = book_parts()
    net.load_state_dict(torch.load(state))
    net.eval()
    torch.manual_seed(1)
    parts = []
    for start in range(0, num, batch):
        x = torch.randn(min(batch, num - start), 1, 28, 28).contiguous(memory_format=torch.channels_last)
        times = [round(STEPS * k / nfe) for k in range(nfe, -1, -1)]
        for t, s in itertools.pairwise(times):
            a_t, a_s = ALPHA_BAR[t - 1], ALPHA_BAR[s - 1] if s else torch.tensor(1.0)
            eps = net(x, torch.full((len(x),), t)).float()
            noise = ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt() if ancestral else torch.tensor(0.0)
            x_0 = (x - (1 - a_t).sqrt() * eps) / a_t.sqrt()
            x = a_s.sqrt() * x_0 + (1 - a_s - noise**2).sqrt() * eps + noise * torch.randn_like(x)
        parts.append((x.clip(0, 1) * 255).byte().numpy()[:, 0])
    return np.concatenate(parts)


# --- ours ---


def train_ours(config: Config, started: float) -> None:
    """The experiment, as a user runs it."""
    script, workdir = REPO / "experiments" / "step09_diffusion.py", config.workdir / "ours"
    flags = [
        "--workdir",
        str(workdir),
        "--checkpoint-every",
        "100",
        "--keep",
        "100",
        *shlex.split(config.ours),
    ]
    subprocess.run(
        [sys.executable, str(script), *flags], check=True, env={**os.environ, "PYTHONPATH": str(REPO)}
    )


def draw_ours(checkpoint: Path) -> np.ndarray:
    """Samples of a checkpoint by DDIM, without guidance."""
    import jax

    from gen_jax import generate, pretrained

    with tempfile.TemporaryDirectory() as alone:
        shutil.copytree(checkpoint, Path(alone, "checkpoints", checkpoint.name))
        model, weights = pretrained.load(alone)
    options = {"solver": "ddim", "nfe": 50, "guidance": 1.0}
    return generate.sample(model, weights, jax.random.key(1), NUM, **options)[0]


def seconds_of_64(workdir: Path) -> float:
    """Wall time of drawing 64 images with UniPC of 12 evaluations, compiled: median of five."""
    import jax

    from gen_jax import generate, pretrained

    model, weights = pretrained.load(workdir)
    draw, plan = generate.sampler(model), generate.plan(model, "unipc", 12)
    weights = draw.place({"network": weights["network"]})
    one = lambda k: jax.block_until_ready(draw(weights, jax.random.key(k), plan, np.arange(64)))
    one(0)
    times = []
    for k in range(1, 6):
        start = time.perf_counter()
        one(k)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


# --- the comparison ---


def spawned(target, *args, over: Iterable[Path]) -> float:
    """Runs a side in a process of its own, over what a stopped run of it left; when it was started."""
    for path in over:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    started = time.time()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(*args, started))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{target.__name__} failed: its last lines are above.")
    return started


def seconds_of_book(state: Path) -> float:
    """Wall time of drawing 64 images as the book does."""
    start = time.perf_counter()
    draw_book(state, 64, STEPS, ancestral=True)
    return time.perf_counter() - start


def main(config: Config) -> None:
    """Trains both sides, and says how far each was and when."""
    from gen_jax import metrics, training

    training.split_cpu_devices()
    config.workdir.mkdir(parents=True, exist_ok=True)
    of = {"commit": commit(), "minutes": config.minutes, "marks": config.marks, "ours": config.ours}
    kept, ours = Kept(config.workdir / "kept.json", of), config.workdir / "ours"
    classifier = judge(REPO / "checkpoints" / "judge.pt")
    real = metrics.moments(features(classifier, idx("t10k-images-idx3-ubyte")))
    distance = lambda images: float(
        metrics.frechet_distance(real, metrics.moments(features(classifier, images)))
    )

    floats, bfloats = (kept(f"book, {dtype}", lambda b=b: seconds_a_step(b)) for dtype, b in DTYPES.items())
    books = lambda: config.workdir.glob("book_*.pt")
    kept("book began", lambda: spawned(train_book, config, bfloats < floats, over=books()))
    began = kept("ours began", lambda: spawned(train_ours, config, over=config.workdir.glob("ours")))
    states = sorted(books(), key=lambda path: int(path.stem.split("_")[1]))
    seconds = {
        "book": kept("64 of the book's", lambda: seconds_of_book(states[-1])),
        "ours": kept("64 of ours", lambda: seconds_of_64(ours)),
    }

    rows: list[tuple[str, float, int, float]] = []
    for path in states:
        _, at, step = path.stem.split("_")
        rows.append(
            ("book", float(at), int(step), kept(path.stem, lambda p=path: distance(draw_book(p, NUM, 50))))
        )
        print(*rows[-1], flush=True)
    goal = rows[-1][3]
    for path in sorted((ours / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name)):
        found = kept(f"ours_{path.name}", lambda p=path: distance(draw_ours(p)))
        rows.append(("ours", path.stat().st_ctime - began, int(path.name), found))
        print(*rows[-1], flush=True)
        if found <= goal and not config.to_the_end:
            break
    reached = next((at for side, at, _, d in rows if side == "ours" and d <= goal), None)
    result = {
        "book_dtype": "bfloat16" if bfloats < floats else "float32",
        "book_seconds_a_step_in_float32": round(floats, 3),
        "book_seconds_a_step_in_bfloat16": round(bfloats, 3),
        "goal": round(goal, 2),
        "of_real_data": round(distance(idx("train-images-idx3-ubyte")[:NUM]), 2),
        "ours_reached_it_after_seconds": reached and round(reached),
        "times_faster": reached and round(rows[len(states) - 1][1] / reached, 1),
        "seconds_of_64_images_by_the_book": round(seconds["book"], 2),
        "seconds_of_64_images_by_ours": round(seconds["ours"], 2),
    }
    print(json.dumps(result))
    write_page(rows, result)


def write_page(rows: list[tuple[str, float, int, float]], result: dict[str, object]) -> None:
    """TIME_TO_QUALITY.md."""
    head = ["side", "seconds since its start", "updates", "Frechet distance"]
    table = markdown([head, *([side, f"{at:.0f}", f"{step}", f"{d:.1f}"] for side, at, step, d in rows)])
    said = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in result.items())
    path = Path(__file__).with_name("TIME_TO_QUALITY.md")
    path.write_text(
        f"# Time to quality\n\nMade by `{shlex.join(['python', *sys.argv])}` on {datetime.date.today()}, from commit "
        f"{commit()}, on {machine()}, with torch {torch.__version__}, {versions('jax', 'flax', 'optax')}. What is "
        f"compared: see there.\n\n{said}\n\n"
        f"{table}\n"
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
