"""The judge of captioned scenes: how well it reads, its ceiling on real scenes, and what it says of samples.

    python benchmarks/judge_scenes.py [checkpoints/step10_text_to_image/samples.npy] [--captions captions.json]

It is trained once (about a minute on two cores, kept in the cache). Printed are the share of test digits that it reads,
beside that of 5 nearest neighbours among 20,000 training crops, how fast scenes are drawn, and a table of the scores of
real test scenes. With samples (uint8 [N, 48, 48, 3]) and their captions (a list, by default captions.json beside them)
the table is of these, with real scenes for the same captions below.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from gen_jax.data.sources.scenes import Scenes, caption
from gen_jax.evaluation import scenes
from gen_jax.evaluation.scenes import judge as judging


@dataclass(frozen=True)
class Config:
    """Which samples to judge."""

    samples: tyro.conf.Positional[Path | None] = None
    """uint8 array [N, 48, 48, 3], `.npy`; none: real scenes alone."""
    captions: Path | None = None
    """A list of strings, `.json`."""
    num: int = 10_000
    """Real test scenes for the ceiling, without samples."""
    steps: int = 800
    """Of training the judge."""
    neighbours: bool = True
    """Compare it with nearest neighbours (needs scikit-learn)."""


def nearest(num: int = 20_000) -> float:
    """Share of test crops, every tenth, whose digit 5 nearest neighbours among `num` training crops agree on."""
    from sklearn.neighbors import KNeighborsClassifier

    train, test = judging.crops("train"), judging.crops("test")
    rows = np.random.default_rng(0).choice(len(train["label"]), num, replace=False)
    flat = lambda images: images.reshape(len(images), -1).astype(np.float32)
    fitted = KNeighborsClassifier(5).fit(flat(train["image"][rows]), train["label"][rows])
    return float(fitted.score(flat(test["image"][::10]), test["label"][::10]))


def main(config: Config) -> None:
    """Print what is said above."""
    start = time.perf_counter()
    judge = scenes.train(steps=config.steps)
    print(f"judge: {time.perf_counter() - start:.0f} s")
    right = scenes.accuracy(judge)
    print(f"test digits read: small {right[0].mean():.2%}, large {right[1].mean():.2%}")
    print("by digit:", " ".join(f"{x:.1%}" for x in right.mean(0)))
    if config.neighbours:
        print(f"5 nearest neighbours among 20,000 crops: {nearest():.2%}")

    source = Scenes("train")
    source[0]
    start = time.perf_counter()
    source.__getitems__(range(20_000))
    print(f"{20_000 / (time.perf_counter() - start):,.0f} scenes a second")
    if config.samples is None:
        texts = [caption(scene) for scene in Scenes("test").scenes(range(config.num))]
        print(scenes.table(scenes.ceiling(judge, texts)))
        return
    texts = json.loads((config.captions or config.samples.with_name("captions.json")).read_text())
    print(scenes.table(scenes.score(judge, np.load(config.samples), texts), scenes.ceiling(judge, texts)))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
