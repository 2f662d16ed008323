"""Judge generated digits with a classifier that shares no code with the models: a small PyTorch network.

    python benchmarks/judge.py checkpoints/step09_diffusion/samples.npy [--labels checkpoints/.../labels.npy]

It is trained on real MNIST once (about two minutes on two cores, >= 99% on the test set; kept in checkpoints/judge.pt).
Printed for the samples, and for as many real test digits beside them: the share whose top probability is at least 0.9,
and the share of each digit. Needs the extra `bench`.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import nn

REPO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Config:
    """Which samples to judge."""

    samples: tyro.conf.Positional[Path]
    """uint8 array [N, 28, 28, 1], `.npy`."""
    labels: Path | None = None
    """int array [N] of the digits that were asked for, `.npy`."""
    weights: Path = REPO / "checkpoints" / "judge.pt"
    """Where the judge's weights are kept."""
    confidence: float = 0.9


def idx(name: str) -> np.ndarray:
    """Read one of MNIST's files: a header of a magic number and the sizes, then bytes."""
    raw = gzip.decompress((REPO / "gen_jax" / "data" / "mnist" / f"{name}.gz").read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def network() -> nn.Module:
    """Two convolutions, two dense layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    ).to(memory_format=torch.channels_last)


def as_input(images: np.ndarray) -> torch.Tensor:
    """Bytes to floats in [0, 1], one channel."""
    return torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32) / 255)


@torch.no_grad()
def probabilities(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """Class probabilities `[N, 10]`."""
    net.eval()
    return torch.cat([net(part).softmax(1) for part in as_input(images).split(500)]).numpy()


@torch.no_grad()
def features(net: nn.Module, images: np.ndarray) -> np.ndarray:
    """What the last layer sees `[N, 128]`."""
    net.eval()
    return torch.cat([net[:-1](part) for part in as_input(images).split(500)]).numpy()


def judge(weights: Path) -> nn.Module:
    """The trained judge, from its file where there is one."""
    net = network()
    if weights.exists():
        net.load_state_dict(torch.load(weights))
        return net
    torch.manual_seed(0)
    x, y = (
        as_input(idx("train-images-idx3-ubyte")),
        torch.from_numpy(idx("train-labels-idx1-ubyte").astype(np.int64)),
    )
    epochs, batch = 6, 128
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * (len(x) // batch))
    for epoch in range(epochs):
        net.train()
        for rows in torch.randperm(len(x))[: len(x) // batch * batch].split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        guesses = probabilities(net, idx("t10k-images-idx3-ubyte")).argmax(1)
        print(
            f"epoch {epoch + 1}: {np.mean(guesses == idx('t10k-labels-idx1-ubyte')):.2%} of the test set",
            flush=True,
        )
    weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), weights)
    return net


def main(config: Config) -> dict[str, object]:
    """Print the judge's verdict as one JSON line."""
    samples = np.load(config.samples)
    net = judge(config.weights)
    test = probabilities(net, idx("t10k-images-idx3-ubyte"))
    p = probabilities(net, samples)
    verdict = {
        "judge_test_accuracy": float(np.mean(test.argmax(1) == idx("t10k-labels-idx1-ubyte"))),
        "num_samples": len(samples),
        "confident": float(np.mean(p.max(1) >= config.confidence)),
        "confident_real": float(np.mean(test.max(1) >= config.confidence)),
        "share_of_each_digit": (np.bincount(p.argmax(1), minlength=10) / len(p)).round(4).tolist(),
    }
    if config.labels is not None:
        verdict["label_agreement"] = float(np.mean(p.argmax(1) == np.load(config.labels)))
    print(json.dumps(verdict))
    return verdict


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
